//! What the domain shall hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use tonic::Status;
use vwire_proto::dataplane::v1 as pb;
use vwire_proto::dataplane::v1::op::Op;

use super::Routes;
use super::port::{Attachment, Port, Restored, Route, normal, remove_route};

/// Gateways, ports, and who has which prefix.
#[derive(Default)]
pub(super) struct Table {
    pub(super) gateways: Vec<IpAddr>,
    pub(super) ports: BTreeMap<String, Port>,
    /// Which port each prefix leads to; also of ports that are being made.
    owners: BTreeMap<IpNet, String>,
    /// Ports that are being made, or changed.
    making: BTreeSet<String>,
    /// Ports whose broken links somebody sees to.
    pub(super) dialling: BTreeSet<String>,
}

/// What it takes for the engine to hold what the table says.
#[derive(Default)]
pub(super) struct Plan {
    /// The domain itself, and what is in it without being in the table.
    pub(super) first: Vec<Op>,
    /// Ports that disagree: as they shall be, as they are, and whether the memif has to be made.
    pub(super) ports: Vec<(String, Port, Option<Port>, bool)>,
}

impl Plan {
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_empty() && self.ports.is_empty()
    }
}

impl Table {
    /// Every prefix and its port.
    pub(super) fn routes(&self) -> Vec<(IpNet, String)> {
        self.owners.iter().map(|(prefix, port)| (*prefix, port.clone())).collect()
    }

    fn claim<'a>(
        &mut self,
        port: &str,
        prefixes: impl Iterator<Item = &'a IpNet> + Clone,
    ) -> Result<(), Status> {
        for prefix in prefixes.clone() {
            if let Some(owner) = self.owners.get(prefix).filter(|owner| *owner != port) {
                return Err(Status::already_exists(format!(
                    "route {prefix}: it leads to port {owner} already, and can't lead to {port}, too"
                )));
            }
        }
        self.owners.extend(prefixes.map(|prefix| (*prefix, port.to_owned())));
        Ok(())
    }

    /// Claims what a port shall have, beside what it has. Returns the port as it is.
    pub(super) fn reserve(&mut self, port: &str, wanted: &Attachment) -> Result<Option<Port>, Status> {
        self.claim(port, normal(&wanted.routes).keys())?;
        self.making.insert(port.to_owned());
        Ok(self.ports.get(port).cloned())
    }

    /// Goes back to before [`reserve`](Self::reserve).
    pub(super) fn release(&mut self, port: &str, before: Option<Port>) {
        match before {
            Some(before) => self.put(port, before),
            None => drop(self.remove(port)),
        }
    }

    /// Keeps a port in place of the one there was.
    pub(super) fn put(&mut self, name: &str, port: Port) {
        self.owners.retain(|prefix, owner| owner != name || port.routes.contains_key(prefix));
        self.owners.extend(port.routes.keys().map(|prefix| (*prefix, name.to_owned())));
        self.making.remove(name);
        self.ports.insert(name.to_owned(), port);
    }

    /// As [`put`](Self::put), if nobody else has its prefixes.
    pub(super) fn replace(&mut self, name: &str, port: Port) -> Result<(), Status> {
        self.claim(name, port.routes.keys())?;
        self.put(name, port);
        Ok(())
    }

    /// Forgets a port.
    pub(super) fn remove(&mut self, port: &str) -> Option<Port> {
        self.owners.retain(|_, owner| owner != port);
        self.making.remove(port);
        self.ports.remove(port)
    }

    /// Forgets all ports, and says which there were.
    pub(super) fn clear(&mut self) -> Vec<String> {
        self.owners.clear();
        std::mem::take(&mut self.ports).into_keys().collect()
    }

    /// Takes over what an earlier process left in the domain.
    pub(super) fn adopt(&mut self, domain: &str, snapshot: &pb::GetSnapshotResponse) -> Vec<Restored> {
        let there = There::of(domain, snapshot);
        self.gateways = there.gateways;
        let mut restored = Vec::new();
        for (name, port) in there.ports {
            let routes = port.routes.iter().map(|(prefix, via)| Route { prefix: *prefix, via: *via });
            restored.push(Restored {
                port: name.clone(),
                note: port.note.clone(),
                mtu: port.mtu,
                routes: routes.collect(),
                listens: port.memif.role == i32::from(pb::memif::Role::Server),
            });
            self.put(&name, port);
        }
        restored
    }

    /// What differs at the engine. Ports that are being made are left out.
    pub(super) fn plan(&self, domain: &str, snapshot: &pb::GetSnapshotResponse) -> Plan {
        let there = There::of(domain, snapshot);
        let mut plan = Plan::default();
        if !there.exists || there.gateways != self.gateways {
            let gateways = self.gateways.iter().map(ToString::to_string).collect();
            plan.first.push(Op::SetDomain(pb::Domain {
                name: domain.to_owned(),
                gateways,
                ..Default::default()
            }));
        }
        let unknown = |name: &String| !self.ports.contains_key(name) && !self.making.contains(name);
        for (name, port) in there.ports.iter().filter(|(name, _)| unknown(name)) {
            plan.first.extend(port.routes.keys().map(|prefix| remove_route(domain, prefix)));
            plan.first.extend([Op::RemoveDomainPort(name.clone()), Op::RemovePort(name.clone())]);
        }
        for (name, wanted) in self.ports.iter().filter(|(name, _)| !self.making.contains(*name)) {
            let found = there.ports.get(name).filter(|found| found.is_the_same_memif(wanted));
            let agrees = found.is_some_and(|found| {
                found.mtu == wanted.mtu && found.routes == wanted.routes && found.note == wanted.note
            });
            if !agrees {
                plan.ports.push((name.clone(), wanted.clone(), found.cloned(), found.is_none()));
            }
        }
        plan
    }
}

