//! What traffic is sent into and counted at: memif sockets as their client, or VXLAN tunnels as their far end.

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use memif::handshake::Mode;
use memif::message::Name;
use memif::queue::{FrameSink, RxQueue, TxQueue};
use memif::region::HugePages;
use memif::{Address, Dialer, DialerConfig, Event, Lent};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vwire_dataplane::burst::{BURST, Burst};
use vwire_dataplane::port::{PortIndex, Refused, Rx, RxContext, TxContext, UnderlayTx, Underlays};
use vwire_dataplane::stats::Counters;
use vwire_dataplane::tables::{Tables, Tunnel, Vni};
use vwire_dataplane::underlay::{UdpSpec, UdpUnderlay};
use vwire_dataplane::wire::vxlan;

/// Frames that one end is given, or asked for, before the next one has its turn.
pub const BATCH: usize = 256;

/// Frames and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl<'a> FrameSink<'a> for Tally {
    #[inline]
    fn room(&self) -> usize {
        BATCH
    }
    #[inline]
    fn frame(&mut self, frame: Lent<'a>) {
        self.packets += 1;
        self.bytes += frame.len() as u64;
    }
    fn chain(&mut self, _: &[Lent<'a>], total: usize) {
        self.packets += 1;
        self.bytes += total as u64;
    }
}

/// One end of some traffic.
pub enum End {
    /// A connected memif interface.
    Memif(Box<MemifEnd>),
    /// Tunnels of one underlay.
    Tunnels(Box<TunnelEnd>),
}

impl End {
    /// Opens what `text` names: `SOCKET`, `SOCKET:ID`, `SOCKET:FIRST-LAST` (a memif client for each id; "@name" is abstract), or
    /// `vxlan/LOCAL/REMOTE/VNI` or `…/FIRST-LAST` (a tunnel for each VNI). `shape` changes the memif clients' configuration.
    ///
    /// # Errors
    /// What can't be parsed, bound, or connected within 10 s.
    pub fn open(text: &str, shape: &dyn Fn(&mut DialerConfig)) -> Result<Vec<Self>, Box<dyn Error>> {
        if let Some(tunnels) = text.strip_prefix("vxlan/") {
            return Ok(vec![Self::Tunnels(Box::new(TunnelEnd::open(tunnels)?))]);
        }
        let (path, ids) = text.rsplit_once(':').unwrap_or((text, "0"));
        range(ids)?.map(|id| Ok(Self::Memif(Box::new(MemifEnd::connect(path, id, shape)?)))).collect()
    }

    /// Says what [`End::send`] sends, again and again.
    ///
    /// # Errors
    /// A frame that does not fit.
    pub fn prefill(&mut self, frames: &[Vec<u8>]) -> Result<(), Box<dyn Error>> {
        match self {
            Self::Memif(end) => {
                let views: Vec<Lent<'_>> = frames.iter().map(|frame| Lent::from(frame.as_slice())).collect();
                Ok(end.tx.prefill(&views)?)
            }
            Self::Tunnels(end) => {
                end.frames = frames.to_vec();
                Ok(())
            }
        }
    }

    /// Sends at most `max` of the prefilled frames and returns how many were taken.
    #[inline]
    pub fn send(&mut self, max: usize) -> usize {
        match self {
            Self::Memif(end) => end.tx.republish(max),
            Self::Tunnels(end) => end.send(max),
        }
    }

    /// Counts what has arrived.
    ///
    /// # Errors
    /// The peer broke a ring, or the socket is gone.
    #[inline]
    pub fn receive(&mut self, tally: &mut Tally) -> Result<(), Box<dyn Error>> {
        match self {
            Self::Memif(end) => {
                end.rx.receive(tally)?;
                end.rx.release();
                Ok(())
            }
            Self::Tunnels(end) => end.receive(tally),
        }
    }
}

/// A number, or a first and a last one.
fn range(text: &str) -> Result<std::ops::RangeInclusive<u32>, Box<dyn Error>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Ok(first.parse()?..=last.parse()?)
}

/// A connected memif client; the dialer keeps the connection open.
pub struct MemifEnd {
    _dialer: Dialer,
    /// Sends.
    pub tx: TxQueue,
    /// Receives.
    pub rx: RxQueue,
}

