//! Our client and our server with each other: the handshake, frames, and every way to part and meet again.

mod support;

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use memif::{
    Address, Dialer, DisconnectReason, Event, HandshakeError, InterfaceConfig, Listener, ListenerConfig,
    Mode, PeerLimits, RingCounts,
};
use support::*;

#[test]
fn frames_go_both_ways_over_a_path() {
    let place = Place::new();
    let mut listener = listener(&place.socket());
    let mut dialer = Dialer::new(place.socket(), dialer_config()).expect("a dialer");
    let (mut server, mut client) = connect(&mut listener, &mut dialer);
    assert_eq!((server.peer_program.as_str(), server.peer_interface.as_str()), ("vwire memif", "client0"));
    assert_eq!((client.peer_program.as_str(), client.peer_interface.as_str()), ("vwire memif", "server0"));
    assert_eq!(server.peer.pid, std::process::id() as i32);
    assert_eq!(server.peer.uid, rustix::process::getuid().as_raw());
    assert_traffic(&mut server, &mut client);
}

#[test]
fn frames_go_both_ways_over_an_abstract_name() {
    let name = format!("@memif-test-{}", std::process::id());
    let address: Address = name.parse().expect("short");
    let mut listener = listener(&address);
    let listed = std::fs::read_to_string("/proc/net/unix").expect("/proc");
    assert!(listed.lines().any(|line| line.ends_with(&format!(" {name}"))), "no NUL behind the name");
    let mut dialer = Dialer::new(address, dialer_config()).expect("a dialer");
    let (mut server, mut client) = connect(&mut listener, &mut dialer);
    assert_traffic(&mut server, &mut client);
}

#[test]
fn ip_mode_queues_and_ring_sizes_are_as_agreed() {
    let place = Place::new();
    let mut listener = Listener::bind(&place.socket(), ListenerConfig::default()).expect("bind");
    let limits = PeerLimits { rings: 3, ..PeerLimits::default() };
    let config = InterfaceConfig { limits, ..InterfaceConfig::new(Mode::Ip, "s".parse().expect("short")) };
    listener.add_interface(5, config);
    let mut config = dialer_config();
    config.id = 5;
    config.mode = Mode::Ip;
    config.rings = RingCounts { c2s: 2, s2c: 8 };
    config.log2_ring = 7;
    let mut dialer = Dialer::new(place.socket(), config).expect("a dialer");
    let (server, client) = connect(&mut listener, &mut dialer);
    for (rx, tx) in [(&server.rx, &client.tx), (&client.rx, &server.tx)] {
        assert_eq!(rx.len(), tx.len());
        assert!(rx.iter().all(|queue| queue.size() == 128) && tx.iter().all(|queue| queue.size() == 128));
    }
    assert_eq!((server.rx.len(), client.rx.len()), (2, 3), "8 wanted, 3 allowed");
    assert_eq!((server.mode, client.mode), (Mode::Ip, Mode::Ip));
}

#[test]
fn rings_of_2_and_of_2_to_the_14_carry_frames() {
    for log2 in [1, 14] {
        let place = Place::new();
        let mut listener = listener(&place.socket());
        let mut config = dialer_config();
        config.log2_ring = log2;
        let mut dialer = Dialer::new(place.socket(), config).expect("a dialer");
        let (mut server, mut client) = connect(&mut listener, &mut dialer);
        for round in 0..100 {
            let frames = vec![frame(2 * round, 60), frame(2 * round + 1, 1500)];
            send(&mut client, &frames);
            assert_eq!(receive(&mut server), frames);
            send(&mut server, &frames);
            assert_eq!(receive(&mut client), frames);
        }
    }
}

