//! Links between the endpoints of a vL3 service: each has one with every other.
//!
//! An endpoint watches the registry for the others, in its own domain and in those that it is told of, and dials those that are its to
//! dial: a Request to the endpoint itself, over the node's manager as any client's, with a memif that ends in our routing domain. Others
//! dial us, and come in by the [`Gate`].
//!
//! | module | has |
//! |---|---|
//! | `order` | who of two dials |
//! | `pairing` | which links there should be: all decisions, and no doing |
//! | [`announced`] | what a peer says of itself, and whether it may |
//! | `watch` | which endpoints the registry knows |
//! | `links` | what there is, and what is told of it |
//! | `dial` | links that we dial |
//! | `gate` | links by which we are dialled |
//! | `own` | our own interface in our own namespace |
//! | `ports` | what is asked of the routing domain |

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use ipnet::IpNet;
use serde_json::Value;
use tokio::sync::{mpsc, watch as tokio_watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use vwire_proto::nsm::registry::NetworkServiceEndpoint;

use crate::chain::Element;
use crate::client::{Client, ClientSettings, LivenessSettings, Namespace, Session, Upstream};
use crate::obs::{ConnectionView, Metrics};
use crate::registry::Registry;
use crate::registry::keeper::Kept;
use crate::vl3::mtu::NetworkMtu;

pub mod announced;
mod dial;
mod gate;
mod links;
mod order;
mod own;
mod pairing;
mod ports;
mod watch;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use gate::Gate;
pub use links::Own;
pub use own::{is_own, own_id};
pub use ports::{Leg, NOTE, Ports, RouterPorts};

use dial::{Asking, Judged, PeerPath};
use links::Links;
use order::Age;
use pairing::{Action, Candidate, Pairing};
use watch::Seen;

/// How long one that should dial us is waited for.
const PATIENCE: Duration = Duration::from_secs(6);
/// How long the first links wait for our own interface, whose address is our name server's.
const OWN_FIRST: Duration = Duration::from_secs(3);
/// Between attempts to set routes that could not be set.
const AGAIN: Duration = Duration::from_millis(500);
/// How long closing one link may take.
const CLOSE: Duration = Duration::from_secs(3);
/// What watches tell before it is taken up.
const WAITING: usize = 256;
/// Our own interface is made again after a restart of the packet engine; until then its silence says nothing.
const OWN_SILENCE: Duration = Duration::from_secs(10);
/// How long a link of an earlier life may take to be there again.
const ADOPTED: Duration = Duration::from_secs(30);
/// Longest pause between Requests that fail.
const LAST_RETRY: Duration = Duration::from_secs(3);

/// Another endpoint of the service that packets can be sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name in the registry, with its domain if it is of another one.
    pub name: String,
    /// What is behind it.
    pub prefixes: Vec<IpNet>,
    /// Its name servers.
    pub dns: Vec<IpAddr>,
}

/// What links are made with.
pub struct Setup {
    /// Our name in paths: `NSM_NAME`.
    pub name: String,
    /// Our SPIFFE ID, if we have one.
    pub identity: Option<String>,
    /// The services whose endpoints are peers: our own, the first of which we ask ourselves for, and other domains' as
    /// `service@domain`.
    pub services: Vec<String>,
    /// `NSM_REQUEST_LABELS`.
    pub labels: BTreeMap<String, String>,
    /// ETHERNET or IP.
    pub payload: String,
    /// Ours, for sockets and our own interface.
    pub namespace: Namespace,
    /// The node's manager.
    pub upstream: Arc<dyn Upstream>,
    /// Where endpoints are found.
    pub registry: Arc<dyn Registry>,
    /// The routing domain.
    pub ports: Box<dyn Ports>,
    /// What the endpoint calls the port of a connection with this id.
    pub port_name: fn(&str) -> String,
    /// The network's MTU, of which links are a part.
    pub mtu: Arc<NetworkMtu>,
    /// Whether we have an interface of our own.
    pub own_interface: bool,
    /// How links are kept.
    pub client: ClientSettings,
}

/// The links of one endpoint. Dropped, it stops; see [`close`](Self::close).
pub struct Peers {
    setup: Parts,
    links: Arc<Links>,
    address: tokio_watch::Sender<Option<IpAddr>>,
    /// The engine knows no connection of ours to ourselves.
    own_lost: AtomicBool,
    stop: CancellationToken,
}

