//! Between the API's messages and routing domains. Errors name the field as the caller wrote it.

use std::net::IpAddr;

use vwire_proto::dataplane::v1 as pb;

use super::proto::{FieldError, InField};
use super::value::{shown, usable};
use super::{DomainState, MemberSpec, Network, Op, PortName, RouteSpec, State};

fn address(raw: &str, field: &str) -> Result<IpAddr, FieldError> {
    let parsed = raw.parse();
    let address =
        parsed.map_err(|_| FieldError::new(field, format!("{} is not an IP address", shown(raw))))?;
    usable(address).field(field)
}

fn domain(raw: &pb::Domain) -> Result<(PortName, Vec<IpAddr>), FieldError> {
    let name = raw.name.parse().field("name")?;
    let gateways = raw.gateways.iter().enumerate();
    let gateways =
        gateways.map(|(i, raw)| address(raw, &format!("gateways[{i}]"))).collect::<Result<_, _>>()?;
    let DomainState { gateways, .. } = DomainState::new(gateways).map_err(super::proto::split)?;
    Ok((name, gateways))
}

fn member(name: &PortName, raw: &pb::DomainPort) -> Result<Op, FieldError> {
    let port = raw.port.parse().field("port")?;
    let strict = match pb::SourceCheck::try_from(raw.source_check) {
        Ok(pb::SourceCheck::Unspecified | pb::SourceCheck::Strict) => true,
        Ok(pb::SourceCheck::Off) => false,
        Err(_) => {
            return Err(FieldError::new("source_check", format!("there is no check {}", raw.source_check)));
        }
    };
    let count = raw.neighbours.len();
    if count > MemberSpec::MAX_NEIGHBOURS {
        return Err(FieldError::new("neighbours", format!("at most 64 are possible, not {count}")));
    }
    let neighbour = |(i, raw): (usize, &pb::Neighbour)| {
        let at =
            address(&raw.address, "address").map_err(|error| error.inside(format!("neighbours[{i}]")))?;
        Ok((at, raw.mac.parse().field(&format!("neighbours[{i}].mac"))?))
    };
    Ok(Op::SetMember(
        port,
        MemberSpec {
            domain: name.clone(),
            mtu: match raw.mtu {
                0 => None,
                mtu => Some(i64::from(mtu).try_into().field("mtu")?),
            },
            mac: if raw.mac.is_empty() { None } else { Some(raw.mac.parse().field("mac")?) },
            strict,
            neighbours: raw.neighbours.iter().enumerate().map(neighbour).collect::<Result<_, _>>()?,
        },
    ))
}

fn route(name: &PortName, raw: &pb::Route) -> Result<Op, FieldError> {
    let via = if raw.via.is_empty() { None } else { Some(address(&raw.via, "via")?) };
    let route = RouteSpec { port: raw.port.parse().field("port")?, via };
    Ok(Op::SetRoute(name.clone(), raw.prefix.parse().field("prefix")?, route))
}

/// The operation of a routing domain that a message describes; `i` is its place in the request.
pub(super) fn routing_op(i: usize, raw: &pb::op::Op) -> Result<Op, FieldError> {
    use pb::op::Op as Raw;
    let needed = |field: &str| FieldError::new(field, "is needed");
    let (field, op) = match raw {
        Raw::SetDomain(raw) if !raw.ports.is_empty() || !raw.routes.is_empty() => {
            let reason = "ports and routes have operations of their own; leave both empty";
            return Err(FieldError::new(format!("ops[{i}].set_domain"), reason));
        }
        Raw::SetDomain(raw) => {
            ("set_domain", domain(raw).map(|(name, gateways)| Op::SetDomain(name, gateways)))
        }
        Raw::RemoveDomain(raw) => {
            return raw.parse().map(Op::RemoveDomain).field(&format!("ops[{i}].remove_domain"));
        }
        Raw::SetDomainPort(raw) => ("set_domain_port", {
            let named: Result<PortName, _> = raw.domain.parse().field("domain");
            named.and_then(|name| {
                let port = raw.port.as_ref().ok_or_else(|| needed("port"))?;
                member(&name, port).map_err(|error| error.inside("port"))
            })
        }),
        Raw::RemoveDomainPort(raw) => {
            return raw.parse().map(Op::RemoveMember).field(&format!("ops[{i}].remove_domain_port"));
        }
        Raw::SetRoute(raw) => ("set_route", {
            let named: Result<PortName, _> = raw.domain.parse().field("domain");
            named.and_then(|name| {
                let raw = raw.route.as_ref().ok_or_else(|| needed("route"))?;
                route(&name, raw).map_err(|error| error.inside("route"))
            })
        }),
        Raw::RemoveRoute(raw) => ("remove_route", {
            let named: Result<PortName, _> = raw.domain.parse().field("domain");
            named.and_then(|name| Ok(Op::RemoveRoute(name, raw.prefix.parse().field("prefix")?)))
        }),
        _ => return Err(FieldError::new(format!("ops[{i}]"), "is not known here")),
    };
    op.map_err(|error| error.inside(format!("ops[{i}].{field}")))
}

