//! Any sequence of frames through the sending groups and back through decapsulation: all come back, unchanged, each at its own
//! tunnel, and each flow in order.
#![no_main]

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use vwire_dataplane::burst::Burst;
use vwire_dataplane::offload::Link;
use vwire_dataplane::port::{PortIndex, RxContext};
use vwire_dataplane::stats::Counters;
use vwire_dataplane::tables::{Tables, Tunnel, Vni};
use vwire_dataplane::underlay::decap::{Decap, Run};
use vwire_dataplane::underlay::group::{Batch, Carrier, Destination, Groups};
use vwire_dataplane::wire::vxlan;

const UNDERLAY: PortIndex = PortIndex(0);
const TUNNELS: u16 = 4;

thread_local! {
    static WIRE: RefCell<Vec<(usize, Vec<u8>)>> = const { RefCell::new(Vec::new()) };
    static WORLD: RefCell<World> = RefCell::new(World::new());
}

struct Wire;

impl Carrier for Wire {
    fn most_datagrams(&self) -> usize {
        128
    }

    fn carry(&mut self, batch: &Batch<'_>, _: &Counters) {
        assert!(batch.datagrams() <= 128 && batch.bytes.len() <= 65_507);
        WIRE.with_borrow_mut(|wire| wire.push((batch.datagram_len, batch.bytes.to_vec())));
    }
}

struct World {
    groups: Groups<Wire>,
    tables: Tables,
    counters: Counters,
}

impl World {
    fn new() -> Self {
        let mut tables = Tables { generation: 1, ..Tables::default() };
        (1..=TUNNELS).for_each(|port| assert!(tables.tunnels.insert(&tunnel(port))));
        Self { groups: Groups::new(Wire, 5), tables, counters: Counters::anonymous(8).unwrap() }
    }
}

fn tunnel(port: u16) -> Tunnel {
    Tunnel {
        port: PortIndex(port),
        underlay: UNDERLAY,
        remote: ([10, 9, 0, 2], 4789).into(),
        vni: Vni::new(u32::from(port) * 77).unwrap(),
        max_frame: 1464,
        link: Link::Ethernet,
    }
}

/// By tunnel and flow: the frames, each as its number and its length.
type Flows = HashMap<(u16, u8), Vec<(u32, usize)>>;

fn received(world: &World) -> Flows {
    let context = RxContext { tables: &world.tables, counters: &world.counters };
    let mut decap = Decap::new(UNDERLAY, [10, 9, 0, 1].into());
    let mut flows = Flows::new();
    for (datagram_len, bytes) in WIRE.take() {
        let mut run = Run { sender: [10, 9, 0, 2].into(), datagram_len, next: 0, len: bytes.len() };
        while !run.is_done() {
            let mut burst = Burst::new(UNDERLAY);
            decap.lend(&bytes, &mut run, &mut burst, &context);
            for (port, frames) in burst.runs() {
                for frame in frames.as_slice() {
                    let frame = frames.to_vec(frame);
                    assert!(frame[5..].iter().all(|byte| *byte == frame[4]), "a frame was changed");
                    let number = u32::from_be_bytes(frame[..4].try_into().unwrap());
                    flows.entry((port.0, frame[4])).or_default().push((number, frame.len()));
                }
            }
        }
    }
    flows
}

// A frame is its tunnel and turn, its flow, and its length (two bytes).
fuzz_target!(|input: &[u8]| WORLD.with_borrow_mut(|world| {
    let mut sent = Flows::new();
    for (number, step) in input.chunks_exact(4).take(2000).enumerate() {
        let (port, flow) = (u16::from(step[0]) % TUNNELS + 1, step[1]);
        let len = 14 + usize::from(u16::from_be_bytes([step[2], step[3]])) % (1 << (step[0] >> 4));
        let tunnel = tunnel(port);
        let to = Destination { port: tunnel.port, socket: u16::from(flow % 3), remote: tunnel.remote };
        // Spread over the filter's bits as a hash is.
        let hash = u32::from(flow).wrapping_mul(0x9e37_79b1);
        world.groups.append(&to, hash, 8 + len, &world.counters, |place| {
            place.fill(flow);
            place[..8].copy_from_slice(&vxlan::header(tunnel.vni));
            place[8..12].copy_from_slice(&(number as u32).to_be_bytes());
        });
        sent.entry((port, flow)).or_default().push((number as u32, len));
        if step[0] & 12 == 12 {
            world.groups.flush((step[0] & 16 == 0).then(Instant::now), &world.counters);
        }
    }
    assert!(!world.groups.flush(None, &world.counters));
    assert_eq!(received(world), sent);
}));
