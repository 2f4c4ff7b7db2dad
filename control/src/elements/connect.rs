//! `connect`: the next hop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tonic::{Code, Request, Status};

use super::authorize::PathPolicy;
use super::monitor::Follow;
use crate::api::connection::{Connection, Mechanism};
use crate::api::mechanism::INODE_URL;
use crate::api::networkservice::NetworkServiceRequest;
use crate::api::networkservice::network_service_client::NetworkServiceClient;
use crate::api::path::{self, PathExt};
use crate::chain::{Call, Element, Fds, Next};
use crate::transport::{FdLane, Hop, Inode, Peer, Pool, SharedFd, Target};

/// Longest time that a Close waits for the next hop: what is held here must be freed even if nobody answers there.
const CLOSE_TIME: Duration = Duration::from_secs(5);
/// What is left of the deadline for the way back, so that the next hop's own error arrives.
const WAY_BACK: Duration = Duration::from_millis(50);

/// Where a connection goes on, in its [`State`](crate::chain::State): a refresh and a Close go to the same hop.
#[derive(Debug, Clone)]
pub struct Connected {
    /// The hop.
    pub target: Target,
}

/// Passes calls on to `call.next_hop`, or where the connection went before; ends the chain where neither is. Descriptors that
/// mechanisms name go along, each time, where the hop is on this machine.
pub struct Connect {
    pool: Arc<Pool>,
    follow: Option<Arc<Follow>>,
    policies: Option<Arc<dyn PathPolicy>>,
}

impl Connect {
    /// Over these connections.
    pub fn new(pool: Arc<Pool>) -> Self {
        Self { pool, follow: None, policies: None }
    }

    /// Hands on what next hops say of connections.
    #[must_use]
    pub fn following(mut self, follow: Arc<Follow>) -> Self {
        self.follow = Some(follow);
        self
    }

    /// Checks the path that comes back. For clients: a hop in between leaves that to them.
    #[must_use]
    pub fn authorized_by(mut self, policies: Arc<dyn PathPolicy>) -> Self {
        self.policies = Some(policies);
        self
    }

    /// Asks the next hop.
    async fn ask(
        &self,
        call: &mut Call,
        target: &Target,
        request: NetworkServiceRequest,
    ) -> Result<Answer, Status> {
        let mechanisms =
            request.mechanism_preferences.iter().chain(request.connection.iter().flat_map(mechanism));
        let fds = named(call.state.get_or_default::<Fds>(), mechanisms);
        let hop = within(time_for_next(call), target, self.pool.hop_with(target, fds.len())).await?;
        send(&hop, &fds)?;
        let own =
            request.connection.as_ref().map(|own| (own.id.clone(), path::of(own).index)).unwrap_or_default();
        let mut message = Request::new(request);
        message.set_timeout(time_for_next(call));
        let answer = NetworkServiceClient::new(hop.clone()).request(message).await;
        let connection = answer.map_err(|status| from_hop(target, status))?.into_inner();
        check_answer(&connection, &own, target)?;
        Ok(Answer { connection, hop })
    }

    /// Takes what belongs to an answer, and checks it where we are the client.
    async fn accept(&self, call: &mut Call, target: &Target, answer: &Answer) -> Result<(), Status> {
        if let Some(inode) = mechanism(&answer.connection).and_then(inode) {
            receive(call, answer.hop.peer(), inode, target).await?;
        }
        let Some(policies) = &self.policies else { return Ok(()) };
        let path = path::of(&answer.connection);
        let Err(refused) = policies.returned(path, answer.hop.peer()) else { return Ok(()) };
        // The hop may sign with the key of a newer SVID than the one that it showed when we dialled.
        match within(time_for_next(call), target, self.pool.renew(&answer.hop)).await {
            Ok(hop) => policies.returned(path, hop.peer()),
            Err(_) => Err(refused),
        }
    }

    async fn close_at(&self, call: &mut Call, target: &Target, connection: Connection) -> Result<(), Status> {
        if let Some(follow) = &self.follow {
            follow.remove(target, &connection.id);
        }
        let time = call.remaining().min(CLOSE_TIME);
        let fds = named(call.state.get_or_default::<Fds>(), mechanism(&connection));
        let hop = within(time, target, self.pool.hop_with(target, fds.len())).await?;
        send(&hop, &fds)?;
        let mut message = Request::new(connection);
        message.set_timeout(time);
        let closed = within(time, target, NetworkServiceClient::new(hop).close(message)).await;
        closed.map(|_| ()).map_err(|status| from_hop(target, status))
    }
}

/// What the next hop answered.
struct Answer {
    connection: Connection,
    hop: Hop,
}

