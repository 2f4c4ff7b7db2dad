//! A process that scribbles over everything that a memif peer may write, as fast as it can, connected through the real engine to a
//! peer that behaves; and a neighbour that loses nothing.

mod adversity_support;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use adversity_support::memory::{Random, RawMemory};
use adversity_support::*;
use memif::{Address, Event, InterfaceConfig, Listener, ListenerConfig, Mode};
use vwire_dataplane::DropReason;

/// Writes of the scribbling client.
const SCRIBBLES: u64 = 40_000_000;
/// Links that the scribbling server ruins. The engine's client comes back after 100 ms each time.
const LINKS: u64 = 20;
/// Slots that the engine takes from a scribbler before the indices are spoilt.
const MOVED: u64 = 500;
/// What a link is down for after a ring was spoilt.
const CORRUPT: &str = "memif: the peer moved its ring index by";

/// A connection's memory, with two rings at its beginning.
struct Target<'a> {
    memory: &'a RawMemory,
    /// Bytes of each ring.
    ring: u64,
    /// Interrupts, to be disturbed.
    events: &'a [OwnedFd],
    /// Where the engine writes how far it has come with what we send.
    progress: u64,
}

impl Target<'_> {
    /// Words of descriptors, from nearly good to noise, and bytes of frames.
    fn spoil_descriptors(&self, random: &mut Random) {
        let (value, buffers) = (random.next(), (2 * self.ring).next_multiple_of(4096));
        if random.below(4) == 0 {
            let words = (self.memory.len() as u64 - buffers) / 8;
            return self.memory.write((buffers + 8 * random.below(words)) as usize, value);
        }
        let slot = 4 * random.below((self.ring - 128) / 4);
        let ring = if value & 1 == 0 { 0 } else { self.ring };
        self.memory.write((ring + 128 + slot) as usize, value as u32 >> (value >> 59));
    }

    /// The headers as well: indices, flags, cookies.
    fn spoil_anything(&self, random: &mut Random) {
        let value = random.next();
        let ring = if value & 1 == 0 { 0 } else { self.ring as usize };
        match random.below(4096) {
            0 => self.memory.write([0, 4, 6, 64][random.below(4) as usize] + ring, value as u16),
            // As good ones move.
            1..128 => {
                let at = [6, 64][random.below(2) as usize] + ring;
                let by = (value >> 8) as u16 % 4;
                self.memory.write(at, self.memory.read::<u16>(at).wrapping_add(by));
            }
            _ => self.spoil_descriptors(random),
        }
    }

    /// Makes an interrupt blocking, full, or empty.
    fn disturb(&self, value: u64) {
        let Some(event) = self.events.get(value as usize % 2) else { return };
        let _ = rustix::io::ioctl_fionbio(event, true);
        let _ = rustix::io::write(event, &(value | 1 << 63).saturating_sub(1).to_ne_bytes());
        if value & 2 == 0 {
            let _ = rustix::io::read(event, &mut [0; 8]);
        }
        let _ = rustix::io::ioctl_fionbio(event, value & 4 == 0);
    }

    /// First descriptors and frames are scribbled over, with sound indices (`go_on` sees to that) so that traffic goes on; then all
    /// the rest as well, until the link has `ended`. Returns the number of writes.
    ///
    /// The engine has had [`MOVED`] slots of ours by then, or it might see little more than the ruins of each link.
    fn spoil(&self, random: &mut Random, go_on: impl Fn(), mut ended: impl FnMut() -> bool) -> u64 {
        let progress = || self.memory.read::<u16>(self.progress as usize);
        let (sound, mut moved, mut seen) = (random.below(SCRIBBLES / 20), 0, progress());
        for round in 0.. {
            if round < sound || moved < MOVED {
                let now = progress();
                moved += u64::from(now.wrapping_sub(seen));
                seen = now;
                self.spoil_descriptors(random);
            } else {
                self.spoil_anything(random);
            }
            if round % 64 == 0 {
                go_on();
            }
            if round % 1024 == 0 {
                self.disturb(random.next());
                if ended() {
                    return round;
                }
            }
        }
        unreachable!("the rounds have no end but that of the link")
    }
}

/// The other process, as client.
fn scribble_as_client(socket: &Path) {
    let mut random = Random(0x5eed_0000 ^ u64::from(std::process::id()));
    let mut done = 0;
    while done < SCRIBBLES {
        let peer = until("a new link", || RawPeer::connect(socket).ok());
        let target = Target { memory: &peer.memory, ring: 128 + 16 * 32, events: &peer.events, progress: 64 };
        done += target.spoil(&mut random, || peer.churn(), || peer.ended().is_some());
    }
}

