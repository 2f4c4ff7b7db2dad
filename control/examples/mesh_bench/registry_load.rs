//! `registry-load`: callers of a registry, each with a connection of its own that it keeps.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tonic::metadata::MetadataValue;
use tonic::{Request, Streaming};
use vwire_control::api::registry::network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient;
use vwire_control::api::registry::{
    NetworkServiceEndpoint, NetworkServiceEndpointQuery, NetworkServiceEndpointResponse, NetworkServiceLabels,
};
use vwire_control::transport::{Pool, Target};

use crate::figures::{Figures, Until, measure};
use crate::{Common, Member, text};

/// Endpoints of each service.
const PER_SERVICE: usize = 100;
const TIME: Duration = Duration::from_secs(15);
/// How long one kind of finds is done.
const FINDS: Duration = Duration::from_secs(4);
const START: Duration = Duration::from_secs(20);

/// The load's settings.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    #[command(flatten)]
    common: Common,
    /// Endpoints, a multiple of 100.
    #[arg(long, default_value_t = 1000)]
    endpoints: usize,
    /// Callers at the same time.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Watchers of the endpoint that changes.
    #[arg(long, default_value_t = 100)]
    watchers: usize,
    /// How often it changes.
    #[arg(long, default_value_t = 50)]
    changes: usize,
}

/// Loads, and tells of each phase.
pub async fn run(settings: Settings) -> Result<(), String> {
    let member = Member::new(&settings.common).await?;
    let target = &settings.common.connect_to;
    let caller = |_| Caller { pool: member.pool(), target: target.clone() };
    let callers: Rc<Vec<Caller>> = Rc::new((0..settings.clients).map(caller).collect());
    let end = Instant::now() + START;
    for caller in callers.iter() {
        while let Err(error) = caller.found(by_name(0)).await {
            if Instant::now() > end {
                return Err(format!("the registry does not serve: {error}"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let all = Until { count: settings.endpoints, time: Duration::from_secs(120) };
    let by = Rc::clone(&callers);
    let registered = measure("register", settings.clients, all, move |client, n| {
        let by = Rc::clone(&by);
        async move { by[client].register(endpoint(n)).await }
    })
    .await;
    registered.tell();
    let endpoints = registered.count;
    finds(&settings, &callers, "find by name", 1, move |n| by_name(n.wrapping_mul(7919) % endpoints)).await;
    let services = (endpoints / PER_SERVICE).max(1);
    finds(&settings, &callers, "find by service", PER_SERVICE, move |n| by_service(n % services)).await;
    watch(&settings, &member, &callers[0]).await?.tell();
    Ok(())
}

async fn finds(
    settings: &Settings,
    callers: &Rc<Vec<Caller>>,
    what: &'static str,
    hits: usize,
    query: impl Fn(usize) -> NetworkServiceEndpoint + 'static,
) {
    let callers = Rc::clone(callers);
    let until = Until { count: usize::MAX, time: FINDS };
    let figures = measure(what, settings.clients, until, move |client, n| {
        let (callers, query) = (Rc::clone(&callers), query(n));
        async move {
            match callers[client].found(query).await? {
                found if found == hits => Ok(()),
                found => Err(format!("found {found}, not {hits}")),
            }
        }
    });
    figures.await.tell();
}

/// From the call until each watcher has seen the change.
async fn watch(settings: &Settings, member: &Member, registrant: &Caller) -> Result<Figures, String> {
    let watched = NetworkServiceEndpoint {
        name: "watched".into(),
        network_service_names: vec!["watched".into()],
        url: "tcp://192.0.2.1:5001".into(),
        ..Default::default()
    };
    registrant.register(watched.clone()).await?;
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut watchers = tokio::task::JoinSet::new();
    for _ in 0..settings.watchers {
        let watcher = Caller { pool: member.pool(), target: registrant.target.clone() };
        let query =
            NetworkServiceEndpoint { network_service_names: vec!["watched".into()], ..Default::default() };
        let mut events = watcher.find(query, true).await?;
        let tell = tell.clone();
        watchers.spawn(async move {
            let _connection = watcher;
            while let Ok(Some(_)) = events.message().await {
                let _ = tell.send(Instant::now());
            }
        });
    }
    let mut times = Vec::new();
    let start = Instant::now();
    // What is there already comes first.
    for _ in 0..settings.watchers {
        told.recv().await;
    }
    for change in 0..settings.changes {
        let url = format!("tcp://192.0.2.1:{}", 6000 + change);
        let began = Instant::now();
        registrant.register(NetworkServiceEndpoint { url, ..watched.clone() }).await?;
        for _ in 0..settings.watchers {
            let seen = tokio::time::timeout(TIME, told.recv()).await;
            let seen = seen.map_err(|_| "a watcher did not see a change")?.ok_or("no watchers")?;
            times.push(seen.saturating_duration_since(began));
        }
    }
    Ok(Figures::of("watch", settings.watchers, times, start.elapsed()))
}

fn endpoint(n: usize) -> NetworkServiceEndpoint {
    let service = format!("service-{}", n / PER_SERVICE);
    let labels: BTreeMap<String, String> = [("app".to_owned(), "load".to_owned())].into();
    NetworkServiceEndpoint {
        name: format!("endpoint-{n}"),
        network_service_names: vec![service.clone()],
        network_service_labels: [(service, NetworkServiceLabels { labels })].into(),
        url: "tcp://192.0.2.1:5001".into(),
        ..Default::default()
    }
}

fn by_name(n: usize) -> NetworkServiceEndpoint {
    NetworkServiceEndpoint { name: format!("endpoint-{n}"), ..Default::default() }
}

fn by_service(n: usize) -> NetworkServiceEndpoint {
    NetworkServiceEndpoint { network_service_names: vec![format!("service-{n}")], ..Default::default() }
}

struct Caller {
    pool: Arc<Pool>,
    target: Target,
}

type Client = NetworkServiceEndpointRegistryClient<vwire_control::transport::Hop>;

impl Caller {
    async fn client(&self) -> Result<Client, String> {
        let hop = self.pool.hop(&self.target).await.map_err(text)?;
        Ok(Client::new(hop).max_decoding_message_size(64 << 20))
    }

    async fn register(&self, endpoint: NetworkServiceEndpoint) -> Result<(), String> {
        let mut request = Request::new(endpoint);
        request.set_timeout(TIME);
        self.client().await?.register(with_path(request)).await.map(drop).map_err(text)
    }

    async fn find(
        &self,
        endpoint: NetworkServiceEndpoint,
        watch: bool,
    ) -> Result<Streaming<NetworkServiceEndpointResponse>, String> {
        let query = NetworkServiceEndpointQuery { network_service_endpoint: Some(endpoint), watch };
        let answer = self.client().await?.find(with_path(Request::new(query))).await;
        answer.map(tonic::Response::into_inner).map_err(text)
    }

    /// How many there are.
    async fn found(&self, endpoint: NetworkServiceEndpoint) -> Result<usize, String> {
        let mut answers = self.find(endpoint, false).await?;
        let mut count = 0;
        while answers.message().await.map_err(text)?.is_some() {
            count += 1;
        }
        Ok(count)
    }
}

/// What registries' callers send with each call: a path that has no segment yet.
fn with_path<T>(mut request: Request<T>) -> Request<T> {
    let none = MetadataValue::from_static(r#"{"Index":0,"PathSegments":null}"#);
    request.metadata_mut().insert("path", none);
    request
}
