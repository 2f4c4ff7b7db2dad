//! Whatever a peer writes into shared memory between our polls, we read only from inside the region, write only into buffers
//! that were posted (or are our own), and give back exactly what we took.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

use common::{Bench, Desc, RawRing, shape};
use libfuzzer_sys::fuzz_target;
use memif::Lent;
use memif::queue::{ClientShape, FrameSink, MAX_FRAME, Role};

/// A reader of the fuzzer's bytes; zeros when they are used up.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }
}

/// Checks each frame's place, and reads all of it.
struct Inside {
    room: usize,
    base: usize,
    region: usize,
    frames: usize,
    sum: u64,
}

impl Inside {
    fn check(&mut self, piece: Lent<'_>) {
        let start = (piece.as_ptr() as usize).checked_sub(self.base).expect("not before the region");
        assert!(!piece.is_empty() && start + piece.len() <= self.region, "{start} + {}", piece.len());
        self.sum += piece.to_vec().iter().map(|&byte| u64::from(byte)).sum::<u64>();
    }
}

impl<'a> FrameSink<'a> for Inside {
    fn room(&self) -> usize {
        self.room
    }

    fn frame(&mut self, frame: Lent<'a>) {
        self.frames += 1;
        self.check(frame);
    }

    fn chain(&mut self, segments: &[Lent<'a>], total: usize) {
        self.frames += 1;
        assert!(segments.len() > 1 && total <= MAX_FRAME);
        assert_eq!(segments.iter().map(Lent::len).sum::<usize>(), total);
        segments.iter().for_each(|&segment| self.check(segment));
    }
}

struct Rig {
    bench: Bench,
    role: Role,
    base: usize,
    /// Slots received and not released.
    sum: u64,
}

impl Rig {
    fn new(script: &mut Script<'_>) -> Self {
        let first = script.byte();
        let shape = ClientShape {
            buffer_size: 64,
            huge_pages: memif::region::HugePages::Never,
            ..shape(1 + (first >> 1) % 4)
        };
        let (role, bench) = match first & 1 {
            0 => (Role::Server, Bench::server(shape)),
            _ => (Role::Client, Bench::client(shape)),
        };
        let mut rig = Self { bench, role, base: 0, sum: 0 };
        rig.base = rig.find_base();
        rig
    }

    fn rx_ring(&self) -> RawRing {
        if self.role == Role::Server { self.bench.to_server } else { self.bench.to_client }
    }

    fn tx_ring(&self) -> RawRing {
        if self.role == Role::Server { self.bench.to_client } else { self.bench.to_server }
    }

