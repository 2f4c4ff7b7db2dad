//! A thread that serves memif interfaces: their control sockets and their rings, by readiness.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use memif::queue::{FrameSink, RxQueue, TxQueue};
use memif::{Dialer, Event, Lent, Link, Listener};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use tokio::sync::{oneshot, watch};

use super::host::{Heard, Host};

/// Frames taken out of a ring at a time.
const BURST: usize = 64;
/// Bursts taken from one ring before the other interfaces have their turn.
const BURSTS: usize = 4;
/// A peer's interrupt can be lost. So rings are looked at this often while packets come, and this often when none did for a while.
const BUSY_NAP: Duration = Duration::from_millis(1);
const IDLE_NAP: Duration = Duration::from_millis(20);
const BUSY_FOR: Duration = Duration::from_millis(100);
/// The command channel's token; the interfaces' count from 1, two each.
const WAKE: u64 = 0;
/// A ping that is not answered for so long makes the next one ask for the neighbour again.
const LOST: Duration = Duration::from_millis(300);
/// Pings of one interface that wait for an answer.
const MAX_PINGS: usize = 64;

/// The control side of an interface.
pub enum Port {
    /// We listen.
    Server(Box<Listener>),
    /// We connect.
    Client(Box<Dialer>),
}

impl Port {
    fn process(&mut self) -> Vec<Event> {
        match self {
            Self::Server(listener) => listener.process(),
            Self::Client(dialer) => dialer.process(),
        }
    }

    fn disconnect(&mut self, reason: &str) {
        match self {
            Self::Server(listener) => drop(listener.disconnect(0, reason)),
            Self::Client(dialer) => drop(dialer.disconnect(reason)),
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Server(listener) => listener.as_fd(),
            Self::Client(dialer) => dialer.as_fd(),
        }
    }
}

/// What a worker is told.
pub(super) enum Order {
    Add(u64, Box<Interface>),
    Readdress(u64, Vec<IpAddr>),
    Ping(u64, IpAddr, usize, oneshot::Sender<Duration>),
    Remove(u64),
}

/// One memif and the host on it.
pub(super) struct Interface {
    pub port: Port,
    pub host: Host,
    /// True while there is a peer.
    pub up: watch::Sender<bool>,
    pub name: String,
    pub state: Links,
}

/// What of an interface comes and goes.
#[derive(Default)]
pub(super) struct Links {
    link: Option<Link>,
    pings: HashMap<u16, Ping>,
    sequence: u16,
    active: Option<Instant>,
}

struct Ping {
    to: IpAddr,
    size: usize,
    sent: Option<Instant>,
    done: oneshot::Sender<Duration>,
}

impl Ping {
    /// True if it was sent and nobody has answered in time, by ours or the owner's patience.
    fn is_lost(&self) -> bool {
        self.sent.is_some_and(|sent| self.done.is_closed() || sent.elapsed() > LOST)
    }
}

/// A worker from the outside. Dropped, it ends.
pub(super) struct Worker {
    orders: Sender<Order>,
    wake: Arc<OwnedFd>,
}

impl Worker {
    pub fn start(index: usize) -> std::io::Result<Self> {
        let (orders, inbox) = channel();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        let thread = Thread { epoll, wake: Arc::clone(&wake), inbox, interfaces: HashMap::new() };
        std::thread::Builder::new().name(format!("vwire-memif-{index}")).spawn(move || thread.run())?;
        Ok(Self { orders, wake })
    }

    pub fn tell(&self, order: Order) {
        // The thread ends only after this is dropped.
        let _ = self.orders.send(order);
        self.wake();
    }

    fn wake(&self) {
        // Full means that it is awake.
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let (closed, _) = channel();
        self.orders = closed;
        self.wake();
    }
}

struct Thread {
    epoll: OwnedFd,
    wake: Arc<OwnedFd>,
    inbox: Receiver<Order>,
    interfaces: HashMap<u64, Box<Interface>>,
}

