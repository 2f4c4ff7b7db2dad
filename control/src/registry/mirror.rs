//! Forwarding what is registered here to a registry of several domains (NSMRS).
//!
//! A watch of our own registry, and registrations at the other: whoever registers here never waits for the other, and does not notice when
//! it is away. Each endpoint is registered there at once, again in each interval (the keep-alive: the other one forgets it otherwise), and
//! again as soon as the other one is back after it was away. What is unregistered here, or expires, is unregistered there.
//!
//! There they are all ours: registered by this process, under its identity.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

use super::{EndpointEvent, Found, Registry, RegistryCall, expiry, find};
use crate::identity::{SpiffeId, TrustDomain};

/// How long one call may take, as the old registry had it.
const TIME: Duration = Duration::from_secs(15);
/// The pause after a first failure, and the longest: the old registry's.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// A URL that may change.
pub type Outside = Arc<dyn Fn() -> String + Send + Sync>;

/// What is forwarded, and how.
#[derive(Clone)]
pub struct Settings {
    /// How often each endpoint is registered again (`NSE_TRACKING_INTERVAL`).
    pub interval: Duration,
    /// How long an endpoint that a restarted registry of ours does not know is left at the other one: it will register again.
    pub grace: Duration,
    /// The URL that endpoints have for other domains: our domain's nsmgr-proxy. Their own, which is their manager's, if there is none.
    pub outside: Option<Outside>,
    /// Services that are the domain's own business: its forwarders'.
    pub private: BTreeSet<String>,
    /// Our trust domain: what members of others registered here is not ours to pass on.
    pub domain: Option<TrustDomain>,
}

/// Forwards what is in `here` to `there` until `shutdown`.
pub async fn run(
    here: Arc<dyn Registry>,
    there: Arc<dyn Registry>,
    settings: Settings,
    shutdown: CancellationToken,
) {
    let mirror = Mirror {
        here,
        there,
        settings,
        endpoints: BTreeMap::new(),
        services: BTreeSet::new(),
        gone: Vec::new(),
        pause: Pause::default(),
        watch: None,
    };
    shutdown.run_until_cancelled_owned(mirror.run()).await;
}

struct Mirror {
    here: Arc<dyn Registry>,
    there: Arc<dyn Registry>,
    settings: Settings,
    endpoints: BTreeMap<String, Kept>,
    /// Services that were registered there since it was last away.
    services: BTreeSet<String>,
    /// Endpoints to be unregistered there.
    gone: Vec<NetworkServiceEndpoint>,
    pause: Pause,
    watch: Option<Found<EndpointEvent>>,
}

/// An endpoint of ours.
struct Kept {
    endpoint: Arc<NetworkServiceEndpoint>,
    due: Instant,
    refused: bool,
    /// Our registry came back without it. Until then it may register again; so long it stays there, and is not renewed.
    missing_until: Option<Instant>,
}

impl Kept {
    fn new(endpoint: Arc<NetworkServiceEndpoint>) -> Self {
        Self { endpoint, due: Instant::now(), refused: false, missing_until: None }
    }

    /// When something is to be done about it.
    fn next(&self) -> Instant {
        self.missing_until.unwrap_or(self.due)
    }
}

/// When the other registry is tried again.
struct Pause {
    next: Duration,
    until: Option<Instant>,
}

impl Default for Pause {
    fn default() -> Self {
        Self { next: FIRST_PAUSE, until: None }
    }
}

impl Mirror {
    async fn run(mut self) {
        loop {
            let mut ours = match self.open().await {
                Ok(ours) => ours,
                Err(status) => {
                    tracing::warn!(%status, "what is registered here can't be watched; trying again");
                    tokio::time::sleep(FIRST_PAUSE).await;
                    continue;
                }
            };
            loop {
                let next = self.next();
                tokio::select! {
                    event = ours.next() => match event {
                        Some(Ok(event)) => self.take(event),
                        _ => break,
                    },
                    () = away(&mut self.watch) => self.away(&Status::unavailable("its watch ended")),
                    () = sleep_until(next) => self.forward().await,
                }
            }
        }
    }

