//! A memif client made by hand: its memory is a plain unsealed file, and every word in it ours to write.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use memif::Address;
use memif::message::Message;
use memif::ring::{COOKIE, Direction, RingLocation};
use rustix::fs::MemfdFlags;

use super::PATIENCE;
use super::memory::{Desc, RawMemory, RawRing};
use super::raw::{Heard, Raw, add_region, eventfd, init, name, ring};

/// Slots of each ring, as [`ring`] announces them.
pub const SLOTS: u16 = 32;
const RING: u32 = 128 + 16 * SLOTS as u32;
const BUFFERS: u32 = 4096;
const BUFFER: u32 = 2048;
/// Bytes of the region.
pub const REGION: u64 = BUFFERS as u64 + 2 * (BUFFER * SLOTS as u32) as u64;

/// A connected client.
pub struct RawPeer {
    pub control: Raw,
    pub memory: RawMemory,
    pub file: OwnedFd,
    pub to_engine: RawRing,
    pub from_engine: RawRing,
    pub events: [OwnedFd; 2],
}

impl RawPeer {
    /// Connects, with all buffers in place: nothing is sent yet, and every slot of the other ring is posted.
    pub fn connect(socket: &Path) -> Result<Self, String> {
        let address = Address::path(socket).unwrap();
        let control = Raw::try_connect(&address).map_err(|error| error.to_string())?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("unsealed", flags).unwrap();
        rustix::fs::ftruncate(&file, REGION).unwrap();
        let memory = RawMemory::map(file.as_fd(), REGION as usize);
        let place = |offset| RawRing::of(&RingLocation { region: 0, offset, log2_size: 5 });
        let (to_engine, from_engine) = (place(0), place(RING));
        for (number, ring) in [to_engine, from_engine].into_iter().enumerate() {
            memory.write(ring.offset, COOKIE);
            for slot in 0..SLOTS {
                ring.set(&memory, slot, Self::buffer(number as u32, slot));
            }
        }
        let peer = Self { control, memory, file, to_engine, from_engine, events: [eventfd(), eventfd()] };
        peer.shake_hands()?;
        peer.from_engine.set_head(&peer.memory, SLOTS);
        Ok(peer)
    }

    /// The descriptor of a slot's own buffer.
    pub fn buffer(ring: u32, slot: u16) -> Desc {
        let number = ring * u32::from(SLOTS) + u32::from(slot % SLOTS);
        Desc(0, 0, BUFFER, BUFFERS + BUFFER * number)
    }

    fn shake_hands(&self) -> Result<(), String> {
        self.hear()?;
        self.ask(&Message::Init(init()), None)?;
        self.ask(&add_region(0, REGION), Some(&self.file))?;
        let rings = [(Direction::ClientToServer, 0), (Direction::ServerToClient, RING)];
        for ((direction, offset), event) in rings.into_iter().zip(&self.events) {
            self.ask(&Message::AddRing(ring(direction, offset)), Some(event))?;
        }
        self.ask(&Message::Connect(name("raw")), None)
    }

    fn ask(&self, message: &Message, file: Option<&OwnedFd>) -> Result<(), String> {
        let files: Vec<_> = file.into_iter().map(AsFd::as_fd).collect();
        // Whoever left has said why, and that is still to be heard.
        let _ = self.control.bytes(&message.encode(), &files);
        self.hear()
    }

    /// Waits for a message that is no refusal.
    fn hear(&self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match self.control.hear() {
                Heard::Nothing => std::thread::sleep(Duration::from_micros(50)),
                Heard::Closed => return Err("closed".to_owned()),
                Heard::Message(Message::Disconnect(end)) => return Err(end.reason.to_string()),
                Heard::Message(_) => return Ok(()),
            }
        }
        Err("silence".to_owned())
    }

    /// Why the engine ended the connection, if it did.
    pub fn ended(&self) -> Option<String> {
        match self.control.hear() {
            Heard::Nothing => None,
            Heard::Closed => Some("closed".to_owned()),
            Heard::Message(Message::Disconnect(end)) => Some(end.reason.to_string()),
            Heard::Message(other) => panic!("nothing else is said on a live connection: {other:?}"),
        }
    }

    /// Sends what is in the next `count` buffers.
    pub fn send(&self, count: u16) {
        let head = self.to_engine.head(&self.memory);
        self.to_engine.set_head(&self.memory, head.wrapping_add(count));
    }

    /// Sends and takes whatever can be, with the buffers as they are: traffic without end.
    pub fn churn(&self) {
        let (memory, to, from) = (&self.memory, self.to_engine, self.from_engine);
        to.set_head(memory, to.tail(memory).wrapping_add(SLOTS));
        let tail = from.tail(memory);
        (0..SLOTS).for_each(|slot| from.set(memory, slot, Self::buffer(1, slot)));
        from.set_head(memory, tail.wrapping_add(SLOTS));
    }
}
