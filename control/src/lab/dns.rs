//! How a lab's domains find each other: a real name server's zones, or what the proxies are told.

use std::fmt::Write;
use std::fs;

use serde::{Deserialize, Serialize};

use super::layout::{PROXY_PORT, REGISTRY_PORT, address};
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

/// What proxies are told of the other domains.
pub fn settings(spec: &Spec) -> (String, String) {
    match spec.dns {
        Dns::Nsd => ("NSM_DNS_SERVER".to_owned(), format!("{}:{PORT}", address(spec, super::spec::UNDERLAY))),
        Dns::Map => {
            let entry = |domain: &Domain| {
                let at = address(spec, &domain.name);
                let proxy = if domain.proxy { format!("+{at}:{PROXY_PORT}") } else { String::new() };
                format!("{}={at}:{REGISTRY_PORT}{proxy}", domain.dns_name())
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
    let server = address(spec, super::spec::UNDERLAY);
    let mut config = format!(
        "server:\n  username: \"\"\n  ip-address: {server}@{PORT}\n  zonesdir: \"{shown}\"\n  zonelistfile: \"{shown}/zone.list\"\n  \
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
    let (name, at, server) =
        (domain.dns_name(), address(spec, &domain.name), address(spec, super::spec::UNDERLAY));
    let mut zone = format!(
        "$ORIGIN {name}.\n$TTL {TTL}\n@ SOA ns hostmaster 1 60 60 60 {TTL}\n@ NS ns\nns A {server}\n"
    );
    let mut service = |srv: &str, host: &str, port: u16| {
        let _ = write!(zone, "{srv} SRV 0 0 {port} {host}\n{host} A {at}\n");
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
            let _ = writeln!(zone, "@ A {at}");
        }
    }
    zone
}

/// True once the process has a UDP socket at the name server's port, in its own namespace.
pub fn is_ready(pid: i32) -> bool {
    let sockets = fs::read_to_string(format!("/proc/{pid}/net/udp")).unwrap_or_default();
    sockets.lines().any(|line| {
        line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&format!(":{PORT:04X}")))
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

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
        assert_eq!(settings(&spec), ("NSM_DNS_SERVER".into(), "10.200.0.1:53".into()));
        spec.dns = Dns::Map;
        let (_, map) = settings(&spec);
        assert!(map.starts_with("domain1.test=10.200.1.1:5002+10.200.1.1:5004,"), "{map}");
    }
}