impl Thread {
    fn run(mut self) {
        let mut events = Vec::with_capacity(256);
        let mut swept = Instant::now();
        loop {
            events.clear();
            let nap = self.nap();
            let nap = Timespec { tv_sec: 0, tv_nsec: nap.as_nanos() as i64 };
            // Interrupted or not: what is ready will be so next time.
            let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&nap));
            for event in &events {
                match event.data.u64() {
                    WAKE => drop(rustix::io::read(&*self.wake, &mut [0; 8])),
                    token if token % 2 == 1 => self.control(token / 2),
                    token => self.packets(token / 2 - 1),
                }
            }
            if !self.obey() {
                return;
            }
            let now = Instant::now();
            let all = now.duration_since(swept) >= IDLE_NAP;
            if all {
                swept = now;
            }
            self.sweep(all, now);
        }
    }

    fn nap(&self) -> Duration {
        let now = Instant::now();
        let busy = self.interfaces.values().any(|interface| interface.state.is_busy(now));
        if busy { BUSY_NAP } else { IDLE_NAP }
    }

    /// Looks at rings whose peer's interrupt may have been lost, and at dialers that are to try again.
    fn sweep(&mut self, all: bool, now: Instant) {
        let chosen =
            |interface: &Interface| interface.state.link.is_some() && (all || interface.state.is_busy(now));
        let ids: Vec<u64> =
            self.interfaces.iter().filter(|(_, interface)| chosen(interface)).map(|(id, _)| *id).collect();
        for id in ids {
            self.packets(id);
        }
    }

    /// False if the owner is gone.
    fn obey(&mut self) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(Order::Add(id, interface)) => self.add(id, interface),
                Ok(Order::Readdress(id, addresses)) => {
                    if let Some(interface) = self.interfaces.get_mut(&id) {
                        interface.host.readdress(addresses);
                    }
                }
                Ok(Order::Ping(id, to, size, done)) => {
                    if let Some(interface) = self.interfaces.get_mut(&id) {
                        interface.ping(to, size, done);
                    }
                }
                Ok(Order::Remove(id)) => self.remove(id),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn add(&mut self, id: u64, interface: Box<Interface>) {
        let data = EventData::new_u64(control_token(id));
        if let Err(error) = epoll::add(&self.epoll, interface.port.as_fd(), data, EventFlags::IN) {
            tracing::error!(%error, interface = interface.name, "a memif interface can't be watched");
        }
        self.interfaces.insert(id, interface);
        self.control(id);
    }

    fn remove(&mut self, id: u64) {
        let Entry::Occupied(mut entry) = self.interfaces.entry(id) else { return };
        entry.get_mut().unplug(&self.epoll);
        let _ = epoll::delete(&self.epoll, entry.get().port.as_fd());
        entry.remove();
    }

    fn control(&mut self, id: u64) {
        let Some(interface) = self.interfaces.get_mut(&id) else { return };
        for event in interface.port.process() {
            match event {
                Event::Connected { link, .. } => interface.plug(id, link, &self.epoll),
                Event::Disconnected { reason, .. } => {
                    tracing::debug!(interface = interface.name, %reason, "memif link down");
                    interface.unplug(&self.epoll);
                }
                Event::Refused { reason, .. } => {
                    tracing::debug!(interface = interface.name, %reason, "no memif link")
                }
            }
        }
    }

    fn packets(&mut self, id: u64) {
        let Some(interface) = self.interfaces.get_mut(&id) else { return };
        if let Err(fault) = interface.take_in() {
            tracing::warn!(interface = interface.name, "memif link given up: {fault}");
            interface.port.disconnect(&fault);
            interface.unplug(&self.epoll);
        }
    }
}

fn control_token(id: u64) -> u64 {
    id * 2 + 1
}

fn ring_token(id: u64) -> u64 {
    id * 2 + 2
}

impl Links {
    fn is_busy(&self, now: Instant) -> bool {
        !self.pings.is_empty() || self.active.is_some_and(|active| now.duration_since(active) < BUSY_FOR)
    }
}

impl Interface {
    fn plug(&mut self, id: u64, link: Link, epoll: &OwnedFd) {
        self.unplug(epoll);
        for queue in &link.rx {
            queue.unmask();
            let data = EventData::new_u64(ring_token(id));
            if let Err(error) = epoll::add(epoll, queue.event_fd(), data, EventFlags::IN) {
                tracing::debug!(%error, interface = self.name, "no interrupts; the rings are polled");
            }
        }
        tracing::debug!(interface = self.name, peer = %link.peer_program, "memif link up");
        self.state.link = Some(link);
        // An endpoint that was replaced may have another Ethernet address.
        self.host.forget_all();
        self.up.send_replace(true);
        self.send_pings();
    }

