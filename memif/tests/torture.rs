//! Another process scribbles over everything that a memif peer may write, as fast as it can, while this one polls the rings. A
//! neighbour's connection, polled in turn with it, loses nothing.
//!
//! Bounded by counts: the neighbour's frames, and the scribbler's rounds.

mod common;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use common::{Collect, Random, RawMemory, pattern, receive_all, shape};
use memif::Lent;
use memif::queue::{ClientMemory, Pair, Queues, Role, pair, serve};

const NEIGHBOUR_FRAMES: u64 = 200_000;
const SCRIBBLES: u64 = 100_000_000;
const LOG2: u8 = 6;
const RINGS_END: u64 = 2 * (128 + 16 * (1 << LOG2));
const COOKIE: u32 = 0x03E3_1F20;

#[test]
fn a_scribbling_client_costs_its_neighbour_nothing() {
    torture("a_scribbling_client_costs_its_neighbour_nothing", Role::Server);
}

#[test]
fn a_scribbling_server_costs_its_neighbour_nothing() {
    torture("a_scribbling_server_costs_its_neighbour_nothing", Role::Client);
}

/// Runs as the scribbler if it was started as such, else as the victim in `role`.
fn torture(name: &str, role: Role) {
    match std::env::var("MEMIF_TEST_SCRIBBLE") {
        Ok(fds) => scribble(&fds),
        Err(_) => endure(name, role),
    }
}

/// The other process: random values of all widths at random places, mostly in rings; and the interrupts as well.
fn scribble(fds: &str) {
    let fds: Vec<i32> = fds.split(',').map(|fd| fd.parse().expect("a number")).collect();
    // SAFETY: the parent left these descriptors open for us.
    let borrow = |fd| unsafe { BorrowedFd::borrow_raw(fd) };
    let size = rustix::fs::fstat(borrow(fds[0])).expect("fstat").st_size as u64;
    let memory = RawMemory::map(borrow(fds[0]), size as usize);
    let mut random = Random(0x5eed ^ u64::from(std::process::id()));
    for round in 0..SCRIBBLES {
        let value = random.next();
        match random.below(4096) {
            // Indices, flags and cookie that mean nothing: the end of a connection, so not too often.
            0 => memory.write([0, 4, 6, 64][random.below(4) as usize] + half(value), value as u16),
            // Indices that move as good ones do.
            1..64 => nudge(&memory, [6, 64][random.below(2) as usize] + half(value), (value >> 8) as u16 % 4),
            // Words of descriptors, from nearly good to noise.
            64..3500 => {
                memory.write(4 * random.below(RINGS_END / 4).max(32) as usize, value as u32 >> (value >> 59))
            }
            _ => memory.write(8 * random.below(size / 8).max(16) as usize, value),
        }
        if round % 4096 == 0 {
            disturb(borrow(fds[1 + random.below(2) as usize]), value);
        }
    }
}

fn half(value: u64) -> usize {
    if value & 1 == 0 { 0 } else { RINGS_END as usize / 2 }
}

fn nudge(memory: &RawMemory, at: usize, by: u16) {
    memory.write(at, memory.read::<u16>(at).wrapping_add(by));
}

/// Makes the interrupt blocking, full, or empty.
fn disturb(event: BorrowedFd<'_>, value: u64) {
    let _ = rustix::io::ioctl_fionbio(event, true);
    let _ = rustix::io::write(event, &(value | 1 << 63).saturating_sub(1).to_ne_bytes());
    if value & 2 == 0 {
        let _ = rustix::io::read(event, &mut [0; 8]);
    }
    let _ = rustix::io::ioctl_fionbio(event, value & 4 == 0);
}

/// The connection that is scribbled on, remade whenever it has ended.
struct Victim {
    memory: ClientMemory,
    role: Role,
    raw: RawMemory,
    queues: Queues,
    remade: u64,
    received: u64,
    sent: u64,
    refused: u64,
}

impl Victim {
    fn new(role: Role) -> Self {
        let memory = ClientMemory::create(shape(LOG2)).unwrap();
        let (size, fd) = memory.regions().next().unwrap();
        let raw = RawMemory::map(fd, size as usize);
        let queues = match role {
            Role::Server => serve(&memory).unwrap(),
            Role::Client => memory.connect_again().unwrap(),
        };
        Self { memory, role, raw, queues, remade: 0, received: 0, sent: 0, refused: 0 }
    }

