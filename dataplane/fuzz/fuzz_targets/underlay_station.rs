//! Anything that may be said to an underlay itself, and anything that may be claimed about who is where, at any time: answers are whole
//! frames from the underlay's own address, only stations are believed, and only about addresses on the link.
#![no_main]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use vwire_dataplane::route::domain::Mac;
use vwire_dataplane::underlay::l2::neighbours::Neighbours;
use vwire_dataplane::underlay::l2::station::Station;

const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn hear(station: &Station, frame: &[u8], neighbours: &mut Neighbours, now: Instant) {
    let heard = station.hear(frame);
    if let Some(reply) = heard.reply {
        assert!(reply.len() >= 42 && reply[6..12] == OWN.0);
        assert!(reply.len() <= frame.len().max(128), "no answer is longer than what it answers");
    }
    if let Some((address, mac)) = heard.claim {
        assert!(mac.is_station() && !station.addresses().contains(&address));
        assert!(station.next_hop(address) == Some(address) || address == ip("fe80::fe"));
        if neighbours.heard(address, mac, now) {
            assert_eq!(neighbours.get(address), Some(mac));
        }
    }
    if let Some((to, mtu)) = heard.narrow {
        assert!(mtu >= if to.is_ipv4() { 576 } else { 1280 });
    }
}

// Steps: a byte that says what, and for a frame its length (two bytes) and itself.
fuzz_target!(|input: &[u8]| {
    let addresses = [(ip("192.0.2.1"), 24), (ip("2001:db8::1"), 64)];
    let station = Station::new(OWN, 1500, &addresses, &[ip("192.0.2.254"), ip("fe80::fe")]);
    let (mut neighbours, mut now, mut rest) = (Neighbours::default(), Instant::now(), input);
    let mut wanted = Vec::new();
    while let Some((&step, next)) = rest.split_first() {
        rest = next;
        match step % 4 {
            0 => {
                let address = ip(["192.0.2.2", "2001:db8::2", "192.0.2.254", "fe80::fe"][usize::from(step >> 2) % 4]);
                if step & 0x80 == 0 || !wanted.contains(&address) {
                    neighbours.want(address, now);
                    wanted.push(address);
                } else {
                    neighbours.leave(address);
                    wanted.swap_remove(wanted.iter().position(|other| *other == address).unwrap());
                }
            }
            1 => {
                now += Duration::from_millis(u64::from(step) * 100);
                let (questions, _) = neighbours.turn(now);
                for question in questions {
                    assert!(wanted.contains(&question.address));
                    assert!(station.question(question.address, question.to).len() >= 42);
                }
                assert!(neighbours.due().is_none_or(|due| due > now), "no question is asked for ever");
            }
            _ => {
                let Some((len, bytes)) = rest.split_first_chunk::<2>() else { return };
                let (frame, next) = bytes.split_at(usize::from(u16::from_be_bytes(*len)).min(bytes.len()));
                hear(&station, frame, &mut neighbours, now);
                rest = next;
            }
        }
        for (address, mac) in neighbours.iter() {
            assert!(wanted.contains(&address) && mac.is_none_or(Mac::is_station));
        }
    }
});