/// The other process, as server. The memory is the engine's, which it has to show us.
fn scribble_as_server(socket: &Path) {
    let mut random = Random(0x5eed_0000 ^ u64::from(std::process::id()));
    let address = Address::path(socket).unwrap();
    let mut listener = Listener::bind(&address, ListenerConfig::default()).unwrap();
    listener.add_interface(0, InterfaceConfig::new(Mode::Ethernet, "hostile".parse().unwrap()));
    for _ in 0..LINKS {
        let link = until("a new link", || {
            listener.process().into_iter().find_map(|event| match event {
                Event::Connected { link, .. } => Some(link),
                _ => None,
            })
        });
        let memory = mapped_region();
        // The engine's rings have 1024 slots.
        let ring = 128 + 16 * 1024;
        let target = Target { memory: &memory, ring, events: &[], progress: ring + 6 };
        let rings = [0, target.ring as usize];
        // Whatever was sent is taken, and whatever was posted is full.
        let go_on = || rings.iter().for_each(|ring| memory.write(ring + 64, memory.read::<u16>(ring + 6)));
        target.spoil(&mut random, go_on, || {
            listener.process().iter().any(|event| matches!(event, Event::Disconnected { .. }))
        });
        drop(link);
    }
}

/// The peer's region, which the listener has mapped and closed: once more, from the mapping.
fn mapped_region() -> RawMemory {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| line.contains("memfd:memif-region")).expect("it is mapped");
    let range = line.split(' ').next().unwrap();
    let mapping = format!("/proc/self/map_files/{range}");
    let file = std::fs::File::options().read(true).write(true).open(mapping).unwrap();
    let len = file.metadata().unwrap().len();
    RawMemory::map(file.as_fd(), len as usize)
}

/// Starts the scribbler against port `v`, sends it all that `p` can until it ends, and checks that it hit and that it hurt nobody.
fn endure(engine: &mut Engine, p: &mut Client, mut scribbler: Peer, faults_at_least: usize) {
    let began = Instant::now();
    let (mut sent, mut received, mut number) = (0u64, 0u64, 0u64);
    let status = until("the scribbler's end", || {
        for _ in 0..64 {
            sent += u64::from(p.send(&frame(1, number)));
            number += 1;
        }
        received += p.receive().len() as u64;
        p.tend();
        scribbler.ended()
    });
    assert!(status.success(), "the scribbler did all that it should: {status}");
    engine.assert_alive();
    assert_eq!((p.ups, p.told.len()), (1, 0), "its well-behaved peer keeps its link");
    engine.wait_up("v", false);
    p.drain();
    let (v, log) = (engine.stats("v"), engine.log());
    let count = |what: &str| log.lines().filter(|line| line.contains(what) && line.contains(CORRUPT)).count();
    let (faults, warnings) = (count(" link down "), count(" WARN "));
    println!(
        "{faults} faults, {warnings} warnings; victim rx {} tx {} dropped {:?}; its peer sent {sent}, received {received}",
        v.rx.0, v.tx.0, v.drops
    );
    assert!(v.rx.0 > 50 && v.tx.0 > 500, "it worked in between: {v:?}");
    assert!(v.dropped(DropReason::BadDescriptor) > 500, "it was hit in its descriptors: {v:?}");
    assert!(faults >= faults_at_least, "and in its indices");
    assert!((1..=began.elapsed().as_secs() as usize + 2).contains(&warnings), "{warnings} warnings");
}

#[test]
fn a_client_that_scribbles_over_all_it_may_write_costs_its_neighbour_nothing() {
    let name = "a_client_that_scribbles_over_all_it_may_write_costs_its_neighbour_nothing";
    if let Some(socket) = played_part() {
        return scribble_as_client(socket.as_ref());
    }
    let mut engine = Engine::start(&(wire("v", "p") + &wire("n1", "n2")));
    let neighbour = Neighbour::start(&mut engine);
    let mut p = Client::connected(&engine.socket("p"));
    let scribbler = Peer::spawn(name, &engine.socket("v").display().to_string());
    endure(&mut engine, &mut p, scribbler, 10);
    let mut v = Client::connected(&engine.socket("v"));
    engine.wait_up("v", true);
    p.receive();
    exchange(&mut v, &mut p, 0xbb00, 2000);
    neighbour.finish(&engine);
}

#[test]
fn a_server_that_scribbles_over_all_it_may_write_costs_its_neighbour_nothing() {
    let name = "a_server_that_scribbles_over_all_it_may_write_costs_its_neighbour_nothing";
    if let Some(socket) = played_part() {
        return scribble_as_server(socket.as_ref());
    }
    let mut engine =
        Engine::start(&(memif_client("v") + &memif_server("p") + &join("v", "p") + &wire("n1", "n2")));
    let neighbour = Neighbour::start(&mut engine);
    let mut p = Client::connected(&engine.socket("p"));
    let scribbler = Peer::spawn(name, &engine.socket("v").display().to_string());
    endure(&mut engine, &mut p, scribbler, LINKS as usize / 2);
    // A server that behaves has the port back: its other end is an engine's port, too.
    drop(std::fs::remove_file(engine.socket("v")));
    let mut other = Engine::start(&(memif_server("s") + &memif_server("q") + &join("s", "q")));
    std::os::unix::fs::symlink(other.socket("s"), engine.socket("v")).unwrap();
    let mut q = Client::connected(&other.socket("q"));
    engine.wait_up("v", true);
    other.wait_up("s", true);
    other.wait_up("q", true);
    p.receive();
    exchange(&mut q, &mut p, 0xbb00, 2000);
    neighbour.finish(&engine);
}