    /// Watches our own registry, and forgets what went meanwhile.
    async fn open(&mut self) -> Result<Found<EndpointEvent>, Status> {
        let all = NetworkServiceEndpoint::default;
        let ours = self.here.find_endpoints(&mut call(), all(), true).await?;
        let now = find::endpoints(&*self.here, &mut call(), all()).await?;
        let names: BTreeSet<&str> = now.iter().map(|event| event.endpoint.name.as_str()).collect();
        let until = Instant::now() + self.settings.grace;
        for (_, kept) in self.endpoints.iter_mut().filter(|(name, _)| !names.contains(name.as_str())) {
            kept.missing_until.get_or_insert(until);
        }
        Ok(ours)
    }

    fn take(&mut self, event: EndpointEvent) {
        if event.deleted {
            self.forget(&event.endpoint.name);
            return;
        }
        if !self.settings.forwards(&event.endpoint) {
            return;
        }
        match self.endpoints.get_mut(&event.endpoint.name) {
            // A renewal here changes nothing there.
            Some(kept) if alike(&kept.endpoint, &event.endpoint) => {
                (kept.endpoint, kept.missing_until) = (event.endpoint, None);
            }
            Some(kept) => *kept = Kept::new(event.endpoint),
            None => drop(self.endpoints.insert(event.endpoint.name.clone(), Kept::new(event.endpoint))),
        }
    }

    fn forget(&mut self, name: &str) {
        if let Some(kept) = self.endpoints.remove(name) {
            self.gone.push(self.settings.outside(&kept.endpoint));
        }
    }

    /// When there is something to do.
    fn next(&self) -> Option<Instant> {
        let due = self.endpoints.values().map(Kept::next).min();
        let due = if self.gone.is_empty() { due } else { Some(Instant::now()) };
        due.map(|due| self.pause.until.map_or(due, |until| due.max(until)))
    }

    /// Does what is due.
    async fn forward(&mut self) {
        let done = self.try_forward().await;
        match done {
            Ok(()) => self.pause = Pause::default(),
            Err(status) => self.away(&status),
        }
    }

    async fn try_forward(&mut self) -> Result<(), Status> {
        let now = Instant::now();
        let missing = |kept: &Kept| kept.missing_until.is_some_and(|until| until <= now);
        let missed: Vec<String> =
            self.endpoints.iter().filter(|(_, kept)| missing(kept)).map(|(name, _)| name.clone()).collect();
        missed.iter().for_each(|name| self.forget(name));
        while let Some(endpoint) = self.gone.pop() {
            if let Err(status) = self.there.unregister_endpoint(&mut call(), endpoint.clone()).await {
                tracing::info!(endpoint = %endpoint.name, %status, "not unregistered at the other registry");
                // What it refuses expires there; what it did not hear is told again.
                passing(status).inspect_err(|_| self.gone.push(endpoint))?;
            }
        }
        let due: Vec<String> = self
            .endpoints
            .iter()
            .filter(|(_, kept)| kept.next() <= now)
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            self.register(&name).await?;
        }
        Ok(())
    }

    /// Watches one of ours there: the end of the watch is the first sign that the other registry went away. Of one that is there, since
    /// grpc-go answers a watch with its first event.
    async fn watch(&mut self, name: &str) -> Result<(), Status> {
        let query = NetworkServiceEndpoint { name: name.to_owned(), ..Default::default() };
        let asked = tokio::time::timeout(TIME, self.there.find_endpoints(&mut call(), query, true)).await;
        self.watch = Some(asked.map_err(|_| Status::deadline_exceeded("no answer to a watch"))??);
        Ok(())
    }

    async fn register(&mut self, name: &str) -> Result<(), Status> {
        let Some(endpoint) = self.endpoints.get(name).map(|kept| self.settings.outside(&kept.endpoint))
        else {
            return Ok(());
        };
        self.put_services(&endpoint.network_service_names).await?;
        let registered = self.there.register_endpoint(&mut call(), endpoint).await;
        let Some(kept) = self.endpoints.get_mut(name) else { return Ok(()) };
        match registered {
            Ok(registered) => {
                if kept.refused {
                    tracing::info!(endpoint = name, "the other registry takes it now");
                }
                kept.refused = false;
                kept.due = Instant::now() + self.settings.again_after(&registered);
                if self.watch.is_none() { self.watch(name).await } else { Ok(()) }
            }
            Err(status) => {
                if !kept.refused {
                    tracing::warn!(endpoint = name, %status, "the other registry does not take it");
                }
                passing(status)?;
                kept.refused = true;
                kept.due = Instant::now() + self.settings.interval;
                Ok(())
            }
        }
    }

    /// Registers services, as they are defined here. One that another domain has registered there already will do.
    async fn put_services(&mut self, names: &[String]) -> Result<(), Status> {
        for name in names {
            if self.services.contains(name) {
                continue;
            }
            let Ok(service) = find::service(&*self.here, &mut call(), name).await else { continue };
            let service = NetworkService { path_ids: Vec::new(), ..(*service).clone() };
            if let Err(status) = self.there.register_service(&mut call(), service).await {
                tracing::debug!(service = %name, %status, "the other registry has this service of another domain");
                passing(status)?;
            }
            self.services.insert(name.clone());
        }
        Ok(())
    }

    /// The other registry can't be reached, or was away: all is registered again once it is there.
    fn away(&mut self, status: &Status) {
        if self.pause.until.is_none() {
            tracing::warn!(%status, "the other registry is away; what is registered here is forwarded when it is back");
        }
        let now = Instant::now();
        self.watch = None;
        self.services.clear();
        for kept in self.endpoints.values_mut() {
            kept.due = now;
        }
        let pause = self.pause.next.mul_f64(rand::random_range(0.5..1.0));
        self.pause = Pause { next: (self.pause.next * 2).min(LONGEST_PAUSE), until: Some(now + pause) };
    }
}