/// What is left of the setup.
struct Parts {
    name: String,
    services: Vec<String>,
    payload: String,
    namespace: Namespace,
    upstream: Arc<dyn Upstream>,
    registry: Arc<dyn Registry>,
    client: ClientSettings,
    port_name: fn(&str) -> String,
    mtu: Arc<NetworkMtu>,
    own_interface: bool,
    asking: Asking,
}

impl Peers {
    /// Nothing is linked yet, but peers may come in.
    pub fn new(setup: Setup) -> Arc<Self> {
        let pairing = Pairing::new(&setup.name, setup.identity, PATIENCE);
        let links = Arc::new(Links::new(pairing, setup.ports));
        let asking = Asking {
            name: setup.name.clone(),
            labels: setup.labels,
            payload: setup.payload.clone(),
            namespace: setup.namespace.clone(),
            mark: links.mark.clone(),
        };
        let setup = Parts {
            name: setup.name,
            services: setup.services,
            payload: setup.payload,
            namespace: setup.namespace,
            upstream: setup.upstream,
            registry: setup.registry,
            client: ClientSettings { last_retry: LAST_RETRY, ..setup.client },
            port_name: setup.port_name,
            mtu: setup.mtu,
            own_interface: setup.own_interface,
            asking,
        };
        let (address, _) = tokio_watch::channel(None);
        let own_lost = AtomicBool::new(true);
        Arc::new(Self { setup, links, address, own_lost, stop: CancellationToken::new() })
    }

    /// The element that lets peers in. It belongs before what makes ports and routes of a connection.
    pub fn gate(&self) -> Arc<dyn Element> {
        Arc::new(Gate::new(Arc::clone(&self.links), self.setup.port_name))
    }

    /// Who is linked, as it changes.
    pub fn peers(&self) -> tokio_watch::Receiver<Vec<Peer>> {
        self.links.peers()
    }

    /// The address of our interface in our own namespace, as it changes; none while there is none.
    pub fn address(&self) -> tokio_watch::Receiver<Option<IpAddr>> {
        self.address.subscribe()
    }

    /// What we are in the network. Links are made once there is an address; when it changes, all links are asked for again.
    pub fn set_own(&self, own: Own) {
        if self.links.set_own(own) {
            self.renew();
            self.links.changed.notify_one();
        }
    }

    /// Says anew on all links what we are.
    fn renew(&self) {
        let context = self.setup.asking.context(&self.links.own(), *self.address.borrow());
        self.links.each_session(|session| {
            let context = context.clone();
            session.change(move |wanted| wanted.connection.context = Some(context));
        });
    }

    /// For `vwire status`: each peer with its state, its last error and its prefixes.
    pub fn report(&self) -> Value {
        self.links.report().into()
    }

    /// The links that we dialled, for `vwire path`.
    pub fn connections(&self) -> Vec<ConnectionView> {
        self.links.connections().iter().map(ConnectionView::of).collect()
    }

    /// Takes over ports that an earlier process of ours left ([`NOTE`]). Those whose links are not there after a time are removed.
    /// `own` is true if the connection to ourselves is there, too.
    pub fn adopt(self: &Arc<Self>, ports: Vec<String>, own: bool) {
        self.own_lost.store(!own, Ordering::Relaxed);
        if ports.is_empty() {
            return;
        }
        let this = Arc::clone(self);
        let sweep = async move {
            tokio::time::sleep(ADOPTED).await;
            let kept: Vec<String> =
                this.links.dialled().iter().map(|peer| this.links.port_of(peer)).collect();
            for port in ports.iter().filter(|port| !kept.contains(port)) {
                tracing::info!(port, "a link of an earlier life is not there any more");
                if let Err(status) = this.links.ports.detach(port).await {
                    tracing::warn!(port, error = %status.message(), "removing a port");
                }
            }
        };
        tokio::spawn(self.stop.clone().run_until_cancelled_owned(sweep));
    }

