//! A peer that lies in shared memory: what it writes there costs its own packets or its own connection, and
//! nothing else.

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use common::{Bench, Collect, Desc, NEXT, RawMemory, RawRing, pattern, receive_all, shape};
use memif::Lent;
use memif::queue::{ClientMemory, Queues, RingFault, RxFaults, RxQueue, TxQueue, TxRefused, server_queues};
use memif::region::{HugePages, Limits, Region};
use memif::ring::{Direction, RingError, RingHeader, RingLocation, RingSpec};
use rustix::event::{EventfdFlags, eventfd};

const NONE: RxFaults =
    RxFaults { bad_region: 0, out_of_bounds: 0, zero_length: 0, too_long: 0, chain_too_long: 0 };

/// A server's receiving end with 16 slots, and the client's hand.
struct Rx {
    bench: Bench,
    head: u16,
}

impl Rx {
    fn new(log2: u8) -> Self {
        Self { bench: Bench::server(shape(log2)), head: 0 }
    }

    fn queue(&mut self) -> &mut RxQueue {
        &mut self.bench.queues.rx[0]
    }

    fn len(&self) -> u32 {
        self.bench.memory.len() as u32
    }

    /// Puts descriptors into the ring and shows them.
    fn offer(&mut self, descriptors: &[Desc]) {
        for &descriptor in descriptors {
            self.bench.to_server.set(&self.bench.memory, self.head, descriptor);
            self.head = self.head.wrapping_add(1);
        }
        self.bench.to_server.set_head(&self.bench.memory, self.head);
    }

    fn good(&self, number: u8, flags: u16) -> Desc {
        let at = self.bench.buffers + 256 * u32::from(number);
        self.bench.memory.fill(at as usize, &[number; 100]);
        Desc(flags, 0, 100, at)
    }

    fn receive(&mut self) -> (Vec<Vec<u8>>, RxFaults) {
        let frames = receive_all(self.queue()).expect("the ring is sound");
        (frames, self.queue().take_faults())
    }
}

#[test]
fn a_bad_descriptor_is_counted_and_the_frames_around_it_arrive() {
    let len = Rx::new(4).len();
    let table = [
        ("no such region", Desc(0, 1, 100, 0), RxFaults { bad_region: 1, ..NONE }),
        ("last region", Desc(0, 0xffff, 100, 0), RxFaults { bad_region: 1, ..NONE }),
        ("no bytes", Desc(0, 0, 0, 64), RxFaults { zero_length: 1, ..NONE }),
        ("one byte too far", Desc(0, 0, 100, len - 99), RxFaults { out_of_bounds: 1, ..NONE }),
        ("at the end", Desc(0, 0, 1, len), RxFaults { out_of_bounds: 1, ..NONE }),
        ("offset at the top", Desc(0, 0, 1, u32::MAX), RxFaults { out_of_bounds: 1, ..NONE }),
        (
            "sum wraps in 32 bits",
            Desc(0, 0, 65_536, u32::MAX - 65_534),
            RxFaults { out_of_bounds: 1, ..NONE },
        ),
        ("longer than a frame", Desc(0, 0, 65_537, 0), RxFaults { too_long: 1, ..NONE }),
        ("longest", Desc(0, 0, u32::MAX, 0), RxFaults { too_long: 1, ..NONE }),
        ("all ones", Desc(0xfffe, 0xffff, u32::MAX, u32::MAX), RxFaults { bad_region: 1, ..NONE }),
    ];
    for (name, bad, expected) in table {
        let mut rx = Rx::new(4);
        let (first, last) = (rx.good(1, 0), rx.good(2, 0));
        rx.offer(&[first, bad, last]);
        let (frames, faults) = rx.receive();
        assert_eq!(frames, [vec![1; 100], vec![2; 100]], "{name}");
        assert_eq!(faults, expected, "{name}");
        assert_eq!(rx.bench.to_server.tail(&rx.bench.memory), 3, "{name}: all are given back");
    }
}

#[test]
fn bytes_up_to_the_very_end_of_a_region_are_good_and_unknown_flags_are_ignored() {
    let mut rx = Rx::new(4);
    let len = rx.len();
    rx.bench.memory.fill(len as usize - 100, &[7; 100]);
    rx.offer(&[Desc(0, 0, 100, len - 100), Desc(0xfffe, 0, 1, len - 1)]);
    assert_eq!(rx.receive(), (vec![vec![7; 100], vec![7; 1]], NONE));
}

