//! What a process holds after ten thousand peers. The only test of its process, as it counts threads too.

mod support;

use memif::{Dialer, Event};
use support::*;

#[test]
fn ten_thousand_connections_leave_nothing_behind() {
    let place = Place::new();
    let mut listener = listener(&place.socket());
    let mut config = dialer_config();
    config.log2_ring = 3;
    let mut cycle = |number: u32| {
        let mut dialer = Dialer::new(place.socket(), config.clone()).expect("a dialer");
        let (mut server, mut client) = connect(&mut listener, &mut dialer);
        send(&mut client, &[frame(1, 64)]);
        assert_eq!(receive(&mut server), [frame(1, 64)]);
        match number % 3 {
            0 => assert!(listener.disconnect(0, "next")),
            1 => assert!(dialer.disconnect("next")),
            _ => {}
        }
        drop((dialer, client));
        if !number.is_multiple_of(3) {
            let down = |event| matches!(event, Event::Disconnected { id: 0, .. }).then_some(());
            until_event(&mut listener, "the end", down);
        }
        drop(server);
    };
    cycle(0);
    let holdings = || {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc").lines().count();
        (Holdings::now(), maps, threads())
    };
    let before = holdings();
    for number in 1..=10_000 {
        cycle(number);
        if number.is_multiple_of(1000) {
            let (held, maps, threads) = holdings();
            // The allocator may map an arena or two more, once; what leaks does so every time.
            assert_eq!((&held, threads), (&before.0, before.2), "after {number}");
            assert!(maps <= before.1 + 4, "{maps} mappings after {number}, {} before", before.1);
        }
    }
}
