//! One routing domain of the packet engine, as an endpoint of a virtual network uses it.
//!
//! A *port* is a memif with what lies behind it: a client with its addresses, or another endpoint with its prefix. A peer is a port like
//! any other. All of one change is one transaction: it is in force whole, or not at all.
//!
//! What is wanted is kept here; the engine may die and is made to agree again by the task that [`Router::start`] begins. We may die, too:
//! the engine forwards on, and [`Router::start`] returns what is there, with the notes that it was attached with. What is attached again
//! as it was is not touched.
//!
//! | to find … | look in |
//! |---|---|
//! | what a port is, and the operations from what was to what shall be | `port` |
//! | who has which prefix | `table` |
//! | after a restart of the engine, and when links break | `follow` |

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ipnet::IpNet;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use vwire_proto::dataplane::v1 as pb;
use vwire_proto::dataplane::v1::op::Op;

use crate::dataplane::client::{Change, Client, Events};
use crate::dataplane::ends::DIAL_TIME;

mod follow;
mod port;
mod table;

use port::Port;
pub use port::{Attachment, End, Place, Restored, Route};
use table::Table;

/// What a memif has that was told nothing.
const DEFAULT_MTU: u32 = 1500;
/// Changes of one port wait for each other, and share a turn with few others.
const TURNS: usize = 256;

/// The domain. Dropped, it stays at the engine as it is; see [`clear`](Self::clear).
pub struct Router {
    client: Client,
    domain: String,
    table: Mutex<Table>,
    turns: Vec<tokio::sync::Mutex<()>>,
    /// Changes of the gateways wait for each other.
    gateways_turn: tokio::sync::Mutex<()>,
    /// The run of the engine that was last made to agree.
    agreed: tokio::sync::Mutex<u64>,
}

impl Router {
    /// Finds the domain called `domain` at the engine, or makes it, and follows the engine until `shutdown`. Returns what an earlier
    /// process of ours had attached: each port has to be [attached](Self::attach) again with the same end, or detached. Until then it
    /// forwards as it did, but could not be made again at another engine.
    ///
    /// # Errors
    /// UNAVAILABLE if no engine answers within 30 s; what the engine refuses.
    pub async fn start(
        client: Client,
        mut events: Events,
        domain: impl Into<String>,
        shutdown: CancellationToken,
    ) -> Result<(Arc<Self>, Vec<Restored>), Status> {
        let snapshot = client.first_state(&mut events).await?;
        let router = Arc::new(Self {
            client,
            domain: domain.into(),
            table: Mutex::default(),
            turns: std::iter::repeat_with(Default::default).take(TURNS).collect(),
            gateways_turn: tokio::sync::Mutex::default(),
            agreed: tokio::sync::Mutex::new(snapshot.instance),
        });
        let restored = router.lock().adopt(&router.domain, &snapshot);
        router.ensure_domain().await?;
        let following = follow::run(Arc::clone(&router), events);
        tokio::spawn(shutdown.run_until_cancelled_owned(following));
        Ok((router, restored))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn turn(&self, port: &str) -> tokio::sync::MutexGuard<'_, ()> {
        let hash =
            port.bytes().fold(0_usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(usize::from(byte)));
        self.turns[hash % TURNS].lock().await
    }

    /// The engine.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The domain's name at the engine.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The addresses that the domain answers at.
    pub fn gateways(&self) -> Vec<IpAddr> {
        self.lock().gateways.clone()
    }

    /// Every prefix that leads somewhere, and to which port.
    pub fn routes(&self) -> Vec<(IpNet, String)> {
        self.lock().routes()
    }

    /// The ports that are attached, or being attached.
    pub fn ports(&self) -> Vec<String> {
        self.lock().ports.keys().cloned().collect()
    }

    /// A port's link as it was last heard of; none if there is no such port at the engine.
    pub fn link(&self, port: &str) -> Option<pb::Link> {
        self.client.link(port)
    }

    /// Waits until a port's link is up. [`attach`](Self::attach) does not.
    ///
    /// # Errors
    /// DEADLINE_EXCEEDED, with the reason why it is down.
    pub async fn wait_up(&self, port: &str, deadline: Instant) -> Result<(), Status> {
        self.client.wait_up(port, deadline).await
    }

    /// Makes the domain answer at these addresses, and at no others. At most 16, and none may be the whole prefix of a route.
    ///
    /// # Errors
    /// The engine's; the addresses are as they were then, unless the engine is away (UNAVAILABLE): it gets them when it is back.
    pub async fn set_gateways(&self, gateways: &[IpAddr]) -> Result<(), Status> {
        let _turn = self.gateways_turn.lock().await;
        let before = std::mem::replace(&mut self.lock().gateways, gateways.to_vec());
        if before == gateways {
            return Ok(());
        }
        let done = self.apply_domain().await;
        if done.as_ref().is_err_and(|status| status.code() != Code::Unavailable) {
            self.lock().gateways = before;
        }
        done
    }

    /// Makes a port what `wanted` says, and nothing is touched that is so already. A dialled memif whose link is down is dialled again.
    /// Does not wait for the link.
    ///
    /// # Errors
    /// ALREADY_EXISTS if a prefix leads to another port, which is named; INVALID_ARGUMENT for a socket's name that will not do;
    /// UNAVAILABLE if nobody listens where we dial, or there is no engine; else the engine's. The port is as it was before.
    pub async fn attach(&self, port: &str, wanted: Attachment) -> Result<(), Status> {
        let _turn = self.turn(port).await;
        let before = self.lock().reserve(port, &wanted)?;
        let made = self.make(port, before.as_ref(), wanted).await;
        let mut table = self.lock();
        match made {
            Ok(made) => {
                table.put(port, made);
                Ok(())
            }
            Err(status) => {
                table.release(port, before);
                Err(status)
            }
        }
    }