#[test]
fn one_bad_descriptor_in_a_chain_costs_the_whole_packet_and_no_other() {
    for place in 0..3 {
        let mut rx = Rx::new(4);
        let mut chain = [rx.good(1, NEXT), rx.good(2, NEXT), rx.good(3, 0)];
        chain[place] = Desc(chain[place].0, 9, 100, 0);
        let last = rx.good(4, 0);
        rx.offer(&chain);
        rx.offer(&[last]);
        let (frames, faults) = rx.receive();
        assert_eq!(frames, [vec![4; 100]]);
        assert_eq!(faults, RxFaults { bad_region: 1, ..NONE });
    }
}

#[test]
fn a_chain_is_lent_when_its_end_is_there_and_not_before() {
    let mut rx = Rx::new(4);
    let (first, second, third) = (rx.good(1, NEXT), rx.good(2, NEXT), rx.good(3, 0));
    rx.offer(&[first]);
    assert_eq!(rx.receive(), (vec![], NONE));
    rx.offer(&[second]);
    assert_eq!(rx.receive(), (vec![], NONE));
    assert_eq!(rx.bench.to_server.tail(&rx.bench.memory), 0, "nothing is given back");
    rx.offer(&[third]);
    let (frames, faults) = rx.receive();
    assert_eq!((frames, faults), (vec![[[1; 100], [2; 100], [3; 100]].concat()], NONE));
}

#[test]
fn the_flag_of_a_chain_is_cleared_before_its_slots_go_back() {
    let mut rx = Rx::new(2);
    let (first, second) = (rx.good(1, NEXT), rx.good(2, 0));
    rx.offer(&[first, second]);
    assert_eq!(rx.receive().0.len(), 1);
    assert_eq!(
        rx.bench.to_server.get(&rx.bench.memory, 0).0,
        0,
        "a client that never clears it sends good packets"
    );
}

#[test]
fn a_chain_that_fills_the_ring_without_end_is_thrown_away_up_to_its_end() {
    let mut rx = Rx::new(2);
    let link = rx.good(1, NEXT);
    rx.offer(&[link; 4]);
    assert_eq!(rx.receive(), (vec![], RxFaults { chain_too_long: 1, ..NONE }));
    let (end, whole) = (rx.good(2, 0), rx.good(3, 0));
    rx.offer(&[link, end, whole]);
    assert_eq!(rx.receive(), (vec![vec![3; 100]], NONE), "the rest of the chain is no packet of its own");
}

#[test]
fn a_chain_of_64_is_a_packet_and_one_of_65_is_not() {
    let mut rx = Rx::new(8);
    let (link, end, whole) = (rx.good(1, NEXT), rx.good(1, 0), rx.good(3, 0));
    rx.offer(&[link; 63]);
    rx.offer(&[end]);
    assert_eq!(rx.receive(), (vec![vec![1; 6400]], NONE));
    rx.offer(&[link; 64]);
    rx.offer(&[end, whole]);
    assert_eq!(rx.receive(), (vec![vec![3; 100]], RxFaults { chain_too_long: 1, ..NONE }));
}

#[test]
fn a_chain_of_more_than_64_kib_is_thrown_away() {
    let mut rx = Rx::new(8);
    let at = rx.bench.buffers;
    rx.offer(&[Desc(NEXT, 0, 32_768, at), Desc(0, 0, 32_769, at)]);
    assert_eq!(rx.receive(), (vec![], RxFaults { too_long: 1, ..NONE }));
    rx.offer(&[Desc(NEXT, 0, 32_768, at), Desc(0, 0, 32_768, at)]);
    assert_eq!(rx.receive().0[0].len(), 65_536);
}

#[test]
fn every_position_of_a_head_is_judged_at_every_position_of_the_tail() {
    for log2 in 1..=4 {
        let mut rx = Rx::new(log2);
        let size = 1u16 << log2;
        let good = rx.good(1, 0);
        (0..size).for_each(|slot| rx.bench.to_server.set(&rx.bench.memory, slot, good));
        for tail in 0..=u16::MAX {
            // All heads at a few tails, and at every tail those on the edges.
            let all = [0, 1, 255, 0x7fff, 0x8000, 0xffff].contains(&tail);
            let edges = [size + 1, size + 2, 0x7fff, 0x8000, 0xfffe, 0xffff];
            let wrong: Vec<u16> = if all { (size + 1..=u16::MAX).collect() } else { edges.to_vec() };
            for distance in wrong {
                let peer = tail.wrapping_add(distance);
                rx.bench.to_server.set_head(&rx.bench.memory, peer);
                let fault = receive_all(rx.queue()).expect_err("an index outside the ring");
                assert_eq!(fault, RingFault::Corrupt { peer, distance, bound: size });
            }
            rx.bench.to_server.set_head(&rx.bench.memory, tail.wrapping_add(1));
            assert_eq!(receive_all(rx.queue()).map(|frames| frames.len()), Ok(1));
        }
    }
}