/// What makes these domains, in a state that has none.
pub(super) fn routing_ops(raw: &[pb::Domain]) -> Result<Vec<Op>, FieldError> {
    let (mut ops, mut names, mut taken) =
        (Vec::new(), std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
    for (i, raw) in raw.iter().enumerate() {
        let place = format!("state.domains[{i}]");
        let (name, gateways) = domain(raw).map_err(|error| error.inside(&place))?;
        if !names.insert(name.clone()) {
            return Err(FieldError::new(format!("{place}.name"), format!("domain {name} is there twice")));
        }
        ops.push(Op::SetDomain(name.clone(), gateways));
        for (k, raw) in raw.ports.iter().enumerate() {
            ops.push(member(&name, raw).map_err(|error| error.inside(format!("{place}.ports[{k}]")))?);
            if !taken.insert(&raw.port) {
                let reason = format!("port {} is in a domain already", raw.port);
                return Err(FieldError::new(format!("{place}.ports[{k}].port"), reason));
            }
        }
        let mut prefixes = std::collections::HashSet::new();
        for (k, raw) in raw.routes.iter().enumerate() {
            let op = route(&name, raw).map_err(|error| error.inside(format!("{place}.routes[{k}]")))?;
            if !prefixes.insert(&raw.prefix) {
                let reason = format!("{} is there twice", shown(&raw.prefix));
                return Err(FieldError::new(format!("{place}.routes[{k}].prefix"), reason));
            }
            ops.push(op);
        }
    }
    Ok(ops)
}

/// A route as the API says it.
pub fn route_to_proto(network: &Network, route: &RouteSpec) -> pb::Route {
    pb::Route {
        prefix: network.to_string(),
        port: route.port.to_string(),
        via: route.via.map(|via| via.to_string()).unwrap_or_default(),
    }
}

fn member_to_proto(port: &PortName, member: &MemberSpec) -> pb::DomainPort {
    let check = if member.strict { pb::SourceCheck::Strict } else { pb::SourceCheck::Off };
    let neighbour = |(address, mac): (&IpAddr, &super::Mac)| pb::Neighbour {
        address: address.to_string(),
        mac: mac.to_string(),
        ..pb::Neighbour::default()
    };
    pb::DomainPort {
        port: port.to_string(),
        mtu: member.mtu.map_or(0, |mtu| mtu.get().into()),
        mac: member.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        source_check: check.into(),
        neighbours: member.neighbours.iter().map(neighbour).collect(),
    }
}

/// The domains of a state.
pub(super) fn domains_to_proto(state: &State) -> Vec<pb::Domain> {
    let routing = state.routing();
    let mut ports: std::collections::BTreeMap<&PortName, Vec<pb::DomainPort>> = Default::default();
    for (port, member) in routing.members() {
        ports.entry(&member.domain).or_default().push(member_to_proto(port, member));
    }
    let domain = |(name, domain): (&PortName, &DomainState)| pb::Domain {
        name: name.to_string(),
        gateways: domain.gateways.iter().map(ToString::to_string).collect(),
        ports: ports.remove(name).unwrap_or_default(),
        routes: domain.routes.iter().map(|(network, route)| route_to_proto(network, route)).collect(),
    };
    routing.domains().iter().map(domain).collect()
}
