//! What is told about routing domains: counters, neighbours, routes.

use std::collections::HashMap;
use std::ops::Bound;

use tonic::Status;
use vwire_proto::dataplane::v1 as pb;

use super::Agent;
use crate::DropReason;
use crate::model::routing_proto::route_to_proto;
use crate::model::{Network, PortName};
use crate::route::counters::{DomainReading, RouteDrop, RouteReading};
use crate::route::domain::Domain;

/// Routes in an answer, if nobody says how many.
const USUAL_ROUTES: usize = 1000;
/// Most routes in an answer.
const MOST_ROUTES: usize = 10_000;

/// What somebody wants to know.
pub struct Asked {
    /// Of which domain.
    pub domain: PortName,
    /// Only routes behind this one.
    pub after: Option<Network>,
    /// At most so many.
    pub limit: usize,
}

impl TryFrom<&pb::GetRoutingRequest> for Asked {
    type Error = Status;
    fn try_from(raw: &pb::GetRoutingRequest) -> Result<Self, Status> {
        let refused =
            |field: &str, why: crate::model::Invalid| Status::invalid_argument(format!("{field}: {why}"));
        let limit = match raw.limit as usize {
            0 => USUAL_ROUTES,
            limit if limit <= MOST_ROUTES => limit,
            limit => {
                return Err(Status::invalid_argument(format!(
                    "limit: at most {MOST_ROUTES} are possible, not {limit}"
                )));
            }
        };
        let after = if raw.after.is_empty() { None } else { Some(raw.after.parse()) };
        Ok(Self {
            domain: raw.domain.parse().map_err(|why| refused("domain", why))?,
            after: after.transpose().map_err(|why| refused("after", why))?,
            limit,
        })
    }
}

fn by_name(drops: impl Iterator<Item = (DropReason, u64)>) -> HashMap<String, u64> {
    drops.filter(|(_, count)| *count > 0).map(|(reason, count)| (reason.name().to_owned(), count)).collect()
}

/// The answer; `None` if there is no such domain.
pub fn answer(agent: &Agent, asked: &Asked) -> Option<pb::GetRoutingResponse> {
    let wanted = agent.state.routing().domains().get(&asked.domain)?;
    let (domain, members) = agent.ports.domains.get(&asked.domain)?;
    let DomainReading { forwarded, drops, sent } = domain.counters.read();
    let [answers, echoes, errors, questions, fragments, waited] = sent;
    let behind = (asked.after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
    let routes = wanted.routes.range::<Network, _>(behind).take(asked.limit).map(|(network, route)| {
        let RouteReading { forwarded: (packets, bytes), drops } = read(domain, network);
        let drops = by_name(RouteDrop::ALL.iter().map(|why| (why.reason(), drops[*why as usize])));
        pb::RouteStats { route: Some(route_to_proto(network, route)), packets, bytes, drops }
    });
    let neighbours = domain.neighbours().filter_map(|(address, neighbour)| {
        let (port, at) = members.iter().find(|(_, at)| **at == neighbour.member)?;
        Some(pb::Neighbour {
            address: address.to_string(),
            mac: neighbour.mac.to_string(),
            port: port.to_string(),
            configured: !agent.ports.domains.is_learnt(&asked.domain, *at, address),
        })
    });
    Some(pb::GetRoutingResponse {
        packets: forwarded.0,
        bytes: forwarded.1,
        drops: by_name(drops.into_iter()),
        answers,
        echoes,
        errors,
        questions,
        fragments,
        waited,
        neighbours: neighbours.collect(),
        routes: routes.collect(),
        route_count: wanted.routes.len() as u64,
    })
}

fn read(domain: &Domain, network: &Network) -> RouteReading {
    let len = network.len.into();
    let target = match network.address {
        std::net::IpAddr::V4(v4) => domain.v4.get(v4.into(), len),
        std::net::IpAddr::V6(v6) => domain.v6.get(v6.into(), len),
    };
    target
        .and_then(|target| domain.routes.get(target.route))
        .map(|counters| counters.read())
        .unwrap_or_default()
}

/// The domains' counters, by name; for metrics.
pub fn readings(agent: &Agent) -> Vec<(String, usize, DomainReading)> {
    let domains = agent.state.routing().domains();
    let reading = |(name, wanted): (&PortName, &crate::model::DomainState)| {
        let (domain, _) = agent.ports.domains.get(name)?;
        Some((name.to_string(), wanted.routes.len(), domain.counters.read()))
    };
    domains.iter().filter_map(reading).collect()
}