#[test]
fn every_number_of_waiting_slots_up_to_the_ring_is_received() {
    for log2 in 1..=4 {
        let mut rx = Rx::new(log2);
        let size = 1u16 << log2;
        let good = rx.good(1, 0);
        (0..size).for_each(|slot| rx.bench.to_server.set(&rx.bench.memory, slot, good));
        let mut head = 0u16;
        for round in 0..=u16::MAX {
            let count = round % (size + 1);
            head = head.wrapping_add(count);
            rx.bench.to_server.set_head(&rx.bench.memory, head);
            assert_eq!(receive_all(rx.queue()).unwrap().len(), usize::from(count));
            assert_eq!(rx.bench.to_server.tail(&rx.bench.memory), head);
        }
    }
}

#[test]
fn a_head_that_goes_back_is_a_fault() {
    let mut rx = Rx::new(4);
    let good = rx.good(1, 0);
    rx.offer(&[good; 8]);
    let mut some = Collect::new(2);
    rx.queue().receive(&mut some).unwrap();
    rx.bench.to_server.set_head(&rx.bench.memory, 4);
    let mut more = Collect::new(16);
    assert!(matches!(rx.queue().receive(&mut more), Err(RingFault::Corrupt { peer: 4, .. })));
}

#[test]
fn lent_slots_count_against_what_the_peer_may_show() {
    let mut rx = Rx::new(2);
    let good = rx.good(1, 0);
    rx.offer(&[good; 4]);
    let mut lent = Collect::new(4);
    assert_eq!(rx.queue().receive(&mut lent), Ok(4));
    rx.offer(&[good]);
    assert!(rx.queue().receive(&mut lent).is_err(), "slots that were not given back cannot come again");
}

#[test]
fn a_server_that_lies_to_a_client_is_judged_alike() {
    let cases = [
        (Desc(0, 0, 100, 0), Some(NONE)),
        (Desc(0, 1, 100, 0), Some(RxFaults { bad_region: 1, ..NONE })),
        (Desc(0, 0, 0, 0), Some(RxFaults { zero_length: 1, ..NONE })),
        (Desc(0, 0, 100, u32::MAX), Some(RxFaults { out_of_bounds: 1, ..NONE })),
    ];
    for (descriptor, expected) in cases {
        let mut bench = Bench::client(shape(4));
        let posted = bench.to_client.get(&bench.memory, 0);
        bench.to_client.set(&bench.memory, 0, descriptor);
        bench.to_client.set_tail(&bench.memory, 1);
        let frames = receive_all(&mut bench.queues.rx[0]).unwrap();
        assert_eq!(Some(bench.queues.rx[0].take_faults()), expected);
        assert_eq!(frames.len(), usize::from(expected == Some(NONE)));
        assert_eq!(bench.to_client.get(&bench.memory, 16), posted, "the buffer is posted whole again");
        assert_eq!(bench.to_client.head(&bench.memory), 17);
    }
    let mut bench = Bench::client(shape(4));
    bench.to_client.set_tail(&bench.memory, 17);
    let fault = receive_all(&mut bench.queues.rx[0]).unwrap_err();
    assert_eq!(fault, RingFault::Corrupt { peer: 17, distance: 17, bound: 16 });
    assert_eq!(bench.queues.rx[0].backlog(), 1, "so that the next poll finds it");
}

#[test]
fn a_client_that_is_told_more_was_read_than_it_sent_stops_sending() {
    for tail in [2u16, 17, 0x8000, 0xffff] {
        let mut bench = Bench::client(shape(4));
        let tx = &mut bench.queues.tx[0];
        tx.push(Lent::from(&[1; 60][..])).unwrap();
        tx.publish();
        bench.to_server.set_tail(&bench.memory, tail);
        while tx.push(Lent::from(&[1; 60][..])).is_ok() {}
        tx.publish();
        assert!(matches!(tx.fault(), Some(RingFault::Corrupt { peer, .. }) if peer == tail));
        assert_eq!(tx.free(), 0);
    }
}

