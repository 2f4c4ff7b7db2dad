//! The gRPC service: messages in, the agent's answers out.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};
use vwire_proto::dataplane::v1 as pb;

use super::capture::{self, CaptureError, CaptureSpec};
use super::turns::Turns;
use super::{Agent, Cause, ChangeError, Link, LinkNotice, PortReport, SentFds, interfaces};
use crate::fdpass::Connection;
use crate::model::{
    FieldError, Inode, Op, PortName, State, StateError, op_from_proto, state_from_proto, state_to_proto,
};
use crate::tables::Owners;

/// Most operations of one transaction.
const MAX_OPS: usize = 4096;
/// How long a request waits for a descriptor that it names. It was sent before the request, so it is here or
/// will not come.
const FD_PATIENCE: Duration = Duration::from_secs(1);

/// The agent, shared by all who serve it. All of them run on one thread and hold it only between two awaits,
/// so nobody waits.
#[derive(Clone)]
pub struct Shared(Arc<Mutex<Agent>>);

impl Shared {
    /// Shares `agent`.
    pub fn new(agent: Agent) -> Self {
        Self(Arc::new(Mutex::new(agent)))
    }

    /// The agent.
    pub fn lock(&self) -> MutexGuard<'_, Agent> {
        // A panic while it was held is a bug, but the ports it looks after go on, and so should it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The service.
#[derive(Clone)]
pub struct Service {
    agent: Shared,
    turns: Turns,
}

impl From<FieldError> for Status {
    fn from(error: FieldError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

impl From<ChangeError> for Status {
    fn from(error: ChangeError) -> Self {
        let text = error.to_string();
        match error {
            ChangeError::Stale { .. } => Self::failed_precondition(text),
            ChangeError::State(StateError::NotFound(_)) => Self::not_found(text),
            ChangeError::State(
                StateError::TooMany(_) | StateError::Notes(_) | StateError::TooManyRoutes(_),
            ) => Self::resource_exhausted(text),
            ChangeError::State(_) => Self::invalid_argument(text),
            ChangeError::Open { error, .. } => match error.cause {
                Cause::Request => Self::invalid_argument(text),
                Cause::FdMissing | Cause::System => Self::failed_precondition(text),
                Cause::Exhausted => Self::resource_exhausted(text),
                Cause::Engine => Self::internal(text),
            },
            ChangeError::Engine(_) => Self::internal(text),
        }
    }
}

impl From<CaptureError> for Status {
    fn from(error: CaptureError) -> Self {
        let text = error.to_string();
        match error {
            CaptureError::Limit(_) => Self::invalid_argument(text),
            CaptureError::NoSuchPort(_) => Self::not_found(text),
            CaptureError::TooMany => Self::resource_exhausted(text),
        }
    }
}

/// The descriptors that a request brought.
struct Brought {
    connection: Option<Connection>,
    named: Vec<Inode>,
}

impl Brought {
    fn new<'a>(
        connection: Option<Connection>,
        ports: impl Iterator<Item = &'a crate::model::PortSpec>,
    ) -> Self {
        let mut named: Vec<Inode> = ports.flat_map(|port| port.needs()).collect();
        named.sort();
        named.dedup();
        Self { connection, named }
    }

    /// Takes them: those that are needed are waited for. The rest would only be held open.
    async fn take(&self, needed: &std::collections::BTreeSet<Inode>) -> SentFds {
        let mut fds = SentFds::new();
        let Some(connection) = &self.connection else { return fds };
        let deadline = tokio::time::Instant::now() + FD_PATIENCE;
        for inode in &self.named {
            let fd = match needed.contains(inode) {
                true => tokio::time::timeout_at(deadline, connection.fds.wait(*inode)).await.ok(),
                false => connection.fds.take(*inode),
            };
            fds.extend(fd.map(|fd| (*inode, fd)));
        }
        fds
    }
}

impl Service {
    /// A service of this agent.
    pub fn new(agent: Shared) -> Self {
        Self { agent, turns: Turns::default() }
    }

