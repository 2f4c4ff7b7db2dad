//! Clients that break the control protocol in every way we know. After each, the client was told why, the
//! listener has given back all it was handed, and the next client is served.

mod support;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::MutexGuard;
use std::time::Duration;

use memif::message::{AddRing, Init, Message, Secret};
use memif::region::Limits;
use memif::ring::Direction::{ClientToServer as C2S, ServerToClient as S2C};
use memif::{DisconnectReason, Event, InterfaceConfig, Listener, ListenerConfig, PeerLimits};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use support::raw::*;
use support::*;

/// A listener with one interface, and a count of what this process held when it began.
struct Scene {
    listener: Listener,
    before: Holdings,
    /// A copy of the listening socket, such as a peer may get hold of.
    own: OwnedFd,
    place: Place,
    _alone: MutexGuard<'static, ()>,
}

impl Scene {
    fn new() -> Self {
        Self::with(ListenerConfig::default(), interface())
    }

    fn with(config: ListenerConfig, interface: InterfaceConfig) -> Self {
        let alone = alone();
        let place = Place::new();
        let own = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).expect("socket");
        rustix::net::bind(&own, &SocketAddrUnix::new(place.path("m.sock")).expect("short")).expect("bind");
        rustix::net::listen(&own, 64).expect("listen");
        let mut listener =
            Listener::from_fd(own.try_clone().expect("dup"), config).expect("a listening socket");
        listener.add_interface(0, interface);
        // What is opened once and for all, such as the guard against truncated regions, is opened now.
        assert_serves(&mut listener, &place.socket());
        Self { listener, before: Holdings::now(), own, place, _alone: alone }
    }

    /// A peer that has been greeted.
    fn peer(&mut self) -> Raw {
        let raw = Raw::connect(&self.place.socket());
        self.until_heard(&raw, |message| matches!(message, Message::Hello(_)));
        raw
    }

    fn until_heard(&mut self, raw: &Raw, wanted: impl Fn(&Message) -> bool) {
        until("the server's answer", || {
            assert!(self.listener.process().is_empty(), "no event yet");
            match raw.hear() {
                Heard::Message(message) => {
                    assert!(wanted(&message), "{message:?}");
                    Some(())
                }
                Heard::Nothing => None,
                Heard::Closed => panic!("closed"),
            }
        });
    }

    /// Sends one message and waits for its ACK.
    fn step(&mut self, raw: &Raw, message: &Message, fd: Option<&OwnedFd>) {
        match fd {
            Some(fd) => raw.say_with(message, fd),
            None => raw.say(message),
        }
        self.until_heard(raw, |answer| *answer == Message::Ack);
    }

    /// Waits until the listener gives up on `raw`; returns the reason in the event, which is also what the
    /// peer is told.
    fn end_of(&mut self, raw: Raw) -> String {
        let reason = until_event(&mut self.listener, "the end of the peer", |event| match event {
            Event::Refused { reason, .. } => Some(reason.to_string()),
            Event::Disconnected { reason: DisconnectReason::Protocol(error), .. } => Some(error.to_string()),
            Event::Disconnected { reason, .. } => panic!("{reason}"),
            Event::Connected { .. } => panic!("connected"),
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
        let told = told.expect("a DISCONNECT");
        assert!(reason.starts_with(&told) && (told.len() >= 93 || told == reason), "{told} is not {reason}");
        reason
    }

    /// One bad client from HELLO to DISCONNECT.
    fn refuses(&mut self, play: impl FnOnce(&mut Self, &Raw)) -> String {
        let raw = self.peer();
        play(self, &raw);
        self.end_of(raw)
    }

    fn refuses_bytes(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> String {
        self.refuses(|_, raw| raw.bytes(bytes, fds).expect("send"))
    }

    fn refuses_message(&mut self, message: &Message) -> String {
        self.refuses(|_, raw| raw.say(message))
    }

    fn refuses_init(&mut self, init: Init) -> String {
        self.refuses_message(&Message::Init(init))
    }

    /// After a good INIT.
    fn refuses_after_init(&mut self, message: &Message, fds: &[&OwnedFd]) -> String {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        self.refuses(|scene, raw| {
            scene.step(raw, &Message::Init(init()), None);
            raw.bytes(&message.encode(), &fds).expect("send");
        })
    }

    /// After a good INIT and one good region.
    fn refuses_ring(&mut self, ring: AddRing) -> String {
        self.refuses(|scene, raw| {
            scene.with_region(raw);
            raw.say_with(&Message::AddRing(ring), eventfd());
        })
    }

    fn with_region(&mut self, raw: &Raw) {
        self.step(raw, &Message::Init(init()), None);
        self.step(raw, &add_region(0, REGION), Some(&memory(REGION)));
    }

    /// After everything but CONNECT, with these descriptors.
    fn all_but_connect(&mut self, raw: &Raw, size: u64, file: &OwnedFd, event: &OwnedFd) {
        self.step(raw, &Message::Init(init()), None);
        self.step(raw, &add_region(0, size), Some(file));
        self.step(raw, &Message::AddRing(ring(C2S, 0)), Some(event));
        self.step(raw, &Message::AddRing(ring(S2C, SECOND_RING)), Some(&eventfd()));
    }

    fn refuses_connect(&mut self, size: u64, file: &OwnedFd, event: &OwnedFd) -> String {
        self.refuses(|scene, raw| {
            scene.all_but_connect(raw, size, file, event);
            raw.say(&Message::Connect(name("raw0")));
        })
    }

    /// A raw client that has a link.
    fn live(&mut self) -> (Raw, memif::Link) {
        let raw = self.peer();
        self.all_but_connect(&raw, REGION, &memory(REGION), &eventfd());
        raw.say(&Message::Connect(name("raw0")));
        let link = until_event(&mut self.listener, "the link", |event| match event {
            Event::Connected { link, .. } => Some(link),
            other => panic!("{other:?}"),
        });
        self.until_heard(&raw, |message| *message == Message::Connected(name("server0")));
        (raw, link)
    }

    /// Nothing is left of any peer, and the next is served.
    fn assert_as_before(mut self) {
        assert_serves(&mut self.listener, &self.place.socket());
        assert_eq!(Holdings::now(), self.before);
    }
}

#[test]
fn a_raw_client_that_behaves_is_served() {
    let mut scene = Scene::new();
    let (raw, link) = scene.live();
    assert_eq!((link.rx[0].size(), link.tx[0].size()), (32, 32));
    drop((raw, link));
    until_event(&mut scene.listener, "the end", |event| match event {
        Event::Disconnected { id: 0, reason: DisconnectReason::Closed } => Some(()),
        _ => None,
    });
    scene.assert_as_before();
}

#[test]
fn unknown_short_and_long_messages() {
    let mut scene = Scene::new();
    let mut bytes = Message::Ack.encode();
    bytes[0] = 9;
    assert_eq!(scene.refuses_bytes(&bytes, &[]), "unknown control message type 9");
    bytes[..2].copy_from_slice(&[0, 0]);
    assert_eq!(scene.refuses_bytes(&bytes, &[]), "unknown control message type 0");
    let init = Message::Init(init()).encode();
    assert_eq!(scene.refuses_bytes(&init[..1], &[]), "control message of 1 bytes; memif's have 128");
    assert_eq!(scene.refuses_bytes(&init[..127], &[]), "control message of 127 bytes; memif's have 128");
    let long = [init, init].concat();
    // What is beyond is not read, so its number is not known.
    assert_eq!(scene.refuses_bytes(&long, &[]), "control message of 129 bytes; memif's have 128");
    scene.assert_as_before();
}

#[test]
fn messages_before_init() {
    let mut scene = Scene::new();
    for message in [Message::Ack, Message::Connect(name("c")), Message::Connected(name("c"))] {
        let expected = format!("unexpected {} before INIT", message.kind());
        assert_eq!(scene.refuses_message(&message), expected);
    }
    let memory = memory(REGION);
    let bytes = add_region(0, REGION).encode();
    assert_eq!(scene.refuses_bytes(&bytes, &[memory.as_fd()]), "unexpected ADD_REGION before INIT");
    let bytes = Message::AddRing(ring(C2S, 0)).encode();
    assert_eq!(scene.refuses_bytes(&bytes, &[memory.as_fd()]), "unexpected ADD_RING before INIT");
    drop(memory);
    scene.assert_as_before();
}

#[test]
fn a_second_init() {
    let mut scene = Scene::new();
    assert_eq!(scene.refuses_after_init(&Message::Init(init()), &[]), "unexpected INIT after INIT");
    scene.assert_as_before();
}

#[test]
fn wrong_version_id_and_mode() {
    let mut scene = Scene::new();
    let version = scene.refuses_init(Init { version: 0x0100, ..init() });
    assert_eq!(version, "unsupported version 0x0100; this server speaks 0x0200");
    let id = scene.refuses_init(Init { id: u32::MAX, ..init() });
    assert_eq!(id, "no interface with id 4294967295 on this socket");
    let mode = scene.refuses_init(Init { mode: 1, ..init() });
    assert_eq!(mode, "mode mismatch: interface is ethernet, client asked for ip");
    let mode = scene.refuses_init(Init { mode: 2, ..init() });
    assert_eq!(mode, "mode mismatch: interface is ethernet, client asked for punt/inject");
    let mode = scene.refuses_init(Init { mode: 255, ..init() });
    assert_eq!(mode, "mode mismatch: interface is ethernet, client asked for number 255");
    scene.assert_as_before();
}

#[test]
fn missing_wrong_and_unterminated_secrets() {
    let config = InterfaceConfig { secret: "hush".parse().expect("short"), ..interface() };
    let mut scene = Scene::with(ListenerConfig::default(), interface());
    assert!(scene.listener.add_interface(1, config));
    let with = |secret: &str| Init { id: 1, secret: secret.parse::<Secret>().expect("short"), ..init() };
    assert_eq!(scene.refuses_init(with("")), "secret required");
    assert_eq!(scene.refuses_init(with("hus")), "incorrect secret");
    assert_eq!(scene.refuses_init(with("hush!")), "incorrect secret");
    let mut unterminated = Message::Init(with("hush")).encode();
    unterminated[9..33].fill(b's');
    assert_eq!(scene.refuses_bytes(&unterminated, &[]), "INIT secret is not terminated");
    scene.assert_as_before();
}

#[test]
fn names_that_are_not_terminated_or_not_utf8() {
    let mut scene = Scene::new();
    let mut bytes = Message::Init(init()).encode();
    bytes[33..65].fill(b'n');
    assert_eq!(scene.refuses_bytes(&bytes, &[]), "INIT name is not terminated");
    bytes[33..37].copy_from_slice(&[b'v', 0xc3, 0x28, 0]);
    assert_eq!(scene.refuses_bytes(&bytes, &[]), "INIT name is not UTF-8");
    for (field, problem) in [(&[b'n'; 32][..], "terminated"), (&[0xff, 0], "UTF-8")] {
        let reason = scene.refuses(|scene, raw| {
            scene.all_but_connect(raw, REGION, &memory(REGION), &eventfd());
            let mut bytes = Message::Connect(name("c")).encode();
            bytes[2..2 + field.len()].copy_from_slice(field);
            raw.bytes(&bytes, &[]).expect("send");
        });
        assert_eq!(reason, format!("CONNECT interface name is not {problem}"));
    }
    scene.assert_as_before();
}

#[test]
fn region_indices_that_skip_repeat_or_pass_the_limit() {
    let limits =
        PeerLimits { regions: Limits { max_regions: 1, ..Limits::default() }, ..PeerLimits::default() };
    let mut scene = Scene::with(ListenerConfig::default(), InterfaceConfig { limits, ..interface() });
    let skip = scene.refuses_after_init(&add_region(1, REGION), &[&memory(REGION)]);
    assert_eq!(skip, "ADD_REGION index 1; expected 0");
    let far = scene.refuses_after_init(&add_region(u16::MAX, REGION), &[&memory(REGION)]);
    assert_eq!(far, "ADD_REGION index 65535; expected 0");
    let again = |index: u16| {
        move |scene: &mut Scene, raw: &Raw| {
            scene.with_region(raw);
            raw.say_with(&add_region(index, REGION), memory(REGION));
        }
    };
    assert_eq!(scene.refuses(again(0)), "ADD_REGION index 0; expected 1");
    assert_eq!(scene.refuses(again(1)), "more than 1 regions were announced, which is the limit here");
    scene.assert_as_before();
}

#[test]
fn ring_indices_that_skip_mix_or_pass_the_limit() {
    let limits = PeerLimits { rings: 1, ..PeerLimits::default() };
    let mut scene = Scene::with(ListenerConfig::default(), InterfaceConfig { limits, ..interface() });
    scene.listener.add_interface(1, interface());
    let over = scene.refuses_ring(AddRing { index: 1, ..ring(C2S, 0) });
    assert_eq!(over, "Invalid ring index 1; at most 1 rings each way");
    let wider = |second: AddRing| {
        move |scene: &mut Scene, raw: &Raw| {
            scene.step(raw, &Message::Init(Init { id: 1, ..init() }), None);
            scene.step(raw, &add_region(0, REGION), Some(&memory(REGION)));
            scene.step(raw, &Message::AddRing(ring(C2S, 0)), Some(&eventfd()));
            raw.say_with(&Message::AddRing(second), eventfd());
        }
    };
    let skip = scene.refuses(wider(AddRing { index: 2, ..ring(C2S, SECOND_RING) }));
    assert_eq!(skip, "ADD_RING client-to-server index 2; expected 1");
    let repeat = scene.refuses(wider(ring(C2S, SECOND_RING)));
    assert_eq!(repeat, "ADD_RING client-to-server index 0; expected 1");
    let mix = scene.refuses(wider(AddRing { index: 1, ..ring(S2C, SECOND_RING) }));
    assert_eq!(mix, "ADD_RING server-to-client index 1; expected 0");
    let far = scene.refuses(wider(AddRing { index: 65535, ..ring(S2C, SECOND_RING) }));
    assert_eq!(far, "Invalid ring index 65535; at most 256 rings each way");
    scene.assert_as_before();
}

#[test]
fn ring_sizes_of_none_and_too_many_slots_and_private_headers() {
    let mut scene = Scene::new();
    for log2_size in [0, 16, 255] {
        let reason = scene.refuses_ring(AddRing { log2_size, ..ring(C2S, 0) });
        assert_eq!(
            reason,
            format!("a ring of 2^{log2_size} slots was announced; 2^1 to 2^15 are allowed here")
        );
    }
    let header = scene.refuses_ring(AddRing { private_header: 1, ..ring(C2S, 0) });
    assert_eq!(header, "private header of 1 bytes; only 0 is supported");
    scene.assert_as_before();
}

#[test]
fn rings_of_2_to_the_15_slots_are_served() {
    let mut scene = Scene::new();
    let raw = scene.peer();
    let bytes = 128 + (16 << 15);
    let region = memory(2 * bytes);
    rustix::io::pwrite(&region, &memif::ring::COOKIE.to_ne_bytes(), bytes).expect("write");
    scene.step(&raw, &Message::Init(init()), None);
    scene.step(&raw, &add_region(0, 2 * bytes), Some(&region));
    scene.step(&raw, &Message::AddRing(AddRing { log2_size: 15, ..ring(C2S, 0) }), Some(&eventfd()));
    scene.step(
        &raw,
        &Message::AddRing(AddRing { log2_size: 15, ..ring(S2C, bytes as u32) }),
        Some(&eventfd()),
    );
    raw.say(&Message::Connect(name("raw0")));
    let link = until_event(&mut scene.listener, "the link", |event| match event {
        Event::Connected { link, .. } => Some(link),
        other => panic!("{other:?}"),
    });
    assert_eq!((link.rx[0].size(), link.tx[0].size()), (32768, 32768));
    drop((raw, region, link));
    until_event(&mut scene.listener, "the end", |event| {
        matches!(event, Event::Disconnected { .. }).then_some(())
    });
    scene.assert_as_before();
}

#[test]
fn rings_unaligned_beyond_the_end_in_no_region_or_over_each_other() {
    let mut scene = Scene::new();
    for offset in [1, 4, 8, 65529] {
        let reason = scene.refuses_ring(ring(C2S, offset));
        assert_eq!(reason, format!("a ring was announced at offset {offset}, which is not a multiple of 16"));
    }
    let end = REGION as u32;
    for offset in [end - SECOND_RING + 16, end, u32::MAX - 15] {
        let reason = scene.refuses_ring(ring(C2S, offset));
        assert!(reason.contains("ends beyond its region of 65536 bytes"), "{reason}");
    }
    for region in [1, u16::MAX] {
        let reason = scene.refuses_ring(AddRing { region, ..ring(C2S, 0) });
        assert_eq!(reason, format!("a ring was announced in region {region}, but only 1 regions were"));
    }
    let reason = scene.refuses(|scene, raw| {
        scene.with_region(raw);
        scene.step(raw, &Message::AddRing(ring(C2S, 0)), Some(&eventfd()));
        scene.step(raw, &Message::AddRing(ring(S2C, SECOND_RING - 16)), Some(&eventfd()));
        raw.say(&Message::Connect(name("raw0")));
    });
    assert_eq!(reason, format!("two rings overlap in region 0, at offsets 0 and {}", SECOND_RING - 16));
    scene.assert_as_before();
}

#[test]
fn rings_without_a_cookie_and_no_rings() {
    let mut scene = Scene::new();
    let blank = rustix::fs::memfd_create("raw", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
    rustix::fs::ftruncate(&blank, REGION).expect("ftruncate");
    let reason = scene.refuses_connect(REGION, &blank, &eventfd());
    assert!(reason.contains("begins with 0x00000000 instead of the cookie 0x03e31f20"), "{reason}");
    let none = scene.refuses(|scene, raw| {
        scene.with_region(raw);
        raw.say(&Message::Connect(name("raw0")));
    });
    assert_eq!(none, "CONNECT with 0 client-to-server and 0 server-to-client rings; one of each is needed");
    drop(blank);
    scene.assert_as_before();
}

#[test]
fn regions_of_no_bytes_more_than_the_file_and_more_than_the_limit() {
    let regions = Limits { max_region_bytes: 1 << 20, max_total_bytes: 3 << 19, ..Limits::default() };
    let limits = PeerLimits { regions, ..PeerLimits::default() };
    let mut scene = Scene::with(ListenerConfig::default(), InterfaceConfig { limits, ..interface() });
    let none = scene.refuses_after_init(&add_region(0, 0), &[&memory(REGION)]);
    assert_eq!(none, "the region has no bytes");
    for size in [(1 << 20) + 1, 1 << 40, u64::MAX] {
        let reason = scene.refuses_after_init(&add_region(0, size), &[&memory(REGION)]);
        assert_eq!(
            reason,
            format!("a region of {size} bytes was asked for; at most 1048576 are allowed here")
        );
    }
    let total = scene.refuses(|scene, raw| {
        scene.step(raw, &Message::Init(init()), None);
        scene.step(raw, &add_region(0, 1 << 20), Some(&memory(1 << 20)));
        raw.say_with(&add_region(1, 1 << 20), memory(1 << 20));
    });
    assert!(total.contains("passes the limit of 1572864 bytes"), "{total}");
    let short = scene.refuses_connect(REGION + 1, &memory(REGION), &eventfd());
    assert_eq!(short, "the region was announced with 65537 bytes but its file has 65536");
    scene.assert_as_before();
}

#[test]
fn no_two_and_253_descriptors_in_one_message() {
    let mut scene = Scene::new();
    let add = add_region(0, REGION);
    assert_eq!(scene.refuses_after_init(&add, &[]), "ADD_REGION without its file descriptor");
    let memory = memory(REGION);
    for count in [2, 3, 253] {
        let reason = scene.refuses_after_init(&add, &vec![&memory; count]);
        assert_eq!(reason, "ADD_REGION with more file descriptors than one, or than this process may open");
    }
    let ring = Message::AddRing(ring(C2S, 0));
    assert_eq!(scene.refuses_after_init(&ring, &[]), "ADD_RING without its file descriptor");
    drop(memory);
    scene.assert_as_before();
}

#[test]
fn descriptors_on_messages_that_take_none() {
    let mut scene = Scene::new();
    let memory = memory(REGION);
    let bytes = Message::Init(init()).encode();
    assert_eq!(
        scene.refuses_bytes(&bytes, &[memory.as_fd()]),
        "INIT with a file descriptor; it carries none"
    );
    let many = [memory.as_fd(); 253];
    assert_eq!(
        scene.refuses_bytes(&bytes, &many),
        "INIT with more file descriptors than one, or than this process may open"
    );
    for message in [Message::Ack, Message::Connect(name("c"))] {
        let reason = scene.refuses_after_init(&message, &[&memory]);
        assert_eq!(reason, format!("{} with a file descriptor; it carries none", message.kind()));
    }
    let mut unknown = Message::Ack.encode();
    unknown[0] = 77;
    assert_eq!(scene.refuses_bytes(&unknown, &many), "unknown control message type 77");
    assert_eq!(scene.refuses_bytes(&unknown[..5], &many), "control message of 5 bytes; memif's have 128");
    drop(memory);
    scene.assert_as_before();
}

/// Descriptors of all the wrong kinds, by what they are. None of them is a region; the eventfd at the end is
/// a good event.
fn wrong_kinds(scene: &Scene) -> Vec<(&'static str, OwnedFd)> {
    use rustix::fs::{Mode, OFlags};
    // A disk, where a temporary directory may be none.
    let disk = std::env::current_exe().expect("a path");
    let open = |flags| rustix::fs::open(&disk, flags | OFlags::CLOEXEC, Mode::empty()).expect("open");
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipe");
    let (near, _) = std::os::unix::net::UnixStream::pair().expect("socketpair");
    let directory =
        rustix::fs::open(scene.place.path("."), OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/zero").expect("open");
    vec![
        ("a file on a disk", open(OFlags::RDONLY)),
        ("an O_PATH descriptor", open(OFlags::PATH)),
        ("the reading end of a pipe", read),
        ("the writing end of a pipe", write),
        ("a socket", near.into()),
        ("our own listening socket", scene.own.try_clone().expect("dup")),
        ("a connection to ourselves", Raw::connect(&scene.place.socket()).0),
        ("a region opened for reading only", open_for_reading(&memory(REGION))),
        ("a directory", directory.expect("open")),
        ("a device", device.into()),
        ("an eventfd", eventfd()),
    ]
}

fn open_for_reading(memory: &OwnedFd) -> OwnedFd {
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(memory));
    std::fs::File::open(path).expect("open").into()
}

#[test]
fn regions_that_are_no_memory() {
    let mut scene = Scene::new();
    for (kind, fd) in wrong_kinds(&scene) {
        let connection = kind.starts_with("a connection");
        let reason = scene.refuses_connect(4096, &fd, &eventfd());
        assert!(
            ["no regular file", "not in memory", "the file"].iter().any(|known| reason.contains(known)),
            "{kind}: {reason}"
        );
        drop(fd);
        if connection {
            until_event(&mut scene.listener, "its end", |event| {
                matches!(event, Event::Refused { .. }).then_some(())
            });
        }
    }
    scene.assert_as_before();
}

#[test]
fn events_that_are_no_eventfds() {
    let mut scene = Scene::new();
    let mut kinds = wrong_kinds(&scene);
    kinds.pop();
    kinds.push(("a region", memory(REGION)));
    for (kind, fd) in kinds {
        let connection = kind.starts_with("a connection");
        let reason = scene.refuses_connect(REGION, &memory(REGION), &fd);
        assert!(reason.contains("not an eventfd"), "{kind}: {reason}");
        drop(fd);
        if connection {
            until_event(&mut scene.listener, "its end", |event| {
                matches!(event, Event::Refused { .. }).then_some(())
            });
        }
    }
    scene.assert_as_before();
}

#[test]
fn clients_that_leave_at_every_step() {
    let mut scene = Scene::new();
    for step in 0..=4 {
        for politely in [false, true] {
            let raw = scene.peer();
            let (memory, event) = (memory(REGION), eventfd());
            let script: [(Message, Option<&OwnedFd>); 4] = [
                (Message::Init(init()), None),
                (add_region(0, REGION), Some(&memory)),
                (Message::AddRing(ring(C2S, 0)), Some(&event)),
                (Message::AddRing(ring(S2C, SECOND_RING)), Some(&event)),
            ];
            for (message, fd) in &script[..step] {
                scene.step(&raw, message, *fd);
            }
            if politely {
                raw.say(&Message::disconnect("changed my mind"));
            }
            drop(raw);
            let (id, reason) = until_event(&mut scene.listener, "the end", |event| match event {
                Event::Refused { id, reason, .. } => Some((id, reason.to_string())),
                other => panic!("{other:?}"),
            });
            assert_eq!(id, (step > 0).then_some(0), "INIT names the interface");
            let expected = match politely {
                true => "peer refused: changed my mind",
                false => "peer closed the connection during the handshake",
            };
            assert_eq!(reason, expected);
        }
    }
    scene.assert_as_before();
}

#[test]
fn clients_that_leave_before_hello_and_right_after_connect() {
    let mut scene = Scene::new();
    drop(Raw::connect(&scene.place.socket()));
    until_event(&mut scene.listener, "the end", |event| matches!(event, Event::Refused { .. }).then_some(()));
    let raw = scene.peer();
    scene.all_but_connect(&raw, REGION, &memory(REGION), &eventfd());
    raw.say(&Message::Connect(name("raw0")));
    drop(raw);
    // Whether CONNECTED could still be sent is the kernel's business; a link, if there was one, is reported
    // down.
    let mut up = false;
    let was_up = until_event(&mut scene.listener, "the end", |event| match event {
        Event::Connected { .. } => {
            up = true;
            None
        }
        Event::Disconnected { .. } => Some(true),
        Event::Refused { .. } => Some(false),
    });
    assert_eq!(was_up, up);
    scene.assert_as_before();
}

fn hasty() -> ListenerConfig {
    ListenerConfig { handshake_timeout: Duration::from_millis(40), ..ListenerConfig::default() }
}

#[test]
fn silent_clients_meet_the_deadline_at_every_step() {
    let mut scene = Scene::with(hasty(), interface());
    let late = "handshake not finished in 40 ms";
    assert_eq!(scene.refuses(|_, _| ()), late);
    assert_eq!(scene.refuses(|scene, raw| scene.step(raw, &Message::Init(init()), None)), late);
    assert_eq!(scene.refuses(|scene, raw| scene.with_region(raw)), late);
    let all = scene.refuses(|scene, raw| scene.all_but_connect(raw, REGION, &memory(REGION), &eventfd()));
    assert_eq!(all, late);
    scene.assert_as_before();
}

#[test]
fn a_slow_handshake_holds_up_nobody_else() {
    let mut scene = Scene::new();
    scene.listener.add_interface(1, interface());
    let slow = scene.peer();
    scene.step(&slow, &Message::Init(Init { id: 1, ..init() }), None);
    let address = scene.place.socket();
    assert_serves(&mut scene.listener, &address);
    // The interface that the slow one has named is its own until the deadline.
    let second = scene.refuses_init(Init { id: 1, ..init() });
    assert_eq!(second, "already connected: interface id 1 has a peer");
    scene.step(&slow, &add_region(0, REGION), Some(&memory(REGION)));
    drop(slow);
    until_event(&mut scene.listener, "its end", |event| matches!(event, Event::Refused { .. }).then_some(()));
    scene.assert_as_before();
}

#[test]
fn a_flood_of_connections_is_bounded_and_keeps_nobody_out() {
    // No help from the deadline.
    let patient = ListenerConfig { handshake_timeout: 10 * PATIENCE, ..ListenerConfig::default() };
    let mut scene = Scene::with(patient, interface());
    let address = scene.place.socket();
    let (mut silent, mut crowded) = (Vec::new(), 0);
    for _ in 0..200 {
        // The backlog may be full; then the flood waits, and the listener works.
        while let Ok(raw) = Raw::try_connect(&address) {
            silent.push(raw);
            if silent.len() % 20 == 0 {
                break;
            }
        }
        for event in scene.listener.process() {
            let Event::Refused { reason, .. } = event else { panic!("{event:?}") };
            assert_eq!(reason.to_string(), "too many handshakes at once; at most 16");
            crowded += 1;
        }
    }
    assert!(crowded > 100, "{crowded} of {} were displaced", silent.len());
    assert_serves(&mut scene.listener, &address);
    drop(silent);
    until("the flood to be gone", || {
        scene.listener.process();
        (Holdings::now() == scene.before).then_some(())
    });
    scene.assert_as_before();
}

#[test]
fn floods_of_acks() {
    let mut scene = Scene::new();
    let flood = |raw: &Raw| (0..100).for_each(|_| _ = raw.bytes(&Message::Ack.encode(), &[]));
    assert_eq!(scene.refuses(|_, raw| flood(raw)), "unexpected ACK before INIT");
    let after = scene.refuses(|scene, raw| {
        scene.step(raw, &Message::Init(init()), None);
        flood(raw);
    });
    assert_eq!(after, "unexpected ACK after INIT");
    let (raw, link) = scene.live();
    flood(&raw);
    assert_eq!(scene.end_of(raw), "unexpected ACK on a live connection");
    drop(link);
    scene.assert_as_before();
}

#[test]
fn messages_on_a_live_connection() {
    let mut scene = Scene::new();
    let memory = memory(REGION);
    let kinds: [(Message, &[BorrowedFd<'_>]); 4] = [
        (Message::Init(init()), &[]),
        (add_region(1, REGION), &[memory.as_fd()]),
        (Message::AddRing(ring(C2S, 4096)), &[memory.as_fd()]),
        (Message::Connect(name("again")), &[]),
    ];
    for (message, fds) in kinds {
        let (raw, link) = scene.live();
        raw.bytes(&message.encode(), fds).expect("send");
        assert_eq!(scene.end_of(raw), format!("unexpected {} on a live connection", message.kind()));
        drop(link);
    }
    drop(memory);
    scene.assert_as_before();
}

#[test]
fn a_second_client_of_a_connected_interface() {
    let mut scene = Scene::new();
    let (raw, link) = scene.live();
    for _ in 0..3 {
        assert_eq!(scene.refuses_init(init()), "already connected: interface id 0 has a peer");
    }
    assert_eq!(raw.hear(), Heard::Nothing, "the first is not disturbed");
    drop((raw, link));
    until_event(&mut scene.listener, "the end", |event| {
        matches!(event, Event::Disconnected { .. }).then_some(())
    });
    scene.assert_as_before();
}

#[test]
fn clients_of_another_user() {
    let _alone = alone();
    let place = Place::new();
    let uid = rustix::process::getuid().as_raw();
    let config = ListenerConfig { expected_uid: Some(uid + 1), ..ListenerConfig::default() };
    let mut listener = Listener::bind(&place.socket(), config).expect("bind");
    listener.add_interface(0, interface());
    let raw = Raw::connect(&place.socket());
    let (peer, reason) = until_event(&mut listener, "the refusal", |event| match event {
        Event::Refused { peer, reason, .. } => Some((peer, reason.to_string())),
        other => panic!("{other:?}"),
    });
    assert_eq!(peer.map(|peer| peer.uid), Some(uid));
    assert_eq!(reason, format!("peer has uid {uid}; only uid {} may connect", uid + 1));
    assert_eq!(raw.hear(), Heard::Message(Message::disconnect(&reason)), "without HELLO");
    assert_eq!(raw.hear(), Heard::Closed);
}
