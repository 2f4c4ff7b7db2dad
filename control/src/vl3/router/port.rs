//! A port of the domain: a memif and what lies behind it.

use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;
use tonic::Status;
use vwire_dataplane::fdpass::identify;
use vwire_proto::dataplane::v1 as pb;
use vwire_proto::dataplane::v1::op::Op;

use super::Routes;
use crate::dataplane::client::Change;
use crate::dataplane::ends::Payload;
use crate::dataplane::memif_socket;
use crate::dataplane::netns::Namespace;
use crate::dataplane::wanted::Redial;
use crate::transport::SharedFd;

/// Where a memif's control socket is.
#[derive(Clone)]
pub struct Place {
    /// The namespace of the abstract name.
    pub namespace: Namespace,
    /// The name, with `@`.
    pub socket: String,
}

impl Place {
    fn is_same(&self, other: &Self) -> bool {
        self.socket == other.socket && self.namespace.inode() == other.namespace.inode()
    }

    /// As the engine's client dials it.
    pub(super) fn redial(&self) -> Redial {
        Redial { namespace: self.namespace.clone(), socket: self.socket.clone() }
    }
}

/// Which side of a memif we are.
#[derive(Clone)]
pub enum End {
    /// We listen, as an endpoint does; the other side connects whenever it likes.
    Listen(Place),
    /// We connect, as a client does.
    Dial(Place),
}

impl End {
    /// Where the socket is.
    pub fn place(&self) -> &Place {
        let (Self::Listen(place) | Self::Dial(place)) = self;
        place
    }

    fn role(&self) -> i32 {
        match self {
            Self::Listen(_) => pb::memif::Role::Server.into(),
            Self::Dial(_) => pb::memif::Role::Client.into(),
        }
    }
}

/// What leads to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Without bits behind the prefix; they are cut off.
    pub prefix: IpNet,
    /// The next hop, where frames are Ethernet's and the destinations are behind another router. None: the destinations themselves are
    /// at the port.
    pub via: Option<IpAddr>,
}

impl From<IpNet> for Route {
    fn from(prefix: IpNet) -> Self {
        Self { prefix, via: None }
    }
}

/// A port as it shall be.
#[derive(Clone)]
pub struct Attachment {
    /// Its memif.
    pub end: End,
    /// What its frames are.
    pub payload: Payload,
    /// Longest packet that is sent by it, with its IP header: 68 to 65535 bytes; 0 is 1500.
    pub mtu: u32,
    /// What leads to it. Packets that come by it must have sources that do.
    pub routes: Vec<Route>,
    /// Kept by the engine for us, at most 16384 bytes, and given back by [`super::Router::start`].
    pub note: Vec<u8>,
}

/// A port that was there when we started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Its name.
    pub port: String,
    /// As it was attached with.
    pub note: Vec<u8>,
    /// As at the engine.
    pub mtu: u32,
    /// As at the engine.
    pub routes: Vec<Route>,
    /// Whether it listens.
    pub listens: bool,
}

/// A port as it is, or is being made.
#[derive(Clone)]
pub(super) struct Port {
    /// None of one that was there when we started, until it is attached again.
    pub(super) end: Option<End>,
    pub(super) mtu: u32,
    pub(super) routes: Routes,
    pub(super) note: Vec<u8>,
    /// As the engine was told.
    pub(super) memif: pb::Memif,
    /// The listening socket.
    pub(super) listening: Option<SharedFd>,
}

/// The prefixes without bits behind their length.
pub(super) fn normal(routes: &[Route]) -> Routes {
    routes.iter().map(|route| (route.prefix.trunc(), route.via)).collect()
}

impl Port {
    /// What is needed to make it. A socket that listens where it shall is used again.
    pub(super) async fn prepare(wanted: Attachment, before: Option<&Self>) -> Result<Self, Status> {
        memif_socket::check(&wanted.end.place().socket)?;
        let held =
            before.filter(|before| before.is_same_end(&wanted)).and_then(|before| before.listening.clone());
        let memif = pb::Memif {
            role: wanted.end.role(),
            mode: wanted.payload.mode(),
            socket: held
                .as_ref()
                .map(identify)
                .transpose()?
                .map(|inode| inode.to_string())
                .unwrap_or_default(),
            ..Default::default()
        };
        let mut port = Self {
            routes: normal(&wanted.routes),
            end: Some(wanted.end.clone()),
            mtu: wanted.mtu,
            note: wanted.note,
            memif,
            listening: held,
        };
        if port.lacks_socket() {
            port.listen(&wanted.end).await?;
        }
        Ok(port)
    }

