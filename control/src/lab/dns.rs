//! How a lab's domains find each other: a real name server's zones, or what the proxies are told.

use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::layout::{PROXY_PORT, REGISTRY_PORT, addresses, primary, replica};
use super::process::Start;
use super::spec::{Domain, Spec};
use super::{LabError, Layout};

/// The name server's process.
pub const PROCESS: &str = "dns";
/// Its port.
const PORT: u16 = 53;
/// How long answers may be remembered, seconds: a lab's domains come and go.
const TTL: u32 = 2;

/// How domains are found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dns {
    /// The proxies are told: `VWIRE_DOMAIN_MAP`.
    #[default]
    Map,
    /// By the name server nsd, at the underlay.
    Nsd,
}

/// Which records a domain has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Records {
    /// SRV `_nsm-registry._tcp` and `_nsm-nsmgr._tcp`.
    #[default]
    Srv,
    /// SRV `registry.nsm-system` and `nsmgr-proxy.nsm-system`, as the Go components ask for.
    Go,
    /// The domain's address and no more.
    Address,
}

/// What a domain's proxy is told of the other domains.
pub fn settings(spec: &Spec, asker: &Domain) -> (String, String) {
    match spec.dns {
        Dns::Nsd => {
            // Servers that the asker can reach: those of its own version of IP.
            let own = addresses(spec, &asker.name);
            let is_reached =
                |server: &IpAddr| own.iter().any(|address| address.is_ipv4() == server.is_ipv4());
            let servers = addresses(spec, super::spec::UNDERLAY).into_iter().filter(is_reached);
            let servers: Vec<String> =
                servers.map(|server| SocketAddr::new(server, PORT).to_string()).collect();
            ("NSM_DNS_SERVER".to_owned(), servers.join(","))
        }
        Dns::Map => {
            let entry = |domain: &Domain| {
                let host = primary(spec, &domain.name);
                let bare = |port| SocketAddr::new(host, port).to_string();
                let proxy = if domain.proxy { format!("+{}", bare(PROXY_PORT)) } else { String::new() };
                format!("{}={}{proxy}", domain.dns_name(), bare(REGISTRY_PORT))
            };
            let entries: Vec<String> = spec.domains.iter().map(entry).collect();
            ("VWIRE_DOMAIN_MAP".to_owned(), entries.join(","))
        }
    }
}

/// The name server's process, if there is one.
pub fn server(layout: &Layout, spec: &Spec) -> Option<Start> {
    let config = layout.scratch("nsd").join("nsd.conf").display().to_string();
    (spec.dns == Dns::Nsd).then(|| Start {
        name: PROCESS.to_owned(),
        wave: 0,
        part: layout.underlay().to_owned(),
        domain: None,
        identity: String::new(),
        hosts: None,
        program: "nsd".into(),
        args: vec!["-d".to_owned(), "-c".to_owned(), config],
        env: Vec::new(),
    })
}

/// Writes the name server's configuration and a zone for each domain.
pub fn write(layout: &Layout, spec: &Spec) -> Result<(), LabError> {
    if spec.dns != Dns::Nsd {
        return Ok(());
    }
    let directory = layout.scratch("nsd");
    let failed = |error| LabError::failed(directory.display().to_string(), error);
    fs::create_dir_all(&directory).map_err(failed)?;
    let shown = directory.display();
    let servers: String = addresses(spec, super::spec::UNDERLAY)
        .iter()
        .map(|server| format!("  ip-address: {server}@{PORT}\n"))
        .collect();
    let mut config = format!(
        "server:\n  username: \"\"\n{servers}  zonesdir: \"{shown}\"\n  zonelistfile: \"{shown}/zone.list\"\n  \
         xfrdfile: \"{shown}/xfrd.state\"\n  xfrdir: \"{shown}\"\n  database: \"\"\n  pidfile: \"{shown}/nsd.pid\"\n  \
         server-count: 1\nremote-control:\n  control-enable: no\n"
    );
    for domain in &spec.domains {
        let name = domain.dns_name();
        let _ = write!(config, "zone:\n  name: {name}\n  zonefile: {name}.zone\n");
        fs::write(directory.join(format!("{name}.zone")), zone(spec, domain)).map_err(failed)?;
    }
    fs::write(directory.join("nsd.conf"), config).map_err(failed)
}