#[test]
fn several_interfaces_live_on_one_socket() {
    let place = Place::new();
    let mut listener = listener(&place.socket());
    assert!(listener.add_interface(7, interface()));
    assert!(!listener.add_interface(7, interface()), "the id is taken");
    let mut seven = dialer_config();
    seven.id = 7;
    let mut first = Dialer::new(place.socket(), dialer_config()).expect("a dialer");
    let mut second = Dialer::new(place.socket(), seven).expect("a dialer");
    let (mut server_0, mut client_0) = connect(&mut listener, &mut first);
    let (mut server_7, mut client_7) = connect(&mut listener, &mut second);
    send(&mut client_0, &[frame(0, 100)]);
    send(&mut client_7, &[frame(7, 100)]);
    assert_eq!(receive(&mut server_0), [frame(0, 100)]);
    assert_eq!(receive(&mut server_7), [frame(7, 100)]);
    assert!(listener.remove_interface(7));
    assert!(!listener.remove_interface(7));
    let reason = until_refused_or_down(&mut second);
    assert_eq!(reason, "peer disconnected: interface removed");
    assert_traffic(&mut server_0, &mut client_0);
}

/// Runs a dialer until it says why it has no link.
fn until_refused_or_down(dialer: &mut Dialer) -> String {
    until("the dialer's complaint", || {
        wait_readable(&[dialer.as_fd()], Duration::from_millis(50));
        dialer.process().into_iter().find_map(|event| match event {
            Event::Disconnected { reason, .. } => Some(reason.to_string()),
            Event::Refused { reason, .. } => Some(reason.to_string()),
            Event::Connected { .. } => None,
        })
    })
}

#[test]
fn a_client_comes_back_after_the_server_restarts() {
    let place = Place::new();
    let mut dialer = Dialer::new(place.socket(), dialer_config()).expect("a dialer");
    let reason = until_refused_or_down(&mut dialer);
    assert!(reason.contains("connect"), "no server yet: {reason}");
    for _ in 0..3 {
        let mut listener = listener(&place.socket());
        let (mut server, mut client) = connect(&mut listener, &mut dialer);
        assert_traffic(&mut server, &mut client);
        drop(listener);
        assert_eq!(until_refused_or_down(&mut dialer), "peer disconnected: server closed");
    }
    assert!(!place.path("m.sock").exists(), "the listener takes its socket file with it");
}

#[test]
fn a_server_takes_the_next_client_when_one_has_gone() {
    let place = Place::new();
    let mut listener = listener(&place.socket());
    for _ in 0..3 {
        assert_serves(&mut listener, &place.socket());
    }
}

#[test]
fn the_owner_ends_connections_with_a_reason_and_they_come_back() {
    let place = Place::new();
    let mut listener = listener(&place.socket());
    assert!(!listener.disconnect(0, "nobody there"));
    let mut dialer = Dialer::new(place.socket(), dialer_config()).expect("a dialer");
    connect(&mut listener, &mut dialer);
    assert!(listener.disconnect(0, "the operator said so"));
    assert_eq!(until_refused_or_down(&mut dialer), "peer disconnected: the operator said so");
    let (mut server, mut client) = connect(&mut listener, &mut dialer);
    assert_traffic(&mut server, &mut client);
    assert!(dialer.disconnect("ring fault"));
    let reason = until_event(&mut listener, "the client's leave", |event| match event {
        Event::Disconnected { id: 0, reason } => Some(reason.to_string()),
        _ => None,
    });
    assert_eq!(reason, "peer disconnected: ring fault");
    connect(&mut listener, &mut dialer);
}

#[test]
fn a_peer_that_just_closes_is_reported() {
    let (ours, theirs) = pair();
    let mut listener = Listener::detached(ListenerConfig::default()).expect("a listener");
    listener.add_interface(0, interface());
    let copy = theirs.try_clone().expect("dup");
    listener.adopt(ours).expect("a connected socket");
    let mut dialer = Dialer::from_connected(theirs, dialer_config()).expect("a connected socket");
    connect(&mut listener, &mut dialer);
    // Not by the dialer, which would say why.
    rustix::net::shutdown(&copy, rustix::net::Shutdown::Both).expect("shutdown");
    until_event(&mut listener, "the end", |event| match event {
        Event::Disconnected { id: 0, reason: DisconnectReason::Closed } => Some(()),
        _ => None,
    });
}

