//! memif clients that mean ill, against the real engine: their port suffers, as documented, and nobody else's.

mod adversity_support;

use adversity_support::memory::Desc;
use adversity_support::*;
use vwire_dataplane::DropReason;

/// What a link is down for, and its peer is told, after a ring was spoilt.
const CORRUPT: &str = "memif: the peer moved its ring index by";

/// A vWire `v`–`p` and the neighbour, all on one worker.
fn engine() -> Engine {
    Engine::start(&(wire("v", "p") + &wire("n1", "n2")))
}

/// The victim's port works again with a client that behaves.
fn recovers(engine: &mut Engine, p: &mut Client) {
    // What was sent before goes nowhere, and not to the new link.
    engine.wait_up("v", false);
    p.drain();
    let mut v = Client::connected(&engine.socket("v"));
    engine.wait_up("v", true);
    p.receive();
    exchange(&mut v, p, 0xbb00, 2000);
    assert!(engine.link("v").up && engine.link("p").up);
}

#[test]
fn a_client_that_truncates_its_region_under_load_loses_its_own_port_only() {
    let mut engine = engine();
    let neighbour = Neighbour::start(&mut engine);
    let mut p = Client::connected(&engine.socket("p"));
    for round in 0..20u64 {
        let peer = RawPeer::connect(&engine.socket("v")).unwrap();
        engine.wait_up("v", true);
        // Frames both ways, of whatever is in the buffers.
        let before = engine.stats("v");
        wait_until("traffic of the victim's", || {
            peer.churn();
            while p.send(&frame(1, round)) {}
            p.receive();
            let now = engine.stats("v");
            now.rx.0 > before.rx.0 + 200 && now.tx.0 > before.tx.0 + 200
        });
        // All of it, all but the rings, or the second half of the buffers.
        let left = [0, 4096, adversity_support::REGION / 2][round as usize % 3];
        rustix::fs::ftruncate(&peer.file, left).unwrap();
        let reason = "memif: the peer made the file of a shared region shorter while it was in use";
        if round % 2 == 1 {
            // The next link comes before the engine has heard of the end of this one, perhaps.
            drop(peer);
            continue;
        }
        let told = until("the end of the truncated link", || {
            while p.send(&frame(1, round)) {}
            p.receive();
            if left >= 4096 {
                peer.churn();
            }
            peer.ended()
        });
        assert_eq!(told, reason, "round {round}");
        engine.wait_reason("v", reason);
    }
    neighbour.carries(1000);
    recovers(&mut engine, &mut p);
    assert!(neighbour.finish(&engine) > 2000);
    engine.assert_alive();
}

#[test]
fn an_index_out_of_bounds_ends_the_port_also_if_it_is_of_the_ring_that_the_engine_fills() {
    let mut engine = engine();
    let neighbour = Neighbour::start(&mut engine);
    let mut p = Client::connected(&engine.socket("p"));
    for spoil_own in [true, false] {
        let peer = RawPeer::connect(&engine.socket("v")).unwrap();
        engine.wait_up("v", true);
        let ring = if spoil_own { peer.to_engine } else { peer.from_engine };
        ring.set_head(&peer.memory, 0x7fff);
        let told = until("the end of the spoilt link", || {
            p.send(&frame(1, 0));
            peer.ended()
        });
        assert!(told.starts_with(CORRUPT), "{told}");
        engine.wait_reason("v", CORRUPT);
    }
    recovers(&mut engine, &mut p);
    neighbour.finish(&engine);
}

#[test]
fn buffers_posted_anywhere_cost_the_frames_that_were_to_go_there() {
    let mut engine = engine();
    let neighbour = Neighbour::start(&mut engine);
    let mut p = Client::connected(&engine.socket("p"));
    let peer = RawPeer::connect(&engine.socket("v")).unwrap();
    engine.wait_up("v", true);
    let nowhere = [
        Desc(0, 1, 2048, 4096),                                    // no such region
        Desc(0, 0, 2048, adversity_support::REGION as u32 - 2047), // one byte beyond the end
        Desc(0, 0, u32::MAX, 0),                                   // everything
        Desc(0, 0, 2048, u32::MAX),                                // beyond 32 bits
        Desc(0, 0, 0, 4096),                                       // nothing
        Desc(0, u16::MAX, 2048, 4096),
    ];
    for (slot, bad) in nowhere.iter().enumerate() {
        peer.from_engine.set(&peer.memory, slot as u16, *bad);
        peer.to_engine.set(&peer.memory, slot as u16, *bad);
    }
    peer.send(8);
    wait_until("what was sent being judged", || {
        let v = engine.stats("v");
        (v.rx.0, v.dropped(DropReason::BadDescriptor)) == (2, 6)
    });
    (0..32).for_each(|number| p.send_surely(&frame(1, number)));
    wait_until("frames for bad buffers being counted", || {
        let v = engine.stats("v");
        (v.tx.0, v.dropped(DropReason::BadDescriptor)) == (26, 12)
    });
    assert!(engine.is_up("v"), "bad descriptors cost frames, not the link");
    assert_eq!(p.receive().len(), 2);
    drop(peer);
    recovers(&mut engine, &mut p);
    neighbour.finish(&engine);
}

#[test]
fn a_consumer_that_returns_no_buffers_costs_only_what_was_for_it() {
    let mut engine = engine();
    let neighbour = Neighbour::start(&mut engine);
    let (mut v, mut p) = (Client::connected(&engine.socket("v")), Client::connected(&engine.socket("p")));
    engine.wait_up("v", true);
    engine.wait_up("p", true);
    let (ring, count) = (adversity_support::RING as u64, 20_000);
    for number in 0..count {
        p.send_surely(&frame(7, number));
    }
    wait_until("all frames accounted for", || {
        let v = engine.stats("v");
        v.tx.0 + v.dropped(DropReason::TxFull) == count
    });
    assert_eq!((engine.stats("v").tx.0, engine.dropped("v", DropReason::TxFull)), (ring, count - ring));
    assert_eq!(engine.stats("p").rx.0, count);
    assert_eq!(engine.stats("p").drops, []);
    // The way back is not held up, and what did fit is what came first.
    v.send_surely(&frame(8, 0));
    let back = until("the way back", || p.receive().pop());
    assert_eq!(check(&back), (8, 0));
    let kept: Vec<_> = v.receive().iter().map(|bytes| check(bytes)).collect();
    assert_eq!(kept, (0..ring).map(|number| (7, number)).collect::<Vec<_>>());
    exchange(&mut v, &mut p, 0xcc00, 1000);
    neighbour.finish(&engine);
}