    /// Makes links and keeps them until `shutdown`. Begins when we are registered. What is there then stays: see
    /// [`close`](Self::close).
    pub async fn run(self: Arc<Self>, registered: tokio_watch::Receiver<Kept>, shutdown: CancellationToken) {
        let work = Arc::clone(&self).work(registered);
        tokio::select! {
            () = work => {}
            () = shutdown.cancelled() => {}
            () = self.stop.cancelled() => {}
        }
    }

    async fn work(self: Arc<Self>, mut registered: tokio_watch::Receiver<Kept>) {
        let endpoint = next_registration(&mut registered, None).await;
        let registered_as = endpoint.name.clone();
        self.links.registered_as(age(&endpoint));
        let own = self.setup.own_interface.then(|| self.open_own(&registered_as));
        let client = Arc::new(self.client());
        let (tell, told) = mpsc::channel(WAITING);
        let watches =
            self.setup.services.iter().map(|service| {
                watch::follow(Arc::clone(&self.setup.registry), service.clone(), tell.clone())
            });
        let watches = join_all(watches.collect::<Vec<_>>());
        tokio::join!(
            watches,
            self.hear(told, registered_as),
            self.follow_registration(registered, endpoint),
            self.follow_address(),
            self.follow_mtu(),
            self.keep(&client),
        );
        drop(own);
    }

    /// A client for links: each answer is judged.
    fn client(&self) -> Client {
        let upstream = Judged {
            inner: Arc::clone(&self.setup.upstream),
            links: Arc::clone(&self.links),
            mtu: Arc::clone(&self.setup.mtu),
        };
        Client::new(self.setup.name.clone(), Arc::new(upstream), self.setup.client.clone())
    }

    fn open_own(&self, registered: &str) -> (Client, Session) {
        let liveness = self.setup.client.liveness.map(|liveness| LivenessSettings {
            interval: liveness.interval.max(Duration::from_secs(1)),
            timeout: OWN_SILENCE,
        });
        let settings = ClientSettings { liveness, ..self.setup.client.clone() };
        let client = Client::new(self.setup.name.clone(), Arc::clone(&self.setup.upstream), settings);
        let service = self.setup.services.first().map_or("", String::as_str);
        let place = (self.setup.namespace.clone(), OWN_SILENCE);
        let names = (self.setup.name.as_str(), registered);
        let tell = (self.address.clone(), self.own_lost.load(Ordering::Relaxed));
        let session = own::open(&client, names, service, &self.setup.payload, place, tell);
        (client, session)
    }

    async fn hear(&self, mut told: mpsc::Receiver<Seen>, own: String) {
        while let Some(seen) = told.recv().await {
            match seen {
                Seen::There { endpoint, .. } if endpoint.name == own => {}
                Seen::There { service, endpoint } => self.links.found(&service, candidate(&endpoint)),
                Seen::Gone { name } => self.links.left(&name),
            }
        }
    }

    /// A registry that forgot us gives us another time.
    async fn follow_registration(
        &self,
        mut registered: tokio_watch::Receiver<Kept>,
        mut last: NetworkServiceEndpoint,
    ) {
        loop {
            last = next_registration(&mut registered, Some(&last)).await;
            self.links.registered_as(age(&last));
        }
    }

    async fn follow_address(&self) {
        let mut address = self.address.subscribe();
        while address.changed().await.is_ok() {
            self.renew();
            self.links.changed.notify_one();
        }
    }

    /// Asks for links anew that could send more than the network takes now.
    async fn follow_mtu(&self) {
        let mut least = self.setup.mtu.watch();
        let mut before = *least.borrow_and_update();
        while least.changed().await.is_ok() {
            let now = *least.borrow_and_update();
            if now < before {
                self.links.each_session(|session| {
                    let status = session.status();
                    let has =
                        status.borrow().connection.as_ref().and_then(|one| one.context.as_ref()?.mtu.into());
                    if has.is_some_and(|mtu: u32| mtu > now) {
                        session.refresh();
                    }
                });
            }
            before = now;
        }
    }