impl MemifEnd {
    fn connect(path: &str, id: u32, shape: &dyn Fn(&mut DialerConfig)) -> Result<Self, Box<dyn Error>> {
        let address = match path.strip_prefix('@') {
            Some(name) => Address::abstract_name(name)?,
            None => Address::path(path)?,
        };
        let mut config = DialerConfig::new(id, Mode::Ethernet, Name::cut("traffic"));
        shape(&mut config);
        let mut dialer = Dialer::new(address, config)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            for event in dialer.process() {
                if let Event::Connected { link, .. } = event {
                    let (tx, rx) = (link.tx.into_iter().next(), link.rx.into_iter().next());
                    let (Some(tx), Some(rx)) = (tx, rx) else {
                        return Err("the server gave no rings".into());
                    };
                    return Ok(Self { _dialer: dialer, tx, rx });
                }
            }
            let wait = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
            poll(&mut [PollFd::new(&dialer.as_fd(), PollFlags::IN)], Some(&wait))?;
        }
        Err(format!("{path}: no connection within 10 s").into())
    }
}

/// Memif clients of the smallest shape, for ports that are only to be there.
pub fn small(config: &mut DialerConfig) {
    config.log2_ring = 4;
    config.huge_pages = HugePages::Never;
}

/// The far end of some tunnels: frames go straight from private memory into send buffers, so that little but the kernel is
/// between them and the engine that is measured.
pub struct TunnelEnd {
    underlay: UdpUnderlay,
    tunnels: Vec<Tunnel>,
    next: usize,
    tables: Tables,
    counters: Counters,
    frames: Vec<Vec<u8>>,
}

/// The underlay's own index among the ports.
const UNDERLAY: PortIndex = PortIndex(0);

impl TunnelEnd {
    fn open(text: &str) -> Result<Self, Box<dyn Error>> {
        let parts: Vec<&str> = text.split('/').collect();
        let [local, remote, vnis] = parts[..] else {
            return Err(format!("vxlan/{text}: three parts").into());
        };
        let local = SocketAddr::new(local.parse::<IpAddr>()?, vxlan::PORT);
        let remote = SocketAddr::new(remote.parse()?, vxlan::PORT);
        let underlay =
            UdpUnderlay::open(&UdpSpec { receive_buffer: 32 << 20, ..UdpSpec::new(UNDERLAY, local) })?;
        let max_frame = underlay.mtu.max_frame(remote.ip())?;
        let (mut tables, mut tunnels) = (Tables::default(), Vec::new());
        for (number, vni) in range(vnis)?.enumerate() {
            let vni = Vni::new(vni).ok_or("a VNI has 24 bits")?;
            let port = PortIndex(1 + u16::try_from(number)?);
            let link = vwire_dataplane::offload::Link::Ethernet;
            let tunnel = Tunnel { port, underlay: UNDERLAY, remote, vni, max_frame, link };
            tables.tunnels.insert(&tunnel);
            tunnels.push(tunnel);
        }
        let counters = Counters::anonymous(1 + u16::try_from(tunnels.len())?)?;
        Ok(Self { underlay, tunnels, next: 0, tables, counters, frames: Vec::new() })
    }

    /// A burst into the next tunnel.
    fn send(&mut self, max: usize) -> usize {
        let mut burst = Burst::new(UNDERLAY);
        self.frames.iter().cycle().take(max.min(BURST)).for_each(|frame| burst.push(Lent::from(&frame[..])));
        let tunnel = &self.tunnels[self.next];
        self.next = (self.next + 1) % self.tunnels.len();
        let (mut refused, mut none) = (Refused::new(), Underlays::default());
        let mut context = TxContext {
            port: tunnel.port,
            counters: &self.counters,
            tables: &self.tables,
            underlays: &mut none,
            refused: &mut refused,
        };
        let count = burst.len();
        for (_, run) in burst.runs() {
            self.underlay.tx.send(tunnel, run, &mut context);
        }
        let taken = count - refused.len();
        self.underlay.tx.flush(true, &self.counters);
        taken
    }

    fn receive(&mut self, tally: &mut Tally) -> Result<(), Box<dyn Error>> {
        let context = RxContext { tables: &self.tables, counters: &self.counters };
        loop {
            let mut burst = Burst::new(UNDERLAY);
            self.underlay.rx.receive(&mut burst, &context)?;
            for (_, frames) in burst.runs() {
                tally.packets += frames.len() as u64;
                tally.bytes += frames.bytes();
            }
            let more = burst.len() == BURST;
            let taken = burst.finish();
            self.underlay.rx.release(taken);
            if !more {
                return Ok(());
            }
        }
    }
}
