//! The examples' endpoint under frames that no honest neighbour sends: ARP, neighbour discovery and ICMP with everything in
//! them wrong. It must survive all of them and still answer a ping afterwards.

mod support;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use memif::{Address, Dialer, DialerConfig, Event, Lent, Link, Mode, Name};
use support::{Place, until};

const US: [u8; 6] = [2, 0, 0, 0, 0, 1];
const EVERYONE: [u8; 6] = [0xff; 6];
const OUR_IP: [u8; 4] = [10, 60, 1, 1];
const ITS_IP: [u8; 4] = [10, 60, 1, 2];

fn example(name: &str) -> Command {
    let tests = std::env::current_exe().expect("a path");
    let path: PathBuf = tests.ancestors().nth(2).expect("target/debug").join("examples").join(name);
    Command::new(path)
}

struct Responder(Child);

impl Responder {
    fn start(place: &Place) -> Self {
        let mut command = example("icmp_responder");
        command.args(["--role", "server", "--socket"]).arg(place.path("m.sock"));
        command.args(["--address", "10.60.1.2/30", "--address", "fd60::2/64"]);
        Self(command.stderr(Stdio::null()).spawn().expect("start"))
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn connect(place: &Place) -> (Dialer, Link) {
    let address = Address::path(place.path("m.sock")).expect("short");
    let config = DialerConfig::new(0, Mode::Ethernet, Name::cut("liar"));
    let mut dialer = Dialer::new(address, config).expect("descriptors");
    let link = until("a link", || {
        dialer.process().into_iter().find_map(|event| match event {
            Event::Connected { link, .. } => Some(link),
            _ => None,
        })
    });
    (dialer, link)
}

fn ethernet(to: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &US, &kind.to_be_bytes(), payload].concat()
}

/// An ARP packet with chosen lengths, operation and sender.
fn arp(lengths: [u8; 2], operation: u16, mac: [u8; 6], ip: [u8; 4]) -> Vec<u8> {
    let head = [&[0, 1, 8, 0], &lengths[..], &operation.to_be_bytes()].concat();
    ethernet(EVERYONE, 0x0806, &[&head[..], &mac, &ip, &[0; 6], &ITS_IP].concat())
}

fn bad_arps() -> Vec<Vec<u8>> {
    let mut frames = vec![
        arp([0, 4], 1, US, OUR_IP),
        arp([6, 0], 1, US, OUR_IP),
        arp([255, 255], 1, US, OUR_IP),
        arp([6, 4], 0, US, OUR_IP),
        arp([6, 4], 0xffff, US, OUR_IP),
        arp([6, 4], 1, US, ITS_IP),
        arp([6, 4], 2, [0; 6], OUR_IP),
        arp([6, 4], 2, EVERYONE, OUR_IP),
        arp([6, 4], 2, [1, 0, 0x5e, 0, 0, 1], OUR_IP),
    ];
    let whole = arp([6, 4], 1, US, OUR_IP);
    frames.extend((1..whole.len()).map(|len| whole[..len].to_vec()));
    // Gratuitous, from a thousand made-up neighbours: its table has a bound.
    frames.extend((0..1000u32).map(|i| arp([6, 4], 2, US, (0x0a3c_0000 + i).to_be_bytes())));
    frames
}

fn ones_complement(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum = words.sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// An ICMPv6 message with a correct checksum, so that what is wrong with it is looked at.
fn icmp6(hop_limit: u8, message: &[u8]) -> Vec<u8> {
    let from = [0xfd, 0x60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let to = [0xfd, 0x60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    let mut message = message.to_vec();
    message[2..4].fill(0);
    let length = (message.len() as u32).to_be_bytes();
    let sum = ones_complement(&[&from[..], &to, &length, &[0, 0, 0, 58], &message].concat());
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let head = [0x60, 0, 0, 0, length[2], length[3], 58, hop_limit];
    ethernet(EVERYONE, 0x86dd, &[&head[..], &from, &to, &message].concat())
}

fn bad_neighbours() -> Vec<Vec<u8>> {
    let target = [0xfd, 0x60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    let message = |kind: u8, option: &[u8]| [&[kind, 0, 0, 0, 0, 0, 0, 0], &target[..], option].concat();
    let mut frames = Vec::new();
    for kind in [133, 134, 135, 136, 137] {
        frames.push(icmp6(64, &message(kind, &[1, 1, 2, 0, 0, 0, 0, 9])));
        // An option of length 0 is the classic endless loop; one of 255 ends far beyond the packet.
        frames.push(icmp6(255, &message(kind, &[1, 0, 2, 0, 0, 0, 0, 9])));
        frames.push(icmp6(255, &message(kind, &[1, 255, 2, 0, 0, 0, 0, 9])));
        frames.push(icmp6(255, &message(kind, &[1, 1, 1, 0, 0, 0, 0, 9])));
        frames.extend((4..24).map(|len| icmp6(255, &message(kind, &[])[..len])));
    }
    // Errors about packets that were never sent, with what they quote cut short.
    for kind in [1, 2, 3, 4] {
        frames.extend(
            (8..60).step_by(4).map(|len| icmp6(255, &[&[kind, 0, 0, 0][..], &vec![0x60; len]].concat())),
        );
    }
    frames
}

fn bad_icmp4() -> Vec<Vec<u8>> {
    let packet = |message: &[u8], total: u16| {
        let mut head = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0, 10, 60, 1, 1, 10, 60, 1, 2];
        head[2..4].copy_from_slice(&total.to_be_bytes());
        let sum = ones_complement(&head);
        head[10..12].copy_from_slice(&sum.to_be_bytes());
        ethernet(EVERYONE, 0x0800, &[&head[..], message].concat())
    };
    let error = |mtu: u16| [&[3, 4, 0, 0, 0, 0][..], &mtu.to_be_bytes(), &[0x45; 28]].concat();
    let mut frames = vec![packet(&error(0), 56), packet(&error(67), 56), packet(&[8], 21), packet(&[], 20)];
    // Total lengths that lie, in both directions.
    frames.extend([0, 19, 20, 21, 0xffff].map(|total| packet(&[8, 0, 0, 0, 0, 1, 0, 1], total)));
    frames
}

#[test]
fn an_endpoint_survives_every_bad_arp_neighbour_and_icmp_packet_and_answers_afterwards() {
    let place = Place::new();
    let mut responder = Responder::start(&place);
    until("its socket", || place.path("m.sock").exists().then_some(()));
    let frames: Vec<Vec<u8>> = [bad_arps(), bad_neighbours(), bad_icmp4()].concat();
    {
        let (_dialer, mut link) = connect(&place);
        for frame in &frames {
            until("room in the ring", || link.tx[0].push(Lent::from(frame.as_slice())).ok());
            link.tx[0].publish();
        }
        until("the last frame to be taken", || (link.tx[0].free() == link.tx[0].size()).then_some(()));
    }
    assert!(responder.0.try_wait().expect("wait").is_none(), "it still runs after {} frames", frames.len());
    for target in ["10.60.1.2", "fd60::2"] {
        let mut ping = example("ping");
        ping.args(["--role", "client", "--count", "3", "--interval", "0.01", "--socket"])
            .arg(place.path("m.sock"));
        let said = ping
            .args(["--address", "10.60.1.1/30", "--address", "fd60::1/64", target])
            .output()
            .expect("run");
        assert!(said.status.success(), "{target}: {said:?}");
    }
}
