//! Keeps an endpoint and its services registered.
//!
//! It renews at two thirds of the time that the registry grants, at half if that is little, and watches its own name: if the registry
//! forgets it or goes away, it registers again at once, and then with growing pauses.
//!
//! A Go registry or manager forgets an endpoint before the granted time ends, by the time that its last registration had (sdk,
//! pkg/registry/common/expire). So a registration has less time where little is granted: a quarter.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

use super::{EndpointEvent, Found, Registry, RegistryCall, expiry};

/// How long one registration may take at most; and where tokens are short, at least.
const TIME: Duration = Duration::from_secs(15);
const SHORTEST_TIME: Duration = Duration::from_millis(500);
/// Less than this is little time for a registration to live.
const LITTLE: Duration = Duration::from_secs(30);
/// The pause after a first failure, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long the end may take.
const END: Duration = Duration::from_secs(3);
/// Renewals are no closer than this, whatever the registry grants.
const CLOSEST: Duration = Duration::from_millis(100);

/// An endpoint that is being kept registered. Dropped, it is not renewed any more and expires.
pub struct Keeper {
    registry: Arc<dyn Registry>,
    state: watch::Receiver<Kept>,
    stop: CancellationToken,
    task: JoinHandle<()>,
    endpoint: NetworkServiceEndpoint,
}

/// What is known of the registration.
#[derive(Debug, Clone)]
pub enum Kept {
    /// Not registered, for this reason.
    Not(Status),
    /// As the registry answered last.
    As(NetworkServiceEndpoint),
}

impl Keeper {
    /// Registers `services`, then `endpoint`, and keeps on.
    pub fn start(
        registry: Arc<dyn Registry>,
        services: Vec<NetworkService>,
        endpoint: NetworkServiceEndpoint,
    ) -> Self {
        Self::start_for(expiry::DEFAULT, registry, services, endpoint)
    }

    /// Likewise, with tokens that live for `life`: the first registration has time by that, later ones by what was granted.
    pub fn start_for(
        life: Duration,
        registry: Arc<dyn Registry>,
        services: Vec<NetworkService>,
        endpoint: NetworkServiceEndpoint,
    ) -> Self {
        let (tell, state) = watch::channel(Kept::Not(Status::unavailable("not registered yet")));
        let stop = CancellationToken::new();
        let kept = endpoint.clone();
        let work = Work { registry: Arc::clone(&registry), services, endpoint, granted: life, tell };
        let task = tokio::spawn(stop.clone().run_until_cancelled_owned(work.run()).map(|_| ()));
        Self { registry, state, stop, task, endpoint: kept }
    }

    /// What is known of the registration now, and to wait for changes.
    pub fn state(&self) -> watch::Receiver<Kept> {
        self.state.clone()
    }

    /// Waits until it is registered, and says as what.
    pub async fn registered(&self) -> NetworkServiceEndpoint {
        let mut state = self.state.clone();
        let kept = state.wait_for(|kept| matches!(kept, Kept::As(_))).await.map(|kept| kept.clone());
        match kept {
            Ok(Kept::As(endpoint)) => endpoint,
            // The task ends only when this is dropped or unregistered.
            _ => std::future::pending().await,
        }
    }

