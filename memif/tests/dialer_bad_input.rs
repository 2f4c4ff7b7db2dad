//! Servers that break the control protocol. After each, the server was told why, the dialer has given back
//! all it held, and it connects to the good server that comes next.

mod support;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::MutexGuard;
use std::time::Duration;

use memif::handshake::ServerHandshake;
use memif::message::{Hello, Message};
use memif::{Dialer, DialerConfig, DisconnectReason, Event, PeerLimits};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use support::raw::*;
use support::*;

/// A bare listening socket, and a dialer that tries it.
struct Scene {
    dialer: Dialer,
    listening: Option<OwnedFd>,
    before: Holdings,
    place: Place,
    _alone: MutexGuard<'static, ()>,
}

fn config() -> DialerConfig {
    DialerConfig {
        first_retry: Duration::from_millis(1),
        last_retry: Duration::from_millis(4),
        handshake_timeout: Duration::from_millis(500),
        ..dialer_config()
    }
}

impl Scene {
    fn new() -> Self {
        Self::with(config())
    }

    fn with(config: DialerConfig) -> Self {
        let alone = alone();
        let place = Place::new();
        let mut dialer = Dialer::new(place.socket(), config).expect("a dialer");
        // What is opened once and for all is opened now.
        let mut good = listener(&place.socket());
        connect(&mut good, &mut dialer);
        drop(good);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .expect("socket");
        rustix::net::bind(&fd, &SocketAddrUnix::new(place.path("m.sock")).expect("short")).expect("bind");
        until("the dialer to notice", || {
            let gone = |event| matches!(event, Event::Disconnected { .. });
            dialer.process().into_iter().any(gone).then_some(())
        });
        let before = Holdings::now();
        rustix::net::listen(&fd, 5).expect("listen");
        Self { dialer, listening: Some(fd), before, place, _alone: alone }
    }

    /// The dialer's next attempt.
    fn client(&mut self) -> Raw {
        let listening = self.listening.as_ref().expect("listening");
        until("the dialer to connect", || {
            self.dialer.process();
            let fd =
                rustix::net::accept_with(listening, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).ok()?;
            Some(Raw(fd))
        })
    }

    /// Sends a message and waits for one.
    fn step(&mut self, raw: &Raw, message: &Message) -> Message {
        raw.say(message);
        until("the client's message", || {
            assert!(self.dialer.process().is_empty(), "no event yet");
            match raw.hear() {
                Heard::Message(message) => Some(message),
                Heard::Nothing => None,
                Heard::Closed => panic!("closed"),
            }
        })
    }

    /// HELLO, and ACKs up to CONNECT.
    fn until_connect(&mut self, raw: &Raw) {
        let mut heard = self.step(raw, &hello());
        while !matches!(heard, Message::Connect(_)) {
            heard = self.step(raw, &Message::Ack);
        }
    }

    fn end_of(&mut self, raw: Raw) -> String {
        let reason = until("the end", || {
            wait_readable(&[self.dialer.as_fd()], Duration::from_millis(20));
            self.dialer
                .process()
                .into_iter()
                .map(|event| match event {
                    Event::Refused { peer: Some(_), reason, .. } => reason.to_string(),
                    Event::Disconnected { reason: DisconnectReason::Protocol(error), .. } => {
                        error.to_string()
                    }
                    other => panic!("{other:?}"),
                })
                .next()
        });
        let mut told = None;
        loop {
            match raw.hear() {
                Heard::Message(Message::Disconnect(end)) => told = Some(end.reason.to_string()),
                Heard::Message(_) => {}
                Heard::Nothing => panic!("left open"),
                Heard::Closed => break,
            }
        }
        assert_eq!(told.as_ref(), Some(&reason), "the server is told why");
        reason
    }

    fn refuses(&mut self, play: impl FnOnce(&mut Self, &Raw)) -> String {
        let raw = self.client();
        play(self, &raw);
        self.end_of(raw)
    }

