//! An underlay on an Ethernet port as the link sees it: a pipe is the port, and the test is all that there is on the link. What may be
//! said to it, truly or not, and what it makes of that.

mod support;

use std::collections::VecDeque;
use std::time::Duration;

use etherparse::PacketBuilder;
use support::*;
use tonic::Code;
use vwire_dataplane::port::pipe::PipeEnd;
use vwire_proto::dataplane::v1 as pb;

const PEER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 9];
const VNI: u32 = 42;

fn underlay(port: &str, addresses: &[&str]) -> pb::Underlay {
    pb::Underlay {
        port: port.into(),
        addresses: addresses.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

fn set_underlay(underlay: pb::Underlay) -> pb::Op {
    pb::Op { op: Some(pb::op::Op::SetUnderlay(underlay)) }
}

fn remove_underlay(port: &str) -> pb::Op {
    pb::Op { op: Some(pb::op::Op::RemoveUnderlay(port.into())) }
}

fn tunnel(name: &str, vni: u32, local: &str, remote: &str) -> pb::Port {
    let (local, remote, underlay) = (local.into(), remote.into(), "nic".into());
    let vxlan = pb::Vxlan { vni, local, remote, underlay, ..Default::default() };
    pb::Port { name: name.into(), kind: Some(pb::port::Kind::Vxlan(vxlan)), ..Default::default() }
}

/// The engine, its link, and a host behind its tunnel.
struct Link {
    rig: Rig,
    nic: PipeEnd,
    host: PipeEnd,
    /// What the underlay calls itself.
    mac: [u8; 6],
    sent: u8,
    /// Frames that came and were not looked at yet.
    heard: VecDeque<Vec<u8>>,
}

impl Link {
    async fn new() -> Self {
        let mut rig = Rig::new().await;
        let ops = vec![
            set(pipe("nic", "wire")),
            set_underlay(underlay("nic", &["192.0.2.1/24"])),
            set(tunnel("tun", VNI, "192.0.2.1", "192.0.2.2")),
            set(pipe("host", "host")),
            join("tun", "host"),
        ];
        rig.apply(ops).await.unwrap();
        let (nic, host) = (rig.far_end("wire"), rig.far_end("host"));
        let mut link = Self { rig, nic, host, mac: [0; 6], sent: 0, heard: VecDeque::new() };
        let question = link.question().await;
        assert_eq!((&question[..6], &question[12..14]), (&[0xff; 6][..], &[8, 6][..]));
        assert_eq!((&question[28..32], &question[38..42]), (&[192, 0, 2, 1][..], &[192, 0, 2, 2][..]));
        link.mac = question[6..12].try_into().unwrap();
        link
    }

    /// The next ARP request on the link.
    async fn question(&mut self) -> Vec<u8> {
        loop {
            while let Some(frame) = self.heard.pop_front() {
                if frame[12..14] == [8, 6] && frame[21] == 1 {
                    return frame;
                }
            }
            self.heard.extend(collect(&mut self.nic, 1).await);
        }
    }

    fn say(&mut self, frame: &[u8]) {
        assert!(self.nic.inject(frame));
    }

    /// The peer answers, and the tunnel's frames go there.
    async fn introduce(&mut self) {
        self.say(&arp(2, PEER, "192.0.2.2", "192.0.2.1"));
        assert_eq!(self.destination().await, PEER);
    }

    /// Sends frames of the host until one leaves; where to.
    async fn destination(&mut self) -> [u8; 6] {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            assert!(std::time::Instant::now() < deadline, "nothing leaves");
            self.sent = self.sent.wrapping_add(1);
            assert!(self.host.inject(&frame(usize::from(self.sent))));
            tokio::time::sleep(Duration::from_millis(2)).await;
            let left = self.nic.collect();
            if let Some((frame, _)) = left.iter().rev().find(|(frame, _)| frame[12..14] == [8, 0]) {
                return frame[..6].try_into().unwrap();
            }
        }
    }

    /// A datagram as the true peer sends it.
    fn datagram(&self, vni: u32, inner: &[u8]) -> Vec<u8> {
        let [_, a, b, c] = vni.to_be_bytes();
        let payload = [&[8, 0, 0, 0, a, b, c, 0][..], inner].concat();
        let builder = PacketBuilder::ethernet2(PEER, self.mac).ipv4([192, 0, 2, 2], [192, 0, 2, 1], 64);
        let mut frame = Vec::new();
        builder.udp(50_000, 4789).write(&mut frame, &payload).unwrap();
        frame
    }
}

fn arp(operation: u8, mac: [u8; 6], sender: &str, target: &str) -> Vec<u8> {
    let v4 = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let mut frame = [&[0xff; 6][..], &mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation], &mac].concat();
    frame.extend_from_slice(&v4(sender));
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&v4(target));
    frame
}

