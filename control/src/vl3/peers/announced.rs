//! What a peer says of itself in a connection, and whether it may.
//!
//! The dialler says it in the Request: its own address as source, its prefix as a route to itself, and its name server (sdk,
//! `pkg/networkservice/connectioncontext/ipcontext/vl3/client.go`). The one that is dialled says it in the answer, where the same is
//! said to clients: its address as destination, its prefix as a route, and the whole network's prefix as another.

use std::net::IpAddr;

use ipnet::IpNet;
use vwire_proto::nsm::connection::Connection;
use vwire_proto::nsm::connectioncontext::{DnsContext, IpContext, Route};

use crate::prefixes::overlap;

/// The label that the first vL3 endpoints (ucnf) marked their Requests to each other with.
pub const SEED_LABEL: &str = "vl3Nse/nseSource/endpointName";
/// The key in the extra context by which our endpoints know each other, with a text that is each process's own.
pub const MARK: &str = "vwire.vl3.peer";

/// What a peer has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Announced {
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// What is behind it, without host bits.
    pub prefixes: Vec<IpNet>,
    /// Single addresses that a Request wants to be led to; of an answer they are nothing to us.
    pub hosts: Vec<IpNet>,
    /// Its name servers.
    pub dns: Vec<IpAddr>,
}

/// Why a peer's routes are not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It has nothing that could be routed.
    #[error("it announces no prefix")]
    Nothing,
    /// A route of ours would be its.
    #[error(
        "it announces {route}, which overlaps {ours}, our own prefix: each domain's IPAM needs a prefix of its own (NSM_PREFIX)"
    )]
    Ours {
        /// What it announced.
        route: IpNet,
        /// What we have.
        ours: IpNet,
    },
    /// Someone else's route would be its.
    #[error(
        "it announces {route}, which overlaps {theirs} of {whose}: each domain's IPAM needs a prefix of its own (NSM_PREFIX)"
    )]
    Taken {
        /// What it announced.
        route: IpNet,
        /// What the other has.
        theirs: IpNet,
        /// Whose it is.
        whose: String,
    },
    /// A route that is not to what is its own: a prefix of this network begins with the address of the endpoint that has it.
    #[error(
        "it announces {route}, which is not of its own: its own address is {own}, with which its prefix begins"
    )]
    NotItsOwn {
        /// What it announced.
        route: IpNet,
        /// Its addresses, with commas.
        own: String,
    },
    /// A route that has nothing to do with this network.
    #[error("it announces {route}, which is outside the network's {network}")]
    Outside {
        /// What it announced.
        route: IpNet,
        /// The network's prefixes, with commas.
        network: String,
    },
}

/// What must not be a peer's.
#[derive(Debug, Clone, Default)]
pub struct Territory {
    /// Our own prefixes.
    pub own: Vec<IpNet>,
    /// The whole network's, of each version of IP that it has.
    pub network: Vec<IpNet>,
    /// What others have, and their names: other peers' prefixes, and clients' addresses outside our prefixes.
    pub taken: Vec<(String, IpNet)>,
}

impl Announced {
    /// What the dialler says in a Request. None if it is not a peer: a client has no prefix, and its routes are to hosts.
    pub fn in_request(connection: &Connection) -> Option<Self> {
        let context = connection.context.as_ref()?;
        let ip = context.ip_context.as_ref()?;
        let addresses = crate::endpoint::hosts(&ip.src_ip_addrs);
        let (prefixes, hosts) = behind(&ip.dst_routes);
        let own = |prefix: &&IpNet| addresses.iter().any(|address| prefix.contains(address));
        let marked = connection.labels.contains_key(SEED_LABEL) || context.extra_context.contains_key(MARK);
        if !marked && prefixes.iter().find(own).is_none() {
            return None;
        }
        Some(Self { addresses, prefixes, hosts, dns: name_servers(context.dns_context.as_ref()) })
    }

    /// What the one that was dialled says in its answer. The `network`'s own prefixes lead to it, too, but are not its.
    pub fn in_answer(connection: &Connection, network: &[IpNet]) -> Self {
        let context = connection.context.clone().unwrap_or_default();
        let ip = context.ip_context.unwrap_or_default();
        let (mut prefixes, _) = behind(&ip.src_routes);
        prefixes.retain(|prefix| !network.contains(prefix));
        let addresses = crate::endpoint::hosts(&ip.dst_ip_addrs);
        // Not our own name server, which the Request had.
        let asked: Vec<IpAddr> = crate::endpoint::hosts(&ip.src_ip_addrs);
        let mut dns = name_servers(context.dns_context.as_ref());
        dns.retain(|server| !asked.contains(server));
        Self { addresses, prefixes, hosts: Vec::new(), dns }
    }

