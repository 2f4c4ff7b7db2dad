//! `mechanisms`: how each leg of the vWire is carried.
//!
//! Toward the client we serve: the first of its preferences that we can carry is taken and filled in. Toward the endpoint we are the
//! client: what the caller prefers does not matter there, each mechanism that we have makes its own offer, and the next hop chooses.
//! What both legs shall be is left for `commit`, as [`Staged`]. The answer carries the mechanism toward the client again.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::Status;

use crate::api::connection::{Connection, Mechanism};
use crate::api::mechanism::{INODE_URL, LOCAL, PAYLOAD_ETHERNET, PAYLOAD_IP, REMOTE};
use crate::api::networkservice::NetworkServiceRequest;
use crate::chain::{Call, Element, Fds, Next};
use crate::dataplane::Dataplane;
use crate::dataplane::ends::{EndSpec, Payload};
use crate::dataplane::kernel::Side;
use crate::dataplane::netns::Namespace;
use crate::transport::{Inode, SharedFd};

mod kernel;
mod memif;
mod vxlan;

pub use kernel::Kernel;
pub use memif::Memif;
pub use vxlan::{INNER, Tunnel, Vxlan};

/// What a Request is about, for the mechanisms.
pub struct Ask<'a> {
    /// The connection's id in our coordinates.
    pub id: &'a str,
    /// What its frames are.
    pub payload: Payload,
    /// The descriptors that came along.
    pub fds: Option<&'a Fds>,
    /// The engine, and what is taken there.
    pub dataplane: &'a Dataplane,
}