    /// Does what is decided.
    async fn keep(&self, client: &Client) {
        let begin = Instant::now() + if self.setup.own_interface { OWN_FIRST } else { Duration::ZERO };
        let mut address = self.address.subscribe();
        let _ = tokio::time::timeout_at(begin, address.wait_for(Option::is_some)).await;
        loop {
            let (actions, look) = self.links.decide();
            for action in actions {
                match action {
                    Action::Dial { peer, id } => self.dial(client, peer, id),
                    Action::HangUp { peer, why } => self.hang_up(peer, why),
                }
            }
            let waiting = self.links.waiting();
            for peer in &waiting {
                self.links.attach(peer).await;
            }
            self.links.publish();
            self.count();
            let again = (!waiting.is_empty()).then(|| Instant::now() + AGAIN);
            let until = [look, again].into_iter().flatten().min();
            tokio::select! {
                () = self.links.changed.notified() => {}
                () = sleep_until(until) => {}
            }
        }
    }

    fn dial(&self, client: &Client, peer: String, id: String) {
        let Some(service) = self.links.service_of(&peer) else { return self.links.hung_up(&peer) };
        tracing::info!(peer, connection = id, "links to a peer");
        let own = self.links.own();
        let wanted = self.setup.asking.wanted(id, &service, &peer, &own, *self.address.borrow());
        let path = PeerPath {
            peer: peer.clone(),
            links: Arc::clone(&self.links),
            namespace: self.setup.namespace.clone(),
            from: self.address.subscribe(),
            mtu: Arc::clone(&self.setup.mtu),
            time: self.setup.client.liveness.map_or(CLOSE, |liveness| liveness.timeout),
            pingers: Default::default(),
        };
        let session = client.open(wanted, Arc::new(path));
        let mut status = session.status();
        self.links.opened(&peer, session);
        let links = Arc::clone(&self.links);
        let follows = async move {
            while status.changed().await.is_ok() {
                links.changed.notify_one()
            }
        };
        tokio::spawn(follows);
    }

    fn hang_up(&self, peer: String, why: &'static str) {
        let Some(session) = self.links.give_up(&peer) else { return self.links.hung_up(&peer) };
        tracing::info!(peer, connection = session.id(), why, "hangs up on a peer");
        let links = Arc::clone(&self.links);
        let closing = async move {
            if let Err(status) = session.close(CLOSE).await {
                tracing::debug!(error = %status.message(), "closing a link");
            }
            links.detach(&peer).await;
            links.hung_up(&peer);
        };
        tokio::spawn(closing.in_current_span());
    }

    fn count(&self) {
        if let Some(metrics) = &self.setup.client.metrics {
            count(metrics, self.links.peers().borrow().len(), self.links.refused());
        }
    }

    /// Leaves all links as they are, for another process of ours to go on with.
    pub fn leave(&self) {
        self.stop.cancel();
        let sessions = self.links.dialled().into_iter().filter_map(|peer| self.links.give_up(&peer));
        sessions.for_each(Session::leave);
    }

    /// Closes all links that we dialled. What dialled us goes with the endpoint's chain.
    pub async fn close(&self) {
        self.stop.cancel();
        let close = |peer: String| async move {
            if let Some(session) = self.links.give_up(&peer) {
                let _ = session.close(CLOSE).await;
            }
        };
        join_all(self.links.dialled().into_iter().map(close)).await;
    }
}

fn count(metrics: &Metrics, linked: usize, refused: u64) {
    metrics.peers(linked, refused);
}

/// The next registration that differs in what counts here.
async fn next_registration(
    registered: &mut tokio_watch::Receiver<Kept>,
    last: Option<&NetworkServiceEndpoint>,
) -> NetworkServiceEndpoint {
    let is_new = |kept: &Kept| match kept {
        Kept::As(endpoint) => last.is_none_or(|last| age(last) != age(endpoint)),
        Kept::Not(_) => false,
    };
    match registered.wait_for(is_new).await.map(|kept| kept.clone()) {
        Ok(Kept::As(endpoint)) => endpoint,
        // The keeper is gone: so is the role.
        _ => std::future::pending().await,
    }
}

fn age(endpoint: &NetworkServiceEndpoint) -> Age {
    Age::new(&endpoint.name, endpoint.initial_registration_time.as_ref())
}

fn candidate(endpoint: &NetworkServiceEndpoint) -> Candidate {
    Candidate {
        name: endpoint.name.clone(),
        identity: endpoint.path_ids.first().cloned(),
        age: age(endpoint),
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