fn pair() -> (OwnedFd, OwnedFd) {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .expect("socketpair")
}

#[test]
fn connected_sockets_are_adopted_in_both_roles() {
    let (ours, theirs) = pair();
    let mut listener = Listener::detached(ListenerConfig::default()).expect("a listener");
    listener.add_interface(0, interface());
    listener.adopt(ours).expect("a connected socket");
    let mut dialer = Dialer::from_connected(theirs, dialer_config()).expect("a connected socket");
    let (mut server, mut client) = connect(&mut listener, &mut dialer);
    assert_traffic(&mut server, &mut client);
    listener.disconnect(0, "enough");
    assert!(!dialer.is_finished());
    assert_eq!(until_refused_or_down(&mut dialer), "peer disconnected: enough");
    assert!(dialer.is_finished(), "there is no address to connect to again");
}

#[test]
fn a_listening_socket_is_adopted() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
    let place = Place::new();
    let fd = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).expect("socket");
    rustix::net::bind(&fd, &SocketAddrUnix::new(place.path("m.sock")).expect("short")).expect("bind");
    let config = ListenerConfig::default;
    let dup = || fd.try_clone().expect("dup");
    let error = Listener::from_fd(dup(), config()).expect_err("not listening");
    assert_eq!(
        error.to_string(),
        "the file descriptor handed over is no listening memif socket: it is not listening"
    );
    rustix::net::listen(&fd, 5).expect("listen");
    let mut listener = Listener::from_fd(dup(), config()).expect("a listening socket");
    listener.add_interface(0, interface());
    assert_serves(&mut listener, &place.socket());
    drop(listener);
    assert!(place.path("m.sock").exists(), "the file is whoever's that bound it");
}

#[test]
fn descriptors_that_are_no_memif_sockets_are_not_adopted() {
    use rustix::net::{AddressFamily, SocketType};
    let refuse = |fd: OwnedFd| {
        let error = Dialer::from_connected(fd, dialer_config()).expect_err("unsuitable").to_string();
        error.rsplit(": ").next().expect("a reason").to_owned()
    };
    assert_eq!(refuse(support::raw::eventfd()), "it is not a socket");
    let (stream, _peer) = std::os::unix::net::UnixStream::pair().expect("socketpair");
    assert_eq!(refuse(stream.into()), "it is not of type SOCK_SEQPACKET");
    let alone = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).expect("socket");
    assert_eq!(refuse(alone), "it has no peer");
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    assert_eq!(refuse(udp.into()), "it is not a unix socket");
}

#[test]
fn a_dead_sockets_file_is_replaced_and_nothing_else_is() {
    let place = Place::new();
    let path = place.path("m.sock");
    let bind = || Listener::bind(&place.socket(), ListenerConfig::default());
    let occupied = || bind().expect_err("occupied").to_string();

    drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
    assert!(path.exists(), "a socket that nobody listens on");
    let live = bind().expect("replaced");
    assert!(occupied().ends_with("another process listens on it; it is left alone"));
    drop(live);

    let stream = std::os::unix::net::UnixListener::bind(&path).expect("bind");
    assert!(occupied().ends_with("a socket of another type has this name; it is left alone"));
    drop(stream);
    std::fs::remove_file(&path).expect("remove");

    std::fs::write(&path, "precious").expect("write");
    assert!(occupied().ends_with("a file that is no socket has this name; it is left alone"));
    assert_eq!(std::fs::read_to_string(&path).expect("still there"), "precious");
    std::fs::remove_file(&path).expect("remove");

    std::os::unix::fs::symlink("/nowhere", &path).expect("symlink");
    assert!(occupied().ends_with("a symbolic link has this name; it is left alone"));
    std::fs::remove_file(&path).expect("remove");

    std::fs::create_dir(&path).expect("mkdir");
    assert!(occupied().ends_with("a directory has this name; it is left alone"));
}

