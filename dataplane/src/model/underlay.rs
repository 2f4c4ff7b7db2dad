//! Ports that are underlays: what is said about one, and what must hold between ports, underlays and tunnels.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::value::{Invalid, usable};
use super::{Mac, Mode, PortName, PortSpec, Prefix, State, StateError, UnderlayMtu, VxlanSpec};

/// What a port is as an underlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnderlaySpec {
    /// The tunnels' local addresses, with the prefixes that are on link.
    pub addresses: Vec<Prefix>,
    /// Routers for what is not on link, at most one of each family.
    pub gateways: Vec<IpAddr>,
    /// Longest IP packet that the link carries.
    pub mtu: UnderlayMtu,
    /// What the engine calls itself on the link; the device's own if `None`.
    pub mac: Option<Mac>,
}

/// The bits of an address, aligned to the left.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)) << 96,
        IpAddr::V6(v6) => v6.into(),
    }
}

fn covers(prefix: &Prefix, address: IpAddr) -> bool {
    let differing = (bits(prefix.address) ^ bits(address)).leading_zeros();
    prefix.address.is_ipv4() == address.is_ipv4() && differing >= u32::from(prefix.len)
}

impl UnderlaySpec {
    /// Most addresses of one underlay.
    pub const MAX_ADDRESSES: usize = 16;
    /// RFC 8200 §5.
    const IPV6_MIN_MTU: u16 = 1280;

    /// The underlay, if its parts fit together.
    ///
    /// # Errors
    /// Which parts don't.
    pub fn checked(self) -> Result<Self, Invalid> {
        let count = self.addresses.len();
        if !(1..=Self::MAX_ADDRESSES).contains(&count) {
            return Err(Invalid(format!(
                "addresses: 1 to {} are possible, not {count}",
                Self::MAX_ADDRESSES
            )));
        }
        for (i, prefix) in self.addresses.iter().enumerate() {
            if self.addresses[..i].iter().any(|earlier| earlier.address == prefix.address) {
                return Err(Invalid(format!("addresses: {} is there twice", prefix.address)));
            }
        }
        let v6 = self.addresses.iter().find(|prefix| prefix.address.is_ipv6());
        let mtu = self.mtu.get();
        if let (Some(v6), true) = (v6, mtu < Self::IPV6_MIN_MTU) {
            return Err(Invalid(format!("mtu: {v6} needs one of 1280 bytes or more, and it is {mtu}")));
        }
        self.gateways.iter().enumerate().try_for_each(|(i, gateway)| self.check_gateway(i, *gateway))?;
        Ok(self)
    }

    fn check_gateway(&self, i: usize, gateway: IpAddr) -> Result<(), Invalid> {
        usable(gateway).map_err(|why| Invalid(format!("gateways: {why}")))?;
        if let Some(other) = self.gateways[..i].iter().find(|other| other.is_ipv4() == gateway.is_ipv4()) {
            let why = format!(
                "gateways: at most one of each family is possible, and {other} and {gateway} are of one"
            );
            return Err(Invalid(why));
        }
        if self.has(gateway) {
            return Err(Invalid(format!("gateways: {gateway} is one of the underlay's own addresses")));
        }
        let local = matches!(gateway, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if !local && !self.is_on_link(gateway) {
            let prefixes: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
            let why = format!(
                "gateways: {gateway} is not on link; it must be in a prefix of {}",
                prefixes.join(", ")
            );
            return Err(Invalid(why));
        }
        Ok(())
    }

    /// Whether it has this address.
    pub fn has(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|prefix| prefix.address == address)
    }

    /// Whether `address` is in one of its prefixes.
    pub fn is_on_link(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|prefix| covers(prefix, address))
    }

    fn has_gateway(&self, remote: IpAddr) -> bool {
        self.gateways.iter().any(|gateway| gateway.is_ipv4() == remote.is_ipv4())
    }
}

/// Refuses something; `subject` is what the configuration file can be searched for.
fn refuse<T>(subject: String, reason: impl Into<String>) -> Result<T, StateError> {
    Err(StateError::Underlay { subject, reason: reason.into() })
}

