//! A peer that writes what it likes: the shared memory of a connection as bare bytes, and sinks to collect frames with.
#![allow(dead_code)]

use std::os::fd::{AsFd, BorrowedFd};
use std::ptr;

use memif::Lent;
use memif::queue::{ClientMemory, ClientShape, FrameSink, Queues, RingFault, RxQueue, serve};
use memif::ring::{Direction, RingHeader, RingLocation};
use rustix::mm::{MapFlags, ProtFlags};

pub const NEXT: u16 = 1;

/// A mapping of a region beside the one under test.
pub struct RawMemory {
    start: *mut u8,
    len: usize,
}

// SAFETY: bytes at a fixed address, used with volatile accesses only.
unsafe impl Send for RawMemory {}

impl RawMemory {
    pub fn map(fd: BorrowedFd<'_>, len: usize) -> Self {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping.
        let start = unsafe { rustix::mm::mmap(ptr::null_mut(), len, prot, MapFlags::SHARED, fd, 0) };
        Self { start: start.expect("mmap").cast(), len }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn write<T: Copy>(&self, at: usize, value: T) {
        assert!(at + size_of::<T>() <= self.len);
        // SAFETY: inside the mapping.
        unsafe { self.start.add(at).cast::<T>().write_volatile(value) }
    }

    pub fn read<T: Copy>(&self, at: usize) -> T {
        assert!(at + size_of::<T>() <= self.len);
        // SAFETY: inside the mapping, and T is plain data in all uses.
        unsafe { self.start.add(at).cast::<T>().read_volatile() }
    }

    pub fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        (at..at + len).map(|at| self.read::<u8>(at)).collect()
    }

    pub fn fill(&self, at: usize, bytes: &[u8]) {
        bytes.iter().enumerate().for_each(|(i, &byte)| self.write(at + i, byte));
    }
}

impl Drop for RawMemory {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, and nothing borrows from it.
        let _ = unsafe { rustix::mm::munmap(self.start.cast(), self.len) };
    }
}

/// Descriptor fields: flags, region, length, offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Desc(pub u16, pub u16, pub u32, pub u32);

/// One ring of a [`RawMemory`].
#[derive(Clone, Copy)]
pub struct RawRing {
    pub offset: usize,
    pub size: u16,
}

impl RawRing {
    pub fn of(location: &RingLocation) -> Self {
        Self { offset: location.offset as usize, size: location.slots() as u16 }
    }

    pub fn set_head(&self, memory: &RawMemory, head: u16) {
        memory.write(self.offset + 6, head);
    }

    pub fn head(&self, memory: &RawMemory) -> u16 {
        memory.read(self.offset + 6)
    }

    pub fn set_tail(&self, memory: &RawMemory, tail: u16) {
        memory.write(self.offset + 64, tail);
    }

    pub fn tail(&self, memory: &RawMemory) -> u16 {
        memory.read(self.offset + 64)
    }

    pub fn flags(&self, memory: &RawMemory) -> u16 {
        memory.read(self.offset + 4)
    }

    fn at(&self, index: u16) -> usize {
        self.offset + 128 + 16 * usize::from(index % self.size)
    }

    pub fn set(&self, memory: &RawMemory, index: u16, Desc(flags, region, len, offset): Desc) {
        let at = self.at(index);
        memory.write(at, flags);
        memory.write(at + 2, region);
        memory.write(at + 4, len);
        memory.write(at + 8, offset);
    }

    pub fn get(&self, memory: &RawMemory, index: u16) -> Desc {
        let at = self.at(index);
        Desc(memory.read(at), memory.read(at + 2), memory.read(at + 4), memory.read(at + 8))
    }
}

/// One connection whose other end is written by hand.
pub struct Bench {
    pub memory: RawMemory,
    pub to_server: RawRing,
    pub to_client: RawRing,
    /// First byte behind the rings.
    pub buffers: u32,
    pub queues: Queues,
}

pub fn shape(log2_size: u8) -> ClientShape {
    ClientShape { log2_size, header: RingHeader::Lines64, ..ClientShape::default() }
}

impl Bench {
    /// We are the server; the client's hand is ours to move.
    pub fn server(shape: ClientShape) -> Self {
        let memory = ClientMemory::create(shape).expect("memory");
        let queues = serve(&memory).expect("queues");
        Self::over(&memory, queues)
    }

    /// We are the client; the server's hand is ours to move.
    pub fn client(shape: ClientShape) -> Self {
        let memory = ClientMemory::create(shape).expect("memory");
        let mut bench = Self::over(&memory, Queues { rx: Vec::new(), tx: Vec::new() });
        bench.queues = memory.connect().expect("queues");
        bench
    }

    fn over(memory: &ClientMemory, queues: Queues) -> Self {
        let (size, fd) = memory.regions().next().expect("one region");
        let ring = |direction| {
            let spec =
                memory.rings().iter().find(|ring| ring.direction == direction).expect("one ring each way");
            RawRing::of(&spec.location)
        };
        Self {
            memory: RawMemory::map(fd.as_fd(), size as usize),
            to_server: ring(Direction::ClientToServer),
            to_client: ring(Direction::ServerToClient),
            buffers: (2 * memory.rings()[0].location.bytes(RingHeader::Lines64)).next_multiple_of(4096),
            queues,
        }
    }
}

/// Collects copies of frames.
pub struct Collect {
    pub room: usize,
    pub frames: Vec<Vec<u8>>,
    /// Segments of each frame.
    pub segments: Vec<usize>,
}

impl Collect {
    pub fn new(room: usize) -> Self {
        Self { room, frames: Vec::new(), segments: Vec::new() }
    }
}

impl<'a> FrameSink<'a> for Collect {
    fn room(&self) -> usize {
        self.room
    }

    fn frame(&mut self, frame: Lent<'a>) {
        self.frames.push(frame.to_vec());
        self.segments.push(1);
    }

    fn chain(&mut self, segments: &[Lent<'a>], total: usize) {
        let frame: Vec<u8> = segments.iter().flat_map(Lent::to_vec).collect();
        assert_eq!(frame.len(), total);
        self.frames.push(frame);
        self.segments.push(segments.len());
    }
}

/// Copies of all frames that wait, released.
pub fn receive_all(rx: &mut RxQueue) -> Result<Vec<Vec<u8>>, RingFault> {
    let mut all = Collect::new(usize::MAX);
    rx.receive(&mut all)?;
    rx.release();
    Ok(all.frames)
}

/// Numbers that look random and are the same in every run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// A frame whose every byte depends on its number and its place.
pub fn pattern(number: u64, len: usize) -> Vec<u8> {
    let seed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..len as u64).map(|i| (seed.rotate_left((i % 61) as u32) ^ i) as u8).collect()
}