#[test]
fn a_secret_lets_in_who_knows_it() {
    let place = Place::new();
    let mut listener = Listener::bind(&place.socket(), ListenerConfig::default()).expect("bind");
    listener.add_interface(0, InterfaceConfig { secret: "hush".parse().expect("short"), ..interface() });
    let mut config = dialer_config();
    for (secret, reason) in
        [("", "peer refused: secret required"), ("hash", "peer refused: incorrect secret")]
    {
        config.secret = secret.parse().expect("short");
        let mut dialer = Dialer::new(place.socket(), config.clone()).expect("a dialer");
        let told = until("the refusal on both sides", || {
            wait_readable(&[listener.as_fd(), dialer.as_fd()], Duration::from_millis(50));
            listener.process();
            dialer.process().into_iter().find_map(|event| match event {
                Event::Refused { reason, .. } => Some(reason.to_string()),
                _ => None,
            })
        });
        assert_eq!(told, reason);
    }
    config.secret = "hush".parse().expect("short");
    let mut dialer = Dialer::new(place.socket(), config).expect("a dialer");
    let (mut server, mut client) = connect(&mut listener, &mut dialer);
    assert_traffic(&mut server, &mut client);
}

#[test]
fn a_client_refuses_a_server_of_another_user() {
    let place = Place::new();
    let mut listener = listener(&place.socket());
    let uid = rustix::process::getuid().as_raw();
    let mut config = dialer_config();
    config.expected_uid = Some(uid + 1);
    let mut dialer = Dialer::new(place.socket(), config).expect("a dialer");
    let refused = until("the refusal", || {
        wait_readable(&[listener.as_fd(), dialer.as_fd()], Duration::from_millis(50));
        listener.process();
        dialer.process().into_iter().find_map(|event| match event {
            Event::Refused { reason: HandshakeError::Uid { got, expected }, .. } => Some((got, expected)),
            _ => None,
        })
    });
    assert_eq!(refused, (uid, uid + 1));
    assert_serves(&mut listener, &place.socket());
}

#[test]
fn a_client_gives_up_on_a_silent_server_and_tries_again() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
    let place = Place::new();
    let silent = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).expect("socket");
    rustix::net::bind(&silent, &SocketAddrUnix::new(place.path("m.sock")).expect("short")).expect("bind");
    rustix::net::listen(&silent, 5).expect("listen");
    let mut config = dialer_config();
    config.handshake_timeout = Duration::from_millis(30);
    config.first_retry = Duration::from_millis(5);
    let mut dialer = Dialer::new(place.socket(), config).expect("a dialer");
    for _ in 0..2 {
        assert_eq!(until_refused_or_down(&mut dialer), "handshake not finished in 30 ms");
    }
}

#[test]
fn sockets_that_pass_credentials_are_served_too() {
    let (ours, theirs) = pair();
    for end in [&ours, &theirs] {
        rustix::net::sockopt::set_socket_passcred(end, true).expect("setsockopt");
    }
    let mut listener = Listener::detached(ListenerConfig::default()).expect("a listener");
    listener.add_interface(0, interface());
    listener.adopt(ours).expect("a connected socket");
    let mut dialer = Dialer::from_connected(theirs, dialer_config()).expect("a connected socket");
    let (mut server, mut client) = connect(&mut listener, &mut dialer);
    assert_traffic(&mut server, &mut client);
}

#[test]
fn impossible_shapes_are_found_before_a_server_is() {
    assert!(dialer_config().check().is_ok());
    let refuse = |change: fn(&mut memif::DialerConfig)| {
        let mut config = dialer_config();
        change(&mut config);
        config.check().expect_err("impossible").to_string()
    };
    assert!(refuse(|config| config.log2_ring = 0).contains("2^0"));
    assert!(refuse(|config| config.log2_ring = 16).contains("2^16"));
    assert!(refuse(|config| config.buffer_size = 65).contains("buffers of 65 bytes"));
    let large = refuse(|config| {
        config.log2_ring = 15;
        config.rings = RingCounts { c2s: 64, s2c: 64 };
    });
    assert!(large.contains("more than the 4 GiB"), "{large}");
}
