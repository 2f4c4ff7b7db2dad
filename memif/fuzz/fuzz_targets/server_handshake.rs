//! Whatever a client says, what the server maps in the end lies inside its regions and limits.
#![no_main]

mod script;

use libfuzzer_sys::fuzz_target;
use memif::handshake::{Admission, Attached, Directory, Offer, ServerHandshake, ServerStep};
use memif::message::{AddRegion, AddRing, Init, Message, Name, Secret, VERSION};
use memif::region::Limits;
use memif::ring::Direction;
use memif::{Mode, PeerLimits};
use script::Script;

struct Interfaces {
    secret: Secret,
    name: Name,
    limits: PeerLimits,
}

impl Directory for Interfaces {
    /// Most interfaces are of ethernet; some are busy, and some are not there.
    fn find(&self, id: u32) -> Option<Admission<'_>> {
        let Self { secret, name, limits } = self;
        let mode = if id & 1 == 0 { Mode::Ethernet } else { Mode::Ip };
        (id & 0x0800_0000 == 0).then_some(Admission {
            mode,
            secret,
            name,
            limits,
            busy: id & 0x0400_0000 != 0,
        })
    }
}

/// How far a good client would be: with it most messages are right, which random bytes never are.
#[derive(Default)]
struct Progress {
    regions: u16,
    c2s: u16,
    s2c: u16,
    offset: u32,
}

impl Progress {
    /// The next message: out of the fuzzer's bytes alone, or right but for what a few of them change.
    fn message(&mut self, script: &mut Script<'_>) -> Option<(Message, Attached<usize>)> {
        let kind = script.byte();
        if kind & 0x80 != 0 {
            return script.message();
        }
        let message = match kind & 7 {
            0 => return None,
            1 => Message::Init(Init {
                version: VERSION,
                id: 0,
                mode: 0,
                secret: Secret::none(),
                name: Name::default(),
            }),
            2 | 3 => self.region(script),
            4..=6 => self.ring(script),
            _ => Message::Connect(Name::default()),
        };
        let attached = if message.kind().carries_fd() { Attached::One(0) } else { Attached::None };
        Some((message, attached))
    }

    fn region(&mut self, script: &mut Script<'_>) -> Message {
        let (index, size) = (self.regions, 64u64 << (script.byte() & 63).min(57));
        self.regions += 1;
        Message::AddRegion(AddRegion { index, size: size | u64::from(script.byte()) })
    }

    fn ring(&mut self, script: &mut Script<'_>) -> Message {
        let how = script.byte();
        let direction = if how & 1 == 0 { Direction::ClientToServer } else { Direction::ServerToClient };
        let index = if how & 1 == 0 { &mut self.c2s } else { &mut self.s2c };
        let log2_size = if how & 2 == 0 { 1 + (how >> 5) } else { script.byte() };
        let region = if how & 4 == 0 { 0 } else { u16::from(script.byte() & 3) };
        let offset = if how & 8 == 0 { self.offset } else { u32::from(script.byte()) << (how >> 4) };
        let ring = AddRing { direction, index: *index, region, offset, log2_size, private_header: 0 };
        *index += 1;
        let header = if how & 16 == 0 { 128 } else { 256 };
        self.offset = offset.wrapping_add(header + (16 << (log2_size & 15)));
        Message::AddRing(ring)
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    let max_regions = 1 + u16::from(script.byte() & 3);
    let regions = Limits { max_region_bytes: 1 << 40, max_regions, max_total_bytes: 1 << 41 };
    let limits =
        PeerLimits { rings: 1 + u16::from(script.byte() & 3), log2_ring: 1 + script.byte() % 15, regions };
    let interfaces = Interfaces { secret: Secret::none(), name: Name::default(), limits };
    let mut server = ServerHandshake::default();
    let mut progress = Progress::default();
    while let Some((message, attached)) = progress.message(&mut script) {
        match server.receive(message, attached, &interfaces) {
            Ok(ServerStep::Reply(_)) => assert!(server.interface().is_some()),
            Ok(ServerStep::Complete(offer, _)) => check(&offer, &limits),
            Ok(ServerStep::Left(_)) => return,
            Err(error) => return assert!(!error.to_string().is_empty()),
        }
    }
});

fn check(offer: &Offer<usize>, limits: &PeerLimits) {
    assert!((1..=usize::from(limits.regions.max_regions)).contains(&offer.regions.len()));
    assert!(offer.regions.iter().map(|region| region.size).sum::<u64>() <= limits.regions.max_total_bytes);
    let mut spans = Vec::new();
    for rings in [&offer.c2s, &offer.s2c] {
        assert!((1..=usize::from(limits.rings)).contains(&rings.len()));
        for ring in rings {
            let place = ring.location;
            assert!((1..=limits.log2_ring).contains(&place.log2_size) && place.offset % 16 == 0);
            let start = u64::from(place.offset);
            let end = start + u64::from(offer.header.bytes()) + (16 << place.log2_size);
            assert!(end <= offer.regions[usize::from(place.region)].size);
            spans.push((place.region, start, end));
        }
    }
    for (at, a) in spans.iter().enumerate() {
        assert!(spans[at + 1..].iter().all(|b| a.0 != b.0 || a.2 <= b.1 || b.2 <= a.1), "rings overlap");
    }
}
