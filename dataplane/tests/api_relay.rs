//! A memif handed through from one network namespace to another: the engine passes control messages, and never packets.

mod kernel_support;
mod support;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use ::memif::queue::FrameSink;
use ::memif::{Address, Dialer, DialerConfig, Event, InterfaceConfig, Lent, Listener, ListenerConfig, Mode};
use kernel_support::Netns;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use support::{PATIENCE, Rig, join, memif, open_descriptors, pipe, refused, remove, set};
use tonic::Code;
use vwire_proto::dataplane::v1 as pb;
use vwire_proto::dataplane::v1::watch_links_response::Event as LinkEvent;

const FRONT: &str = "vwire/client.sock";
const BACK: &str = "vwire/server.sock";

fn set_relay(relay: pb::Relay) -> pb::Op {
    pb::Op { op: Some(pb::op::Op::SetRelay(relay)) }
}

fn remove_relay(name: &str) -> pb::Op {
    pb::Op { op: Some(pb::op::Op::RemoveRelay(name.into())) }
}

/// A socket that listens at an abstract name inside `netns`.
fn listening(netns: &Netns, name: &str) -> OwnedFd {
    netns.inside(|| {
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        let fd = rustix::net::socket_with(family, SocketType::SEQPACKET, flags, None).unwrap();
        rustix::net::bind(&fd, &SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap()).unwrap();
        rustix::net::listen(&fd, 8).unwrap();
        fd
    })
}

/// The namespaces of a client and a server, and the relay's description, its descriptors sent.
struct Ends {
    client: Netns,
    server: Netns,
}

impl Ends {
    fn new() -> Self {
        Self { client: Netns::new(), server: Netns::new() }
    }

    fn relay(&self, rig: &Rig) -> pb::Relay {
        let front = listening(&self.client, FRONT);
        let listen = rig.fds.send(&front).unwrap().to_string();
        let netns = rig.fds.send(self.server.open()).unwrap().to_string();
        let (name, socket) = ("r".into(), format!("@{BACK}"));
        pb::Relay { name, listen, netns, socket, note: b"mine".to_vec() }
    }

    fn listener(&self) -> Listener {
        let address = Address::abstract_name(BACK).unwrap();
        let mut listener =
            self.server.inside(|| Listener::bind(&address, ListenerConfig::default())).unwrap();
        listener.add_interface(0, InterfaceConfig::new(Mode::Ip, "nse".parse().unwrap()));
        listener
    }

    fn dialer(&self) -> Dialer {
        let address = Address::abstract_name(FRONT).unwrap();
        let connected = self.client.inside(|| ::memif::connect(&address)).unwrap();
        Dialer::from_connected(connected, DialerConfig::new(0, Mode::Ip, "nsc".parse().unwrap())).unwrap()
    }
}

