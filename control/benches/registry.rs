//! A registry over mutual TLS with tokens and the default policies: how many registrations and finds a second 16 callers get, and
//! how soon 100 watchers see a change. Server and callers share the machine's cores, and here one process.
//!
//! `cargo bench -p vwire-control --bench registry [-- ENDPOINTS…]`

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use vwire_control::identity::issuer::Authority;
use vwire_control::identity::policy::Policies;
use vwire_control::identity::{Identity, TokenSource, TrustDomain};
use vwire_control::registry::authorize::{Authorize, Strict};
use vwire_control::registry::hops::Hops;
use vwire_control::registry::memory::{Settings, Store};
use vwire_control::registry::remote::Remote;
use vwire_control::registry::{Registry, RegistryCall, find, server};
use vwire_control::transport::{Dialling, Limits, Pool, Server, Target};
use vwire_proto::nsm::registry::NetworkServiceEndpoint;

const CALLERS: usize = 16;
const WATCHERS: usize = 100;
const EVENTS: usize = 200;
const HITS: usize = 100;
const MEASURED: Duration = Duration::from_secs(5);
const TIME: Duration = Duration::from_secs(60);

struct Member {
    identity: Identity,
    tokens: TokenSource,
    pool: Arc<Pool>,
}

fn member(authority: &Authority, name: &str) -> Member {
    let svid = authority.issue(&format!("/{name}"), Duration::from_secs(86400)).expect("an SVID");
    let identity = Identity::fixed(svid);
    let tokens = TokenSource::new(identity.clone(), Duration::from_secs(600));
    let dialling = Dialling { timeout: TIME, ..Dialling::default() };
    let pool = Arc::new(Pool::new(identity.clone(), tokens.clone(), dialling));
    Member { identity, tokens, pool }
}

fn client(authority: &Authority, name: &str, target: &Target) -> Arc<Remote> {
    let rules = Some(Arc::new(Policies::standard()) as _);
    Arc::new(Remote::new(member(authority, name).pool, target.clone()).with_rules(rules))
}

fn call() -> RegistryCall {
    RegistryCall::internal("bench", TIME)
}

fn endpoint(n: usize, service: &str) -> NetworkServiceEndpoint {
    NetworkServiceEndpoint {
        name: format!("nse-{n}"),
        network_service_names: vec![service.to_owned()],
        network_service_labels: [(service.to_owned(), Default::default())].into(),
        url: "tcp://10.0.0.1:5001".into(),
        ..Default::default()
    }
}

/// Starts a registry; it runs until the token is cancelled.
async fn start(authority: &Authority) -> (Target, CancellationToken) {
    let registry = member(authority, "registry");
    // Long enough that nothing expires in between.
    let store = Store::new(Settings { expire: Duration::from_secs(600), ..Settings::default() });
    let authorized = Authorize::new(store, Some(Arc::new(Policies::standard())), Strict::default());
    let chain: Arc<dyn Registry> = Arc::new(Hops::new(authorized, registry.tokens.clone()));
    let shutdown = CancellationToken::new();
    let routes = server::add_to(Routes::default(), &chain, &shutdown);
    let anywhere = Target::parse("tcp://127.0.0.1:0").expect("an address");
    let server = Server::bind(&[anywhere], Limits::default()).await.expect("a socket");
    let target = server.targets().remove(0);
    tokio::spawn(server.serve(registry.identity, routes, shutdown.clone()));
    (target, shutdown)
}

/// Times of single calls.
struct Times(Vec<Duration>);

