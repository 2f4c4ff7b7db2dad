//! The state in Prometheus' text format.

use std::fmt::Write;

use super::{Agent, PortReport};
use crate::route::counters::DomainReading;

/// One family of metrics over all ports.
type Family = (&'static str, &'static str, fn(&PortReport) -> u64);

const COUNTERS: [Family; 4] = [
    ("vwire_port_rx_packets_total", "Frames that entered the engine by this port.", |port| {
        port.counters.rx.0
    }),
    ("vwire_port_rx_bytes_total", "Bytes of those frames.", |port| port.counters.rx.1),
    ("vwire_port_tx_packets_total", "Frames that left the engine by this port.", |port| port.counters.tx.0),
    ("vwire_port_tx_bytes_total", "Bytes of those frames.", |port| port.counters.tx.1),
];

/// Everything about `agent`.
pub fn render(agent: &Agent) -> String {
    let (workers, dead) = agent.workers();
    let mut out = String::new();
    gauge(&mut out, "vwire_generation", "Generation of the state last accepted.", agent.generation());
    gauge(&mut out, "vwire_workers", "Workers that run.", (workers - dead) as u64);
    gauge(&mut out, "vwire_workers_dead", "Workers that ended by a bug.", dead as u64);
    gauge(&mut out, "vwire_xconnects", "Cross-connects.", agent.state().xconnects().len() as u64);
    let reports = agent.reports();
    ports(&reports, &mut out);
    devices(&reports, &mut out);
    domains(&super::routes::readings(agent), &mut out);
    out
}

fn gauge(out: &mut String, name: &str, help: &str, value: u64) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
}

// Writing to a string can't fail, hence the ignored results. Port names and kinds need no escaping: see
// `PortName`.
fn ports(ports: &[PortReport], out: &mut String) {
    let _ = writeln!(out, "# HELP vwire_port_up 1 while frames can flow.\n# TYPE vwire_port_up gauge");
    for PortReport { name, kind, up, .. } in ports {
        let _ = writeln!(out, "vwire_port_up{{port=\"{name}\",kind=\"{kind}\"}} {}", u8::from(*up));
    }
    let family = "vwire_port_worker";
    let _ = writeln!(
        out,
        "# HELP {family} The worker that owns the port, or the first of those that share it.\n# TYPE {family} gauge"
    );
    for (port, owners) in ports.iter().filter_map(|port| Some((port, port.owners?))) {
        let _ =
            writeln!(out, "{family}{{port=\"{}\",kind=\"{}\"}} {}", port.name, port.kind, owners.home().0);
    }
    for (family, help, value) in COUNTERS {
        let _ = writeln!(out, "# HELP {family} {help}\n# TYPE {family} counter");
        for port in ports {
            let _ =
                writeln!(out, "{family}{{port=\"{}\",kind=\"{}\"}} {}", port.name, port.kind, value(port));
        }
    }
    let family = "vwire_port_drops_total";
    let _ = writeln!(out, "# HELP {family} Frames lost at this port, by reason.\n# TYPE {family} counter");
    for port in ports {
        for (reason, count) in &port.counters.drops {
            let labels =
                format!("port=\"{}\",kind=\"{}\",reason=\"{}\"", port.name, port.kind, reason.name());
            let _ = writeln!(out, "{family}{{{labels}}} {count}");
        }
    }
}

/// What drivers count, as far as their names for it can stand in a label.
fn devices(ports: &[PortReport], out: &mut String) {
    let family = "vwire_port_device_total";
    let _ = writeln!(
        out,
        "# HELP {family} What the port's driver counts, by its names.\n# TYPE {family} counter"
    );
    let fits = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    for PortReport { name, kind, device, .. } in ports {
        for (counter, value) in device.iter().filter(|(counter, _)| fits(counter)) {
            let _ =
                writeln!(out, "{family}{{port=\"{name}\",kind=\"{kind}\",counter=\"{counter}\"}} {value}");
        }
    }
}

