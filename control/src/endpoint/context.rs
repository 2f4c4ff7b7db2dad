//! What an endpoint adds to a connection's context besides addresses: name servers and policy routes, from its configuration.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use ipnet::IpNet;
use serde::Deserialize;
use tonic::Status;
use vwire_proto::nsm::connection::Connection;
use vwire_proto::nsm::connectioncontext::{DnsConfig, IpContext, PolicyRoute, Route};
use vwire_proto::nsm::networkservice::NetworkServiceRequest;

use crate::chain::{Call, Element, Next};

/// Adds name servers to each connection.
pub struct DnsContext {
    configs: Vec<DnsConfig>,
}

impl DnsContext {
    /// These.
    pub fn new(configs: Vec<DnsConfig>) -> Self {
        Self { configs }
    }
}

#[async_trait]
impl Element for DnsContext {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        if let Some(connection) = request.connection.as_mut()
            && !self.configs.is_empty()
        {
            let configs =
                &mut connection.context.get_or_insert_default().dns_context.get_or_insert_default().configs;
            for config in &self.configs {
                if !configs.contains(config) {
                    configs.push(config.clone());
                }
            }
        }
        next.request(call, request).await
    }
}

/// Adds routes to networks behind the endpoint to each connection: by way of the endpoint's address of the same family. Comes after the
/// addresses.
pub struct ClientRoutes {
    prefixes: Vec<IpNet>,
}

impl ClientRoutes {
    /// To these.
    pub fn new(prefixes: Vec<IpNet>) -> Self {
        Self { prefixes }
    }
}

#[async_trait]
impl Element for ClientRoutes {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        if let Some(connection) = request.connection.as_mut()
            && !self.prefixes.is_empty()
        {
            add_routes(
                connection.context.get_or_insert_default().ip_context.get_or_insert_default(),
                &self.prefixes,
            );
        }
        next.request(call, request).await
    }
}

fn add_routes(context: &mut IpContext, prefixes: &[IpNet]) {
    let ours: Vec<IpNet> = context.dst_ip_addrs.iter().filter_map(|address| address.parse().ok()).collect();
    for prefix in prefixes {
        let of_family = |address: &&IpNet| address.addr().is_ipv4() == prefix.addr().is_ipv4();
        let Some(hop) = ours.iter().find(of_family) else { continue };
        let prefix = prefix.to_string();
        // The address may be another one than at the last Request.
        context.src_routes.retain(|route| route.prefix != prefix);
        context.src_routes.push(Route { prefix, next_hop: hop.addr().to_string() });
    }
}

/// Name servers as `NSM_DNS_CONFIGS` has them: a JSON list of `{"dns_server_ips": […], "search_domains": […]}`.
///
/// # Errors
/// What is wrong with it, and where.
pub fn dns_configs(json: &str) -> Result<Vec<DnsConfig>, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        #[serde(default, alias = "dnsServerIps")]
        dns_server_ips: Vec<std::net::IpAddr>,
        #[serde(default, alias = "searchDomains")]
        search_domains: Vec<String>,
    }
    if json.trim().is_empty() {
        return Ok(Vec::new());
    }
    let configs: Vec<Config> = serde_json::from_str(json).map_err(|error| {
        format!(
            "{error}; write [{{\"dns_server_ips\": [\"10.0.0.1\"], \"search_domains\": [\"my.domain\"]}}]"
        )
    })?;
    let config = |config: Config| DnsConfig {
        dns_server_ips: config.dns_server_ips.iter().map(ToString::to_string).collect(),
        search_domains: config.search_domains,
    };
    Ok(configs.into_iter().map(config).collect())
}

/// Adds policy routes from a YAML file, which is read again when it changes.
pub struct PolicyRoutes {
    file: PathBuf,
    read: Mutex<(Option<SystemTime>, Arc<[PolicyRoute]>)>,
}

impl PolicyRoutes {
    /// From this file; none if it does not exist.
    ///
    /// # Errors
    /// What is wrong with a file that does exist.
    pub fn open(file: PathBuf) -> Result<Self, String> {
        let written = modified(&file);
        let routes = if written.is_some() { read(&file)? } else { Vec::new() };
        Ok(Self { file, read: Mutex::new((written, routes.into())) })
    }

    fn current(&self) -> Arc<[PolicyRoute]> {
        let mut kept = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let written = modified(&self.file);
        if written != kept.0 {
            kept.0 = written;
            match written.map_or(Ok(Vec::new()), |_| read(&self.file)) {
                Ok(routes) => kept.1 = routes.into(),
                Err(error) => tracing::error!("{error}; the routes read before stay in use"),
            }
        }
        Arc::clone(&kept.1)
    }
}

fn modified(file: &Path) -> Option<SystemTime> {
    std::fs::metadata(file).ok()?.modified().ok()
}

fn read(file: &Path) -> Result<Vec<PolicyRoute>, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    policy_routes(&text).map_err(|error| format!("{}: {error}", file.display()))
}