/// Does `step` until it yields something, while the engine works on the same thread.
async fn until<T>(what: &str, mut step: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = step() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn connected(events: Vec<Event>) -> Option<::memif::Link> {
    events.into_iter().find_map(|event| match event {
        Event::Connected { link, .. } => Some(link),
        _ => None,
    })
}

async fn meet(listener: &mut Listener, dialer: &mut Dialer) -> (::memif::Link, ::memif::Link) {
    let (mut server, mut client) = (None, None);
    until("both ends to connect", || {
        server = server.take().or(connected(listener.process()));
        client = client.take().or(connected(dialer.process()));
        if server.is_some() && client.is_some() { server.take().zip(client.take()) } else { None }
    })
    .await
}

#[derive(Default)]
struct Frames(Vec<Vec<u8>>);

impl<'a> FrameSink<'a> for Frames {
    fn room(&self) -> usize {
        64
    }

    fn frame(&mut self, frame: Lent<'a>) {
        self.0.push(frame.to_vec());
    }

    fn chain(&mut self, _: &[Lent<'a>], _: usize) {
        panic!("these frames are short");
    }
}

/// Frames go both ways, with nobody between.
fn traffic(one: &mut ::memif::Link, other: &mut ::memif::Link) {
    let bytes = [0x45; 84];
    for _ in 0..2 {
        one.tx[0].push(Lent::from(&bytes[..])).unwrap();
        one.tx[0].publish();
        let mut frames = Frames::default();
        other.rx[0].receive(&mut frames).unwrap();
        other.rx[0].release();
        assert_eq!(frames.0, [bytes]);
        std::mem::swap(one, other);
    }
}

#[test]
fn a_client_meets_a_server_in_another_namespace_and_comes_back() {
    run(async {
        let mut rig = Rig::new().await;
        let ends = Ends::new();
        let relay = ends.relay(&rig);
        let made = rig.apply(vec![set_relay(relay.clone())]).await.unwrap();
        assert_eq!(rig.link("r").await.reason, "no client yet");
        assert_eq!(rig.snapshot().await.state.unwrap().relays, vec![relay.clone()]);

        // Nobody serves yet: the client is sent away, and the link says why.
        let mut lonely = ends.dialer();
        until("the refusal", || lonely.process().into_iter().find(|e| matches!(e, Event::Refused { .. })))
            .await;
        let link = rig.link("r").await;
        assert_eq!(
            (link.up, link.reason.as_str()),
            (false, "memif socket @vwire/server.sock: connect: Connection refused (os error 111)")
        );

        let (mut listener, mut dialer) = (ends.listener(), ends.dialer());
        let (mut server, mut client) = meet(&mut listener, &mut dialer).await;
        traffic(&mut server, &mut client);
        let me = std::process::id();
        assert_eq!(rig.wait_link("r", true).await.peer, format!("process {me} - process {me}"));
        let stats = rig.stats("r").await;
        assert_eq!((stats.kind.as_str(), stats.up, stats.rx_packets, stats.worker), ("relay", true, 0, None));

        // The control process comes again with another note: the connection stays.
        let again = pb::Relay { note: b"yours".to_vec(), ..relay.clone() };
        assert_eq!(rig.apply(vec![set_relay(again.clone())]).await.unwrap(), made + 1);
        assert_eq!(rig.snapshot().await.state.unwrap().relays, vec![again]);
        traffic(&mut client, &mut server);

        // The client goes and the next one comes.
        drop((dialer, client));
        until("the server to be told", || {
            listener.process().into_iter().find(|event| matches!(event, Event::Disconnected { .. }))
        })
        .await;
        assert!(rig.wait_link("r", false).await.reason.starts_with("the client closed"));
        let mut dialer = ends.dialer();
        let (mut server, mut client) = meet(&mut listener, &mut dialer).await;
        traffic(&mut server, &mut client);

        // The relay goes, and both ends know.
        let mut links = rig.client.watch_links(pb::WatchLinksRequest {}).await.unwrap().into_inner();
        assert!(matches!(links.message().await.unwrap().unwrap().event, Some(LinkEvent::Initial(_))));
        rig.apply(vec![remove_relay("r")]).await.unwrap();
        assert_eq!(links.message().await.unwrap().unwrap().event, Some(LinkEvent::Removed("r".into())));
        let left =
            |events: Vec<Event>| events.into_iter().find(|event| matches!(event, Event::Disconnected { .. }));
        until("the client to notice", || left(dialer.process())).await;
        until("the server to notice", || left(listener.process())).await;
        let address = Address::abstract_name(FRONT).unwrap();
        assert!(ends.client.inside(|| ::memif::connect(&address)).is_err(), "nobody listens any more");
    });
}

/// Descriptors are counted, so only one test runs at a time.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// As [`support::run`].
fn run<T>(test: impl Future<Output = T>) -> T {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    support::run(test)
}

#[test]
fn a_relay_leaves_no_descriptor_behind() {
    run(async {
        let mut rig = Rig::new().await;
        let ends = Ends::new();
        let round = async |rig: &mut Rig| {
            rig.apply(vec![set_relay(ends.relay(rig))]).await.unwrap();
            {
                let (mut listener, mut dialer) = (ends.listener(), ends.dialer());
                let (mut server, mut client) = meet(&mut listener, &mut dialer).await;
                traffic(&mut server, &mut client);
            }
            rig.apply(vec![remove_relay("r")]).await.unwrap();
        };
        round(&mut rig).await;
        let before = open_descriptors();
        for _ in 0..5 {
            round(&mut rig).await;
        }
        assert_eq!(open_descriptors(), before);
    });
}

#[test]
fn a_relay_that_made_room_in_vain_is_made_again() {
    run(async {
        let mut rig = Rig::new().await;
        let ends = Ends::new();
        let relay = ends.relay(&rig);
        rig.apply(vec![set_relay(relay.clone())]).await.unwrap();
        let before = rig.snapshot().await;
        // The same socket, another server: both can't be there at once.
        let netns = rig.fds.send(ends.server.open()).unwrap().to_string();
        assert_eq!(netns, relay.netns);
        let fronts = listening(&ends.client, "another");
        let listen = rig.fds.send(&fronts).unwrap().to_string();
        let other = pb::Relay { listen, ..relay.clone() };
        // Opened after what makes room, and refused: its directory can't be made.
        let impossible = memif("zz", pb::memif::Role::Server, "/dev/null/x.sock");
        let status = rig.apply(vec![set_relay(other), set(impossible)]).await.unwrap_err();
        assert!(status.message().starts_with("port zz: "), "{}", status.message());
        assert_eq!(rig.snapshot().await, before);
        let (mut listener, mut dialer) = (ends.listener(), ends.dialer());
        let (mut server, mut client) = meet(&mut listener, &mut dialer).await;
        traffic(&mut server, &mut client);
    });
}

#[test]
fn relays_that_will_not_do_are_refused_by_name() {
    run(async {
        let mut rig = Rig::new().await;
        let ends = Ends::new();
        let relay = ends.relay(&rig);
        let invalid = Code::InvalidArgument;
        for (bad, field) in [
            (pb::Relay { name: "a b".into(), ..relay.clone() }, "name"),
            (pb::Relay { listen: "/run/x.sock".into(), ..relay.clone() }, "listen"),
            (pb::Relay { netns: "x".into(), ..relay.clone() }, "netns"),
            (pb::Relay { socket: "/run/x.sock".into(), ..relay.clone() }, "socket"),
            (pb::Relay { socket: String::new(), ..relay.clone() }, "socket"),
            (pb::Relay { note: vec![0; 16_385], ..relay.clone() }, "note"),
        ] {
            let status = rig.apply(vec![set_relay(bad)]).await.unwrap_err();
            assert_eq!(status.code(), invalid);
            assert!(
                status.message().starts_with(&format!("ops[0].set_relay.{field}: ")),
                "{}",
                status.message()
            );
        }
        let null = rig.fds.send(File::open("/dev/null").unwrap()).unwrap().to_string();
        let status =
            rig.apply(vec![set_relay(pb::Relay { listen: null, ..relay.clone() })]).await.unwrap_err();
        assert!(
            status
                .message()
                .starts_with("port r: the file descriptor handed over is no listening memif socket"),
            "{}",
            status.message()
        );
        rig.fds.send(ends.server.open()).unwrap();
        rig.apply(vec![set_relay(relay), set(pipe("p", "p"))]).await.unwrap();
        let joined = rig.apply(vec![join("p", "r")]).await;
        refused(joined, invalid, "xconnect p - r: port r is a relay, which has no frames");
        refused(rig.apply(vec![remove("r")]).await, Code::NotFound, "there is no port r");
        refused(rig.apply(vec![remove_relay("p")]).await, Code::NotFound, "there is no relay p");
        refused(rig.apply(vec![remove_relay("q")]).await, Code::NotFound, "there is no relay q");
        // Done away with by leaving it out.
        rig.replace(pb::State::default()).await.unwrap();
        assert_eq!(rig.snapshot().await.links, []);
    });
}