    async fn make(&self, name: &str, before: Option<&Port>, wanted: Attachment) -> Result<Port, Status> {
        let until = || Instant::now() + DIAL_TIME;
        let kept = before.filter(|before| before.is_same_end(&wanted) && self.works(name, &wanted.end));
        let port = match kept {
            Some(kept) => kept.with(wanted.clone()),
            None => Port::prepare(wanted.clone(), before).await?,
        };
        let change = port.change(&self.domain, name, before, (kept.is_none(), until()));
        match self.client.apply(change).await {
            // The engine is another one, which knows nothing of what was before.
            Err(status) if status.code() != Code::Unavailable && self.agree_if_new().await => {
                let port = if port.lacks_socket() { Port::prepare(wanted, None).await? } else { port };
                self.client.apply(port.change(&self.domain, name, None, (true, until()))).await?;
                Ok(port)
            }
            done => done.map(|()| port),
        }
    }

    /// A memif that listens is in order without a peer.
    fn works(&self, port: &str, end: &End) -> bool {
        matches!(end, End::Listen(_)) || self.client.link(port).is_some_and(|link| link.up)
    }

    /// Gives a port other routes, in one transaction.
    ///
    /// # Errors
    /// NOT_FOUND if there is no such port; as [`attach`](Self::attach).
    pub async fn set_routes(&self, port: &str, routes: Vec<Route>) -> Result<(), Status> {
        self.edit(port, |wanted| wanted.set_routes(routes)).await
    }

    /// Gives a port another MTU: the longest packet that is sent by it, with its IP header.
    ///
    /// # Errors
    /// NOT_FOUND if there is no such port; else the engine's.
    pub async fn set_mtu(&self, port: &str, mtu: u32) -> Result<(), Status> {
        self.edit(port, |wanted| wanted.mtu = mtu).await
    }

    /// Replaces what a restart will find with the port.
    ///
    /// # Errors
    /// NOT_FOUND if there is no such port; else the engine's.
    pub async fn set_note(&self, port: &str, note: Vec<u8>) -> Result<(), Status> {
        self.edit(port, |wanted| wanted.note = note).await
    }

    async fn edit(&self, port: &str, edit: impl FnOnce(&mut Port)) -> Result<(), Status> {
        let _turn = self.turn(port).await;
        let before = self.lock().ports.get(port).cloned();
        let before = before.ok_or_else(|| Status::not_found(format!("there is no port {port}")))?;
        let mut after = before.clone();
        edit(&mut after);
        let change = after.change(&self.domain, port, Some(&before), (false, Instant::now()));
        self.lock().replace(port, after)?;
        let done = match self.client.apply(change).await {
            Err(status) if status.code() != Code::Unavailable && self.agree_if_new().await => Ok(()),
            done => done,
        };
        if done.as_ref().is_err_and(|status| status.code() != Code::Unavailable) {
            self.lock().put(port, before);
        }
        done
    }

    /// Gives all ports at most this MTU, in one transaction.
    ///
    /// # Errors
    /// The engine's. What an engine that is away misses, it gets when it is back.
    pub async fn lower_mtu(&self, mtu: u32) -> Result<(), Status> {
        let mut change = Change::default();
        let has = |port: &Port| if port.mtu == 0 { DEFAULT_MTU } else { port.mtu };
        for (name, port) in self.lock().ports.iter_mut().filter(|(_, port)| has(port) > mtu) {
            port.mtu = mtu;
            change.push(port.set_member(&self.domain, name));
        }
        match self.client.apply(change).await {
            Err(status) if status.code() != Code::Unavailable && self.agree_if_new().await => Ok(()),
            done => done,
        }
    }

    /// Removes a port with its routes. Not an error if there is none.
    ///
    /// # Errors
    /// What the engine refuses. If it is away, the port goes when it is back.
    pub async fn detach(&self, port: &str) -> Result<(), Status> {
        let _turn = self.turn(port).await;
        let Some(gone) = self.lock().remove(port) else { return Ok(()) };
        let removed = self.client.apply(gone.removal(&self.domain, port)).await;
        match removed {
            Err(status) if status.code() == Code::Unavailable => Ok(()),
            // What was known of it was out of date.
            Err(_) => self.agree().await,
            done => done,
        }
    }

    /// Removes the domain and all that is in it from the engine.
    ///
    /// # Errors
    /// The engine's.
    pub async fn clear(&self) -> Result<(), Status> {
        let ports = self.lock().clear();
        let mut change = Change::default();
        change.push(Op::RemoveDomain(self.domain.clone()));
        ports.into_iter().for_each(|port| change.push(Op::RemovePort(port)));
        self.client.apply(change).await
    }

    /// Makes the domain, or gives it its gateways.
    async fn ensure_domain(&self) -> Result<(), Status> {
        let _turn = self.gateways_turn.lock().await;
        self.apply_domain().await
    }

    async fn apply_domain(&self) -> Result<(), Status> {
        let gateways = self.lock().gateways.iter().map(ToString::to_string).collect();
        let mut change = Change::default();
        let domain = pb::Domain { name: self.domain.clone(), gateways, ..Default::default() };
        change.push(Op::SetDomain(domain));
        self.client.apply(change).await
    }
}

/// Routes as the table has them.
type Routes = BTreeMap<IpNet, Option<IpAddr>>;
