//! Whatever a server says, the client announces its things in order, one for each ACK, and never more than
//! HELLO allowed.
#![no_main]

mod script;

use libfuzzer_sys::fuzz_target;
use memif::handshake::{ClientHandshake, ClientStep, Introduction};
use memif::message::{AddRing, Hello, Message, Name, Secret};
use memif::ring::Direction;
use memif::{Mode, RingCounts};
use script::Script;

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    let wanted = RingCounts { c2s: 1 + u16::from(script.byte() & 7), s2c: 1 + u16::from(script.byte() & 7) };
    let log2_ring = 1 + script.byte() % 15;
    let mut client = ClientHandshake::<u16>::new(Introduction {
        id: 1,
        mode: Mode::Ethernet,
        secret: Secret::none(),
        program: Name::default(),
        interface: Name::default(),
        rings: wanted,
        log2_ring,
    });
    let hello = hello(&mut script);
    let mut due = Vec::new();
    // Mostly HELLO comes first; without it there is nothing to fuzz behind.
    let mut first =
        (script.byte() & 15 != 0).then(|| (Message::Hello(hello.clone()), memif::handshake::Attached::None));
    while let Some((message, attached)) = first.take().or_else(|| script.message()) {
        let received = message.kind();
        match client.receive(message, attached) {
            Ok(ClientStep::Build(agreed)) => {
                assert!(
                    (1..=wanted.c2s).contains(&agreed.rings.c2s)
                        && (1..=wanted.s2c).contains(&agreed.rings.s2c)
                );
                assert!((1..=log2_ring).contains(&agreed.log2_ring));
                let rings = rings(agreed.rings, agreed.log2_ring);
                due = rings.iter().map(|(ring, _)| Message::AddRing(*ring).kind()).collect();
                due.insert(0, memif::message::Kind::AddRegion);
                due.push(memif::message::Kind::Connect);
                due.reverse();
                assert!(matches!(client.announce(vec![(4096, 0)], rings), Message::Init(_)));
            }
            Ok(ClientStep::Send(message, fd)) => {
                assert_eq!(received, memif::message::Kind::Ack);
                assert_eq!(due.pop(), Some(message.kind()));
                assert_eq!(fd.is_some(), message.kind().carries_fd());
            }
            Ok(ClientStep::Connected { .. }) => assert!(due.is_empty()),
            Ok(ClientStep::Left(_)) => return,
            Err(error) => return assert!(!error.to_string().is_empty()),
        }
    }
});

fn hello(script: &mut Script<'_>) -> Hello {
    let mut small = || u16::from(script.byte());
    let (max_s2c_ring, max_c2s_ring, max_region) = (small(), small(), small());
    let max_log2_ring = small() as u8;
    let odd = small();
    let (min_version, max_version) = if odd == 1 { (small(), small()) } else { (0x0200, 0x0200) };
    Hello {
        name: Name::default(),
        min_version,
        max_version,
        max_region,
        max_s2c_ring,
        max_c2s_ring,
        max_log2_ring,
    }
}

fn rings(counts: RingCounts, log2_size: u8) -> Vec<(AddRing, u16)> {
    let ring = |direction| {
        move |index| (AddRing { direction, index, region: 0, offset: 0, log2_size, private_header: 0 }, index)
    };
    let c2s = (0..counts.c2s).map(ring(Direction::ClientToServer));
    c2s.chain((0..counts.s2c).map(ring(Direction::ServerToClient))).collect()
}
