//! `[[domain]]`: a routing domain, its ports and its routes. The keys are the API's fields.

use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de::Error};

use crate::model::{DomainState, Invalid, Mac, MemberSpec, Network, Op, PortName, RouteMtu, RouteSpec};

/// A value that is written as text.
struct Text<T>(T);

impl<'de, T: FromStr<Err: Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map(Self).map_err(D::Error::custom)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum SourceCheck {
    Strict,
    Off,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Neighbour {
    address: IpAddr,
    mac: Text<Mac>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Port {
    port: PortName,
    mtu: Option<i64>,
    mac: Option<Text<Mac>>,
    source_check: Option<SourceCheck>,
    #[serde(default)]
    neighbours: Vec<Neighbour>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Route {
    prefix: Text<Network>,
    port: PortName,
    via: Option<IpAddr>,
}

/// One `[[domain]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Domain {
    name: PortName,
    #[serde(default)]
    gateways: Vec<IpAddr>,
    #[serde(default, rename = "port")]
    ports: Vec<Port>,
    #[serde(default, rename = "route")]
    routes: Vec<Route>,
}

impl Domain {
    /// What makes it, and what errors about it are called.
    pub fn into_ops(self) -> Result<(Vec<Op>, Vec<String>), Invalid> {
        let Self { name, gateways, ports, routes } = self;
        let mut subjects = vec![format!("domain {name}")];
        let mut ops = vec![Op::SetDomain(name.clone(), DomainState::new(gateways)?.gateways)];
        for port in ports {
            subjects.push(format!("domain {name}: port {}", port.port));
            ops.push(port.into_op(&name)?);
        }
        for Route { prefix: Text(network), port, via } in routes {
            let subject = format!("domain {name}: route {network}");
            if subjects.contains(&subject) {
                return Err(Invalid(format!("route: {network} is there twice")));
            }
            subjects.push(subject);
            ops.push(Op::SetRoute(name.clone(), network, RouteSpec { port, via }));
        }
        Ok((ops, subjects))
    }
}

impl Port {
    fn into_op(self, domain: &PortName) -> Result<Op, Invalid> {
        let Self { port, mtu, mac, source_check, neighbours } = self;
        let count = neighbours.len();
        if count > MemberSpec::MAX_NEIGHBOURS {
            return Err(Invalid(format!("neighbours: at most 64 are possible, not {count}")));
        }
        let member = MemberSpec {
            domain: domain.clone(),
            mtu: mtu.map(RouteMtu::try_from).transpose()?,
            mac: mac.map(|Text(mac)| mac),
            strict: !matches!(source_check, Some(SourceCheck::Off)),
            neighbours: neighbours.into_iter().map(|n| (n.address, n.mac.0)).collect(),
        };
        Ok(Op::SetMember(port, member))
    }
}