/// A domain's zone.
fn zone(spec: &Spec, domain: &Domain) -> String {
    let name = domain.dns_name();
    let mut zone = format!("$ORIGIN {name}.\n$TTL {TTL}\n@ SOA ns hostmaster 1 60 60 60 {TTL}\n@ NS ns\n");
    zone += &records("ns", &addresses(spec, super::spec::UNDERLAY));
    let at = addresses(spec, &domain.name);
    let proxies: Vec<IpAddr> = (0..domain.replicas).flat_map(|index| replica(spec, domain, index)).collect();
    let mut service = |srv: &str, host: &str, port: u16| {
        let _ = writeln!(zone, "{srv} SRV 0 0 {port} {host}");
        zone += &records(host, if port == PROXY_PORT { &proxies } else { &at });
    };
    match domain.records {
        Records::Srv => {
            service("_nsm-registry._tcp", "registry", REGISTRY_PORT);
            if domain.proxy {
                service("_nsm-nsmgr._tcp", "proxy", PROXY_PORT);
            }
        }
        Records::Go => {
            service("registry.nsm-system", "registry.nsm-system", REGISTRY_PORT);
            if domain.proxy {
                service("nsmgr-proxy.nsm-system", "nsmgr-proxy.nsm-system", PROXY_PORT);
            }
        }
        Records::Address => {
            zone += &records("@", &at);
        }
    }
    zone
}

/// A name's A and AAAA records.
fn records(name: &str, addresses: &[IpAddr]) -> String {
    let kind = |address: &IpAddr| if address.is_ipv4() { "A" } else { "AAAA" };
    addresses.iter().map(|address| format!("{name} {} {address}\n", kind(address))).collect()
}

/// True once the process has a UDP socket at the name server's port, in its own namespace.
pub fn is_ready(pid: i32) -> bool {
    let read = |table| fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
    let sockets = read("udp") + &read("udp6");
    sockets.lines().any(|line| {
        line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&format!(":{PORT:04X}")))
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::spec::Stack;
    use super::*;

    #[test]
    fn a_zone_has_the_records_that_the_file_asks_for() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/lab/two-domains.yaml");
        let mut spec = Spec::load(&file).unwrap();
        spec.domains[0].records = Records::Srv;
        let ours = zone(&spec, &spec.domains[0]);
        assert!(ours.contains("_nsm-registry._tcp SRV 0 0 5002 registry\nregistry A 10.200.1.1\n"), "{ours}");
        assert!(ours.contains("_nsm-nsmgr._tcp SRV 0 0 5004 proxy\n"), "{ours}");
        spec.domains[0].records = Records::Go;
        let gos = zone(&spec, &spec.domains[0]);
        let expected =
            "registry.nsm-system SRV 0 0 5002 registry.nsm-system\nregistry.nsm-system A 10.200.1.1\n";
        assert!(gos.contains(expected), "{gos}");
        spec.domains[0].records = Records::Address;
        let none = zone(&spec, &spec.domains[0]);
        assert!(none.ends_with("@ A 10.200.1.1\n") && !none.contains("SRV"), "{none}");
        assert_eq!(settings(&spec, &spec.domains[0]), ("NSM_DNS_SERVER".into(), "10.200.0.1:53".into()));
        spec.domains[0].stack = Stack::Dual;
        let both = zone(&spec, &spec.domains[0]);
        assert!(both.ends_with("@ A 10.200.1.1\n@ AAAA fd00:200:1::1\n"), "{both}");
        let (_, servers) = settings(&spec, &spec.domains[0]);
        assert_eq!(servers, "10.200.0.1:53,[fd00:200::1]:53");
        assert_eq!(settings(&spec, &spec.domains[1]).1, "10.200.0.1:53");
        spec.domains[0].stack = Stack::Ipv4;
        spec.dns = Dns::Map;
        let (_, map) = settings(&spec, &spec.domains[0]);
        assert!(map.starts_with("domain1.test=10.200.1.1:5002+10.200.1.1:5004,"), "{map}");
    }
}
