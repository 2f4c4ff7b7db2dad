//! Pings at short intervals, and how long none was answered.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use vwire_control::client::Namespace;

/// Between pings.
const INTERVAL: Duration = Duration::from_millis(5);
/// So many in a row are answered where traffic is whole.
const WHOLE: usize = 40;
/// Of an IPv4 header without options, which raw sockets show.
const IP: usize = 20;

/// Pings until it is dropped.
pub struct Pinger {
    to: Arc<Mutex<Ipv4Addr>>,
    sent: Arc<Mutex<Sent>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// By sequence number: when it was sent, and whether it was answered.
#[derive(Default)]
struct Sent(BTreeMap<u16, (Instant, bool)>);

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pinger {
    /// Pings `to` from inside a namespace.
    pub fn start(namespace: &Namespace, to: Ipv4Addr) -> Result<Self, String> {
        let open = namespace.run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)));
        let socket = open.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let (sent, end) = (Arc::<Mutex<Sent>>::default(), Arc::<AtomicBool>::default());
        let to = Arc::new(Mutex::new(to));
        let (told, stop, there) = (Arc::clone(&sent), Arc::clone(&end), Arc::clone(&to));
        let thread = std::thread::spawn(move || {
            if let Err(error) = ping(&socket, &there, &told, &stop) {
                eprintln!("pings: {error}");
            }
        });
        Ok(Self { to, sent, end, thread: Some(thread) })
    }

    /// From `since` until the first ping that was answered after the last one that was not; nothing if none was lost, and no value
    /// while traffic is not whole.
    pub fn outage(&self, since: Instant) -> Option<Duration> {
        let sent = lock(&self.sent);
        let mut after: Vec<_> = sent.0.values().filter(|(at, _)| *at >= since).copied().collect();
        after.sort_unstable();
        let lost = after.iter().rposition(|(at, answered)| !answered && at.elapsed() > INTERVAL * 4);
        let whole = lost.map_or(0, |lost| lost + 1);
        if after[whole..].iter().filter(|(_, answered)| *answered).count() < WHOLE {
            return None;
        }
        Some(lost.map_or(Duration::ZERO, |_| after[whole].0 - since))
    }

    /// Pings this address from now on: another endpoint may have another one.
    pub fn aim(&self, to: Ipv4Addr) {
        *lock(&self.to) = to;
    }

    /// Forgets what was.
    pub fn clear(&self) {
        lock(&self.sent).0.clear();
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ping(socket: &Socket, to: &Mutex<Ipv4Addr>, sent: &Mutex<Sent>, end: &AtomicBool) -> io::Result<()> {
    let id = std::process::id() as u16;
    for sequence in (0..=u16::MAX).cycle() {
        let began = Instant::now();
        lock(sent).0.insert(sequence, (began, false));
        // An interface that is gone is an outage like any other.
        let to = *lock(to);
        let _ = socket.send_to(&request(id, sequence), &SocketAddrV4::new(to, 0).into());
        while let Some(left) = INTERVAL.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
            if end.load(Ordering::Relaxed) {
                return Ok(());
            }
            socket.set_read_timeout(Some(left.max(Duration::from_micros(100))))?;
            let mut buffer = [0; 128];
            let Ok(length) = (&*socket).read(&mut buffer) else { continue };
            if let Some(sequence) = reply(&buffer[..length], id)
                && let Some(ping) = lock(sent).0.get_mut(&sequence)
            {
                ping.1 = true;
            }
        }
    }
    Ok(())
}

/// The sequence number of an echo reply with our identifier.
fn reply(packet: &[u8], id: u16) -> Option<u16> {
    let icmp = packet.get(IP..IP + 8)?;
    let ours = icmp[0] == 0 && icmp[4..6] == id.to_be_bytes();
    ours.then(|| u16::from_be_bytes([icmp[6], icmp[7]]))
}

fn request(id: u16, sequence: u16) -> [u8; 8] {
    let [id, sequence] = [id.to_be_bytes(), sequence.to_be_bytes()];
    let mut packet = [8, 0, 0, 0, id[0], id[1], sequence[0], sequence[1]];
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[2..4].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet
}
