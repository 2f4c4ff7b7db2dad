//! What is told of ports: their counters, and their frames.

use vwire_proto::stats::PortState;

use super::super::PortReport;
use super::{Backing, OpenPort, Ports, underlay_name};
use crate::engine::EngineError;
use crate::model::PortName;
use crate::port::PortIndex;
use crate::worker::capture::CaptureReader;

impl Ports {
    /// Counters of ports and underlays, by name.
    pub fn reports(&self) -> Vec<PortReport> {
        let driver = |open: &OpenPort| match &open.backing {
            Backing::Dpdk(device) => device.statistics(),
            _ => Vec::new(),
        };
        let ports = self.open.iter().map(|(name, open)| (name.to_string(), open.index, driver(open)));
        let underlays = self.underlays.iter().map(|(local, u)| (underlay_name(*local), u.index, Vec::new()));
        let report = |(name, index, device): (String, PortIndex, Vec<(String, u64)>)| {
            let port = self.counters.port(index);
            let up = port.state() == PortState::Up;
            PortReport {
                name,
                kind: port.kind(),
                up,
                owners: self.engine.owner(index),
                counters: port.snapshot(),
                device,
            }
        };
        let mut reports: Vec<_> = ports.chain(underlays).map(report).collect();
        reports.sort_by(|a, b| a.name.cmp(&b.name));
        reports
    }

    /// As [`crate::engine::Engine::capture`]. `None` while the port is down.
    ///
    /// # Errors
    /// [`EngineError::Stuck`].
    pub fn capture(
        &mut self,
        port: &PortName,
        snap_len: usize,
        ring_bytes: usize,
    ) -> Result<Option<CaptureReader>, EngineError> {
        let Some(open) = self.open.get(port) else { return Ok(None) };
        match self.engine.capture(open.index, snap_len, ring_bytes) {
            Ok(reader) => Ok(Some(reader)),
            Err(EngineError::NotAttached(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
