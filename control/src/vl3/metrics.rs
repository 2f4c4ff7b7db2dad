//! An endpoint's figures for Prometheus.

use std::fmt;
use std::sync::{Arc, Weak};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use super::Network;

/// The collector: addresses by prefix, ports, routes, and the network's MTU.
pub fn collector(network: &Arc<Network>) -> Box<dyn Collector> {
    Box::new(Figures(Arc::downgrade(network)))
}

#[derive(Debug)]
struct Figures(Weak<Network>);

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(network) = self.0.upgrade() else { return Ok(()) };
        let figures = network.addresses.figures();
        let free = |free: u128| i64::try_from(free).unwrap_or(i64::MAX);
        let by_prefix: [(&str, &str, Vec<i64>); 2] = [
            (
                "vl3_addresses_used",
                "Addresses that clients have",
                figures.iter().map(|figure| figure.1 as i64).collect(),
            ),
            (
                "vl3_addresses_free",
                "Addresses that clients may get",
                figures.iter().map(|figure| free(figure.2)).collect(),
            ),
        ];
        for (name, help, values) in by_prefix {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for ((prefix, ..), value) in figures.iter().zip(values) {
                let labels = [("prefix", prefix.to_string())];
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        let single = [
            (
                "vl3_ports",
                "Clients and other endpoints that are routed between",
                network.router.ports().len() as i64,
            ),
            ("vl3_routes", "Prefixes that lead to them", network.router.routes().len() as i64),
            ("vl3_mtu_bytes", "Longest packet of the network", i64::from(network.mtu.get())),
        ];
        for (name, help, value) in single {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)?;
        }
        Ok(())
    }
}
