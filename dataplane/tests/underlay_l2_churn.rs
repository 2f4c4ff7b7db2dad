//! Tunnels that come and go on an underlay, and an underlay that comes and goes under its tunnels.

mod adversity_support;
mod lab;
mod underlay_support;

use adversity_support::{Client, Engine, Holdings, memif_server, until, wait_until};
use lab::Family;
use underlay_support::{VNI, WORKER, tunnel, underlay};
use vwire_proto::dataplane::v1 as pb;

/// Tunnels made and removed.
const ROUNDS: u32 = 10_000;

fn op(op: pb::op::Op) -> pb::Op {
    pb::Op { op: Some(op) }
}

fn vxlan(vni: u32, remote: &str) -> pb::Op {
    let vxlan = pb::Vxlan {
        vni,
        local: Family::V4.local().to_string(),
        remote: remote.into(),
        underlay: "nic".into(),
        ..Default::default()
    };
    let kind = Some(pb::port::Kind::Vxlan(vxlan));
    op(pb::op::Op::SetPort(pb::Port { name: "t".into(), kind, ..Default::default() }))
}

/// Resident memory in KiB.
fn resident(engine: &Engine) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", engine.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn ten_thousand_tunnels_come_and_go_and_leave_nothing() {
    let pipe = |name: &str| format!("[[port]]\nname = \"{name}\"\nkind = \"pipe\"\npipe = \"{name}\"\n");
    let config = [WORKER.into(), pipe("nic"), underlay("nic", Family::V4, "")].concat();
    let mut engine = Engine::start_with(&config, None);
    let mut held: Option<(Holdings, usize)> = None;
    for round in 0..ROUNDS {
        // Another neighbour each time, and what was asked of it is forgotten.
        let remote = format!("10.9.0.{}", 2 + round % 250);
        engine.apply(vec![vxlan(round % 5000, &remote)]);
        engine.apply(vec![op(pb::op::Op::RemovePort("t".into()))]);
        if round == 500 {
            held = Some((engine.holdings(), resident(&engine)));
        }
    }
    let (before, memory) = held.unwrap();
    let now = engine.holdings();
    assert_eq!((now.descriptors, now.threads), (before.descriptors, before.threads));
    assert!(now.mappings <= before.mappings + 8, "{now:?}, and {before:?} before");
    let grown = resident(&engine).saturating_sub(memory);
    assert!(grown < 4096, "{grown} KiB more than after 500 rounds");
}

/// The peer on the link: answers ARP for its address, and says what else came.
fn tend(client: &mut Client, mac: [u8; 6]) -> Vec<Vec<u8>> {
    client.tend();
    let mut others = Vec::new();
    for frame in client.receive() {
        if frame[12..14] == [8, 6] && frame[21] == 1 {
            let mut answer = frame.clone();
            answer[..6].copy_from_slice(&frame[6..12]);
            answer[6..12].copy_from_slice(&mac);
            answer[21] = 2;
            answer[22..28].copy_from_slice(&mac);
            answer[28..32].copy_from_slice(&frame[38..42]);
            answer[32..42].copy_from_slice(&frame[22..32]);
            client.send_surely(&answer);
        } else {
            others.push(frame);
        }
    }
    others
}

/// A memif is the underlay's port: its peer comes and goes, and with it the tunnel's link.
#[test]
fn tunnels_wait_for_their_underlay_and_go_on_with_it() {
    let config = [
        WORKER.into(),
        memif_server("nic"),
        underlay("nic", Family::V4, ""),
        memif_server("host"),
        tunnel("tun", VNI, Family::V4, "host"),
    ];
    let mut engine = Engine::start_with(&config.concat(), None);
    let reason = engine.wait_reason("tun", "underlay");
    assert_eq!(reason, "its underlay, port nic, is down: no peer yet");
    let mut host = Client::connected(&engine.socket("host"));
    for round in 0..3u8 {
        let mut wire = Client::connected(&engine.socket("nic"));
        engine.wait_up("tun", true);
        let mac = [2, 0, 0, 0, 1, round];
        let frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1, 0x88, 0xb5], &[round; 50]].concat();
        let outer = until("a datagram to leave", || {
            host.tend();
            host.send(&frame);
            tend(&mut wire, mac).into_iter().next()
        });
        assert_eq!(
            (&outer[..6], &outer[50..]),
            (&mac[..], &frame[..]),
            "another peer each time, and asked anew"
        );
        drop(wire);
        engine.wait_up("tun", false);
        engine.wait_reason("tun", "its underlay, port nic, is down");
    }
    wait_until("the engine to live", || engine.stats("tun").tx.0 > 0);
    engine.assert_alive();
}