    /// A handshake anew over the same memory; the scribbler may spoil the cookie meanwhile, so again until it is good.
    fn remake(&mut self) {
        self.remade += 1;
        self.queues = loop {
            for ring in self.memory.rings().iter().map(|ring| ring.location.offset as usize) {
                self.raw.write(ring, COOKIE);
                self.raw.write(ring + 6, 0u16);
                self.raw.write(ring + 64, 0u16);
            }
            if let Ok(queues) = self.connect() {
                break queues;
            }
        };
    }

    fn connect(&self) -> Result<Queues, String> {
        match self.role {
            Role::Server => serve(&self.memory).map_err(|error| error.to_string()),
            Role::Client => self.memory.connect_again().map_err(|error| error.to_string()),
        }
    }

    fn poll(&mut self) {
        let mut frames = Collect::new(8);
        let received = self.queues.rx[0].receive(&mut frames);
        self.queues.rx[0].release();
        self.received += frames.frames.len() as u64;
        self.refused += self.queues.rx[0].take_faults().total() + self.queues.tx[0].take_bad_slots();
        self.queues.rx[0].unmask();
        self.queues.rx[0].drain_event();
        let tx = &mut self.queues.tx[0];
        for len in [60, 1500, 9000] {
            self.sent += u64::from(tx.push(Lent::from(&vec![0x77; len][..])).is_ok());
        }
        tx.publish();
        if received.is_err() || tx.fault().is_some() {
            self.remake();
        }
    }
}

/// Two connections over one worker's turn: the neighbour's frames, all of which must come back.
struct Neighbour {
    pair: Pair,
    sent: u64,
    received: u64,
}

impl Neighbour {
    fn turn(&mut self) {
        let Pair { client, server } = &mut self.pair;
        while self.sent < NEIGHBOUR_FRAMES && self.sent - self.received < 60 {
            client.tx[0].push(Lent::from(&length_and(self.sent)[..])).expect("room for 60");
            self.sent += 1;
        }
        client.tx[0].publish();
        for frame in receive_all(&mut server.rx[0]).expect("a sound ring") {
            server.tx[0].push(Lent::from(&frame[..])).expect("room for each that came");
        }
        server.tx[0].publish();
        for frame in receive_all(&mut client.rx[0]).expect("a sound ring") {
            assert!(frame == length_and(self.received), "frame {} was changed", self.received);
            self.received += 1;
        }
    }
}

fn length_and(number: u64) -> Vec<u8> {
    pattern(number, 60 + (number % 200) as usize)
}

fn spawn(name: &str, memory: &ClientMemory) -> Child {
    let mut fds: Vec<BorrowedFd<'_>> = memory.regions().map(|(_, fd)| fd).collect();
    fds.extend(memory.rings().iter().map(|ring| ring.event.as_fd()));
    for fd in &fds {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap();
    }
    let list: Vec<String> = fds.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
    let me = std::env::current_exe().unwrap();
    let mut command = Command::new(me);
    command.args(["--exact", name, "--test-threads=1"]).env("MEMIF_TEST_SCRIBBLE", list.join(","));
    command.stdout(std::process::Stdio::null()).spawn().unwrap()
}

/// Ends the scribbler even if the test fails.
struct Scribbler(Child);

impl Drop for Scribbler {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn endure(name: &str, role: Role) {
    let mut victim = Victim::new(role);
    let mut scribbler = Scribbler(spawn(name, &victim.memory));
    let pair = pair(shape(LOG2)).unwrap();
    let mut neighbour = Neighbour { pair, sent: 0, received: 0 };
    let deadline = Instant::now() + Duration::from_secs(120);
    let status = loop {
        (0..16).for_each(|_| victim.poll());
        neighbour.turn();
        assert!(Instant::now() < deadline, "no end in sight");
        if let Some(status) = scribbler.0.try_wait().unwrap()
            && neighbour.received == NEIGHBOUR_FRAMES
        {
            break status;
        }
    };
    assert!(status.success(), "the scribbler did all its rounds: {status}");
    assert_eq!(neighbour.sent, neighbour.received);
    println!(
        "{SCRIBBLES} scribbles; the victim was remade {} times, received {} and sent {} frames and refused {}; the neighbour {}",
        victim.remade, victim.received, victim.sent, victim.refused, neighbour.received
    );
    assert!(victim.remade > 10, "it was hit");
    assert!(victim.received > 0 && victim.sent > 0, "and worked in between");
}