/// One way to carry a leg.
pub trait Kind: Send + Sync + 'static {
    /// Its `type`.
    fn name(&self) -> &'static str;

    /// Its `cls`: whether the leg stays on this machine.
    fn class(&self) -> &'static str;

    /// Toward the client: fills in what the server of a leg says.
    ///
    /// # Errors
    /// Why this offer can't be taken.
    fn accept(&self, ask: &Ask<'_>, offered: &Mechanism) -> Result<Mechanism, Status>;

    /// Toward the endpoint: our offer; none if we can't carry this payload.
    fn offer(&self, ask: &Ask<'_>) -> Option<Mechanism>;

    /// The end that a mechanism on which both sides agree means. `answer` is the connection as it will be.
    ///
    /// # Errors
    /// What of the mechanism's parameters, or of the connection's context, will not do.
    fn end(
        &self,
        ask: &Ask<'_>,
        side: Side,
        agreed: &Mechanism,
        answer: &Connection,
    ) -> Result<EndSpec, Status>;

    /// Bytes that the longest packet of the payload may have on this leg; 0 means that it does not matter.
    fn mtu(&self, _: &Mechanism) -> u32 {
        0
    }
}

/// What both legs shall be, for `commit`.
pub struct Staged {
    /// Toward the client.
    pub server: EndSpec,
    /// Toward the endpoint.
    pub client: EndSpec,
    /// As agreed with the next hop.
    pub toward_endpoint: Mechanism,
}

/// The element.
pub struct Mechanisms {
    dataplane: Arc<Dataplane>,
    kinds: Vec<Box<dyn Kind>>,
}

impl Mechanisms {
    /// With these kinds, offered to next hops in this order unless `priority` (types, in any case) names some that come first.
    pub fn new(dataplane: Arc<Dataplane>, mut kinds: Vec<Box<dyn Kind>>, priority: &[String]) -> Self {
        let rank =
            |kind: &dyn Kind| priority.iter().position(|first| first.eq_ignore_ascii_case(kind.name()));
        kinds.sort_by_key(|kind| rank(&**kind).unwrap_or(usize::MAX));
        Self { dataplane, kinds }
    }

    fn kind(&self, mechanism: &Mechanism) -> Option<&dyn Kind> {
        self.kinds.iter().map(|kind| &**kind).find(|kind| kind.name().eq_ignore_ascii_case(&mechanism.r#type))
    }

    /// The mechanism toward the client: what was agreed before, or the first preference that we can carry.
    fn choose(&self, ask: &Ask<'_>, request: &NetworkServiceRequest) -> Result<Mechanism, Status> {
        let agreed = request.connection.as_ref().and_then(|connection| connection.mechanism.as_ref());
        if let Some(agreed) = agreed.filter(|agreed| !agreed.r#type.is_empty()) {
            let kind = self.kind(agreed).ok_or_else(|| {
                Status::invalid_argument(format!(
                    "unsupported mechanism {}; this forwarder has {}",
                    agreed.r#type,
                    self.have()
                ))
            })?;
            return kind.accept(ask, agreed);
        }
        let mut refused = Vec::new();
        for offered in &request.mechanism_preferences {
            match self.kind(offered).map(|kind| kind.accept(ask, offered)) {
                Some(Ok(accepted)) => return Ok(accepted),
                Some(Err(status)) => refused.push(status),
                None => {
                    let shown: String = offered.r#type.chars().take(20).collect();
                    refused.push(Status::invalid_argument(format!("{shown:?} is not known here")));
                }
            }
            if refused.len() == 16 {
                break;
            }
        }
        // One offer alone is refused with its own code.
        match <[Status; 1]>::try_from(refused) {
            Ok([only]) => Err(only),
            Err(all) => {
                let reasons: Vec<_> = all.iter().map(Status::message).collect();
                Err(Status::invalid_argument(format!(
                    "cannot support any of the requested mechanisms; this forwarder has {}; of the client's: {}",
                    self.have(),
                    if reasons.is_empty() { "none".to_owned() } else { reasons.join("; ") }
                )))
            }
        }
    }

    fn have(&self) -> String {
        self.kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
    }

    /// Offers for a next hop on this machine, or on another.
    fn offers(&self, ask: &Ask<'_>, class: &str) -> Vec<Mechanism> {
        let suitable = self.kinds.iter().filter(|kind| kind.class() == class);
        suitable.filter_map(|kind| kind.offer(ask)).collect()
    }

    /// What the next hop chose, and with it what both legs will be.
    fn stage(
        &self,
        ask: &Ask<'_>,
        class: &str,
        toward_client: &Mechanism,
        answer: &mut Connection,
    ) -> Result<Staged, Status> {
        let agreed = answer.mechanism.take().unwrap_or_default();
        let kind = self.kind(&agreed).filter(|kind| kind.class() == class).ok_or_else(|| {
            let offered: Vec<_> = self.offers(ask, class).into_iter().map(|offer| offer.r#type).collect();
            let (chosen, offered) = (&agreed.r#type, offered.join(", "));
            Status::failed_precondition(format!(
                "the next hop chose mechanism {chosen:?}; it was offered {offered}"
            ))
        })?;
        lower_mtu(answer, kind.mtu(&agreed));
        let client = kind.end(ask, Side::Client, &agreed, answer)?;
        let kind =
            self.kind(toward_client).ok_or_else(|| Status::internal("the chosen mechanism is gone"))?;
        let server = kind.end(ask, Side::Server, toward_client, answer)?;
        Ok(Staged { server, client, toward_endpoint: agreed })
    }
}

/// The context's MTU goes down to what a leg carries; 0 is no limit yet.
fn lower_mtu(connection: &mut Connection, mtu: u32) {
    let context = connection.context.get_or_insert_default();
    if mtu != 0 && (context.mtu == 0 || context.mtu > mtu) {
        context.mtu = mtu;
    }
}

/// A mechanism as the next hop is reminded of it: its namespace it knows itself, and we don't hold the descriptor that would have to go
/// along.
fn without_place(mut mechanism: Mechanism) -> Mechanism {
    mechanism.parameters.remove(INODE_URL);
    mechanism
}

fn payload(connection: &Connection) -> Result<Payload, Status> {
    match connection.payload.as_str() {
        PAYLOAD_ETHERNET => Ok(Payload::Ethernet),
        PAYLOAD_IP => Ok(Payload::Ip),
        other => {
            let shown: String = other.chars().take(20).collect();
            Err(Status::invalid_argument(format!(
                "payload {shown:?}: this forwarder carries ETHERNET and IP"
            )))
        }
    }
}

/// The namespace that a mechanism names, and its open file if that came along.
fn namespace(
    ask: &Ask<'_>,
    mechanism: &Mechanism,
    open: impl Fn(Inode, &SharedFd) -> Result<Namespace, Status>,
) -> Result<(Inode, Option<Namespace>), Status> {
    let url = mechanism.parameters.get(INODE_URL).map_or("", String::as_str);
    let inode: Inode = url.parse().map_err(|_| {
        let shown: String = url.chars().take(60).collect();
        Status::invalid_argument(format!(
            "mechanism {}: inodeURL {shown:?}: only inode://DEV/INO of a descriptor sent along is taken",
            mechanism.r#type
        ))
    })?;
    let file = ask.fds.and_then(|fds| fds.get(&inode)).map(|fd| open(inode, fd)).transpose()?;
    Ok((inode, file))
}

#[async_trait]
impl Element for Mechanisms {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let connection = request.connection.get_or_insert_default();
        let (id, payload) = (connection.id.clone(), payload(connection)?);
        let class = match &call.next_hop {
            Some(hop) if hop.is_local() => LOCAL,
            Some(_) => REMOTE,
            None => return Err(Status::internal("no next hop: the forwarder's chain lacks discover")),
        };
        let ask = Ask { id: &id, payload, fds: call.state.get::<Fds>(), dataplane: &self.dataplane };
        let toward_client = self.choose(&ask, &request)?;
        let known = self.dataplane.wanted.get(&id).and_then(|record| record.note.toward_endpoint);
        let connection = request.connection.get_or_insert_default();
        // What was agreed with a next hop of the other kind is of no use to this one.
        connection.mechanism = known.filter(|known| known.cls == class).map(without_place);
        if let Some(kind) = self.kind(&toward_client) {
            lower_mtu(connection, kind.mtu(&toward_client));
        }
        request.mechanism_preferences = self.offers(&ask, class);

        let mut answer = next.request(call, request).await?;
        let ask = Ask { id: &id, payload, fds: call.state.get::<Fds>(), dataplane: &self.dataplane };
        let staged = self.stage(&ask, class, &toward_client, &mut answer)?;
        answer.mechanism = Some(toward_client);
        call.state.insert(staged);
        Ok(answer)
    }

    async fn close(&self, call: &mut Call, mut connection: Connection, next: Next<'_>) -> Result<(), Status> {
        if let Some(agreed) = call.state.remove::<TowardEndpoint>() {
            connection.mechanism = Some(without_place(agreed.0));
        }
        next.close(call, connection).await
    }
}

/// The mechanism that the next hop knows, in a connection's state for its Close.
pub struct TowardEndpoint(pub Mechanism);