    /// The prefixes that may be routed to it. Those of a version of IP that the network does not have are left out. Addresses inside
    /// these are its, too, and no others.
    ///
    /// # Errors
    /// [`Refused`] for the first that it has no right to; then none of it is to be taken.
    pub fn admit(&self, territory: &Territory) -> Result<Vec<IpNet>, Refused> {
        let same = |one: &IpNet, other: &IpNet| one.addr().is_ipv4() == other.addr().is_ipv4();
        let known = |route: &&IpNet| territory.network.iter().any(|network| same(network, route));
        let not_its_own = |route: &IpNet| {
            let own = self.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            Refused::NotItsOwn { route: *route, own: if own.is_empty() { "none".to_owned() } else { own } }
        };
        let routes: Vec<IpNet> = self.prefixes.iter().filter(known).copied().collect();
        if routes.is_empty() {
            return Err(Refused::Nothing);
        }
        for route in &routes {
            if !territory.network.iter().any(|network| network.contains(route)) {
                let network = territory.network.iter().map(ToString::to_string).collect::<Vec<_>>();
                return Err(Refused::Outside { route: *route, network: network.join(", ") });
            }
            if let Some(ours) = territory.own.iter().find(|ours| overlap(ours, route)) {
                return Err(Refused::Ours { route: *route, ours: *ours });
            }
            if let Some((whose, theirs)) = territory.taken.iter().find(|(_, theirs)| overlap(theirs, route)) {
                return Err(Refused::Taken { route: *route, theirs: *theirs, whose: whose.clone() });
            }
            if !self.addresses.contains(&route.network()) {
                return Err(not_its_own(route));
            }
        }
        let inside = |host: &&IpNet| routes.iter().any(|route| route.contains(*host));
        match self.hosts.iter().filter(known).find(|host| !inside(host)) {
            Some(host) => Err(not_its_own(host)),
            None => Ok(routes),
        }
    }
}

/// What we say to a peer that we dial: by this Go's endpoints take us for one, and ours, too.
pub fn context(own: &[(IpAddr, IpNet)], dns: Option<IpAddr>) -> (IpContext, DnsContext) {
    let mut ip = IpContext::default();
    for (address, prefix) in own {
        let host = IpNet::from(*address);
        ip.src_ip_addrs.push(host.to_string());
        let route = |prefix: IpNet| Route { prefix: prefix.to_string(), next_hop: address.to_string() };
        ip.dst_routes.extend([route(host), route(prefix.trunc())]);
    }
    let server = dns.or(own.first().map(|(address, _)| *address));
    let config = server.map(|server| vwire_proto::nsm::connectioncontext::DnsConfig {
        dns_server_ips: vec![server.to_string()],
        ..Default::default()
    });
    (ip, DnsContext { configs: config.into_iter().collect() })
}

/// Prefixes of routes, and those to single hosts, such as the peer's own address.
fn behind(routes: &[Route]) -> (Vec<IpNet>, Vec<IpNet>) {
    let parse = |text: &str| text.parse().ok().or_else(|| Some(IpNet::from(text.parse::<IpAddr>().ok()?)));
    let mut all: Vec<IpNet> =
        routes.iter().filter_map(|route| parse(&route.prefix)).map(|one| one.trunc()).collect();
    all.sort_unstable();
    all.dedup();
    all.into_iter().partition(|prefix| prefix.prefix_len() < prefix.max_prefix_len())
}

