//! A dataplane in the test's own process, served on a socket in a directory of its own, and a client of it.
#![allow(dead_code, reason = "each test file uses a part")]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tonic::transport::Channel;
use tonic::{Code, Status};
use vwire_dataplane::agent::run::Dataplane;
use vwire_dataplane::config::Config;
use vwire_dataplane::fdpass::{self, FdSender};
use vwire_dataplane::port::pipe::PipeEnd;
use vwire_proto::dataplane::v1 as pb;
use vwire_proto::dataplane::v1::dataplane_client::DataplaneClient;

pub const PATIENCE: Duration = Duration::from_secs(10);

/// Everything of one test.
pub struct Rig {
    pub dir: tempfile::TempDir,
    pub dataplane: Dataplane,
    pub client: DataplaneClient<Channel>,
    pub fds: FdSender,
}

/// Runs a test on a runtime of its own, as the engine's process does.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(60), test).await.expect("within a minute")
    })
}

impl Rig {
    /// An engine with one worker and `ports` in its configuration.
    pub async fn with(ports: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().display();
        let text = format!(
            "[stats]\npath = \"{place}/stats\"\n[api]\nsocket = \"{place}/api.sock\"\n[admin]\nlisten = \"127.0.0.1:0\"\n{}",
            ports.replace("$DIR", &place.to_string())
        );
        let file = Path::new("test.toml");
        let config = Config::parse(file, &text).unwrap();
        let dataplane = Dataplane::start(file, &config).await.unwrap();
        let (channel, fds) = fdpass::connect(&dir.path().join("api.sock")).await.unwrap();
        // Notes make a snapshot longer than what a client takes by default.
        let client = DataplaneClient::new(channel).max_decoding_message_size(40 << 20);
        Self { dir, dataplane, client, fds }
    }

    /// An engine without ports.
    pub async fn new() -> Self {
        Self::with("").await
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The far end of a pipe.
    pub fn far_end(&self, pipe: &str) -> PipeEnd {
        let pipe = pipe.parse().unwrap();
        self.dataplane.agent().lock().ports_mut().take_pipe_end(&pipe).expect("a port has the near end")
    }

    pub async fn apply(&mut self, ops: Vec<pb::Op>) -> Result<u64, Status> {
        let request = pb::ApplyRequest { base_generation: None, ops };
        self.client.apply(request).await.map(|answer| answer.into_inner().generation)
    }

    pub async fn replace(&mut self, state: pb::State) -> Result<pb::ReplaceResponse, Status> {
        let request = pb::ReplaceRequest { base_generation: None, state: Some(state) };
        self.client.replace(request).await.map(tonic::Response::into_inner)
    }

    pub async fn snapshot(&mut self) -> pb::GetSnapshotResponse {
        self.client.get_snapshot(pb::GetSnapshotRequest {}).await.unwrap().into_inner()
    }

    pub async fn stats(&mut self, port: &str) -> pb::PortStats {
        let request = pb::GetStatsRequest { ports: vec![port.into()] };
        self.client.get_stats(request).await.unwrap().into_inner().ports.remove(0)
    }

    /// Waits until the port's counters are as wanted: a frame is seen at the far end before it is counted.
    pub async fn wait_stats(&mut self, port: &str, wanted: impl Fn(&pb::PortStats) -> bool) -> pb::PortStats {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stats = self.stats(port).await;
            if wanted(&stats) {
                return stats;
            }
            assert!(Instant::now() < deadline, "{port} is still {stats:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub async fn link(&mut self, port: &str) -> pb::Link {
        self.snapshot().await.links.into_iter().find(|link| link.port == port).expect("there is such a port")
    }

    /// Waits until the port's link is as wanted.
    pub async fn wait_link(&mut self, port: &str, up: bool) -> pb::Link {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let link = self.link(port).await;
            if link.up == up {
                return link;
            }
            assert!(Instant::now() < deadline, "{port} is still {link:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Waits until frames have come, letting the dataplane work meanwhile.
pub async fn collect(end: &mut PipeEnd, count: usize) -> Vec<Vec<u8>> {
    let (mut frames, deadline) = (Vec::new(), Instant::now() + PATIENCE);
    while frames.len() < count {
        assert!(Instant::now() < deadline, "only {} of {count} frames came", frames.len());
        frames.extend(end.collect().into_iter().map(|(frame, _)| frame));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    frames
}

pub fn frame(i: usize) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend_from_slice(&[2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    frame.extend((0..46 + i % 900).map(|b| (b + i) as u8));
    frame
}

/// Sends `count` frames from one pipe's far end to another's and checks that they arrive as they were.
pub async fn passes(from: &mut PipeEnd, to: &mut PipeEnd, count: usize) {
    let sent: Vec<_> = (0..count).map(frame).collect();
    for frame in &sent {
        assert!(from.inject(frame));
    }
    assert_eq!(collect(to, count).await, sent);
}

pub fn pipe(name: &str, pipe: &str) -> pb::Port {
    let kind = pb::port::Kind::Pipe(pb::Pipe { pipe: pipe.into() });
    pb::Port { name: name.into(), kind: Some(kind), ..Default::default() }
}

pub fn memif(name: &str, role: pb::memif::Role, socket: impl Into<String>) -> pb::Port {
    let memif = pb::Memif { role: role.into(), socket: socket.into(), ..Default::default() };
    pb::Port { name: name.into(), kind: Some(pb::port::Kind::Memif(memif)), ..Default::default() }
}

pub fn kernel(name: &str, ifname: &str, netns: impl Into<String>) -> pb::Port {
    let kernel = pb::Kernel { ifname: ifname.into(), netns: netns.into(), ..Default::default() };
    pb::Port { name: name.into(), kind: Some(pb::port::Kind::Kernel(kernel)), ..Default::default() }
}

/// Ports a and b, joined.
pub fn two_pipes() -> pb::State {
    pb::State {
        ports: vec![pipe("a", "pa"), pipe("b", "pb")],
        xconnects: vec![xconnect("a", "b")],
        ..Default::default()
    }
}

pub fn set(port: pb::Port) -> pb::Op {
    pb::Op { op: Some(pb::op::Op::SetPort(port)) }
}

pub fn remove(port: &str) -> pb::Op {
    pb::Op { op: Some(pb::op::Op::RemovePort(port.into())) }
}

pub fn xconnect(a: &str, b: &str) -> pb::Xconnect {
    pb::Xconnect { a: a.into(), b: b.into() }
}

pub fn join(a: &str, b: &str) -> pb::Op {
    pb::Op { op: Some(pb::op::Op::AddXconnect(xconnect(a, b))) }
}

pub fn part(a: &str, b: &str) -> pb::Op {
    pb::Op { op: Some(pb::op::Op::RemoveXconnect(xconnect(a, b))) }
}

/// Asserts a refusal's code and message.
pub fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, message: &str) {
    let status = result.expect_err("must be refused");
    assert_eq!((status.code(), status.message()), (code, message));
}

/// How many descriptors this process has open.
pub fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
