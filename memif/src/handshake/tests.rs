use super::*;
use crate::message::{AddRegion, AddRing, Init, Message, Secret, VERSION};
use crate::ring::Direction::{self, ClientToServer as C2S, ServerToClient as S2C};

const NO_FD: Attached<()> = Attached::None;

struct One {
    secret: Secret,
    name: Name,
    limits: PeerLimits,
    busy: bool,
}

impl Directory for One {
    fn find(&self, id: u32) -> Option<Admission<'_>> {
        let Self { secret, name, limits, busy } = self;
        (id == 7).then_some(Admission { mode: Mode::Ethernet, secret, name, limits, busy: *busy })
    }
}

fn one() -> One {
    let limits = PeerLimits { rings: 2, log2_ring: 15, ..PeerLimits::default() };
    One { secret: Secret::none(), name: text("server0"), limits, busy: false }
}

fn text(name: &str) -> Name {
    name.parse().expect("short")
}

fn init(id: u32) -> Init {
    Init { version: VERSION, id, mode: 0, secret: Secret::none(), name: text("client") }
}

fn region(index: u16, size: u64) -> (Message, Attached<u32>) {
    (Message::AddRegion(AddRegion { index, size }), Attached::One(100 + u32::from(index)))
}

fn ring(direction: Direction, index: u16, offset: u32, log2_size: u8) -> (Message, Attached<u32>) {
    let ring = AddRing { direction, index, region: 0, offset, log2_size, private_header: 0 };
    (Message::AddRing(ring), Attached::One(200 + u32::from(index)))
}

fn plain(message: Message) -> (Message, Attached<u32>) {
    (message, Attached::None)
}

/// Runs a client's script; every step but a last CONNECT must be answered with ACK.
fn serve(directory: &One, script: Vec<(Message, Attached<u32>)>) -> Result<Option<Offer<u32>>, String> {
    let mut server = ServerHandshake::default();
    for (message, attached) in script {
        match server.receive(message, attached, directory).map_err(|error| error.to_string())? {
            ServerStep::Reply(reply) => assert_eq!(reply, Message::Ack),
            ServerStep::Complete(offer, name) => {
                assert_eq!(name, directory.name);
                return Ok(Some(offer));
            }
            ServerStep::Left(end) => return Err(format!("left: {}", end.reason)),
        }
    }
    Ok(None)
}

/// What a server says to a script that is wrong in its last message.
fn refusal(directory: &One, script: Vec<(Message, Attached<u32>)>) -> String {
    let reason = serve(directory, script).expect_err("a refusal");
    assert!(reason.len() <= 95, "{reason} does not fit DISCONNECT");
    reason
}

fn after_init(rest: Vec<(Message, Attached<u32>)>) -> Vec<(Message, Attached<u32>)> {
    [plain(Message::Init(init(7)))].into_iter().chain(rest).collect()
}

