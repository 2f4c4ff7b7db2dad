use super::*;
use crate::route::domain::Mac;
use crate::stats::Counters;
use crate::tables::{Entry, Hop, Tables, Tunnel, Vni};
use crate::underlay::l2::template::Template;
use etherparse::PacketBuilder;

const NIC: PortIndex = PortIndex(0);
const TUNNEL: PortIndex = PortIndex(1);
const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);

/// Lends these frames once, each with what it owes, in views of at most `cut` bytes.
struct Played {
    frames: Vec<(Vec<u8>, Option<Offload>)>,
    cut: usize,
    returned: u64,
}

impl Rx for Played {
    fn receive<'a>(&'a mut self, burst: &mut Burst<'a>, _: &RxContext<'_>) -> Result<(), PortFault> {
        for (frame, offload) in &self.frames {
            let views: Vec<_> = frame.chunks(self.cut).map(Lent::from).collect();
            assert!(burst.push_with(&views, *offload));
        }
        Ok(())
    }

    fn release(&mut self, taken: u64) {
        self.returned = taken;
    }
}

struct Bench {
    tables: Tables,
    counters: Counters,
    events: Events,
    heard: crossbeam::channel::Receiver<Event>,
}

fn tunnel(v6: bool) -> Tunnel {
    let remote = if v6 { "[2001:db8::2]:4789" } else { "192.0.2.2:4789" };
    Tunnel {
        port: TUNNEL,
        underlay: NIC,
        remote: remote.parse().unwrap(),
        vni: Vni::new(42).unwrap(),
        max_frame: 1464,
        link: Link::Ethernet,
    }
}

fn own(v6: bool) -> std::net::IpAddr {
    if v6 { "2001:db8::1".parse().unwrap() } else { "192.0.2.1".parse().unwrap() }
}

impl Bench {
    fn new(exception: bool) -> Self {
        let mut tables = Tables { generation: 1, ..Tables::default() };
        for v6 in [false, true] {
            assert!(tables.tunnels.insert(&tunnel(v6)));
        }
        let addresses = vec![own(false), own(true)];
        let endpoints = addresses.iter().map(|address| (*address, 4789).into()).collect();
        tables.set_line(NIC, Some(Arc::new(Line { mac: OWN, addresses, endpoints })));
        if exception {
            tables.set(NIC, Entry { forward: Forward::Xconnect(PortIndex(2)), owner: None });
        }
        let (events, heard) = Events::new().unwrap();
        Self { tables, counters: Counters::anonymous(4).unwrap(), events, heard }
    }

    /// What is lent of these frames: from which port, with what bytes, owing what.
    fn lent(
        &self,
        frames: &[(Vec<u8>, Option<Offload>)],
        cut: usize,
    ) -> Vec<(PortIndex, Vec<u8>, Option<Offload>)> {
        let below = Played { frames: frames.to_vec(), cut, returned: 0 };
        let mut rx = L2Rx::new(NIC, Box::new(below), Arc::default(), self.events.clone());
        let mut burst = Burst::new(NIC);
        rx.receive(&mut burst, &RxContext { tables: &self.tables, counters: &self.counters }).unwrap();
        let mut all = Vec::new();
        for (port, frames) in burst.runs() {
            let each = |frame| (port, frames.to_vec(frame), frames.offload(frame));
            all.extend(frames.as_slice().iter().map(each));
        }
        all
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.counters.port(NIC).snapshot().dropped(reason)
    }
}

fn inner(payload: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    builder.tcp(1000, 80, 7, 9).write(&mut frame, &vec![0x5a; payload]).unwrap();
    frame
}