    fn unplug(&mut self, epoll: &OwnedFd) {
        let Some(link) = self.state.link.take() else { return };
        for queue in &link.rx {
            // The peer holds the same eventfd: closing ours would not end the watch.
            let _ = epoll::delete(epoll, queue.event_fd());
        }
        self.state.pings.values_mut().for_each(|ping| ping.sent = None);
        self.up.send_replace(false);
    }

    /// Takes what has come, and answers it.
    fn take_in(&mut self) -> Result<(), String> {
        let Some(link) = &mut self.state.link else { return Ok(()) };
        let (mut learned, mut heard_any) = (false, false);
        let Link { rx, tx, .. } = link;
        for queue in rx {
            queue.drain_event();
            // What is left after these bursts waits for the others; being busy, this interface is looked at again within 1 ms.
            for _ in 0..BURSTS {
                let mut sink = Frames { frames: Vec::new() };
                queue.receive(&mut sink).map_err(|fault| fault.to_string())?;
                queue.release();
                heard_any |= !sink.frames.is_empty();
                let done = sink.frames.len() < BURST;
                for frame in sink.frames {
                    learned |= answer(&mut self.host, &mut self.state.pings, tx.first_mut(), frame);
                }
                if let Some(queue) = tx.first_mut() {
                    queue.publish();
                }
                if done {
                    break;
                }
            }
        }
        if let Some(fault) = tx.iter().find_map(TxQueue::fault) {
            return Err(fault.to_string());
        }
        if heard_any {
            self.state.active = Some(Instant::now());
        }
        if learned {
            self.send_pings();
        }
        Ok(())
    }

    fn ping(&mut self, to: IpAddr, size: usize, done: oneshot::Sender<Duration>) {
        if self.state.pings.values().any(|ping| ping.to == to && ping.is_lost()) {
            self.host.forget(to);
        }
        self.state.pings.retain(|_, ping| !ping.done.is_closed());
        if self.state.pings.len() >= MAX_PINGS {
            return;
        }
        self.state.sequence = self.state.sequence.wrapping_add(1);
        self.state.pings.insert(self.state.sequence, Ping { to, size, sent: None, done });
        self.send_pings();
    }

    /// Sends the pings that were not sent yet, or the question for their neighbour.
    fn send_pings(&mut self) {
        let Some(queue) = self.state.link.as_mut().and_then(|link| link.tx.first_mut()) else { return };
        for (sequence, ping) in self.state.pings.iter_mut().filter(|(_, ping)| ping.sent.is_none()) {
            let Some(frame) = self.host.echo_request(ping.to, *sequence, ping.size) else { continue };
            let known = self.host.knows(ping.to);
            // A full ring loses the frame, as a wire would.
            if queue.push(Lent::from(&frame[..])).is_ok() && known {
                ping.sent = Some(Instant::now());
            }
        }
        queue.publish();
    }
}

/// Answers one frame; true if a neighbour's address was learned.
fn answer(
    host: &mut Host,
    pings: &mut HashMap<u16, Ping>,
    tx: Option<&mut TxQueue>,
    mut frame: Vec<u8>,
) -> bool {
    match host.hear(&mut frame) {
        Heard::Answer => {
            if let Some(queue) = tx {
                let _ = queue.push(Lent::from(&frame[..]));
            }
            // A question tells who asks as well as an answer does.
            true
        }
        Heard::EchoReply { from, sequence } => {
            if let Entry::Occupied(entry) = pings.entry(sequence)
                && entry.get().to == from
                && let (_, Ping { sent: Some(sent), done, .. }) = entry.remove_entry()
            {
                // Whoever asked may have given up.
                let _ = done.send(sent.elapsed());
            }
            false
        }
        Heard::Neighbour(_) => true,
        Heard::Nothing => false,
    }
}

/// Frames copied out of shared memory, where the peer can change them while they are looked at.
struct Frames {
    frames: Vec<Vec<u8>>,
}

impl<'a> FrameSink<'a> for Frames {
    fn room(&self) -> usize {
        BURST
    }

    fn frame(&mut self, frame: Lent<'a>) {
        self.frames.push(frame.to_vec());
    }

    fn chain(&mut self, segments: &[Lent<'a>], total: usize) {
        let mut frame = vec![0; total];
        let mut at = 0;
        for segment in segments {
            at += segment.copy_to(&mut frame[at..]);
        }
        self.frames.push(frame);
    }
}

// The queues' own type is named so that the compiler says it here if it can't be sent to a thread.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<RxQueue>();
};