#[test]
fn nobody_but_who_was_asked_for_is_believed() {
    run(async {
        let mut link = Link::new().await;
        assert!(link.host.inject(&frame(1)));
        link.rig.wait_stats("tun", |stats| stats.drops.get("no_neighbour") == Some(&1)).await;
        let lies = [
            arp(2, [0xff; 6], "192.0.2.2", "192.0.2.1"),
            arp(2, [3, 0, 0, 0, 0, 1], "192.0.2.2", "192.0.2.1"),
            arp(2, [0; 6], "192.0.2.2", "192.0.2.1"),
            arp(2, OTHER, "192.0.2.3", "192.0.2.1"),
            arp(2, OTHER, "198.51.100.2", "192.0.2.1"),
            arp(2, OTHER, "192.0.2.1", "192.0.2.1"),
            arp(2, OTHER, "192.0.2.2", "192.0.2.1")[..41].to_vec(),
        ];
        lies.iter().for_each(|lie| link.say(lie));
        let told = |stats: &pb::PortStats| stats.drops.get("for_domain") >= Some(&7);
        link.rig.wait_stats("nic", told).await;
        // A question comes after them all, so they have been judged.
        link.say(&arp(1, OTHER, "192.0.2.3", "192.0.2.1"));
        let answer = collect(&mut link.nic, 1).await.into_iter().find(|frame| frame[21] == 2);
        let answer = match answer {
            Some(answer) => answer,
            None => collect(&mut link.nic, 1).await.remove(0),
        };
        assert_eq!(
            (&answer[..6], &answer[22..32]),
            (&OTHER[..], &[&link.mac[..], &[192, 0, 2, 1]].concat()[..])
        );
        assert!(link.host.inject(&frame(1)));
        link.rig.wait_stats("tun", |stats| stats.drops.get("no_neighbour") == Some(&2)).await;
        link.introduce().await;
    });
}

#[test]
fn a_neighbour_has_moved_when_the_old_one_is_silent() {
    run(async {
        let mut link = Link::new().await;
        link.introduce().await;
        for _ in 0..2 {
            link.say(&arp(2, OTHER, "192.0.2.2", "192.0.2.1"));
            let question = link.question().await;
            assert_eq!(question[..6], PEER, "the old one is asked");
            link.say(&arp(2, PEER, "192.0.2.2", "192.0.2.1"));
            assert_eq!(link.destination().await, PEER);
        }
        link.say(&arp(1, OTHER, "192.0.2.2", "192.0.2.1"));
        let mut asked = Vec::new();
        while asked.last() != Some(&[0xff; 6]) {
            let question = link.question().await;
            asked.push(question[..6].try_into().unwrap());
        }
        assert_eq!(asked, [PEER, PEER, PEER, [0xff; 6]]);
        link.say(&arp(2, OTHER, "192.0.2.2", "192.0.2.1"));
        assert_eq!(link.destination().await, OTHER);
    });
}

/// After each bad frame a good one: what became of the bad one is then known.
#[test]
fn what_is_not_exactly_a_datagram_is_counted_under_its_reason() {
    run(async {
        let mut link = Link::new().await;
        let good = link.datagram(VNI, &frame(1));
        let edited = |edit: &dyn Fn(&mut Vec<u8>)| {
            let mut frame = good.clone();
            edit(&mut frame);
            frame[24..26].fill(0);
            let sum =
                frame[14..34].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u32>();
            let sum = !(((sum >> 16) + (sum & 0xffff)) as u16);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
            frame
        };
        let plain = |edit: &dyn Fn(&mut Vec<u8>)| {
            let mut frame = good.clone();
            edit(&mut frame);
            frame
        };
        let cases = [
            ("too_short", good[..13].to_vec()),
            ("not_tunnel", good[..30].to_vec()),
            ("bad_ip_header", good[..60].to_vec()),
            ("bad_ip_header", plain(&|f| f[24] ^= 1)),
            ("bad_ip_header", edited(&|f| f[16] = 0xff)),
            ("bad_udp", edited(&|f| f[38] = 0xff)),
            ("bad_udp", edited(&|f| f[39] = 7)),
            ("bad_udp", plain(&|f| *f.last_mut().unwrap() ^= 1)),
            ("vxlan_short", edited(&|f| f[39] = 29)),
            ("vxlan_flags", plain(&|f| (f[40], f[41], f[42]) = (0, 0, 0))),
            ("unknown_vni", link.datagram(VNI + 1, &frame(1))),
            ("unknown_sender", edited(&|f| (f[29], f[40], f[41]) = (3, 0, 0))),
            ("own_address", edited(&|f| (f[29], f[40], f[41]) = (1, 0, 0))),
            ("not_tunnel", edited(&|f| f[33] = 9)),
            ("not_tunnel", plain(&|f| f[37] ^= 1)),
            ("not_tunnel", edited(&|f| f[20] = 0x20)),
            ("not_tunnel", edited(&|f| f[21] = 1)),
            ("not_tunnel", plain(&|f| f[13] = 0xff)),
            ("wrong_mac", plain(&|f| f[5] ^= 1)),
        ];
        for (i, (reason, bad)) in cases.into_iter().enumerate() {
            let before = link.rig.stats("nic").await.drops.get(reason).copied().unwrap_or_default();
            link.say(&bad);
            link.say(&link.datagram(VNI, &frame(i)));
            assert_eq!(collect(&mut link.host, 1).await, [frame(i)], "case {i}, {reason}");
            let counted = |stats: &pb::PortStats| stats.drops.get(reason) == Some(&(before + 1));
            link.rig.wait_stats("nic", counted).await;
        }
    });
}

