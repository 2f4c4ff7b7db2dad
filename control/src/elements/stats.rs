//! `stats`: the engine's counters in our path segment, under the names that NSM's forwarders use.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tonic::Status;
use vwire_proto::dataplane::v1 as pb;

use crate::api::connection::Connection;
use crate::api::networkservice::NetworkServiceRequest;
use crate::chain::{Call, Element, Next};
use crate::dataplane::Dataplane;
use crate::dataplane::kernel::Side;
use crate::dataplane::wanted::{End, Record};

/// Counters of a refresh may be this old: all refreshes of a second ask once.
const AGE: Duration = Duration::from_secs(1);

/// The element.
pub struct Stats {
    dataplane: Arc<Dataplane>,
}

impl Stats {
    /// Of this engine.
    pub fn new(dataplane: Arc<Dataplane>) -> Self {
        Self { dataplane }
    }
}

#[async_trait]
impl Element for Stats {
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let first = call.first;
        let mut connection = next.request(call, request).await?;
        let Some(record) = self.dataplane.wanted.get(&connection.id) else { return Ok(connection) };
        // What was made just now has counted nothing.
        let counted = if first { None } else { self.dataplane.client.stats(AGE).await.ok() };
        if let Some(path) = &mut connection.path
            && let Some(segment) = path.path_segments.get_mut(path.index as usize)
        {
            let port = |name: &str| counted.as_ref().and_then(|counted| counted.port(name));
            segment.metrics.extend(metrics(&record, port));
        }
        Ok(connection)
    }
}

/// Both ends' interfaces and counters.
pub fn metrics<'a>(
    record: &Record,
    counted: impl Fn(&str) -> Option<&'a pb::PortStats>,
) -> HashMap<String, String> {
    let mut metrics = HashMap::new();
    for side in [Side::Server, Side::Client] {
        let Some(end) = record.end(side) else { continue };
        let direct = end.relay.is_some();
        let side = side.name();
        metrics.insert(format!("{side}_interface"), interface(end));
        if direct {
            // Its packets never meet the engine.
            continue;
        }
        let zero = pb::PortStats::default();
        let stats = counted(&end.port.name).unwrap_or(&zero);
        let figures = [
            ("rx_bytes", stats.rx_bytes),
            ("tx_bytes", stats.tx_bytes),
            ("rx_packets", stats.rx_packets),
            ("tx_packets", stats.tx_packets),
            ("drops", stats.drops.values().sum()),
        ];
        metrics.extend(figures.map(|(name, value)| (format!("{side}_{name}"), value.to_string())));
    }
    metrics
}

/// Type and name: `KERNEL/nsm-1`.
pub fn interface(end: &End) -> String {
    match &end.port.kind {
        Some(pb::port::Kind::Kernel(kernel)) => format!("KERNEL/{}", kernel.ifname),
        Some(pb::port::Kind::Memif(_)) => format!("MEMIF/{}", end.port.name),
        Some(pb::port::Kind::Vxlan(tunnel)) => format!("VXLAN/{}", tunnel.vni),
        _ if end.relay.is_some() => format!("MEMIF/{}", end.port.name),
        _ => format!("unknown/{}", end.port.name),
    }
}