/// A server's sending end with 16 slots, and the client's hand, which has posted nothing yet.
struct Tx {
    bench: Bench,
}

impl Tx {
    fn new() -> Self {
        Self { bench: Bench::server(shape(4)) }
    }

    fn queue(&mut self) -> &mut TxQueue {
        &mut self.bench.queues.tx[0]
    }

    fn post(&mut self, descriptors: &[Desc]) {
        let Bench { memory, to_client, .. } = &self.bench;
        let head = to_client.head(memory);
        for (i, &descriptor) in descriptors.iter().enumerate() {
            to_client.set(memory, head.wrapping_add(i as u16), descriptor);
        }
        to_client.set_head(memory, head.wrapping_add(descriptors.len() as u16));
    }

    /// Everything behind the rings.
    fn buffers(&self) -> Vec<u8> {
        let start = self.bench.buffers as usize;
        self.bench.memory.bytes(start, self.bench.memory.len() - start)
    }
}

#[test]
fn a_server_writes_into_posted_buffers_and_not_one_byte_beside() {
    let mut tx = Tx::new();
    let start = tx.bench.buffers;
    let canary = vec![0xa5; tx.buffers().len()];
    tx.bench.memory.fill(start as usize, &canary);
    tx.post(&[Desc(0, 0, 100, start + 501), Desc(0, 0, 7, start + 1000), Desc(0, 0, 300, start + 2000)]);
    let frame = pattern(1, 250);
    tx.queue().push(Lent::from(&frame[..])).unwrap();
    tx.queue().publish();
    let mut expected = canary;
    expected[501..601].copy_from_slice(&frame[..100]);
    expected[1000..1007].copy_from_slice(&frame[100..107]);
    expected[2000..2143].copy_from_slice(&frame[107..]);
    assert!(tx.buffers() == expected);
    let Bench { memory, to_client, .. } = &tx.bench;
    let lens = [0, 1, 2].map(|i| (to_client.get(memory, i).0, to_client.get(memory, i).2));
    assert_eq!(lens, [(NEXT, 100), (NEXT, 7), (0, 143)]);
    assert_eq!(to_client.tail(memory), 3);
}

#[test]
fn a_buffer_posted_outside_the_regions_is_given_back_empty_and_nothing_is_written() {
    let len = Tx::new().bench.memory.len() as u32;
    let bad = [
        Desc(0, 1, 2048, 0),
        Desc(0, 0xffff, 2048, 0),
        Desc(0, 0, 2048, len - 2047),
        Desc(0, 0, 2048, u32::MAX - 2000),
        Desc(0, 0, u32::MAX, 0),
        Desc(0, 0, 0, 0),
    ];
    for posted in bad {
        let mut tx = Tx::new();
        let before = tx.buffers();
        let good = Desc(0, 0, 2048, tx.bench.buffers);
        tx.post(&[posted, good]);
        let frame = [0x5a; 60];
        assert_eq!(tx.queue().push(Lent::from(&frame[..])), Err(TxRefused::BadSlot), "{posted:?}");
        tx.queue().publish();
        assert_eq!((tx.bench.to_client.tail(&tx.bench.memory), tx.queue().take_bad_slots()), (1, 1));
        assert_eq!(tx.bench.to_client.get(&tx.bench.memory, 0).2, 0);
        assert!(tx.buffers() == before);
        assert_eq!(tx.queue().push(Lent::from(&frame[..])), Ok(()), "the next buffer is good");
    }
}

#[test]
fn a_bad_buffer_in_the_middle_of_a_chain_stops_that_frame_only() {
    let mut tx = Tx::new();
    let start = tx.bench.buffers;
    tx.post(&[Desc(0, 0, 100, start), Desc(0, 7, 100, start), Desc(0, 0, 100, start + 4096)]);
    assert_eq!(tx.queue().push(Lent::from(&[1; 150][..])), Err(TxRefused::BadSlot));
    assert_eq!(tx.queue().push(Lent::from(&[2; 60][..])), Ok(()));
    assert_eq!(tx.queue().push(Lent::from(&[3; 60][..])), Err(TxRefused::BadSlot));
    assert_eq!(tx.queue().push(Lent::from(&[4; 60][..])), Ok(()));
    assert_eq!(tx.queue().push(Lent::from(&[5; 60][..])), Err(TxRefused::Full));
    tx.queue().publish();
    assert_eq!(tx.bench.to_client.tail(&tx.bench.memory), 3);
}