fn name_servers(dns: Option<&DnsContext>) -> Vec<IpAddr> {
    let configs = dns.into_iter().flat_map(|dns| &dns.configs);
    let mut all: Vec<IpAddr> =
        configs.flat_map(|config| &config.dns_server_ips).filter_map(|text| text.parse().ok()).collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use vwire_proto::nsm::connectioncontext::ConnectionContext;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn connection(ip: IpContext, dns: DnsContext) -> Connection {
        let context =
            ConnectionContext { ip_context: Some(ip), dns_context: Some(dns), ..Default::default() };
        Connection { context: Some(context), ..Default::default() }
    }

    fn route(prefix: &str) -> Route {
        Route { prefix: prefix.into(), next_hop: "172.16.1.0".into() }
    }

    fn territory() -> Territory {
        Territory {
            own: vec![net("172.16.0.0/24"), net("fd00:1::/112")],
            network: vec![net("172.16.0.0/16"), net("fd00:1::/64")],
            taken: vec![("vl3-c".into(), net("172.16.2.0/24")), ("client d".into(), net("172.16.9.5/32"))],
        }
    }

    /// By one whose addresses its prefixes begin with.
    fn announcing(prefixes: &[&str]) -> Announced {
        let prefixes: Vec<IpNet> = prefixes.iter().map(|text| net(text)).collect();
        Announced { addresses: prefixes.iter().map(IpNet::network).collect(), prefixes, ..Default::default() }
    }

    #[test]
    fn a_dialler_is_known_by_its_prefix_and_a_client_has_none() {
        let own = [("172.16.1.0".parse().unwrap(), net("172.16.1.0/24"))];
        let (ip, dns) = context(&own, Some("172.16.1.1".parse().unwrap()));
        assert_eq!(ip.src_ip_addrs, ["172.16.1.0/32"]);
        let said = Announced::in_request(&connection(ip, dns)).unwrap();
        assert_eq!(said.prefixes, [net("172.16.1.0/24")]);
        assert_eq!(said.dns, ["172.16.1.1".parse::<IpAddr>().unwrap()]);
        let client = IpContext {
            src_ip_addrs: vec!["172.16.1.7/32".into()],
            dst_routes: vec![route("172.16.1.7/32")],
            ..Default::default()
        };
        assert_eq!(Announced::in_request(&connection(client, dns_of("172.16.1.1"))), None);
        assert_eq!(Announced::in_request(&Connection::default()), None);
    }

    fn dns_of(server: &str) -> DnsContext {
        let config = vwire_proto::nsm::connectioncontext::DnsConfig {
            dns_server_ips: vec![server.into()],
            ..Default::default()
        };
        DnsContext { configs: vec![config] }
    }

    #[test]
    fn an_answer_has_the_prefix_beside_the_whole_network() {
        let ip = IpContext {
            src_ip_addrs: vec!["172.16.0.0/32".into()],
            dst_ip_addrs: vec!["172.16.1.0/32".into()],
            // The last as Go writes it, with host bits.
            src_routes: vec![route("172.16.1.0/32"), route("172.16.1.0/24"), route("172.16.1.0/16")],
            ..Default::default()
        };
        let said = Announced::in_answer(&connection(ip, dns_of("172.16.1.3")), &[net("172.16.0.0/16")]);
        assert_eq!(said.addresses, ["172.16.1.0".parse::<IpAddr>().unwrap()]);
        assert_eq!((said.prefixes, said.dns.len()), (vec![net("172.16.1.0/24")], 1));
    }

    #[test]
    fn a_route_that_is_not_its_own_is_refused_by_name() {
        let good = announcing(&["172.16.1.0/24", "fd00:1::1:0/112"]);
        assert_eq!(good.admit(&territory()).unwrap().len(), 2);
        for (prefixes, said) in [
            (
                vec!["172.16.1.0/24", "172.16.0.128/25"],
                "172.16.0.128/25, which overlaps 172.16.0.0/24, our own prefix",
            ),
            (vec!["172.16.0.0/16"], "172.16.0.0/16, which overlaps 172.16.0.0/24, our own prefix"),
            (vec!["172.16.2.0/23"], "172.16.2.0/23, which overlaps 172.16.2.0/24 of vl3-c"),
            (vec!["172.16.9.0/24"], "172.16.9.0/24, which overlaps 172.16.9.5/32 of client d"),
            (vec!["10.0.0.0/24"], "10.0.0.0/24, which is outside the network's 172.16.0.0/16, fd00:1::/64"),
            (vec!["0.0.0.0/0"], "0.0.0.0/0, which is outside"),
            (vec![], "no prefix"),
        ] {
            let refused = announcing(&prefixes).admit(&territory()).unwrap_err().to_string();
            assert!(refused.contains(said), "{prefixes:?}: {refused}");
        }
        // Of its own is what begins with its own address, and single addresses in that.
        for (hosts, address, said) in [
            (vec!["172.16.1.0/32", "172.16.1.7/32"], "172.16.1.0", None),
            (
                vec![],
                "172.16.1.1",
                Some("172.16.1.0/24, which is not of its own: its own address is 172.16.1.1,"),
            ),
            (
                vec!["172.16.1.0/32", "172.16.3.1/32"],
                "172.16.1.0",
                Some("172.16.3.1/32, which is not of its own"),
            ),
            (vec!["172.16.0.5/32"], "172.16.1.0", Some("172.16.0.5/32, which is not of its own")),
        ] {
            let hosts = hosts.into_iter().map(net).collect();
            let addresses = vec![address.parse().unwrap()];
            let one = Announced { addresses, hosts, ..announcing(&["172.16.1.0/24"]) };
            let told = one.admit(&territory()).map_err(|refused| refused.to_string());
            match said {
                Some(said) => assert!(told.as_ref().is_err_and(|told| told.contains(said)), "{told:?}"),
                None => assert_eq!(told, Ok(vec![net("172.16.1.0/24")])),
            }
        }
        let mut one_version = territory();
        one_version.network.pop();
        assert_eq!(good.admit(&one_version), Ok(vec![net("172.16.1.0/24")]));
    }
}
