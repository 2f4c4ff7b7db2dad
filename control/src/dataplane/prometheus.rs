//! Counters of all vWires for Prometheus: the Go forwarder's names and labels, behind the prefix that all of ours have.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use vwire_proto::dataplane::v1 as pb;

use super::kernel::Side;
use super::transact::Dataplane;
use crate::api::path::{self, PathExt};
use crate::elements::stats::interface;

/// How often counters are fetched while somebody scrapes.
const FETCH: Duration = Duration::from_secs(1);
/// How long after a scrape they are.
const INTEREST: Duration = Duration::from_secs(60);

/// The collector. Who scrapes gets counters that are a second old; the first scrape after a pause may get older ones.
pub struct Vwires {
    dataplane: Arc<Dataplane>,
    started: Instant,
    scraped: AtomicU64,
}

type Figure = (&'static str, fn(&pb::PortStats) -> u64);

const FIGURES: [Figure; 5] = [
    ("rx_bytes", |stats| stats.rx_bytes),
    ("tx_bytes", |stats| stats.tx_bytes),
    ("rx_packets", |stats| stats.rx_packets),
    ("tx_packets", |stats| stats.tx_packets),
    ("drops", |stats| stats.drops.values().sum()),
];

/// One series: the port, and its labels.
struct Series {
    port: String,
    labels: [(&'static str, String); 5],
}

impl Vwires {
    /// Of this engine. Must be called inside a tokio runtime.
    pub fn new(dataplane: Arc<Dataplane>) -> Arc<Self> {
        let vwires = Arc::new(Self { dataplane, started: Instant::now(), scraped: AtomicU64::new(0) });
        tokio::spawn(fetch(Arc::downgrade(&vwires)));
        vwires
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_secs() + 1
    }

    fn series(&self, side: Side) -> Vec<Series> {
        let one = |id: String| {
            let record = self.dataplane.wanted.get(&id)?;
            let connection = record.note.connection.as_ref()?;
            let path = path::of(connection);
            let named = |side| record.end(side).map(interface).unwrap_or_default();
            let port = record.end(side).filter(|end| end.relay.is_none())?.port.name.clone();
            let labels = [
                ("connection_id", path.root_id().to_owned()),
                ("network_service", connection.network_service.clone()),
                ("nsc", path.path_segments.first().map(|segment| segment.name.clone()).unwrap_or_default()),
                ("nsc_interface", named(Side::Server)),
                ("nse_interface", named(Side::Client)),
            ];
            Some(Series { port, labels })
        };
        self.dataplane.wanted.ids().into_iter().filter_map(one).collect()
    }
}

async fn fetch(vwires: Weak<Vwires>) {
    loop {
        tokio::time::sleep(FETCH).await;
        let Some(vwires) = vwires.upgrade() else { return };
        let scraped = vwires.scraped.load(Ordering::Relaxed);
        if scraped != 0 && scraped + INTEREST.as_secs() > vwires.now() {
            // An engine that does not answer has been reported by who watches it.
            let _ = vwires.dataplane.client.stats(Duration::ZERO).await;
        }
    }
}

impl fmt::Debug for Vwires {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Vwires")
    }
}

impl Collector for Vwires {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.scraped.store(self.now(), Ordering::Relaxed);
        let Some(snapshot) = self.dataplane.client.known_stats() else { return Ok(()) };
        for side in [Side::Client, Side::Server] {
            let series = self.series(side);
            for (name, figure) in FIGURES {
                let name = format!("{}_{name}", side.name());
                let help = "Of a vWire's port at the packet engine";
                let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
                for one in &series {
                    let value = snapshot.port(&one.port).map_or(0, figure);
                    ConstCounter::new(value).encode(family.encode_family(&one.labels)?)?;
                }
            }
        }
        Ok(())
    }
}