#[test]
fn an_echo_to_the_underlay_is_answered_unless_a_kernel_has_the_address() {
    run(async {
        let mut link = Link::new().await;
        let mut echo = Vec::new();
        let builder = PacketBuilder::ethernet2(OTHER, link.mac).ipv4([192, 0, 2, 7], [192, 0, 2, 1], 64);
        builder.icmpv4_echo_request(5, 6).write(&mut echo, b"are you there").unwrap();
        let is_icmp = |frame: &Vec<u8>| frame[12..14] == [8, 0] && frame[23] == 1;
        link.say(&echo);
        let answer = loop {
            if let Some(answer) = collect(&mut link.nic, 1).await.into_iter().find(is_icmp) {
                break answer;
            }
        };
        assert_eq!((&answer[..6], answer[34], &answer[42..]), (&OTHER[..], 0, &b"are you there"[..]));

        link.rig.apply(vec![set(pipe("exception", "kernel")), join("nic", "exception")]).await.unwrap();
        let mut kernel = link.rig.far_end("kernel");
        let question = arp(1, OTHER, "192.0.2.7", "192.0.2.1");
        link.say(&echo);
        link.say(&question);
        assert_eq!(collect(&mut kernel, 2).await, [echo.clone(), question]);
        // What the kernel says leaves as it is, and is all that is said.
        assert!(kernel.inject(&echo));
        let left = loop {
            let frames = collect(&mut link.nic, 1).await;
            let others = frames.into_iter().filter(|frame| frame[..6] != [0xff; 6]).collect::<Vec<_>>();
            if !others.is_empty() {
                break others;
            }
        };
        assert_eq!(left, [echo]);
    });
}

#[test]
fn underlays_are_described_changed_and_told_by_the_api() {
    run(async {
        let mut link = Link::new().await;
        link.introduce().await;
        let told = link.rig.snapshot().await.state.unwrap();
        let expected = pb::Underlay { mtu: 1500, ..underlay("nic", &["192.0.2.1/24"]) };
        assert_eq!(told.underlays, [expected]);
        let changed = link.rig.replace(told.clone()).await.unwrap().changes;
        assert!(changed.is_empty(), "what agrees is not touched: {changed:?}");

        let gone = link.rig.apply(vec![remove_underlay("nic")]).await;
        let why = "port tun: underlay: port nic is no underlay; describe it as one, with its addresses";
        refused(gone, Code::InvalidArgument, why);
        refused(
            link.rig.apply(vec![remove_underlay("host")]).await,
            Code::NotFound,
            "there is no underlay host",
        );
        let bad = pb::Underlay { mac: "ff:ff:ff:ff:ff:ff".into(), ..underlay("nic", &["192.0.2.1/24"]) };
        let why = "ops[0].set_underlay.mac: \"ff:ff:ff:ff:ff:ff\" is no station's hardware address like 02:00:00:00:00:01";
        refused(link.rig.apply(vec![set_underlay(bad)]).await, Code::InvalidArgument, why);

        // Another address: port and tunnel are made anew, and the tunnel works again with both.
        let more = underlay("nic", &["192.0.2.1/24", "192.0.2.11/24"]);
        let second = set(tunnel("more", 7, "192.0.2.11", "192.0.2.12"));
        link.rig.apply(vec![set_underlay(more), second]).await.unwrap();
        link.nic = link.rig.far_end("wire");
        let mut asked: Vec<u8> = Vec::new();
        while !(asked.contains(&2) && asked.contains(&12)) {
            asked.push(link.question().await[41]);
        }
        link.introduce().await;
        link.say(&link.datagram(VNI, &frame(9)));
        assert_eq!(collect(&mut link.host, 1).await, [frame(9)]);

        let all_gone = vec![remove("more"), part("tun", "host"), remove("tun"), remove_underlay("nic")];
        link.rig.apply(all_gone).await.unwrap();
        link.rig.apply(vec![join("nic", "host")]).await.unwrap();
        link.nic = link.rig.far_end("wire");
        passes(&mut link.nic, &mut link.host, 10).await;
    });
}