#[test]
fn buffers_that_overlap_garble_only_the_peers_own_packets() {
    let mut tx = Tx::new();
    let start = tx.bench.buffers;
    tx.post(&[Desc(0, 0, 100, start); 3]);
    let frame = pattern(1, 300);
    tx.queue().push(Lent::from(&frame[..])).unwrap();
    tx.queue().publish();
    assert_eq!(tx.bench.memory.bytes(start as usize, 100), frame[200..]);
}

#[test]
fn posting_more_than_the_ring_holds_or_taking_back_is_a_fault() {
    for (first, then) in [(17u16, 17u16), (0xffff, 0xffff), (8, 3), (16, 33)] {
        let mut tx = Tx::new();
        let buffer = Desc(0, 0, 2048, tx.bench.buffers);
        (0..16).for_each(|slot| tx.bench.to_client.set(&tx.bench.memory, slot, buffer));
        tx.bench.to_client.set_head(&tx.bench.memory, first);
        let _ = tx.queue().push(Lent::from(&[1; 60][..]));
        tx.bench.to_client.set_head(&tx.bench.memory, then);
        while tx.queue().push(Lent::from(&[1; 60][..])).is_ok() {}
        assert!(matches!(tx.queue().fault(), Some(RingFault::Corrupt { .. })), "{first} then {then}");
    }
}

#[test]
fn a_counter_preset_to_block_does_not_hold_the_sender() {
    let mut bench = Bench::client(shape(4));
    // The peer has the same open file as our own end: block on it, and fill it.
    let memory = ClientMemory::create(shape(4)).unwrap();
    let event = memory.rings()[0].event.as_fd().try_clone_to_owned().unwrap();
    bench.queues = memory.connect().unwrap();
    rustix::io::ioctl_fionbio(&event, false).unwrap();
    rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let tx = &mut bench.queues.tx[0];
    for _ in 0..3 {
        tx.push(Lent::from(&[1; 60][..])).unwrap();
        tx.publish();
    }
    assert_eq!(tx.free(), 13, "it went on");
}

#[test]
fn draining_an_event_that_was_made_blocking_does_not_hold_the_receiver() {
    let memory = ClientMemory::create(shape(4)).unwrap();
    let event = memory.rings()[1].event.as_fd().try_clone_to_owned().unwrap();
    let queues = memory.connect().unwrap();
    rustix::io::ioctl_fionbio(&event, false).unwrap();
    queues.rx[0].drain_event();
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK).unwrap()
}

/// One region of 64 KiB with cookies wherever a ring is tried.
fn try_rings(rings: Vec<(Direction, RingLocation, OwnedFd)>) -> Result<Queues, RingError> {
    let (region, fd) = Region::create(65_536, HugePages::Never).unwrap();
    let raw = RawMemory::map(fd.as_fd(), 65_536);
    for (_, location, _) in &rings {
        if location.offset as usize + 4 <= raw.len() && location.offset.is_multiple_of(16) {
            raw.write(location.offset as usize, 0x03E3_1F20u32);
        }
    }
    let specs = rings.into_iter().map(|(direction, location, event)| RingSpec { direction, location, event });
    server_queues(vec![region], specs.collect(), RingHeader::Lines64)
}

fn try_ring(region: u16, offset: u32, log2_size: u8) -> Result<Queues, RingError> {
    let location = RingLocation { region, offset, log2_size };
    try_rings(vec![(Direction::ClientToServer, location, event())])
}

#[test]
fn rings_that_cannot_be_are_refused_by_name() {
    assert!(matches!(try_ring(0, 0, 0), Err(RingError::BadSize { log2: 0 })));
    assert!(matches!(try_ring(0, 0, 16), Err(RingError::BadSize { log2: 16 })));
    assert!(matches!(try_ring(0, 0, 255), Err(RingError::BadSize { log2: 255 })));
    assert!(matches!(try_ring(0, 8, 4), Err(RingError::Unaligned { offset: 8 })));
    assert!(matches!(try_ring(1, 0, 4), Err(RingError::NoSuchRegion { region: 1, regions: 1 })));
    assert!(matches!(try_ring(0, 65_536 - 368, 4), Err(RingError::OutsideRegion { .. })));
    assert!(matches!(try_ring(0, u32::MAX - 15, 4), Err(RingError::OutsideRegion { .. })));
    assert!(matches!(try_ring(0, 0, 13), Err(RingError::OutsideRegion { .. })));
    assert!(try_ring(0, 65_536 - 384, 4).is_ok(), "up to the last byte");
}