impl Times {
    fn percentile(&self, percent: usize) -> Duration {
        self.0
            .get((self.0.len() * percent / 100).min(self.0.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    }
}

fn report(what: &str, times: Vec<Duration>, took: Duration) {
    let mut times = Times(times);
    times.0.sort();
    let per_second = times.0.len() as f64 / took.as_secs_f64();
    let ms = |percent| times.percentile(percent).as_secs_f64() * 1e3;
    println!("  {what:<34} {per_second:>9.0}/s   p50 {:>7.2} ms   p99 {:>7.2} ms", ms(50), ms(99));
}

/// All callers at once do `one` until it says that there is no more.
async fn together<F, Fut>(clients: &[Arc<Remote>], one: F) -> (Vec<Duration>, Duration)
where
    F: Fn(Arc<Remote>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = bool> + Send,
{
    let start = Instant::now();
    let mut callers = JoinSet::new();
    for client in clients {
        let (client, one) = (Arc::clone(client), one.clone());
        callers.spawn(async move {
            let mut times = Vec::new();
            loop {
                let before = Instant::now();
                if !one(Arc::clone(&client)).await {
                    return times;
                }
                times.push(before.elapsed());
            }
        });
    }
    let times = callers.join_all().await.concat();
    (times, start.elapsed())
}

async fn measure(endpoints: usize) {
    println!("{endpoints} endpoints, {CALLERS} callers");
    let domain = TrustDomain::new("bench.local").expect("a trust domain");
    let authority = Authority::new(domain).expect("an authority");
    let (target, shutdown) = start(&authority).await;
    let clients: Vec<_> = (0..CALLERS).map(|n| client(&authority, &format!("caller-{n}"), &target)).collect();
    for client in &clients {
        find::endpoints(&**client, &mut call(), endpoint(0, "none")).await.expect("a registry");
    }
    let services = endpoints / HITS;
    let next = Arc::new(AtomicUsize::new(0));
    let (times, took) = together(&clients, move |client| {
        let n = next.fetch_add(1, Ordering::Relaxed);
        async move {
            let one = endpoint(n, &format!("service-{}", n % services));
            n < endpoints
                && client.register_endpoint(&mut call(), one).await.map(|_| true).expect("registered")
        }
    })
    .await;
    report("registrations", times, took);
    finds(&clients, endpoints, services).await;
    watches(&authority, &target, &clients[0]).await;
    println!("  memory of server and callers: {} MB", memory());
    shutdown.cancel();
}

async fn finds(clients: &[Arc<Remote>], endpoints: usize, services: usize) {
    let end = Instant::now() + MEASURED;
    let next = Arc::new(AtomicUsize::new(0));
    let by_name = Arc::clone(&next);
    let (times, took) = together(clients, move |client| {
        let n = by_name.fetch_add(7919, Ordering::Relaxed) % endpoints;
        async move {
            let query = NetworkServiceEndpoint { name: format!("nse-{n}"), ..Default::default() };
            let found = find::endpoints(&*client, &mut call(), query).await.expect("found");
            assert_eq!(found.len(), 1);
            Instant::now() < end
        }
    })
    .await;
    report("finds by name", times, took);
    let end = Instant::now() + MEASURED;
    let (times, took) = together(clients, move |client| {
        let n = next.fetch_add(1, Ordering::Relaxed) % services;
        async move {
            let names = vec![format!("service-{n}")];
            let query = NetworkServiceEndpoint { network_service_names: names, ..Default::default() };
            let found = find::endpoints(&*client, &mut call(), query).await.expect("found");
            assert_eq!(found.len(), HITS);
            Instant::now() < end
        }
    })
    .await;
    report("finds by service, 100 hits each", times, took);
}

/// From the moment a registration is sent until each of the watchers, on a connection each, has its event.
async fn watches(authority: &Authority, target: &Target, registrant: &Remote) {
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut watchers = JoinSet::new();
    for n in 0..WATCHERS {
        let client = client(authority, &format!("watcher-{n}"), target);
        let tell = tell.clone();
        let query =
            NetworkServiceEndpoint { network_service_names: vec!["watched".into()], ..Default::default() };
        let mut events = client.find_endpoints(&mut call(), query, true).await.expect("a watch");
        watchers.spawn(async move {
            while let Some(Ok(event)) = events.next().await {
                let number: usize = event.endpoint.name.trim_start_matches("nse-").parse().expect("a number");
                if tell.send((number, Instant::now())).is_err() {
                    return;
                }
            }
        });
    }
    let mut times = Vec::new();
    let start = Instant::now();
    // The first one finds the watches open.
    for n in 0..=EVENTS {
        let sent = Instant::now();
        registrant
            .register_endpoint(&mut call(), endpoint(n + 1_000_000, "watched"))
            .await
            .expect("registered");
        for _ in 0..WATCHERS {
            let (number, at) = told.recv().await.expect("an event");
            assert_eq!(number, n + 1_000_000);
            if n > 0 {
                times.push(at - sent);
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    report("watch events at 100 watchers", times, start.elapsed());
    watchers.abort_all();
}

fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kb| kb.parse::<u64>().ok()).unwrap_or_default() / 1024
}

#[tokio::main]
async fn main() {
    let named: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    for endpoints in if named.is_empty() { vec![1_000, 10_000] } else { named } {
        assert!(endpoints >= HITS && endpoints % HITS == 0, "a multiple of {HITS}");
        measure(endpoints).await;
    }
}
