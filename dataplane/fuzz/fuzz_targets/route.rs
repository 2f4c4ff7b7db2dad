//! Any frames at the ports of a routing domain, with anything owed: each is routed, waits for its next hop or is counted as dropped, one
//! of the three, and whatever leaves (routed packets, pieces, answers, ICMP errors, questions) begins with sound headers. Now and then a
//! next hop becomes known or unknown.
#![no_main]

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vwire_dataplane::burst::{Burst, Gso, Offload};
use vwire_dataplane::offload::Link;
use vwire_dataplane::port::PortIndex;
use vwire_dataplane::port::pipe::{PipeEnd, pipe};
use vwire_dataplane::route::counters::RouteTable;
use vwire_dataplane::route::domain::{Domain, DomainIndex, Mac, Member, MemberIndex, Neighbour, Target};
use vwire_dataplane::route::packet::{Head, Kind};
use vwire_dataplane::stats::Counters;
use vwire_dataplane::tables::swap::Publisher;
use vwire_dataplane::tables::{Entry, Forward, Place, Tables, WorkerId};
use vwire_dataplane::worker::command::{Command, Commands, Events};
use vwire_dataplane::worker::handoff::Handoff;
use vwire_dataplane::worker::{Mode, Worker, WorkerSpec};

const LINKS: [Link; 3] = [Link::Ethernet, Link::Ethernet, Link::Ip];
const OWN: Mac = Mac([2, 0, 0, 0, 0, 9]);

struct World {
    worker: Worker,
    ends: Vec<PipeEnd>,
    domain: Arc<Domain>,
    tables: Tables,
    publisher: Publisher<Tables>,
    injected: u64,
}

/// Port N has 10.0.N.0/24 and fd00:N::/32 behind it; the domain is 10.0.9.9 and fd00:9::9.
fn domain() -> Domain {
    let mut domain = Domain::default();
    let member = |(i, link): (usize, &Link)| {
        Some(Member { port: Some(PortIndex(i as u16)), link: *link, mac: OWN, mtu: 600, strict: i != 1 })
    };
    domain.members = Arc::new(LINKS.iter().enumerate().map(member).collect());
    let mut routes = RouteTable::default();
    for at in 0..3u16 {
        let net = at as u8;
        let prefixes = [(IpAddr::from([10, 0, net, 0]), 24), (IpAddr::from([0xfd00, at, 0, 0, 0, 0, 0, 0]), 32)];
        for (family, (address, len)) in prefixes.into_iter().enumerate() {
            let route = u32::from(at) * 2 + family as u32;
            routes.open(route);
            domain.set_route(address, len, Some(Target { route, member: MemberIndex(at), via: 0 }));
        }
        let known = Neighbour { mac: Mac([2, 0, 0, 0, 0, net]), member: MemberIndex(at) };
        domain.set_neighbour(IpAddr::from([10, 0, net, 1]), Some(known));
    }
    let gateways = [IpAddr::from([10, 0, 9, 9]), IpAddr::from([0xfd00, 9, 0, 0, 0, 0, 0, 9])];
    let own = Target { route: u32::MAX, member: MemberIndex::SELF, via: 0 };
    domain.set_route(gateways[0], 32, Some(own));
    domain.set_route(gateways[1], 128, Some(own));
    domain.gateways = Arc::new(gateways.to_vec());
    domain.routes = Arc::new(routes);
    domain
}