/// What a domain has counted, under a family's name and its help.
type DomainFamily = (&'static str, &'static str, fn(&Reading) -> u64);
type Reading = (String, usize, DomainReading);

const DOMAIN_COUNTERS: [DomainFamily; 8] = [
    ("vwire_domain_packets_total", "Packets that were routed to a port.", |(_, _, r)| r.forwarded.0),
    ("vwire_domain_bytes_total", "Bytes of those packets.", |(_, _, r)| r.forwarded.1),
    ("vwire_domain_answers_total", "Answers to ARP and neighbour discovery.", |(_, _, r)| r.sent[0]),
    ("vwire_domain_echoes_total", "Answers to echo requests.", |(_, _, r)| r.sent[1]),
    ("vwire_domain_errors_total", "ICMP errors that were sent.", |(_, _, r)| r.sent[2]),
    ("vwire_domain_questions_total", "Neighbours that were asked for.", |(_, _, r)| r.sent[3]),
    ("vwire_domain_fragments_total", "Pieces of packets that were too long.", |(_, _, r)| r.sent[4]),
    ("vwire_domain_waited_total", "Packets whose next hop had to be asked for.", |(_, _, r)| r.sent[5]),
];

fn domains(domains: &[Reading], out: &mut String) {
    let family = "vwire_domain_routes";
    let _ = writeln!(out, "# HELP {family} Routes of the routing domain.\n# TYPE {family} gauge");
    for (name, routes, _) in domains {
        let _ = writeln!(out, "{family}{{domain=\"{name}\"}} {routes}");
    }
    for (family, help, value) in DOMAIN_COUNTERS {
        let _ = writeln!(out, "# HELP {family} {help}\n# TYPE {family} counter");
        for domain in domains {
            let _ = writeln!(out, "{family}{{domain=\"{}\"}} {}", domain.0, value(domain));
        }
    }
    let family = "vwire_domain_drops_total";
    let _ = writeln!(out, "# HELP {family} Frames that were not routed, by reason.\n# TYPE {family} counter");
    for (name, _, reading) in domains {
        for (reason, count) in &reading.drops {
            let _ = writeln!(out, "{family}{{domain=\"{name}\",reason=\"{}\"}} {count}", reason.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DropReason;
    use crate::stats::Snapshot;
    use crate::tables::WorkerId;

    #[test]
    fn a_port_has_a_line_in_every_family_and_one_for_each_reason_that_occurred() {
        let drops = vec![(DropReason::TxFull, 2), (DropReason::TooBig, 1)];
        let counters = Snapshot { rx: (3, 180), tx: (4, 240), drops };
        let mut out = String::new();
        ports(
            &[PortReport {
                name: "a".into(),
                kind: "memif".into(),
                up: true,
                owners: Some(WorkerId(1).into()),
                counters,
                device: vec![],
            }],
            &mut out,
        );
        let lines: Vec<&str> = out.lines().filter(|line| !line.starts_with('#')).collect();
        let expected = [
            "vwire_port_up{port=\"a\",kind=\"memif\"} 1",
            "vwire_port_worker{port=\"a\",kind=\"memif\"} 1",
            "vwire_port_rx_packets_total{port=\"a\",kind=\"memif\"} 3",
            "vwire_port_rx_bytes_total{port=\"a\",kind=\"memif\"} 180",
            "vwire_port_tx_packets_total{port=\"a\",kind=\"memif\"} 4",
            "vwire_port_tx_bytes_total{port=\"a\",kind=\"memif\"} 240",
            "vwire_port_drops_total{port=\"a\",kind=\"memif\",reason=\"tx_full\"} 2",
            "vwire_port_drops_total{port=\"a\",kind=\"memif\",reason=\"too_big\"} 1",
        ];
        assert_eq!(lines, expected);
    }
}