/// The inner frame's TCP checksum left to a device that is not there, and what it owes then.
fn opened(mut frame: Vec<u8>) -> (Vec<u8>, Offload) {
    let mut pseudo = Sum::default();
    pseudo.add(&frame[26..34]);
    pseudo.add_word(6);
    pseudo.add_word((frame.len() - 34) as u16);
    frame[50..52].copy_from_slice(&pseudo.folded().to_be_bytes());
    (frame, Offload { needs_csum: true, csum_start: 34, csum_offset: 16, ..Offload::default() })
}

/// An outer frame as the other end sends it, its UDP checksum complete.
fn outer(v6: bool, inner: &[u8]) -> Vec<u8> {
    let hop = Hop { from: Mac([2, 0, 0, 0, 0, 2]), to: OWN, local: tunnel(v6).remote.ip(), max_frame: 2000 };
    let ours = Tunnel { remote: (own(v6), 4789).into(), ..tunnel(v6) };
    let template = Template::new(&ours, &hop);
    let mut frame = vec![0; template.len()];
    let owed = template.write(&mut frame, inner.len(), 7);
    frame.extend_from_slice(inner);
    if let Some(owed) = owed {
        crate::offload::complete_checksum(&mut frame, &owed).unwrap();
    }
    frame
}

#[test]
fn inner_frames_are_lent_as_the_tunnels_however_they_are_cut() {
    let bench = Bench::new(false);
    for v6 in [false, true] {
        for cut in [17, 64, 5000] {
            let inner = inner(300);
            let mut padded = outer(v6, &inner);
            padded.extend_from_slice(&[0xee; 9]);
            let lent = bench.lent(&[(padded, None)], cut);
            assert_eq!(lent, [(TUNNEL, inner, None)], "v6 {v6}, cut {cut}");
        }
    }
    let nic = bench.counters.port(NIC).snapshot();
    assert_eq!((nic.rx.0, nic.dropped_in_all()), (6, 0));
}

#[test]
fn a_wrong_checksum_is_refused() {
    let bench = Bench::new(false);
    let mut frame = outer(true, &inner(301));
    *frame.last_mut().unwrap() ^= 1;
    assert_eq!(bench.lent(&[(frame, None)], 100), []);
    assert_eq!(bench.dropped(DropReason::BadUdp), 1);
}

/// Over IPv4, too, where a sender need not give one.
#[test]
fn a_checksum_over_ipv4_is_looked_at_if_there_is_one() {
    let bench = Bench::new(false);
    let mut frame = outer(false, &inner(300));
    let mut sum = Sum::default();
    sum.add(&frame[26..34]);
    sum.add_word(17);
    sum.add_word((frame.len() - 34) as u16);
    sum.add(&frame[34..]);
    let sum = sum.checksum();
    frame[40..42].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(bench.lent(&[(frame.clone(), None)], 5000).len(), 1);
    frame[41] ^= 1;
    assert_eq!(bench.lent(&[(frame, None)], 5000), []);
    assert_eq!(bench.dropped(DropReason::BadUdp), 1);
}

/// A kernel on the same machine leaves the inner checksum open, and makes the outer one as if it had not.
#[test]
fn what_the_inner_frame_owes_is_told_and_does_not_spoil_the_outer_checksum() {
    let bench = Bench::new(false);
    for v6 in [false, true] {
        let whole = inner(300);
        let mut frame = outer(v6, &whole);
        let at = frame.len() - whole.len();
        let (open, owed) = opened(whole);
        frame[at..].copy_from_slice(&open);
        // Told by the port, and found in the frame.
        let said = Offload { csum_start: owed.csum_start + at as u16, ..owed };
        for said in [Some(said), None] {
            let lent = bench.lent(&[(frame.clone(), said)], 200);
            assert_eq!(lent, [(TUNNEL, open.clone(), Some(owed))], "v6 {v6}, said {said:?}");
        }
    }
    assert_eq!(bench.dropped(DropReason::BadUdp), 0);
}