#[test]
fn a_client_and_a_server_agree_in_lock_step() {
    let introduction = Introduction {
        id: 7,
        mode: Mode::Ethernet,
        secret: Secret::none(),
        program: text("client"),
        interface: text("client0"),
        rings: RingCounts { c2s: 3, s2c: 1 },
        log2_ring: 15,
    };
    let directory = one();
    let mut client = ClientHandshake::new(introduction);
    let mut server = ServerHandshake::default();
    let hello = ServerHandshake::<u32>::hello(&text("server"), &directory.limits);
    let Ok(ClientStep::Build(agreed)) = client.receive(hello, NO_FD) else { panic!("build") };
    assert_eq!(
        agreed,
        Agreed { rings: RingCounts { c2s: 2, s2c: 1 }, log2_ring: 14 },
        "cut to what HELLO allows"
    );

    let at = |direction, index, offset| AddRing {
        direction,
        index,
        region: 0,
        offset,
        log2_size: 1,
        private_header: 0,
    };
    let rings = vec![(at(C2S, 0, 0), 1), (at(C2S, 1, 160), 2), (at(S2C, 0, 320), 3)];
    let mut next = (client.announce(vec![(4096, 0)], rings), None);
    let mut sent = Vec::new();
    let offer = loop {
        sent.push(next.0.kind());
        let attached = next.1.map_or(Attached::None, Attached::One);
        match server.receive(next.0, attached, &directory).expect("a good client") {
            ServerStep::Reply(ack) => match client.receive(ack, NO_FD).expect("a good server") {
                ClientStep::Send(message, fd) => next = (message, fd),
                other => panic!("{other:?}"),
            },
            ServerStep::Complete(offer, name) => {
                let connected = client.receive(Message::Connected(name), NO_FD).expect("a good server");
                let ClientStep::Connected { program, interface } = connected else { panic!("{connected:?}") };
                assert_eq!((program.as_str(), interface.as_str()), ("server", "server0"));
                break offer;
            }
            ServerStep::Left(end) => panic!("{end:?}"),
        }
    };
    let kinds = [Kind::Init, Kind::AddRegion, Kind::AddRing, Kind::AddRing, Kind::AddRing, Kind::Connect];
    assert_eq!(sent, kinds);
    assert_eq!((offer.id, offer.program.as_str(), offer.interface.as_str()), (7, "client", "client0"));
    assert_eq!(offer.regions.iter().map(|region| region.file).collect::<Vec<_>>(), [0]);
    assert_eq!(offer.c2s.iter().map(|ring| ring.event).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(offer.s2c.iter().map(|ring| ring.event).collect::<Vec<_>>(), [3]);
    assert_eq!(offer.header, RingHeader::Lines64);
}

#[test]
fn nothing_but_init_is_taken_before_init() {
    for (script, reason) in [
        (plain(Message::Ack), "unexpected ACK before INIT"),
        (region(0, 4096), "unexpected ADD_REGION before INIT"),
        (ring(C2S, 0, 0, 10), "unexpected ADD_RING before INIT"),
        (plain(Message::Connect(text("c"))), "unexpected CONNECT before INIT"),
        (plain(Message::Connected(text("c"))), "unexpected CONNECTED before INIT"),
        (plain(ServerHandshake::<u32>::hello(&text("c"), &one().limits)), "unexpected HELLO before INIT"),
    ] {
        assert_eq!(refusal(&one(), vec![script]), reason);
    }
}

#[test]
fn init_is_refused_by_version_id_mode_and_repetition() {
    let refuse = |init| refusal(&one(), vec![plain(Message::Init(init))]);
    assert_eq!(
        refuse(Init { version: 0x0300, ..init(7) }),
        "unsupported version 0x0300; this server speaks 0x0200"
    );
    assert_eq!(refuse(init(8)), "no interface with id 8 on this socket");
    let mode = |mode| refuse(Init { mode, ..init(7) });
    assert_eq!(mode(1), "mode mismatch: interface is ethernet, client asked for ip");
    assert_eq!(mode(2), "mode mismatch: interface is ethernet, client asked for punt/inject");
    assert_eq!(mode(99), "mode mismatch: interface is ethernet, client asked for number 99");
    let twice = after_init(vec![plain(Message::Init(init(7)))]);
    assert_eq!(refusal(&one(), twice), "unexpected INIT after INIT");
}

#[test]
fn a_second_peer_is_refused_while_the_first_lives() {
    let busy = One { busy: true, ..one() };
    let reason = refusal(&busy, vec![plain(Message::Init(init(7)))]);
    assert_eq!(reason, "already connected: interface id 7 has a peer");
}

#[test]
fn the_secret_is_asked_before_anything_else_is_told() {
    let locked = One { secret: "hush".parse().expect("short"), busy: true, ..one() };
    let offer = |secret: Secret| refusal(&locked, vec![plain(Message::Init(Init { secret, ..init(7) }))]);
    assert_eq!(offer(Secret::none()), "secret required");
    assert_eq!(offer("hush!".parse().expect("short")), "incorrect secret");
    assert_eq!(offer("hush".parse().expect("short")), "already connected: interface id 7 has a peer");
}

#[test]
fn regions_come_in_order_and_within_limits() {
    let mut directory = one();
    directory.limits.regions = Limits { max_region_bytes: 8192, max_regions: 2, max_total_bytes: 10_000 };
    let refuse = |rest| refusal(&directory, after_init(rest));
    assert_eq!(refuse(vec![region(1, 4096)]), "ADD_REGION index 1; expected 0");
    assert_eq!(refuse(vec![region(0, 4096), region(0, 4096)]), "ADD_REGION index 0; expected 1");
    assert_eq!(refuse(vec![region(0, 0)]), "the region has no bytes");
    for size in [8193, u64::MAX] {
        let reason = refuse(vec![region(0, size)]);
        assert_eq!(reason, format!("a region of {size} bytes was asked for; at most 8192 are allowed here"));
    }
    let reason = refuse(vec![region(0, 8192), region(1, 8192)]);
    assert!(reason.ends_with("passes the limit of 10000 bytes here"), "{reason}");
    let reason = refuse(vec![region(0, 1), region(1, 1), region(2, 1)]);
    assert!(reason.starts_with("more than 2 regions"), "{reason}");
}

#[test]
fn rings_come_in_order_in_each_direction() {
    let refuse =
        |rest: Vec<_>| refusal(&one(), after_init([region(0, 1 << 20)].into_iter().chain(rest).collect()));
    assert_eq!(refuse(vec![ring(C2S, 1, 0, 5)]), "ADD_RING client-to-server index 1; expected 0");
    let mixed = vec![ring(C2S, 0, 0, 5), ring(S2C, 1, 1024, 5)];
    assert_eq!(refuse(mixed), "ADD_RING server-to-client index 1; expected 0");
    let again = vec![ring(C2S, 0, 0, 5), ring(C2S, 0, 1024, 5)];
    assert_eq!(refuse(again), "ADD_RING client-to-server index 0; expected 1");
    assert_eq!(refuse(vec![ring(C2S, 2, 0, 5)]), "Invalid ring index 2; at most 2 rings each way");
}

#[test]
fn ring_sizes_are_2_to_2_to_the_15() {
    let place = |log2| serve(&one(), after_init(vec![region(0, 1 << 20), ring(C2S, 0, 0, log2)]));
    for log2 in 1..=15 {
        assert!(place(log2).is_ok(), "2^{log2}");
    }
    for log2 in [0, 16, 17, 31, 32, 63, 64, 255] {
        let reason = place(log2).expect_err("too small or too large");
        assert_eq!(reason, format!("a ring of 2^{log2} slots was announced; 2^1 to 2^15 are allowed here"));
    }
}

#[test]
fn rings_lie_in_their_region_aligned_and_apart() {
    let refuse = |rest: Vec<_>| {
        refusal(&one(), after_init([region(0, 16512 + 128)].into_iter().chain(rest).collect()))
    };
    let reason = refuse(vec![ring(C2S, 0, 8, 5)]);
    assert!(reason.contains("offset 8, which is not a multiple of 16"), "{reason}");
    for offset in [144, 16512, 16640, u32::MAX - 15] {
        let reason = refuse(vec![ring(C2S, 0, offset, 10)]);
        assert!(reason.contains("ends beyond its region of 16640 bytes"), "{reason}");
    }
    let (Message::AddRing(add), attached) = ring(C2S, 0, 0, 5) else { panic!("a ring") };
    let elsewhere = (Message::AddRing(AddRing { region: 1, ..add }), attached);
    assert!(refuse(vec![elsewhere]).contains("in region 1, but only 1 regions"));
    let over = vec![ring(C2S, 0, 0, 5), ring(S2C, 0, 624, 5), plain(Message::Connect(text("c")))];
    assert!(refuse(over).contains("overlap"));
}

#[test]
fn private_headers_are_refused() {
    let (Message::AddRing(add), attached) = ring(C2S, 0, 0, 5) else { panic!("a ring") };
    let header = (Message::AddRing(AddRing { private_header: 64, ..add }), attached);
    let reason = refusal(&one(), after_init(vec![region(0, 1 << 20), header]));
    assert_eq!(reason, "private header of 64 bytes; only 0 is supported");
}

#[test]
fn descriptors_come_with_regions_and_rings_and_with_nothing_else() {
    let refuse = |message, attached| refusal(&one(), after_init(vec![(message, attached)]));
    let (add, _) = region(0, 4096);
    assert_eq!(refuse(add.clone(), Attached::None), "ADD_REGION without its file descriptor");
    assert_eq!(
        refuse(add, Attached::TooMany),
        "ADD_REGION with more file descriptors than one, or than this process may open"
    );
    let connect = Message::Connect(text("c"));
    assert_eq!(refuse(connect.clone(), Attached::One(1)), "CONNECT with a file descriptor; it carries none");
    assert_eq!(
        refuse(connect, Attached::TooMany),
        "CONNECT with more file descriptors than one, or than this process may open"
    );
}

#[test]
fn connect_needs_a_ring_each_way() {
    let connect = plain(Message::Connect(text("c")));
    let script = after_init(vec![region(0, 1 << 20), ring(C2S, 0, 0, 5), connect]);
    let reason = refusal(&one(), script);
    assert_eq!(reason, "CONNECT with 1 client-to-server and 0 server-to-client rings; one of each is needed");
}

#[test]
fn a_wider_ring_header_is_inferred_from_back_to_back_rings() {
    let connect = || plain(Message::Connect(text("c")));
    let header = |second: u32| {
        let script =
            after_init(vec![region(0, 1 << 20), ring(C2S, 0, 0, 10), ring(S2C, 0, second, 10), connect()]);
        serve(&one(), script).expect("a good client").expect("complete").header
    };
    assert_eq!(header(128 + 16384), RingHeader::Lines64);
    assert_eq!(header(256 + 16384), RingHeader::Lines128);
    assert_eq!(header(65536), RingHeader::NATIVE);
}

#[test]
fn nothing_is_taken_after_connect() {
    let mut server = ServerHandshake::default();
    let directory = one();
    let connect = plain(Message::Connect(text("c")));
    for (message, attached) in
        after_init(vec![region(0, 1 << 20), ring(C2S, 0, 0, 10), ring(S2C, 0, 16512, 10), connect])
    {
        server.receive(message, attached, &directory).expect("a good client");
    }
    let error = server.receive(Message::Ack, Attached::None, &directory).expect_err("too late");
    assert_eq!(error.to_string(), "unexpected ACK after CONNECT");
}

fn client() -> ClientHandshake<u32> {
    ClientHandshake::new(Introduction {
        id: 7,
        mode: Mode::Ip,
        secret: Secret::none(),
        program: text("client"),
        interface: text("client0"),
        rings: RingCounts { c2s: 1, s2c: 1 },
        log2_ring: 10,
    })
}

fn hello() -> crate::message::Hello {
    let Message::Hello(hello) = ServerHandshake::<u32>::hello(&text("server"), &PeerLimits::default()) else {
        panic!("HELLO")
    };
    hello
}

#[test]
fn a_client_refuses_servers_it_cannot_speak_with() {
    let refuse = |hello| client().receive(Message::Hello(hello), NO_FD).expect_err("refused").to_string();
    use crate::message::Hello;
    let newer = Hello { min_version: 0x0300, max_version: 0x0400, ..hello() };
    assert_eq!(refuse(newer), "server speaks versions 0x0300 to 0x0400; this client speaks 0x0200");
    assert!(refuse(Hello { max_log2_ring: 0, ..hello() }).contains("rings of 2^0 slots"));
}

#[test]
fn a_client_takes_no_message_out_of_order() {
    let mut early = client();
    let error = early.receive(Message::Ack, NO_FD).expect_err("too early");
    assert_eq!(error.to_string(), "unexpected ACK before HELLO");
    let mut client = client();
    client.receive(Message::Hello(hello()), NO_FD).expect("a good server");
    let error = client.receive(Message::Ack, NO_FD).expect_err("not announced yet");
    assert_eq!(error.to_string(), "unexpected ACK before INIT");
    client.announce(vec![], vec![]);
    let error = client.receive(Message::Connected(text("s")), NO_FD).expect_err("CONNECT was not sent");
    assert_eq!(error.to_string(), "unexpected CONNECTED while announcing");
    client.receive(Message::Ack, NO_FD).expect("CONNECT is due");
    let error = client.receive(Message::Ack, NO_FD).expect_err("CONNECT is not acknowledged");
    assert_eq!(error.to_string(), "unexpected ACK before CONNECTED");
}

#[test]
fn descriptors_from_a_server_are_refused() {
    let error = client()
        .receive(Message::Hello(hello()), Attached::One(()))
        .expect_err("no descriptor belongs there");
    assert_eq!(error.to_string(), "HELLO with a file descriptor; it carries none");
}

#[test]
fn both_sides_report_why_the_other_left() {
    let step = client().receive(Message::disconnect("no room"), NO_FD).expect("may leave at any time");
    let ClientStep::Left(end) = step else { panic!("{step:?}") };
    assert_eq!(end.reason.as_str(), "no room");
    assert_eq!(serve(&one(), vec![plain(Message::disconnect("bye"))]).expect_err("left"), "left: bye");
}