#[async_trait]
impl Element for Connect {
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let before = call.state.get::<Connected>().map(|connected| connected.target.clone());
        let Some(target) = call.next_hop.clone().or_else(|| before.clone()) else {
            return next.request(call, request).await;
        };
        if let (Some(before), Some(connection)) = (&before, &request.connection)
            && *before != target
        {
            call.state.remove::<Connected>();
            if let Err(status) = self.close_at(call, before, connection.clone()).await {
                tracing::info!(target = %before, %status, "closing at the hop that was left");
            }
        }
        let known = before.as_ref() == Some(&target);
        let answer = self.ask(call, &target, request).await?;
        if let Err(status) = self.accept(call, &target, &answer).await {
            if !known && let Err(close) = self.close_at(call, &target, answer.connection).await {
                tracing::info!(%target, status = %close, "closing what was refused here");
            }
            return Err(status);
        }
        let connection = answer.connection;
        if let Some(follow) = &self.follow {
            follow.add(&target, &connection.id);
        }
        call.state.insert(Connected { target });
        Ok(connection)
    }

    async fn close(&self, call: &mut Call, connection: Connection, next: Next<'_>) -> Result<(), Status> {
        let went = call.state.remove::<Connected>().map(|connected| connected.target);
        let done = match went.or_else(|| call.next_hop.clone()) {
            Some(target) => self.close_at(call, &target, connection.clone()).await,
            None => Ok(()),
        };
        call.state.remove::<Fds>();
        done.and(next.close(call, connection).await)
    }
}

/// What the next hop is told of our deadline.
fn time_for_next(call: &Call) -> Duration {
    let left = call.remaining();
    left - WAY_BACK.min(left / 10)
}

/// Bounds what a hop that does not answer may take.
async fn within<T>(
    time: Duration,
    target: &Target,
    work: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    tokio::time::timeout(time, work).await.unwrap_or_else(|_| {
        Err(Status::deadline_exceeded(format!("{target} did not answer within {} ms", time.as_millis())))
    })
}

/// The error of a hop: it has named itself unless it is of another make, so a broken connection gets the target.
fn from_hop(target: &Target, status: Status) -> Status {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
            Status::new(status.code(), format!("{target}: {}", status.message()))
        }
        _ => status,
    }
}

fn check_answer(connection: &Connection, (id, index): &(String, u32), target: &Target) -> Result<(), Status> {
    let bad = |reason: String| Status::internal(format!("{target}: bad answer: {reason}"));
    crate::chain::check_connection(connection).map_err(|status| bad(status.message().to_owned()))?;
    let path = path::of(connection);
    let current = path.current().map(|segment| segment.id.as_str());
    if path.index != *index || connection.id != *id || current != Some(id) {
        return Err(bad(format!("it is about connection {:?}, {id} was asked for", connection.id)));
    }
    Ok(())
}

fn mechanism(connection: &Connection) -> Option<&Mechanism> {
    connection.mechanism.as_ref()
}

/// The file that a mechanism names.
pub(super) fn inode(mechanism: &Mechanism) -> Option<Inode> {
    mechanism.parameters.get(INODE_URL)?.parse().ok()
}

/// The descriptors that these mechanisms name, once each, as far as we have them.
fn named<'a>(fds: &Fds, mechanisms: impl IntoIterator<Item = &'a Mechanism>) -> BTreeMap<Inode, SharedFd> {
    let named = mechanisms.into_iter().filter_map(inode);
    named.filter_map(|inode| Some((inode, SharedFd::clone(fds.get(&inode)?)))).collect()
}

/// Sends descriptors; what is written next carries them.
fn send(hop: &Hop, fds: &BTreeMap<Inode, SharedFd>) -> Result<(), Status> {
    let Some(FdLane { sender, .. }) = &hop.peer().fds else { return Ok(()) };
    for (inode, fd) in fds {
        sender
            .send(fd)
            .map_err(|error| Status::internal(format!("{inode}: sending the descriptor: {error}")))?;
    }
    Ok(())
}

/// Takes the descriptor that the next hop sent for its mechanism, and waits for it if we don't have the file: it comes ahead of the
/// answer, or we have sent it ourselves, or it came with an earlier answer.
async fn receive(call: &mut Call, peer: &Peer, inode: Inode, target: &Target) -> Result<(), Status> {
    let Some(lane) = &peer.fds else { return Ok(()) };
    let known = call.state.get_or_default::<Fds>().get(&inode).is_some();
    let fd = match lane.received.take(inode) {
        Some(fd) => fd,
        None if known => return Ok(()),
        None => {
            tokio::time::timeout_at(call.deadline.into(), lane.received.wait(inode)).await.map_err(|_| {
                Status::deadline_exceeded(format!(
                    "{target}: the descriptor of {inode}, which its mechanism names, did not come"
                ))
            })?
        }
    };
    call.state.get_or_default::<Fds>().insert(inode, Arc::new(fd));
    Ok(())
}
