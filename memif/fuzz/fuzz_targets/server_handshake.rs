//! Whatever a client says, what the server maps in the end lies inside its regions and limits.
#![no_main]

mod script;

use libfuzzer_sys::fuzz_target;
use memif::handshake::{Admission, Directory, Offer, ServerHandshake, ServerStep};
use memif::message::{Name, Secret};
use memif::region::Limits;
use memif::{Mode, PeerLimits};
use script::Script;

struct Interfaces {
    secret: Secret,
    name: Name,
    limits: PeerLimits,
}

impl Directory for Interfaces {
    /// Most interfaces are of ethernet, some want a secret, some are busy, and some are not there.
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

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    let regions = Limits {
        max_region_bytes: 1 << 40,
        max_regions: 1 + u16::from(script.byte() & 3),
        max_total_bytes: 1 << 41,
    };
    let limits =
        PeerLimits { rings: 1 + u16::from(script.byte() & 3), log2_ring: 1 + script.byte() % 15, regions };
    let interfaces = Interfaces { secret: Secret::none(), name: Name::default(), limits };
    let mut server = ServerHandshake::default();
    while let Some((message, attached)) = script.message() {
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