fn world() -> World {
    let (domain, counters) = (Arc::new(domain()), Counters::anonymous(4).unwrap());
    let mut tables = Tables { domains: vec![Some(Arc::clone(&domain))], ..Tables::default() };
    let commands = Commands::new().unwrap();
    let mut ends = Vec::new();
    for at in 0..3 {
        let place = Place { domain: DomainIndex(0), member: MemberIndex(at) };
        tables.set(PortIndex(at), Entry { forward: Forward::Route(place), owner: Some(WorkerId(0).into()) });
        let (near, far) = pipe(1 << 20).unwrap();
        let parts = near.into_parts();
        assert!(commands.give(Command::Attach { port: PortIndex(at), attachment: Default::default(), parts }).is_ok());
        ends.push(far);
    }
    let publisher = Publisher::new(tables.clone());
    let worker = Worker::new(WorkerSpec {
        id: WorkerId(0),
        mode: Mode::Poll,
        commands,
        events: Events::new().unwrap().0,
        tables: publisher.reader(),
        counters,
        handoff: Handoff::none(),
    });
    World { worker: worker.unwrap(), ends, domain, tables, publisher, injected: 0 }
}

thread_local!(static WORLD: RefCell<World> = RefCell::new(world()));

/// What leaves by a port is addressed from the domain, and its IP header is sound.
fn check(frame: &[u8], link: Link) {
    let mut burst = Burst::new(PortIndex(0));
    burst.push(frame.into());
    for (_, frames) in burst.runs() {
        let mut head = Head::new();
        head.read(&frames, &frames.as_slice()[0]);
        if link == Link::Ethernet {
            assert_eq!(head.macs().1, OWN);
        }
        match head.kind(link).unwrap() {
            Kind::Arp => assert_eq!(frame.len(), 42),
            kind => assert!(head.packet(kind, link, frame.len(), None).is_ok()),
        }
    }
}

impl World {
    /// Makes the neighbours of the second port known, or unknown.
    fn turn_neighbours(&mut self, known: bool) {
        let domain = Arc::make_mut(&mut self.domain);
        for host in 1..4 {
            let neighbour = Neighbour { mac: Mac([2, 0, 0, 0, 1, host]), member: MemberIndex(1) };
            domain.set_neighbour(IpAddr::from([10, 0, 1, host]), known.then_some(neighbour));
            let six = IpAddr::from([0xfd00, 1, 0, 0, 0, 0, 0, u16::from(host)]);
            domain.set_neighbour(six, known.then_some(neighbour));
        }
        self.tables.publication += 1;
        self.tables.domains = vec![Some(Arc::clone(&self.domain))];
        self.publisher.publish(self.tables.clone());
    }

    /// What became of all frames so far.
    fn accounted(&self) -> u64 {
        let read = self.domain.counters.read();
        let in_domain: u64 = read.drops.iter().map(|(_, count)| count).sum();
        read.forwarded.0 + in_domain + self.worker.waiting() as u64
    }
}

// A frame is its port and what it owes (one byte), three bytes of that, its length (two bytes), and the bytes.
fuzz_target!(|input: &[u8]| WORLD.with_borrow_mut(|world| {
    let mut rest = input;
    while let Some((head, bytes)) = rest.split_first_chunk::<6>() {
        let (frame, next) = bytes.split_at(usize::from(u16::from_be_bytes([head[4], head[5]])).min(bytes.len()));
        rest = next;
        if frame.is_empty() {
            continue;
        }
        let owed = Offload {
            needs_csum: head[0] & 0x80 != 0,
            gso: [Gso::None, Gso::Tcp4, Gso::Tcp6, Gso::Udp][usize::from(head[0] >> 4 & 3)],
            csum_start: head[1].into(),
            csum_offset: head[2].into(),
            gso_size: u16::from(head[3]) * 8,
            hdr_len: u16::from(head[1]) + 20,
        };
        let at = usize::from(head[0] & 15) % 3;
        if head[0] & 0x40 != 0 {
            world.turn_neighbours(head[3] & 1 != 0);
        }
        assert!(world.ends[at].inject_with(frame, (head[0] & 0xb0 != 0).then_some(owed)));
        world.injected += 1;
        while world.worker.poll() > 0 {}
        assert_eq!(world.accounted(), world.injected, "{:?}", world.domain.counters.read());
        for (end, link) in world.ends.iter_mut().zip(LINKS) {
            end.collect().iter().for_each(|(frame, _)| check(frame, link));
        }
    }
}));