    /// The next server is good, and after it all is as before.
    fn assert_as_before(mut self) {
        self.listening = None;
        std::fs::remove_file(self.place.path("m.sock")).expect("our socket");
        let mut good = listener(&self.place.socket());
        let (mut server, mut client) = connect(&mut good, &mut self.dialer);
        assert_traffic(&mut server, &mut client);
        drop((good, server, client));
        until("the dialer to notice", || {
            let gone = |event| matches!(event, Event::Disconnected { .. });
            self.dialer.process().into_iter().any(gone).then_some(())
        });
        // The bare socket, bound but not listening, was held then and is not now.
        let _bare = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).expect("socket");
        assert_eq!(Holdings::now(), self.before);
    }
}

fn hello() -> Message {
    ServerHandshake::<OwnedFd>::hello(&name("bad server"), &PeerLimits::default())
}

fn hello_but(change: impl FnOnce(&mut Hello)) -> Message {
    let Message::Hello(mut hello) = hello() else { panic!("HELLO") };
    change(&mut hello);
    Message::Hello(hello)
}

#[test]
fn versions_and_ring_sizes_that_nobody_speaks() {
    let mut scene = Scene::new();
    let newer = hello_but(|hello| (hello.min_version, hello.max_version) = (0x0201, 0x0300));
    let reason = scene.refuses(|_, raw| raw.say(&newer));
    assert_eq!(reason, "server speaks versions 0x0201 to 0x0300; this client speaks 0x0200");
    let small = hello_but(|hello| hello.max_log2_ring = 0);
    let reason = scene.refuses(|_, raw| raw.say(&small));
    assert_eq!(reason, "server allows rings of 2^0 slots; at least 2^1 are needed");
    scene.assert_as_before();
}

#[test]
fn limits_in_hello_are_kept() {
    let mut scene = Scene::with(DialerConfig { rings: memif::RingCounts { c2s: 4, s2c: 4 }, ..config() });
    let raw = scene.client();
    let tight = hello_but(|hello| (hello.max_c2s_ring, hello.max_s2c_ring, hello.max_log2_ring) = (1, 0, 3));
    let mut heard = vec![scene.step(&raw, &tight)];
    while !matches!(heard.last(), Some(Message::Connect(_))) {
        heard.push(scene.step(&raw, &Message::Ack));
    }
    let rings: Vec<_> = heard
        .iter()
        .filter_map(|message| match message {
            Message::AddRing(ring) => Some((ring.direction, ring.index, ring.log2_size)),
            _ => None,
        })
        .collect();
    use memif::ring::Direction::{ClientToServer as C2S, ServerToClient as S2C};
    assert_eq!(rings, [(C2S, 0, 3), (C2S, 1, 3), (S2C, 0, 3)]);
    raw.say(&Message::disconnect("that was all"));
    drop(raw);
    scene.assert_as_before();
}

#[test]
fn unknown_short_long_and_misspelt_messages() {
    let mut scene = Scene::new();
    let bytes = hello().encode();
    let reason = scene.refuses(|_, raw| raw.bytes(&bytes[..44], &[]).expect("send"));
    assert_eq!(reason, "control message of 44 bytes; memif's have 128");
    let reason = scene.refuses(|_, raw| raw.bytes(&[bytes, bytes].concat(), &[]).expect("send"));
    assert_eq!(reason, "control message of 129 bytes; memif's have 128");
    let mut unknown = bytes;
    unknown[1] = 1;
    let reason = scene.refuses(|_, raw| raw.bytes(&unknown, &[]).expect("send"));
    assert_eq!(reason, "unknown control message type 258");
    let mut endless = bytes;
    endless[2..34].fill(b'e');
    let reason = scene.refuses(|_, raw| raw.bytes(&endless, &[]).expect("send"));
    assert_eq!(reason, "HELLO name is not terminated");
    scene.assert_as_before();
}