/// Policy routes as a YAML list with the keys from, proto, dstport, srcport, routes (of prefix, nexthop).
///
/// # Errors
/// What is wrong, and where.
pub fn policy_routes(yaml: &str) -> Result<Vec<PolicyRoute>, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Entry {
        #[serde(default)]
        from: String,
        #[serde(default)]
        proto: Text,
        #[serde(default)]
        dstport: Text,
        #[serde(default)]
        srcport: Text,
        #[serde(default)]
        routes: Vec<Hop>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Hop {
        prefix: String,
        #[serde(default)]
        nexthop: String,
    }
    /// YAML makes a number of a port unless it is quoted.
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Text {
        Number(u32),
        Text(String),
    }
    impl Default for Text {
        fn default() -> Self {
            Self::Text(String::new())
        }
    }
    impl Text {
        fn into_string(self) -> String {
            match self {
                Self::Number(number) => number.to_string(),
                Self::Text(text) => text,
            }
        }
    }
    if yaml.trim().is_empty() {
        return Ok(Vec::new());
    }
    let entries: Vec<Entry> = serde_yaml_ng::from_str(yaml).map_err(|error| error.to_string())?;
    let hop = |hop: Hop| Route { prefix: hop.prefix, next_hop: hop.nexthop };
    let route = |entry: Entry| PolicyRoute {
        from: entry.from,
        proto: entry.proto.into_string(),
        dst_port: entry.dstport.into_string(),
        src_port: entry.srcport.into_string(),
        routes: entry.routes.into_iter().map(hop).collect(),
    };
    let routes: Vec<PolicyRoute> = entries.into_iter().map(route).collect();
    for (i, route) in routes.iter().enumerate() {
        check(route).map_err(|error| format!("entry {i}: {error}"))?;
    }
    Ok(routes)
}

fn check(route: &PolicyRoute) -> Result<(), String> {
    let prefix =
        |text: &str| text.parse::<ipnet::IpNet>().is_ok() || text.parse::<std::net::IpAddr>().is_ok();
    if !route.from.is_empty() && !prefix(&route.from) {
        return Err(format!("from: {:?} is neither an address nor address/length", route.from));
    }
    if !route.proto.is_empty() && route.proto.parse::<u8>().is_err() {
        return Err(format!("proto: {:?} is not an IP protocol's number, 0 to 255", route.proto));
    }
    for (key, ports) in [("dstport", &route.dst_port), ("srcport", &route.src_port)] {
        let port = |text: &str| text.trim().parse::<u16>().is_ok();
        if !ports.is_empty() && !ports.splitn(2, '-').all(port) {
            return Err(format!("{key}: {ports:?} is neither a port nor a range such as 80-90"));
        }
    }
    for hop in &route.routes {
        if !prefix(&hop.prefix) {
            return Err(format!("routes: prefix: {:?} is not address/length", hop.prefix));
        }
        if !hop.next_hop.is_empty() && hop.next_hop.parse::<std::net::IpAddr>().is_err() {
            return Err(format!("routes: nexthop: {:?} is not an address", hop.next_hop));
        }
    }
    Ok(())
}

#[async_trait]
impl Element for PolicyRoutes {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let routes = self.current();
        if let Some(connection) = request.connection.as_mut() {
            let context = connection.context.get_or_insert_default().ip_context.get_or_insert_default();
            // What was in the file before and is not any more goes, too.
            context.policies = routes.to_vec();
        }
        next.request(call, request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_configs_are_json() {
        let configs =
            dns_configs(r#"[{"dns_server_ips": ["10.0.0.1", "fd00::1"], "search_domains": ["a.test"]}]"#)
                .unwrap();
        assert_eq!(configs[0].dns_server_ips, ["10.0.0.1", "fd00::1"]);
        assert_eq!(configs[0].search_domains, ["a.test"]);
        assert_eq!((dns_configs("[]"), dns_configs(" ")), (Ok(vec![]), Ok(vec![])));
        for bad in ["{", "[1]", r#"[{"dns_server_ips": ["no address"]}]"#, r#"[{"servers": []}]"#] {
            assert!(dns_configs(bad).unwrap_err().contains("dns_server_ips"), "{bad}");
        }
    }

    #[test]
    fn clients_reach_networks_by_way_of_the_endpoint() {
        let mut context = IpContext {
            dst_ip_addrs: vec!["10.60.1.0/32".into()],
            src_routes: vec![
                Route { prefix: "10.60.1.0/32".into(), next_hop: String::new() },
                Route { prefix: "10.0.0.0/8".into(), next_hop: "10.60.1.7".into() },
            ],
            ..Default::default()
        };
        let prefixes = ["10.0.0.0/8", "fd00::/8"].map(|text| text.parse().unwrap());
        for _ in 0..2 {
            add_routes(&mut context, &prefixes);
            let routes: Vec<_> =
                context.src_routes.iter().map(|r| (r.prefix.as_str(), r.next_hop.as_str())).collect();
            assert_eq!(
                routes,
                [("10.60.1.0/32", ""), ("10.0.0.0/8", "10.60.1.0")],
                "of the other family nothing leads there"
            );
        }
    }

    #[test]
    fn policy_routes_are_the_go_endpoints_file() {
        let routes = policy_routes(
            "- proto: 6\n  dstport: 6666\n  srcport: 5555-5560\n  from: 172.16.2.200\n\
             - proto: \"17\"\n  dstport: \"6666\"\n  routes:\n  - prefix: 0.0.0.0/0\n    nexthop: 172.16.1.100\n\
             - dstport: 8080\n  routes:\n  - prefix: fd00::/64\n",
        )
        .unwrap();
        assert_eq!(
            (routes[0].proto.as_str(), routes[0].src_port.as_str(), routes[0].dst_port.as_str()),
            ("6", "5555-5560", "6666")
        );
        assert_eq!(routes[1].routes[0].next_hop, "172.16.1.100");
        assert_eq!(routes[2].routes[0].prefix, "fd00::/64");
        assert_eq!(policy_routes(""), Ok(vec![]));
        for (bad, part) in [
            ("- proto: tcp", "proto"),
            ("- from: here", "from"),
            ("- dstport: 1-x", "dstport"),
            ("- routes: [{prefix: x}]", "prefix"),
            ("- routes: [{prefix: 0.0.0.0/0, nexthop: y}]", "nexthop"),
            ("- colour: red", "colour"),
        ] {
            assert!(policy_routes(bad).unwrap_err().contains(part), "{bad}");
        }
    }
}
