//! A peer cuts its region short while a worker reads from it and writes to it. Only that connection ends.

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Collect, Desc, RawMemory, RawRing, pattern, receive_all, shape};
use memif::Lent;
use memif::queue::{Pair, Queues, RingFault, TxRefused, pair, server_queues};
use memif::region::{Limits, Region};
use memif::ring::{Direction, RingHeader, RingLocation, RingSpec};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::MemfdFlags;

const LOG2: u8 = 12;
const SLOTS: u16 = 1 << LOG2;
const RING: u32 = 128 + 16 * SLOTS as u32;
const BUFFERS: u32 = 2 * RING;
const SIZE: u64 = BUFFERS as u64 + 2 * 2048 * SLOTS as u64;

/// A client whose memory is not sealed: both rings full, of packets and of empty buffers.
fn unsealed() -> (OwnedFd, Queues) {
    let fd = rustix::fs::memfd_create("unsealed", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&fd, SIZE).unwrap();
    let raw = RawMemory::map(fd.as_fd(), SIZE as usize);
    let mut specs = Vec::new();
    for (number, direction) in [Direction::ClientToServer, Direction::ServerToClient].into_iter().enumerate()
    {
        let location = RingLocation { region: 0, offset: number as u32 * RING, log2_size: LOG2 };
        let ring = RawRing::of(&location);
        raw.write(location.offset as usize, 0x03E3_1F20u32);
        let first = BUFFERS + number as u32 * 2048 * u32::from(SLOTS);
        (0..SLOTS).for_each(|i| ring.set(&raw, i, Desc(0, 0, 2048, first + 2048 * u32::from(i))));
        let event = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        specs.push((ring, RingSpec { direction, location, event }));
    }
    let region = Region::map_peer(fd.try_clone().unwrap(), SIZE, &Limits::default()).unwrap();
    assert!(!region.is_sealed());
    let rings: Vec<RawRing> = specs.iter().map(|(ring, _)| *ring).collect();
    let specs = specs.into_iter().map(|(_, spec)| spec).collect();
    let queues = server_queues(vec![region], specs, RingHeader::Lines64).unwrap();
    rings.iter().for_each(|ring| ring.set_head(&raw, SLOTS));
    (fd, queues)
}

#[test]
fn a_region_cut_short_under_a_worker_ends_its_own_connection_only() {
    static MOVED: AtomicU64 = AtomicU64::new(0);
    let (fd, mut victim) = unsealed();
    let Pair { mut client, mut server } = pair(shape(6)).unwrap();

    let worker = thread::spawn(move || {
        let (mut fault, mut neighbour) = (None, 0u64);
        let deadline = Instant::now() + Duration::from_secs(30);
        while fault.is_none() || neighbour < 20_000 {
            assert!(Instant::now() < deadline, "no end: {fault:?}, {neighbour} of the neighbour's");
            // The victim echoes what it receives, a frame at a time; the neighbour's frames go by in between.
            if fault.is_none() {
                fault = echo(&mut victim).err();
                MOVED.fetch_add(1, Ordering::Release);
            }
            for frame in receive_all(&mut server.rx[0]).expect("the neighbour's ring is sound") {
                server.tx[0].push(Lent::from(&frame[..])).expect("room for each that came");
                neighbour += 1;
            }
            server.tx[0].publish();
        }
        (fault, server.tx[0].fault(), server.rx[0].take_faults().total())
    });

    let cut = thread::spawn(move || {
        while MOVED.load(Ordering::Acquire) < 500 {
            thread::yield_now();
        }
        rustix::fs::ftruncate(&fd, 0).unwrap();
    });

    let (mut sent, mut received) = (0u64, 0u64);
    while received < 20_000 {
        while sent < 20_000 && sent - received < 60 {
            client.tx[0].push(Lent::from(&pattern(sent, 200)[..])).unwrap();
            sent += 1;
        }
        client.tx[0].publish();
        for frame in receive_all(&mut client.rx[0]).unwrap() {
            assert_eq!(frame, pattern(received, 200));
            received += 1;
        }
        thread::yield_now();
    }
    cut.join().expect("truncation");
    assert_eq!(worker.join().expect("worker"), (Some(RingFault::Truncated), None, 0));
    assert!(memif::sigbus::faults() > 0);
}

/// Takes one frame and sends it back.
fn echo(queues: &mut Queues) -> Result<(), RingFault> {
    let mut frames = Collect::new(1);
    queues.rx[0].receive(&mut frames)?;
    for frame in frames.frames {
        match queues.tx[0].push(Lent::from(&frame[..])) {
            Ok(()) | Err(TxRefused::Full | TxRefused::BadSlot) => queues.tx[0].publish(),
            Err(other) => panic!("{other}"),
        }
    }
    queues.tx[0].fault().map_or(Ok(()), Err)
}

#[test]
fn a_region_cut_short_before_it_is_used_is_found_by_each_end() {
    let (fd, mut queues) = unsealed();
    rustix::fs::ftruncate(&fd, 4096).unwrap();
    let mut frames = Collect::new(8);
    // The first look still sees the rings' first page; the frames' bytes are gone and read as zeros.
    while queues.rx[0].receive(&mut frames).is_ok() {
        assert!(frames.frames.iter().all(|frame| frame.iter().all(|&byte| byte == 0)));
    }
    assert_eq!(queues.rx[0].receive(&mut frames), Err(RingFault::Truncated));
    let _ = queues.tx[0].push(Lent::from(&[1; 60][..]));
    queues.tx[0].publish();
    assert!(queues.tx[0].fault().is_some());
}

#[test]
fn mappings_of_other_connections_are_left_as_they_are() {
    let Pair { mut client, mut server } = pair(shape(4)).unwrap();
    client.tx[0].push(Lent::from(&[42; 100][..])).unwrap();
    client.tx[0].publish();
    for _ in 0..20 {
        let (fd, mut queues) = unsealed();
        rustix::fs::ftruncate(&fd, 0).unwrap();
        while queues.rx[0].receive(&mut Collect::new(8)).is_ok() {}
    }
    assert_eq!(receive_all(&mut server.rx[0]).unwrap(), [[42; 100]]);
}

#[test]
fn a_bus_error_that_is_none_of_ours_still_ends_the_process() {
    if std::env::var_os("MEMIF_TEST_CRASH").is_some() {
        memif::sigbus::install();
        let fd = rustix::fs::memfd_create("own", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, 4096).unwrap();
        let raw = RawMemory::map(fd.as_fd(), 4096);
        rustix::fs::ftruncate(&fd, 0).unwrap();
        raw.read::<u8>(0);
        std::process::exit(0);
    }
    let me = std::env::current_exe().unwrap();
    let alone = ["--exact", "a_bus_error_that_is_none_of_ours_still_ends_the_process", "--test-threads=1"];
    let status = std::process::Command::new(me).args(alone).env("MEMIF_TEST_CRASH", "1").status().unwrap();
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    assert_eq!(signal, Some(7), "SIGBUS, not a clean exit: {status}");
}