    /// Where the queue's own mapping begins: one good frame at offset 0 tells.
    fn find_base(&mut self) -> usize {
        struct Address(usize);
        impl<'a> FrameSink<'a> for Address {
            fn room(&self) -> usize {
                1
            }
            fn frame(&mut self, frame: Lent<'a>) {
                self.0 = frame.as_ptr() as usize;
            }
            fn chain(&mut self, _: &[Lent<'a>], _: usize) {}
        }
        let ring = self.rx_ring();
        ring.set(&self.bench.memory, 0, Desc(0, 0, 1, 0));
        match self.role {
            Role::Server => ring.set_head(&self.bench.memory, 1),
            Role::Client => ring.set_tail(&self.bench.memory, 1),
        }
        let mut address = Address(0);
        assert_eq!(self.bench.queues.rx[0].receive(&mut address), Ok(1));
        self.bench.queues.rx[0].release();
        address.0
    }

    fn step(&mut self, script: &mut Script<'_>) -> bool {
        let operation = script.byte();
        let ring = if operation & 0x80 == 0 { self.rx_ring() } else { self.tx_ring() };
        match operation % 12 {
            0 => self.move_index(ring, u16::from(script.byte() % 4)),
            1 => self.move_index(ring, script.u16()),
            2..5 => self.descriptor(ring, script),
            5 => {
                let words = 32 + 4 * usize::from(ring.size);
                self.bench.memory.write(ring.offset + 4 * (usize::from(script.byte()) % words), script.u32());
            }
            6 | 7 => return self.receive(usize::from(script.byte() % 20)),
            8 => self.release(),
            9 => return self.send(1 + usize::from(script.byte()), script.byte() & 1 == 0),
            10 => self.bench.queues.tx[0].publish(),
            _ => self.look(script.byte()),
        }
        true
    }

    /// The peer's index of a ring: head if it is the client, tail if it is the server.
    fn move_index(&mut self, ring: RawRing, by: u16) {
        let memory = &self.bench.memory;
        match self.role {
            Role::Server => ring.set_head(memory, ring.head(memory).wrapping_add(by)),
            Role::Client => ring.set_tail(memory, ring.tail(memory).wrapping_add(by)),
        }
    }

    /// Mostly good ones: a bad field needs a bit of its own.
    fn descriptor(&mut self, ring: RawRing, script: &mut Script<'_>) {
        let (how, index) = (script.byte(), u16::from(script.byte()));
        let size = self.bench.memory.len() as u32;
        let region = if how & 1 == 0 { 0 } else { script.u16() };
        let len = if how & 2 == 0 { u32::from(script.byte()) } else { script.u32() };
        let offset = if how & 4 == 0 { script.u32() % size } else { script.u32() };
        ring.set(&self.bench.memory, index, Desc(u16::from(how >> 3 & 1), region, len, offset));
    }

    fn receive(&mut self, room: usize) -> bool {
        let (base, region) = (self.base, self.bench.memory.len());
        let mut inside = Inside { room, base, region, frames: 0, sum: self.sum };
        let received = self.bench.queues.rx[0].receive(&mut inside);
        assert!(inside.frames <= room);
        self.sum = inside.sum;
        received.is_ok_and(|count| count == inside.frames)
    }

    fn release(&mut self) {
        self.bench.queues.rx[0].release();
    }

    /// Sends a frame, and finds every byte that changed inside a buffer.
    fn send(&mut self, len: usize, pieces: bool) -> bool {
        let before = self.bench.memory.bytes(0, self.bench.memory.len());
        let allowed = self.allowed();
        let frame = vec![0xee; len];
        let half = len / 2;
        let tx = &mut self.bench.queues.tx[0];
        let _ = match pieces {
            true => tx.push_chain(&[Lent::from(&frame[..half]), Lent::from(&frame[half..])]),
            false => tx.push(Lent::from(&frame[..])),
        };
        let after = self.bench.memory.bytes(0, self.bench.memory.len());
        for (at, (before, after)) in before.iter().zip(&after).enumerate() {
            assert!(before == after || allowed.iter().any(|range| range.contains(&at)), "byte {at} changed");
        }
        self.bench.queues.tx[0].fault().is_none()
    }

    /// Bytes that a send may change: descriptors of its ring, and buffers.
    fn allowed(&self) -> Vec<core::ops::Range<usize>> {
        let (ring, size) = (self.tx_ring(), self.bench.memory.len() as u64);
        let slots = ring.offset + 128..ring.offset + 128 + 16 * usize::from(ring.size);
        let mut allowed = vec![slots];
        match self.role {
            Role::Client => allowed.push(self.bench.buffers as usize..size as usize),
            Role::Server => allowed.extend((0..ring.size).filter_map(|slot| {
                let Desc(_, region, len, offset) = ring.get(&self.bench.memory, slot);
                let end = u64::from(offset) + u64::from(len);
                (region == 0 && end <= size).then_some(offset as usize..end as usize)
            })),
        }
        allowed
    }

    fn look(&mut self, which: u8) {
        let rx = &self.bench.queues.rx[0];
        match which % 4 {
            0 => rx.mask(),
            1 => rx.unmask(),
            2 => assert!(rx.backlog() <= rx.size()),
            _ => assert!(self.bench.queues.tx[0].free() <= self.bench.queues.tx[0].size()),
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    let mut rig = Rig::new(&mut script);
    while !script.0.is_empty() && rig.step(&mut script) {}
    // What we publish keeps to the ring, whatever happened.
    rig.release();
    rig.bench.queues.tx[0].publish();
});