impl Settings {
    fn forwards(&self, endpoint: &NetworkServiceEndpoint) -> bool {
        let private = endpoint.network_service_names.iter().any(|name| self.private.contains(name));
        let owner = endpoint.path_ids.first().and_then(|id| SpiffeId::new(id).ok());
        let foreign = owner.zip(self.domain.as_ref()).is_some_and(|(id, ours)| id.trust_domain() != ours);
        !private && !foreign && (self.outside.is_some() || endpoint.url.starts_with("tcp://"))
    }

    /// An endpoint as other domains see it.
    fn outside(&self, endpoint: &NetworkServiceEndpoint) -> NetworkServiceEndpoint {
        NetworkServiceEndpoint {
            url: self.outside.as_ref().map_or_else(|| endpoint.url.clone(), |url| url()),
            // Its end there is not its end here; and the path is ours.
            expiration_time: None,
            path_ids: Vec::new(),
            ..endpoint.clone()
        }
    }

    /// In an interval, or sooner if the other registry would forget it before.
    fn again_after(&self, registered: &NetworkServiceEndpoint) -> Duration {
        let granted =
            registered.expiration_time.as_ref().map(|end| expiry::left(end, SystemTime::now()) * 2 / 3);
        granted.map_or(self.interval, |granted| granted.min(self.interval)).max(FIRST_PAUSE)
    }
}

/// True if a registration is a mere renewal.
fn alike(a: &NetworkServiceEndpoint, b: &NetworkServiceEndpoint) -> bool {
    (&a.url, &a.network_service_names, &a.network_service_labels)
        == (&b.url, &b.network_service_names, &b.network_service_labels)
}

fn call() -> RegistryCall {
    RegistryCall::internal("nsmrs", TIME)
}

/// Failures that mean that the other registry is not there; all others are its answer.
fn passing(status: Status) -> Result<(), Status> {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Err(status),
        _ => Ok(()),
    }
}

/// Waits until the watch there ends.
async fn away(watch: &mut Option<Found<EndpointEvent>>) {
    let Some(events) = watch else { return std::future::pending().await };
    while let Some(Ok(_)) = events.next().await {}
}

async fn sleep_until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when.into()).await,
        None => std::future::pending().await,
    }
}