#[test]
fn rings_that_share_bytes_are_refused() {
    let at = |offset| RingLocation { region: 0, offset, log2_size: 4 };
    let (to_server, to_client) = (Direction::ClientToServer, Direction::ServerToClient);
    let overlapping = vec![(to_server, at(1024), event()), (to_client, at(1024 + 368), event())];
    assert!(matches!(try_rings(overlapping), Err(RingError::Overlap { first: 1024, second: 1392, .. })));
    let apart = vec![(to_server, at(1024 + 384), event()), (to_client, at(1024), event())];
    assert!(try_rings(apart).is_ok());
}

#[test]
fn memory_without_the_cookie_is_no_ring() {
    let (region, _fd) = Region::create(4096, HugePages::Never).unwrap();
    let location = RingLocation { region: 0, offset: 0, log2_size: 4 };
    let spec = RingSpec { direction: Direction::ClientToServer, location, event: event() };
    let refused = server_queues(vec![region], vec![spec], RingHeader::Lines64);
    assert!(matches!(refused, Err(RingError::BadCookie { offset: 0, found: 0 })));
}

#[test]
fn an_interrupt_that_is_no_eventfd_is_refused() {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let memfd = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let socket: OwnedFd = std::os::unix::net::UnixDatagram::unbound().unwrap().into();
    for fd in [reader, writer, memfd, socket] {
        let location = RingLocation { region: 0, offset: 0, log2_size: 4 };
        let refused = try_rings(vec![(Direction::ClientToServer, location, fd)]);
        assert!(matches!(refused, Err(RingError::NotAnEventFd { .. })));
    }
}

#[test]
fn both_header_sizes_are_understood() {
    for (header, tail) in [(RingHeader::Lines64, 64), (RingHeader::Lines128, 128)] {
        let memory = ClientMemory::create(memif::queue::ClientShape { header, ..shape(4) }).unwrap();
        let mut server = memif::queue::serve(&memory).unwrap();
        let (size, fd) = memory.regions().next().unwrap();
        let raw = RawMemory::map(fd, size as usize);
        let mut client = memory.connect().unwrap();
        client.tx[0].push(Lent::from(&[9; 77][..])).unwrap();
        client.tx[0].publish();
        assert_eq!(receive_all(&mut server.rx[0]).unwrap(), [vec![9; 77]]);
        assert_eq!(raw.read::<u16>(tail), 1);
        assert_eq!(raw.read::<u32>(header.bytes() as usize + 4), 77, "length in the first descriptor");
    }
}

#[test]
fn frames_of_several_regions_are_found_where_they_lie() {
    let (rings, rings_fd) = Region::create(4096, HugePages::Never).unwrap();
    let (buffers, buffers_fd) = Region::create(8192, HugePages::Never).unwrap();
    let far = RawMemory::map(buffers_fd.as_fd(), 8192);
    let near = RawMemory::map(rings_fd.as_fd(), 4096);
    near.write(0, 0x03E3_1F20u32);
    far.fill(5000, &[3; 1000]);
    let ring = RawRing { offset: 0, size: 16 };
    ring.set(&near, 0, Desc(0, 1, 1000, 5000));
    ring.set(&near, 1, Desc(0, 1, 1000, 7193));
    ring.set_head(&near, 2);
    let location = RingLocation { region: 0, offset: 0, log2_size: 4 };
    let spec = RingSpec { direction: Direction::ClientToServer, location, event: event() };
    let size = buffers.len() as u64;
    let peer = Region::map_peer(buffers_fd, size, &Limits::default()).unwrap();
    let mut queues = server_queues(vec![Arc::clone(&rings), peer], vec![spec], RingHeader::Lines64).unwrap();
    assert_eq!(receive_all(&mut queues.rx[0]).unwrap(), [vec![3; 1000]]);
    assert_eq!(queues.rx[0].take_faults(), RxFaults { out_of_bounds: 1, ..NONE });
}