impl State {
    /// Most underlays.
    pub const MAX_UNDERLAYS: usize = 64;

    /// The tunnels that name this port as their underlay.
    pub fn carried_by<'s>(&'s self, port: &PortName) -> impl Iterator<Item = &'s PortName> + use<'s> {
        self.index.carried.get(port).into_iter().flatten()
    }

    /// Whether what was touched fits together with the rest, which did before. `ports` are the touched ports, underlays' included.
    pub(super) fn check_underlays(&self, ports: &BTreeSet<PortName>) -> Result<(), StateError> {
        let count = self.underlays.len();
        if count > Self::MAX_UNDERLAYS {
            let most = Self::MAX_UNDERLAYS;
            return refuse("underlays".into(), format!("{count} are too many; the limit is {most}"));
        }
        for port in ports {
            self.check_underlay(port)?;
            for tunnel in self.carried_by(port) {
                self.check_carried(tunnel)?;
            }
            self.check_carried(port)?;
        }
        Ok(())
    }

    fn check_underlay(&self, port: &PortName) -> Result<(), StateError> {
        if !self.underlays.contains_key(port) {
            return Ok(());
        }
        let subject = format!("underlay {port}");
        match self.ports.get(port) {
            None => return refuse(subject, format!("port: there is no port {port}")),
            Some(PortSpec::Vxlan(_)) => return refuse(subject, "port: a tunnel can't carry tunnels"),
            Some(PortSpec::Relay(_)) => return refuse(subject, "port: it is a relay, which has no frames"),
            Some(spec) if spec.mode() == Some(Mode::Ip) => {
                return refuse(
                    subject,
                    "port: its frames have no Ethernet header (mode = \"ip\"), and an underlay's must",
                );
            }
            Some(_) => {}
        }
        if let Some(member) = self.routing.members().get(port) {
            return refuse(
                subject,
                format!("port: it is in domain {}; a port can be one of the two", member.domain),
            );
        }
        if let Some(peer) = self.peer(port).filter(|peer| self.underlays.contains_key(*peer)) {
            return refuse(subject, format!("exception: port {peer} is itself an underlay"));
        }
        if self.ports.get(port).is_some_and(PortSpec::has_kernel_routes)
            && let Some(peer) = self.peer(port)
        {
            let why = format!(
                "exception: what is for no tunnel stays the kernel's on an af_xdp port, and does not come to port {peer}; leave it out"
            );
            return refuse(subject, why);
        }
        Ok(())
    }

    fn check_carried(&self, tunnel: &PortName) -> Result<(), StateError> {
        let Some(PortSpec::Vxlan(spec)) = self.ports.get(tunnel) else { return Ok(()) };
        let Some(name) = &spec.underlay else { return Ok(()) };
        let VxlanSpec { local, remote, .. } = spec;
        let subject = tunnel.to_string();
        let Some(underlay) = self.underlays.get(name) else {
            let why = format!(
                "port {tunnel}: underlay: port {name} is no underlay; describe it as one, with its addresses"
            );
            return refuse(subject, why);
        };
        let addresses = || underlay.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if !underlay.has(*local) {
            let why = format!(
                "port {tunnel}: local: {local} is not an address of underlay {name}, which has {}",
                addresses()
            );
            return refuse(subject, why);
        }
        if underlay.has(*remote) {
            return refuse(
                subject,
                format!("port {tunnel}: remote: {remote} is an address of underlay {name} itself"),
            );
        }
        let knows_routes = self.ports.get(name).is_some_and(PortSpec::has_kernel_routes);
        if !knows_routes && !underlay.is_on_link(*remote) && !underlay.has_gateway(*remote) {
            let why = format!(
                "port {tunnel}: remote: {remote} is not on the link of underlay {name} ({}), and it has no gateway of that family",
                addresses()
            );
            return refuse(subject, why);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "underlay_tests.rs"]
mod tests;
