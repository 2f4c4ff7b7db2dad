//! A capture as a stream of pcapng pieces, for gRPC and HTTP alike. It goes on when its port's link goes down
//! and comes back, and ends when the port is removed or nobody reads any more.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{broadcast, mpsc};

use super::server::Shared;
use super::{LinkNotice, pcapng};
use crate::burst::MAX_FRAME;
use crate::model::{Mode, PortName};
use crate::worker::capture::CaptureReader;

/// Captures at one time; each may hold [`MAX_RING`] bytes.
const MAX_CAPTURES: usize = 16;
/// Most bytes of frames that wait for a reader.
const MAX_RING: usize = 64 << 20;
/// What waits if the caller does not say.
const USUAL_RING: usize = 4 << 20;
/// Shortest useful snap length: an Ethernet header.
const MIN_SNAP: usize = 14;
/// How often the ring is looked at. A ring of 4 MiB fills in this time only beyond 1.6 Gbit/s.
const LOOK: Duration = Duration::from_millis(20);
/// Pieces that wait for a slow reader; the ring holds what comes after them.
const PIECES: usize = 4;
/// A piece is sent when it has so many bytes.
const PIECE: usize = 256 << 10;

/// What is to be captured.
#[derive(Debug, Clone)]
pub struct CaptureSpec {
    /// Which port.
    pub port: PortName,
    /// Bytes kept of each frame.
    pub snap_len: usize,
    /// Bytes that may wait.
    pub ring_bytes: usize,
}

/// Why a capture can't begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CaptureError {
    /// A limit.
    #[error("{0}")]
    Limit(String),
    /// There is no such port.
    #[error("there is no port {0}")]
    NoSuchPort(PortName),
    /// As many as can be are running.
    #[error("{MAX_CAPTURES} captures are running; end one")]
    TooMany,
}

impl CaptureSpec {
    /// A capture of `port`; 0 stands for the usual value.
    ///
    /// # Errors
    /// [`CaptureError::Limit`].
    pub fn new(port: PortName, snap_len: usize, ring_bytes: usize) -> Result<Self, CaptureError> {
        let snap_len = if snap_len == 0 { MAX_FRAME } else { snap_len };
        let ring_bytes = if ring_bytes == 0 { USUAL_RING } else { ring_bytes };
        if !(MIN_SNAP..=MAX_FRAME).contains(&snap_len) {
            let reason = format!("snap_len can be {MIN_SNAP} to {MAX_FRAME} bytes, not {snap_len}");
            return Err(CaptureError::Limit(reason));
        }
        if ring_bytes > MAX_RING {
            return Err(CaptureError::Limit(format!("ring_bytes can be up to {MAX_RING}, not {ring_bytes}")));
        }
        Ok(Self { port, snap_len, ring_bytes })
    }
}

static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Counts a capture while it runs.
struct Permit;

impl Permit {
    fn new() -> Option<Self> {
        let permit = Self;
        (RUNNING.fetch_add(1, Ordering::Relaxed) < MAX_CAPTURES).then_some(permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Begins a capture. The file's pieces come by the receiver; dropping it ends the capture.
///
/// # Errors
/// [`CaptureError`].
pub fn start(agent: &Shared, spec: CaptureSpec) -> Result<mpsc::Receiver<Vec<u8>>, CaptureError> {
    let (mode, links) = {
        let agent = agent.lock();
        (agent.state().ports().get(&spec.port).map(|port| port.mode().unwrap_or_default()), agent.watch().1)
    };
    let mode = mode.ok_or_else(|| CaptureError::NoSuchPort(spec.port.clone()))?;
    let permit = Permit::new().ok_or(CaptureError::TooMany)?;
    let (sender, receiver) = mpsc::channel(PIECES);
    // Begun here rather than in the task, so that what comes after the answer is in the capture.
    let reader = take_reader(agent, &spec);
    let run = Running { agent: agent.clone(), spec, mode, reader, links, missed: 0, sender };
    tokio::spawn(async move {
        run.run().await;
        drop(permit);
    });
    Ok(receiver)
}

fn take_reader(agent: &Shared, spec: &CaptureSpec) -> Option<CaptureReader> {
    let taken = agent.lock().capture(&spec.port, spec.snap_len, spec.ring_bytes);
    taken.unwrap_or_else(|error| {
        tracing::warn!(port = %spec.port, "capture: {error}");
        None
    })
}

struct Running {
    agent: Shared,
    spec: CaptureSpec,
    mode: Mode,
    /// `None` while the port is down.
    reader: Option<CaptureReader>,
    /// Says at once when a link comes up.
    links: broadcast::Receiver<LinkNotice>,
    /// As last told to the reader of the file.
    missed: u64,
    sender: mpsc::Sender<Vec<u8>>,
}

impl Running {
    async fn run(mut self) {
        let header = pcapng::header(self.spec.port.as_str(), self.mode, self.spec.snap_len as u32);
        if self.sender.send(header).await.is_err() {
            return;
        }
        loop {
            let over = self.reader.as_ref().is_none_or(CaptureReader::is_over);
            // Asked before reading: what was published before the end is still there.
            if !self.send_records().await {
                return;
            }
            if over && !self.begin_again() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                // Falling behind is no harm: what counts is that something happened.
                _ = self.links.recv(), if self.reader.is_none() => {}
                () = self.sender.closed() => return,
            }
        }
    }

    /// Sends what has come. False if nobody reads any more.
    async fn send_records(&mut self) -> bool {
        let Some(reader) = &mut self.reader else { return true };
        let (records, missed) = (reader.read(), reader.missed());
        let mut piece = Vec::new();
        for record in &records {
            pcapng::packet(record, &mut piece);
            if piece.len() >= PIECE && self.sender.send(std::mem::take(&mut piece)).await.is_err() {
                return false;
            }
        }
        if missed != self.missed {
            self.missed = missed;
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
            pcapng::missed(missed, now, &mut piece);
        }
        piece.is_empty() || self.sender.send(piece).await.is_ok()
    }

    /// Tries to capture again after the link went down. False if the port is gone.
    fn begin_again(&mut self) -> bool {
        if !self.agent.lock().has(&self.spec.port) {
            return false;
        }
        self.reader = take_reader(&self.agent, &self.spec);
        self.missed = 0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_named() {
        let port: PortName = "a".parse().unwrap();
        let spec =
            |snap, ring| CaptureSpec::new(port.clone(), snap, ring).map(|s| (s.snap_len, s.ring_bytes));
        assert_eq!(spec(0, 0), Ok((65_600, 4 << 20)));
        assert_eq!(spec(13, 0).unwrap_err().to_string(), "snap_len can be 14 to 65600 bytes, not 13");
        assert_eq!(spec(65_601, 0).unwrap_err().to_string(), "snap_len can be 14 to 65600 bytes, not 65601");
        assert!(
            spec(96, MAX_RING + 1).unwrap_err().to_string().starts_with("ring_bytes can be up to 67108864")
        );
    }
}