impl Port {
    /// The engine says in numbers what is left to it with 0.
    fn is_the_same_memif(&self, other: &Self) -> bool {
        let (one, other) = (&self.memif, &other.memif);
        // A dialled one is known by its name only: its socket was good for one connection.
        let dials = one.role == i32::from(pb::memif::Role::Client);
        one.role == other.role && one.mode == other.mode && (dials || one.socket == other.socket)
    }
}

/// The domain as the engine has it.
#[derive(Default)]
struct There {
    exists: bool,
    gateways: Vec<IpAddr>,
    ports: BTreeMap<String, Port>,
}

impl There {
    fn of(name: &str, snapshot: &pb::GetSnapshotResponse) -> Self {
        let Some(state) = &snapshot.state else { return Self::default() };
        let Some(domain) = state.domains.iter().find(|domain| domain.name == name) else {
            return Self::default();
        };
        let memifs: BTreeMap<&str, (&pb::Memif, &[u8])> = state
            .ports
            .iter()
            .filter_map(|port| match &port.kind {
                Some(pb::port::Kind::Memif(memif)) => Some((port.name.as_str(), (memif, &port.note[..]))),
                _ => None,
            })
            .collect();
        let mut ports = BTreeMap::new();
        for member in &domain.ports {
            let Some((memif, note)) = memifs.get(member.port.as_str()) else { continue };
            let port = Port {
                end: None,
                mtu: member.mtu,
                routes: Routes::new(),
                note: note.to_vec(),
                memif: (*memif).clone(),
                listening: None,
            };
            ports.insert(member.port.clone(), port);
        }
        for route in &domain.routes {
            if let (Ok(prefix), Some(port)) = (route.prefix.parse(), ports.get_mut(&route.port)) {
                port.routes.insert(prefix, route.via.parse().ok());
            }
        }
        let gateways = domain.gateways.iter().filter_map(|gateway| gateway.parse().ok()).collect();
        Self { exists: true, gateways, ports }
    }
}
