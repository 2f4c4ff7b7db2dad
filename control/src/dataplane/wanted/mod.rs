//! What each connection has at the engine, and what is held to make it again.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vwire_proto::dataplane::v1 as pb;
use vwire_proto::dataplane::v1::op::Op;

use super::kernel::{Interface, Side};
use super::netns::Namespace;
use super::note::Note;
use crate::transport::SharedFd;

mod vni;

pub use vni::{Half, Vnis};

/// One end of a vWire: its port.
#[derive(Clone)]
pub struct End {
    /// What makes it the same end after a refresh or a restart: type, namespace, name.
    pub key: String,
    /// As the engine was told, without note; of a relay only the name.
    pub port: pb::Port,
    /// The relay that it is instead of a port: both ends at once.
    pub relay: Option<pb::Relay>,
    /// What the port was made of, where holding it costs its owner nothing: memif's listening socket. A namespace of an interface is
    /// not held: it would live on after its workload, and nobody would hear of the end.
    pub fds: Vec<SharedFd>,
    /// What has to be known to dial again when the connection breaks; of a relay, which dials for itself, to see whether it can.
    pub redial: Option<Redial>,
    /// The interface's name and configuration, if it is one.
    pub interface: Option<(String, Interface)>,
}

impl End {
    /// The operation that makes it.
    pub fn set(&self, note: Vec<u8>) -> Op {
        match &self.relay {
            Some(relay) => Op::SetRelay(pb::Relay { note, ..relay.clone() }),
            None => Op::SetPort(pb::Port { note, ..self.port.clone() }),
        }
    }

    /// Whether it is a memif to which a peer connects.
    pub fn listens(&self) -> bool {
        let server = pb::memif::Role::Server as i32;
        matches!(&self.port.kind, Some(pb::port::Kind::Memif(memif)) if memif.role == server)
    }

    /// Whether it is the same port, dialled to the same place.
    pub fn dials_as(&self, other: &Self) -> bool {
        let place =
            |end: &Self| end.redial.as_ref().map(|redial| (redial.namespace.inode(), redial.socket.clone()));
        self.port.name == other.port.name && place(self) == place(other)
    }

    /// The operation that removes it.
    pub fn remove(&self) -> Op {
        let name = self.port.name.clone();
        if self.relay.is_some() { Op::RemoveRelay(name) } else { Op::RemovePort(name) }
    }
}

/// How to reach a memif's listener.
#[derive(Clone)]
pub struct Redial {
    /// Where it listens. A memif's peer is missed when its socket closes, so holding the namespace hides nothing.
    pub namespace: Namespace,
    /// Its abstract name with `@`.
    pub socket: String,
}

/// One connection.
#[derive(Clone)]
pub struct Record {
    /// What the engine keeps of it.
    pub note: Note,
    /// Toward the client.
    pub server: Option<End>,
    /// Toward the endpoint.
    pub client: Option<End>,
    /// The client's namespace, while policy rules have to be removed from it some day.
    pub rules_in: Option<Namespace>,
    /// True until a Request has come for it since we started.
    pub adopted: bool,
}

impl Record {
    /// One of its ends.
    pub fn end(&self, side: Side) -> Option<&End> {
        match side {
            Side::Server => self.server.as_ref(),
            Side::Client => self.client.as_ref(),
        }
    }

    /// The tunnels of its ends: the peer and the number of each.
    pub fn tunnels(&self) -> Vec<(std::net::IpAddr, u32)> {
        let tunnel = |end: &End| match end.port.kind.as_ref()? {
            pb::port::Kind::Vxlan(tunnel) => Some((tunnel.remote.parse().ok()?, tunnel.vni)),
            _ => None,
        };
        self.ends().filter_map(tunnel).collect()
    }

    /// Both ends; one if it is a relay.
    pub fn ends(&self) -> impl Iterator<Item = &End> {
        self.server.iter().chain(&self.client)
    }

    fn ports(&self) -> impl Iterator<Item = &str> {
        self.ends().map(|end| end.port.name.as_str())
    }
}

#[derive(Default)]
struct Tables {
    records: HashMap<String, Record>,
    owners: HashMap<String, String>,
}

/// All connections, by their id in our coordinates.
#[derive(Default)]
pub struct Wanted {
    tables: Mutex<Tables>,
    /// Which network identifiers are taken.
    pub vnis: Vnis,
}

impl Wanted {
    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection's record.
    pub fn get(&self, id: &str) -> Option<Record> {
        self.lock().records.get(id).cloned()
    }

    /// Keeps a record in place of the one there was.
    pub fn put(&self, id: &str, record: Record) {
        let mut tables = self.lock();
        if let Some(before) = tables.records.remove(id) {
            before.ports().for_each(|port| drop(tables.owners.remove(port)));
        }
        for port in record.ports() {
            tables.owners.insert(port.to_owned(), id.to_owned());
        }
        tables.records.insert(id.to_owned(), record);
    }

    /// Forgets a connection.
    pub fn remove(&self, id: &str) -> Option<Record> {
        let mut tables = self.lock();
        let record = tables.records.remove(id)?;
        record.ports().for_each(|port| drop(tables.owners.remove(port)));
        Some(record)
    }

    /// The connection that a port belongs to, and which end it is.
    pub fn owner(&self, port: &str) -> Option<(String, Side)> {
        let tables = self.lock();
        let id = tables.owners.get(port)?;
        let is_server = tables.records.get(id)?.server.as_ref().is_some_and(|end| end.port.name == port);
        Some((id.clone(), if is_server { Side::Server } else { Side::Client }))
    }

    /// All connections' ids.
    pub fn ids(&self) -> Vec<String> {
        self.lock().records.keys().cloned().collect()
    }
}

/// An id as part of a port's or a socket's name: as it is if it is a usual one, else a digest of it.
pub fn short(id: &str) -> String {
    let usual = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if !id.is_empty() && id.len() <= 48 && id.chars().all(usual) {
        return id.to_owned();
    }
    let digest = ring::digest::digest(&ring::digest::SHA256, id.as_bytes());
    digest.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The name of a connection's next port on one side. A port that replaces another has another name: the engine sees at once that it
/// is new.
pub fn port_name(id: &str, side: Side, before: Option<&str>) -> String {
    let base = format!("{}.{}", short(id), if side == Side::Server { "s" } else { "c" });
    let number = |name: &str| name.strip_prefix(&base)?.parse::<u32>().ok();
    let next = before.and_then(number).map_or(0, |number| number.wrapping_add(1));
    format!("{base}{next}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_distinct_and_never_reused_at_once() {
        let id = "9b2e2a2c-5b0c-4cf4-8b3b-0f8b7ad8b7a1";
        assert_eq!(port_name(id, Side::Server, None), format!("{id}.s0"));
        assert_eq!(port_name(id, Side::Client, Some(&format!("{id}.c7"))), format!("{id}.c8"));
        for odd in ["../x", "a b", &"x".repeat(64_000), ""] {
            let name = port_name(odd, Side::Client, None);
            assert!(name.len() <= 63 && name.ends_with(".c0"), "{name}");
            assert_ne!(short(odd), short("y"));
        }
    }
}