    /// Does what `ops` say. They are judged twice: before and after the descriptors have come and the interfaces are made, as others
    /// may have changed the state meanwhile.
    async fn do_ops(self, brought: Brought, base: Option<u64>, ops: Vec<Op>) -> Result<u64, Status> {
        let _at_ports = self.turns.at_ports(&ops).await;
        let ahead = self.agent.lock().ahead_of(base, ops.clone())?;
        let fds = brought.take(&ahead.needs).await;
        let _at_claims = self.turns.at_claims(ahead.claims).await;
        let made = interfaces::make(ahead.interfaces, &fds).await?;
        let (done, gone) = {
            let mut agent = self.agent.lock();
            let done = agent.apply(base, ops, &fds, made).map(|_| agent.generation());
            (done, agent.take_gone())
        };
        interfaces::delete(gone).await;
        Ok(done?)
    }

    /// Goes to `state`. Returns the generation, and what was done.
    async fn go_to(
        self,
        brought: Brought,
        base: Option<u64>,
        state: State,
    ) -> Result<(u64, Vec<String>), Status> {
        let _at_all = self.turns.at_all().await;
        let ahead = self.agent.lock().ahead_for(base, &state)?;
        let fds = brought.take(&ahead.needs).await;
        let made = interfaces::make(ahead.interfaces, &fds).await?;
        let (done, gone) = {
            let mut agent = self.agent.lock();
            let done = agent.change(state, &fds, made);
            let done = done.map(|actions| actions.iter().map(ToString::to_string).collect());
            (done.map(|changes| (agent.generation(), changes)), agent.take_gone())
        };
        interfaces::delete(gone).await;
        Ok(done?)
    }
}

/// A caller that does not wait for the answer must not leave a change half done.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    tokio::spawn(work).await.unwrap_or_else(|error| Err(Status::internal(format!("the change: {error}"))))
}

fn link_to_proto((port, link): (PortName, Link)) -> pb::Link {
    pb::Link { port: port.to_string(), up: link.up, reason: link.reason, peer: link.peer }
}

fn report_to_proto(report: PortReport) -> pb::PortStats {
    let PortReport { name, kind, up, owners, counters, device } = report;
    let drops = counters.drops.iter().map(|(reason, count)| (reason.name().to_owned(), *count)).collect();
    let ((rx_packets, rx_bytes), (tx_packets, tx_bytes)) = (counters.rx, counters.tx);
    pb::PortStats {
        port: name,
        kind,
        up,
        rx_packets,
        rx_bytes,
        tx_packets,
        tx_bytes,
        drops,
        worker: owners.map(|owners| owners.home().0.into()),
        workers: owners.into_iter().flat_map(Owners::iter).map(|worker| worker.0.into()).collect(),
        device: device.into_iter().collect(),
    }
}

type Answer<T> = Result<Response<T>, Status>;
type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl pb::dataplane_server::Dataplane for Service {
    type WatchLinksStream = Streamed<pb::WatchLinksResponse>;
    type StreamCaptureStream = Streamed<pb::StreamCaptureResponse>;

    async fn apply(&self, request: Request<pb::ApplyRequest>) -> Answer<pb::ApplyResponse> {
        let connection = request.extensions().get().cloned();
        let pb::ApplyRequest { base_generation, ops } = request.into_inner();
        if ops.len() > MAX_OPS {
            let count = ops.len();
            return Err(Status::invalid_argument(format!(
                "ops: at most {MAX_OPS} are possible, not {count}"
            )));
        }
        let ops: Vec<Op> =
            ops.iter().enumerate().map(|(i, op)| op_from_proto(i, op)).collect::<Result<_, _>>()?;
        let ports = ops.iter().filter_map(|op| match op {
            Op::SetPort(_, spec, _) => Some(spec),
            _ => None,
        });
        let brought = Brought::new(connection, ports);
        let generation = to_the_end(self.clone().do_ops(brought, base_generation, ops)).await?;
        Ok(Response::new(pb::ApplyResponse { generation }))
    }

    async fn replace(&self, request: Request<pb::ReplaceRequest>) -> Answer<pb::ReplaceResponse> {
        let connection = request.extensions().get().cloned();
        let pb::ReplaceRequest { base_generation, state } = request.into_inner();
        let state =
            state.ok_or_else(|| Status::invalid_argument("state: is needed, if only an empty one"))?;
        let state = state_from_proto(&state)?;
        let brought = Brought::new(connection, state.ports().values());
        let done = to_the_end(self.clone().go_to(brought, base_generation, state)).await?;
        let (generation, changes) = done;
        Ok(Response::new(pb::ReplaceResponse { generation, changes }))
    }

    async fn get_snapshot(&self, _: Request<pb::GetSnapshotRequest>) -> Answer<pb::GetSnapshotResponse> {
        let agent = self.agent.lock();
        Ok(Response::new(pb::GetSnapshotResponse {
            generation: agent.generation(),
            state: Some(state_to_proto(agent.state())),
            links: agent.links().into_iter().map(link_to_proto).collect(),
            instance: agent.instance(),
        }))
    }

    async fn watch_links(&self, _: Request<pb::WatchLinksRequest>) -> Answer<Self::WatchLinksStream> {
        let (initial, changes) = self.agent.lock().watch();
        let links = initial.into_iter().map(link_to_proto).collect();
        let first = pb::watch_links_response::Event::Initial(pb::Links { links });
        let first = pb::WatchLinksResponse { event: Some(first) };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(first)).chain(notices(changes)))))
    }

    async fn get_routing(&self, request: Request<pb::GetRoutingRequest>) -> Answer<pb::GetRoutingResponse> {
        let request = request.into_inner();
        let asked = super::routes::Asked::try_from(&request)?;
        let answer = super::routes::answer(&self.agent.lock(), &asked);
        answer
            .map(Response::new)
            .ok_or_else(|| Status::not_found(format!("there is no domain {}", asked.domain)))
    }

    async fn get_stats(&self, request: Request<pb::GetStatsRequest>) -> Answer<pb::GetStatsResponse> {
        let wanted: std::collections::HashSet<String> = request.into_inner().ports.into_iter().collect();
        let mut reports = self.agent.lock().reports();
        if let Some(missing) = wanted.iter().find(|name| reports.iter().all(|report| report.name != **name)) {
            return Err(Status::not_found(format!("there is no port {}", crate::model::shown(missing))));
        }
        reports.retain(|report| wanted.is_empty() || wanted.contains(&report.name));
        Ok(Response::new(pb::GetStatsResponse { ports: reports.into_iter().map(report_to_proto).collect() }))
    }

    async fn stream_capture(
        &self,
        request: Request<pb::StreamCaptureRequest>,
    ) -> Answer<Self::StreamCaptureStream> {
        let pb::StreamCaptureRequest { port, snap_len, ring_bytes } = request.into_inner();
        let port = port.parse().map_err(|error| Status::invalid_argument(format!("port: {error}")))?;
        let pieces =
            capture::start(&self.agent, CaptureSpec::new(port, snap_len as usize, ring_bytes as usize)?)?;
        let pieces = ReceiverStream::new(pieces).map(|pcapng| Ok(pb::StreamCaptureResponse { pcapng }));
        Ok(Response::new(Box::pin(pieces)))
    }
}

/// The changes as messages, until the caller is too slow for them.
fn notices(changes: broadcast::Receiver<LinkNotice>) -> Streamed<pb::WatchLinksResponse> {
    use pb::watch_links_response::Event;
    use tokio_stream::wrappers::errors::BroadcastStreamRecvError::Lagged;
    let mut behind = false;
    let changes = tokio_stream::wrappers::BroadcastStream::new(changes);
    Box::pin(changes.map_while(move |notice| {
        if behind {
            return None;
        }
        Some(match notice {
            Ok(LinkNotice::Changed(port, link)) => {
                Ok(pb::WatchLinksResponse { event: Some(Event::Changed(link_to_proto((port, link)))) })
            }
            Ok(LinkNotice::Removed(port)) => {
                Ok(pb::WatchLinksResponse { event: Some(Event::Removed(port.to_string())) })
            }
            Err(Lagged(missed)) => {
                behind = true;
                Err(Status::resource_exhausted(format!(
                    "{missed} changes came faster than they were read; watch again"
                )))
            }
        })
    }))
}