    /// Stops keeping, and takes the endpoint out of the registry. Its services stay: others may offer them, too.
    ///
    /// # Errors
    /// What the registry says; the endpoint then expires.
    pub async fn unregister(mut self) -> Result<(), Status> {
        self.stop.cancel();
        // A registration under way must not come after its end.
        let _ = (&mut self.task).await;
        let kept = self.state.borrow().clone();
        let endpoint = match kept {
            Kept::As(endpoint) => endpoint,
            // One that was just under way may have been made.
            Kept::Not(_) => self.endpoint.clone(),
        };
        let mut call = RegistryCall::internal("unregister", END);
        self.registry.unregister_endpoint(&mut call, endpoint).await
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Work {
    registry: Arc<dyn Registry>,
    services: Vec<NetworkService>,
    endpoint: NetworkServiceEndpoint,
    /// How long the last registration was to live; at first a guess.
    granted: Duration,
    tell: watch::Sender<Kept>,
}

/// Why a registration is made again.
enum Why {
    Renewal,
    Lost(Status),
}

impl Work {
    async fn run(mut self) {
        let mut pauses = Pauses::default();
        let mut watch: Option<Found<EndpointEvent>> = None;
        let mut with_services = true;
        loop {
            let registered = match self.register(with_services).await {
                Ok(registered) => registered,
                Err(status) => {
                    tracing::warn!(endpoint = %self.endpoint.name, %status, "not registered; trying again");
                    self.tell.send_replace(Kept::Not(status));
                    (watch, with_services) = (None, true);
                    tokio::time::sleep(pauses.next()).await;
                    continue;
                }
            };
            let since = Instant::now();
            self.granted = granted(&registered);
            let renewal = since + self.renew_after();
            self.tell.send_replace(Kept::As(registered));
            match self.wait(&mut watch, renewal).await {
                Why::Renewal => {
                    with_services = false;
                    pauses = Pauses::default();
                }
                Why::Lost(status) => {
                    tracing::info!(endpoint = %self.endpoint.name, %status, "the registration was lost; registering again");
                    (watch, with_services) = (None, true);
                    // Who comes back and stays is not to be waited for longer each time; who comes and goes is.
                    if since.elapsed() >= pauses.0 {
                        pauses = Pauses::default();
                    }
                    tokio::time::sleep(pauses.next()).await;
                }
            }
        }
    }

    /// How long to wait until the next renewal: two thirds of what is granted; where that is little, half, so that there is time for a
    /// slow registry, and for a second attempt.
    fn renew_after(&self) -> Duration {
        let part = if self.granted < LITTLE { self.granted / 2 } else { self.granted * 2 / 3 };
        part.max(CLOSEST)
    }

    /// How long a registration may take: even a Go registry, which forgets it that long before its end, hears of us before.
    fn time(&self) -> Duration {
        TIME.min((self.granted / 4).max(SHORTEST_TIME))
    }

    async fn register(&mut self, with_services: bool) -> Result<NetworkServiceEndpoint, Status> {
        let time = self.time();
        if with_services {
            for service in &self.services {
                let mut call = RegistryCall::internal("register", time);
                self.registry.register_service(&mut call, service.clone()).await?;
            }
        }
        let mut call = RegistryCall::internal("register", time);
        let registered = self.registry.register_endpoint(&mut call, self.endpoint.clone()).await?;
        // A registry that has lost its memory shall still know who was first.
        self.endpoint.initial_registration_time = registered.initial_registration_time;
        Ok(registered)
    }

    /// Waits until it is time to register again.
    async fn wait(&self, watch: &mut Option<Found<EndpointEvent>>, renewal: Instant) -> Why {
        let lost = async {
            loop {
                let events = match watch {
                    Some(events) => events,
                    None => match self.watch().await {
                        Ok(events) => watch.insert(events),
                        Err(status) => return status,
                    },
                };
                match events.next().await {
                    Some(Ok(event)) if event.deleted && event.endpoint.name == self.endpoint.name => {
                        return Status::not_found("the registry has removed it");
                    }
                    Some(Ok(_)) => {}
                    Some(Err(status)) => return status,
                    None => return Status::unavailable("the watch ended"),
                }
            }
        };
        tokio::select! {
            status = lost => Why::Lost(status),
            () = tokio::time::sleep_until(renewal.into()) => Why::Renewal,
        }
    }

    async fn watch(&self) -> Result<Found<EndpointEvent>, Status> {
        let query = NetworkServiceEndpoint { name: self.endpoint.name.clone(), ..Default::default() };
        self.registry.find_endpoints(&mut RegistryCall::internal("keeper", TIME), query, true).await
    }
}

/// How long it lives from now on.
fn granted(registered: &NetworkServiceEndpoint) -> Duration {
    let end = registered.expiration_time.as_ref();
    end.map_or(expiry::DEFAULT, |end| expiry::left(end, SystemTime::now()))
}

/// Pauses that grow, each between half and all of its length: those who failed together do not come back together.
struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Pauses {
    fn next(&mut self) -> Duration {
        let pause = self.0.mul_f64(rand::random_range(0.5..1.0));
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
        pause
    }
}