#[test]
fn messages_out_of_order() {
    let mut scene = Scene::new();
    for message in
        [Message::Ack, Message::Connected(name("s")), Message::Init(init()), Message::Connect(name("s"))]
    {
        let reason = scene.refuses(|_, raw| raw.say(&message));
        assert_eq!(reason, format!("unexpected {} before HELLO", message.kind()));
    }
    for message in [hello(), Message::Connected(name("s"))] {
        let reason = scene.refuses(|scene, raw| {
            scene.step(raw, &hello());
            raw.say(&message);
        });
        assert_eq!(reason, format!("unexpected {} while announcing", message.kind()));
    }
    let reason = scene.refuses(|scene, raw| {
        scene.until_connect(raw);
        raw.say(&Message::Ack);
    });
    assert_eq!(reason, "unexpected ACK before CONNECTED");
    scene.assert_as_before();
}

#[test]
fn descriptors_from_a_server() {
    let mut scene = Scene::new();
    let memory = memory(REGION);
    let reason = scene.refuses(|_, raw| raw.say_with(&hello(), &memory));
    assert_eq!(reason, "HELLO with a file descriptor; it carries none");
    let many = [memory.as_fd(); 253];
    let reason = scene.refuses(|_, raw| raw.bytes(&hello().encode(), &many).expect("send"));
    assert_eq!(reason, "HELLO with more file descriptors than one, or than this process may open");
    let reason = scene.refuses(|_, raw| raw.say_with(&add_region(0, REGION), &memory));
    assert_eq!(reason, "unexpected ADD_REGION before HELLO");
    drop(memory);
    scene.assert_as_before();
}

#[test]
fn messages_on_a_live_connection() {
    let mut scene = Scene::new();
    let raw = scene.client();
    scene.until_connect(&raw);
    raw.say(&Message::Connected(name("server0")));
    let link = until("the link", || {
        scene
            .dialer
            .process()
            .into_iter()
            .map(|event| match event {
                Event::Connected { link, .. } => link,
                other => panic!("{other:?}"),
            })
            .next()
    });
    raw.say(&hello());
    assert_eq!(scene.end_of(raw), "unexpected HELLO on a live connection");
    drop(link);
    scene.assert_as_before();
}

#[test]
fn servers_that_leave_at_every_step() {
    let mut scene = Scene::new();
    // HELLO and four ACKs: INIT, region and two rings are behind the client then, CONNECT is sent.
    for step in 0..=5 {
        for politely in [false, true] {
            let raw = scene.client();
            for answer in [hello(), Message::Ack, Message::Ack, Message::Ack, Message::Ack].iter().take(step)
            {
                scene.step(&raw, answer);
            }
            if politely {
                raw.say(&Message::disconnect("out of memory"));
            }
            drop(raw);
            let reason = until("the end", || {
                scene
                    .dialer
                    .process()
                    .into_iter()
                    .map(|event| match event {
                        Event::Refused { reason, .. } => reason.to_string(),
                        other => panic!("{other:?}"),
                    })
                    .next()
            });
            let expected = match politely {
                true => "peer refused: out of memory",
                false => "peer closed the connection during the handshake",
            };
            assert_eq!(reason, expected, "after {step} messages");
        }
    }
    scene.assert_as_before();
}

#[test]
fn servers_that_fall_silent_at_every_step() {
    let mut scene = Scene::with(DialerConfig { handshake_timeout: Duration::from_millis(20), ..config() });
    for step in 0..=5 {
        let reason = scene.refuses(|scene, raw| {
            for answer in [hello(), Message::Ack, Message::Ack, Message::Ack, Message::Ack].iter().take(step)
            {
                scene.step(raw, answer);
            }
        });
        assert_eq!(reason, "handshake not finished in 20 ms", "after {step} messages");
    }
    scene.assert_as_before();
}