    /// Listens at its place.
    pub(super) async fn listen(&mut self, end: &End) -> Result<(), Status> {
        let place = end.place();
        let listening = memif_socket::listen(&place.namespace, &place.socket).await?;
        self.memif.socket = identify(&listening)?.to_string();
        self.listening = Some(listening);
        Ok(())
    }

    /// Whether the port need not be made anew. Of one that was there when we started, the caller knows where its socket is.
    pub(super) fn is_same_end(&self, wanted: &Attachment) -> bool {
        let same_place = match (&self.end, &wanted.end) {
            (None, _) => true,
            (Some(End::Listen(one)), End::Listen(other)) | (Some(End::Dial(one)), End::Dial(other)) => {
                one.is_same(other)
            }
            _ => false,
        };
        same_place && self.memif.role == wanted.end.role() && self.memif.mode == wanted.payload.mode()
    }

    /// The same port with what else is wanted of it.
    pub(super) fn with(&self, wanted: Attachment) -> Self {
        Self {
            end: Some(wanted.end),
            mtu: wanted.mtu,
            routes: normal(&wanted.routes),
            note: wanted.note,
            memif: self.memif.clone(),
            listening: self.listening.clone(),
        }
    }

    pub(super) fn set_routes(&mut self, routes: Vec<Route>) {
        self.routes = normal(&routes);
    }

    /// Puts it into the domain.
    pub(super) fn set_member(&self, domain: &str, name: &str) -> Op {
        let port = pb::DomainPort { port: name.to_owned(), mtu: self.mtu, ..Default::default() };
        Op::SetDomainPort(pb::SetDomainPort { domain: domain.to_owned(), port: Some(port) })
    }

    /// From what was to what shall be, as one transaction. With `fresh` the memif itself is made, too.
    pub(super) fn change(
        &self,
        domain: &str,
        name: &str,
        before: Option<&Self>,
        (fresh, until): (bool, Instant),
    ) -> Change {
        let mut change = Change::default();
        if fresh {
            self.push_port(name, until, &mut change);
        } else if before.is_some_and(|before| before.note != self.note) {
            let (port, note) = (name.to_owned(), self.note.clone());
            change.push(Op::SetNote(pb::SetNote { port, note }));
        }
        if before.is_none_or(|before| before.mtu != self.mtu) {
            change.push(self.set_member(domain, name));
        }
        for prefix in before.iter().flat_map(|before| before.routes.keys()) {
            if !self.routes.contains_key(prefix) {
                change.push(remove_route(domain, prefix));
            }
        }
        let known = |prefix: &IpNet| before.and_then(|before| before.routes.get(prefix));
        for (prefix, via) in self.routes.iter().filter(|(prefix, via)| known(prefix) != Some(via)) {
            change.push(set_route(domain, name, prefix, *via));
        }
        change
    }

    /// Whether it would have to listen again before it can be made at another engine.
    pub(super) fn lacks_socket(&self) -> bool {
        self.listening.is_none() && self.memif.role == i32::from(pb::memif::Role::Server)
    }

    fn push_port(&self, name: &str, until: Instant, change: &mut Change) {
        let kind = Some(pb::port::Kind::Memif(self.memif.clone()));
        let port = pb::Port { name: name.to_owned(), kind, note: self.note.clone() };
        match &self.end {
            Some(End::Dial(place)) => change.push_dialled(port, place.redial(), until),
            _ => {
                change.fds.extend(self.listening.clone());
                change.push(Op::SetPort(port));
            }
        }
    }

    /// Takes it out of the domain and away, as one transaction.
    pub(super) fn removal(&self, domain: &str, name: &str) -> Change {
        let mut change = Change::default();
        self.routes.keys().for_each(|prefix| change.push(remove_route(domain, prefix)));
        change.push(Op::RemoveDomainPort(name.to_owned()));
        change.push(Op::RemovePort(name.to_owned()));
        change
    }
}

/// An operation.
pub(super) fn remove_route(domain: &str, prefix: &IpNet) -> Op {
    Op::RemoveRoute(pb::RemoveRoute { domain: domain.to_owned(), prefix: prefix.to_string() })
}

/// An operation.
pub(super) fn set_route(domain: &str, port: &str, prefix: &IpNet, via: Option<IpAddr>) -> Op {
    let via = via.map(|via| via.to_string()).unwrap_or_default();
    let route = pb::Route { prefix: prefix.to_string(), port: port.to_owned(), via };
    Op::SetRoute(pb::SetRoute { domain: domain.to_owned(), route: Some(route) })
}