#[test]
fn an_outer_checksum_that_was_left_open_is_no_matter() {
    let bench = Bench::new(false);
    let inner = inner(300);
    let mut frame = outer(true, &inner);
    let mut pseudo = Sum::default();
    pseudo.add(&frame[22..54]);
    pseudo.add_word(17);
    pseudo.add_word((frame.len() - 54) as u16);
    frame[60..62].copy_from_slice(&pseudo.folded().to_be_bytes());
    let said = Offload { needs_csum: true, csum_start: 54, csum_offset: 6, ..Offload::default() };
    for said in [Some(said), None] {
        assert_eq!(bench.lent(&[(frame.clone(), said)], 5000), [(TUNNEL, inner.clone(), None)]);
    }
}

#[test]
fn what_is_not_ours_goes_to_the_exception_port_as_it_came() {
    let mut tcp = Vec::new();
    let builder =
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], OWN.0).ipv4([192, 0, 2, 2], [192, 0, 2, 1], 64);
    builder.tcp(50_000, 22, 7, 9).write(&mut tcp, &[0x5a; 300]).unwrap();
    let owed = Some(Offload { needs_csum: true, csum_start: 34, csum_offset: 16, ..Offload::default() });
    let mut other = tcp.clone();
    other[5] = 9;
    for (frame, reason) in [(tcp, DropReason::NotTunnel), (other, DropReason::WrongMac)] {
        let bench = Bench::new(true);
        assert_eq!(bench.lent(&[(frame.clone(), owed)], 100), [(NIC, frame.clone(), owed)]);
        assert_eq!(bench.counters.port(NIC).snapshot().rx.0, 0, "the worker counts what is lent");
        let bench = Bench::new(false);
        assert_eq!(bench.lent(&[(frame, owed)], 100), []);
        assert_eq!((bench.dropped(reason), bench.counters.port(NIC).snapshot().rx.0), (1, 1));
    }
}

#[test]
fn questions_are_told_to_the_agent_and_those_of_a_flood_are_counted() {
    let mut arp = vec![0; 60];
    arp[..6].fill(0xff);
    arp[12..14].copy_from_slice(&[8, 6]);
    for exception in [false, true] {
        let bench = Bench::new(exception);
        let lent = bench.lent(&vec![(arp.clone(), None); 64], 5000);
        assert_eq!(lent.len(), if exception { 64 } else { 0 });
        assert_eq!(bench.heard.try_iter().filter(|event| matches!(event, Event::Heard { .. })).count(), 64);
    }
    let bench = Bench::new(false);
    let below = Played { frames: vec![(arp, None); 64], cut: 5000, returned: 0 };
    let mut rx = L2Rx::new(NIC, Box::new(below), Arc::default(), bench.events.clone());
    for _ in 0..10 {
        let mut burst = Burst::new(NIC);
        rx.receive(&mut burst, &RxContext { tables: &bench.tables, counters: &bench.counters }).unwrap();
    }
    let (told, refused) = (bench.dropped(DropReason::ForDomain), bench.dropped(DropReason::ControlLimit));
    assert!(told + refused == 640 && refused > 400, "{told} and {refused}");
}

/// What an egress port takes is another frame's buffer below: the first was dropped.
#[test]
fn taken_buffers_are_named_as_the_port_below_lent_them() {
    let bench = Bench::new(false);
    let frames = vec![(vec![0; 10], None), (outer(false, &inner(10)), None), (outer(true, &inner(10)), None)];
    let below = Played { frames, cut: 5000, returned: 0 };
    let mut rx = L2Rx::new(NIC, Box::new(below), Arc::default(), bench.events.clone());
    let mut burst = Burst::new(NIC);
    rx.receive(&mut burst, &RxContext { tables: &bench.tables, counters: &bench.counters }).unwrap();
    assert_eq!((burst.len(), bench.dropped(DropReason::TooShort)), (2, 1));
    drop(burst);
    assert_eq!(rx.below_taken(0b10), 0b100);
    assert_eq!(rx.below_taken(0b11), 0b110);
}
