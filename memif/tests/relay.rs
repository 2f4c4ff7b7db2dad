//! Control messages passed on between a client and a server that never see each other's socket.

mod support;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use memif::{Address, Dialer, Event, Listener, Relay, RelayEvent};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use support::raw::{Heard, Raw, eventfd};
use support::*;

/// A listening socket as another process hands it over.
fn listening(address: &Address) -> OwnedFd {
    let Address::Path(path) = address else { unreachable!("the tests use paths") };
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .expect("socket");
    rustix::net::bind(&fd, &SocketAddrUnix::new(path.as_path()).expect("short")).expect("bind");
    rustix::net::listen(&fd, 8).expect("listen");
    fd
}

/// A relay from one socket to another, and how often it has dialled. Only one test runs at a time: some count descriptors.
struct Rig {
    place: Place,
    front: Address,
    back: Address,
    relay: Relay,
    dialled: Arc<AtomicUsize>,
    /// Last, so that the next test begins when all else is closed.
    _alone: std::sync::MutexGuard<'static, ()>,
}

impl Rig {
    fn new() -> Self {
        let alone = alone();
        let place = Place::new();
        let address = |name| Address::path(place.path(name)).expect("short");
        let (front, back) = (address("front"), address("back"));
        let dialled = Arc::new(AtomicUsize::new(0));
        let (count, to) = (Arc::clone(&dialled), back.clone());
        let dial = Box::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
            memif::connect(&to).map_err(|error| error.to_string())
        });
        let relay = Relay::new(listening(&front), dial).expect("a relay");
        Self { place, front, back, relay, dialled, _alone: alone }
    }

    /// Runs the relay until it says something.
    fn event(&mut self, what: &str) -> RelayEvent {
        until(what, || {
            wait_readable(&[self.relay.as_fd()], Duration::from_millis(50));
            self.relay.process().into_iter().next()
        })
    }

    fn is_up(&mut self) {
        let event = self.event("both sides");
        let RelayEvent::Up { client, server } = event else { panic!("{event:?}") };
        let me = std::process::id() as i32;
        assert_eq!((client.pid, server.pid), (me, me));
    }

    fn is_down(&mut self, why: &str) {
        assert_eq!(self.event("the end"), RelayEvent::Down(why.into()));
    }

    /// A client and a server of no manners, connected.
    fn raw_pair(&mut self) -> (Raw, Raw) {
        let server = listening(&self.back);
        let client = Raw::connect(&self.front);
        self.is_up();
        (client, Raw(rustix::net::accept_with(&server, SocketFlags::NONBLOCK).expect("it dialled")))
    }
}

/// Runs all three until both ends have a link.
fn meet(rig: &mut Rig, listener: &mut Listener, dialer: &mut Dialer) -> (memif::Link, memif::Link) {
    let (mut server, mut client) = (None, None);
    let link = |events: Vec<Event>| {
        events.into_iter().find_map(|event| match event {
            Event::Connected { link, .. } => Some(link),
            _ => None,
        })
    };
    until("a link on both sides", || {
        let fds = [rig.relay.as_fd(), listener.as_fd(), dialer.as_fd()];
        wait_readable(&fds, Duration::from_millis(50));
        rig.relay.process();
        server = server.take().or(link(listener.process()));
        client = client.take().or(link(dialer.process()));
        if server.is_some() && client.is_some() { server.take().zip(client.take()) } else { None }
    })
}

fn is_closed(raw: &Raw) {
    until("the close", || (raw.hear() == Heard::Closed).then_some(()));
}

#[test]
fn a_client_and_a_server_meet_and_meet_again() {
    let mut rig = Rig::new();
    let mut listener = listener(&rig.back);
    let mut dialer = Dialer::new(rig.front.clone(), dialer_config()).expect("a dialer");
    let (mut server, mut client) = meet(&mut rig, &mut listener, &mut dialer);
    assert_traffic(&mut server, &mut client);

    // The server ends it: the client hears why, and comes back by itself.
    assert!(listener.disconnect(0, "maintenance"));
    let reason = until("the client to be told", || {
        rig.relay.process();
        dialer.process().into_iter().find_map(|event| match event {
            Event::Disconnected { reason, .. } => Some(reason.to_string()),
            _ => None,
        })
    });
    assert!(reason.contains("maintenance"), "{reason}");
    let (mut server, mut client) = meet(&mut rig, &mut listener, &mut dialer);
    assert_traffic(&mut server, &mut client);

    // The client goes, and another comes.
    drop(dialer);
    until("the server to notice", || {
        rig.relay.process();
        listener.process().into_iter().find(|event| matches!(event, Event::Disconnected { .. }))
    });
    let mut dialer = Dialer::new(rig.front.clone(), dialer_config()).expect("a dialer");
    let (mut server, mut client) = meet(&mut rig, &mut listener, &mut dialer);
    assert_traffic(&mut server, &mut client);
}

#[test]
fn messages_pass_as_they_are_with_their_descriptor() {
    let mut rig = Rig::new();
    let (client, server) = rig.raw_pair();
    for (from, to) in [(&client, &server), (&server, &client)] {
        for len in [1, 2, 127, 128] {
            let bytes: Vec<u8> = (0..len).map(|i| i as u8 ^ 0x5a).collect();
            let event = eventfd();
            from.bytes(&bytes, &[event.as_fd()]).expect("send");
            let mut got = [0; 200];
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
            let received = until("the message", || {
                rig.relay.process();
                let mut to_fill = [std::io::IoSliceMut::new(&mut got)];
                rustix::net::recvmsg(to, &mut to_fill, &mut control, rustix::net::RecvFlags::DONTWAIT).ok()
            });
            assert_eq!(&got[..received.bytes], &bytes);
            let fds: Vec<OwnedFd> = control
                .drain()
                .flat_map(|message| match message {
                    rustix::net::RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
                    _ => Vec::new(),
                })
                .collect();
            assert_eq!(fds.len(), 1);
            rustix::io::write(&fds[0], &7u64.to_ne_bytes()).expect("an eventfd");
            let mut count = [0; 8];
            rustix::io::read(&event, &mut count).expect("the same eventfd");
            assert_eq!(u64::from_ne_bytes(count), 7);
        }
    }
}

#[test]
fn either_end_takes_the_other_with_it() {
    let mut rig = Rig::new();
    let (client, server) = rig.raw_pair();
    client.bytes(&[1; 128], &[]).expect("send");
    drop(client);
    rig.is_down("the client closed the connection");
    assert_eq!(rustix::io::read(&server, &mut [0; 200]).expect("the last message"), 128);
    is_closed(&server);
    std::fs::remove_file(rig.place.path("back")).expect("the old socket");
    let (client, server) = rig.raw_pair();
    drop(server);
    rig.is_down("the server closed the connection");
    is_closed(&client);
}

#[test]
fn what_the_protocol_never_sends_ends_the_connection() {
    let mut rig = Rig::new();
    let before = Holdings::now();
    for round in 0..3 {
        let (client, server) = rig.raw_pair();
        let fds = [eventfd(), eventfd()];
        let why = match round {
            0 => {
                client.bytes(&[0; 129], &[]).expect("send");
                "the client sent a message of more than 128 bytes"
            }
            1 => {
                client.bytes(&[0; 128], &[fds[0].as_fd(), fds[1].as_fd()]).expect("send");
                "the client sent more than one descriptor with a message"
            }
            _ => {
                server.bytes(&[0; 4096], &[]).expect("send");
                "the server sent a message of more than 128 bytes"
            }
        };
        rig.is_down(why);
        is_closed(&client);
        is_closed(&server);
        std::fs::remove_file(rig.place.path("back")).expect("the old socket");
    }
    assert_eq!(Holdings::now(), before);
}

#[test]
fn a_side_that_does_not_read_ends_the_connection() {
    let mut rig = Rig::new();
    let before = Holdings::now();
    let (client, server) = rig.raw_pair();
    let event = eventfd();
    let mut sent = 0;
    let why = until("the relay to give up", || {
        // As much as fits, each with a descriptor, and nobody reads at the other end.
        while sent < 100_000 && rustix::net::sockopt::socket_error(&client).is_ok() {
            match try_send(&client, &event) {
                Ok(()) => sent += 1,
                Err(_) => break,
            }
        }
        rig.relay.process().into_iter().next()
    });
    assert_eq!(why, RelayEvent::Down("the server does not read".into()));
    assert!(sent > 16, "{sent}");
    drop((client, server, event));
    assert_eq!(Holdings::now(), before, "also the descriptors that were on their way");
}

/// Sends without waiting.
fn try_send(to: &Raw, fd: &OwnedFd) -> Result<(), rustix::io::Errno> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    let fds = [fd.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(to, &[std::io::IoSlice::new(&[9; 128])], &mut control, flags).map(drop)
}

#[test]
fn clients_are_sent_away_while_there_is_no_server_and_not_too_often() {
    let mut rig = Rig::new();
    let begin = Instant::now();
    let mut refused = 0;
    let mut clients = Vec::new();
    until("a few refusals", || {
        // Somebody who connects all the time.
        clients.retain(|client: &Raw| client.hear() == Heard::Nothing);
        clients.extend(Raw::try_connect(&rig.front));
        for event in rig.relay.process() {
            let RelayEvent::Refused(why) = event else { panic!("{event:?}") };
            assert!(why.contains("back: connect: No such file or directory"), "{why}");
            refused += 1;
        }
        (refused == 3).then_some(())
    });
    let dialled = rig.dialled.load(Ordering::Relaxed);
    assert_eq!(dialled, 3);
    assert!(begin.elapsed() >= Duration::from_millis(100) * (dialled as u32 - 1));
    // A server comes, and the next client gets through.
    let server = listening(&rig.back);
    rig.is_up();
    drop(server);
}

#[test]
fn the_next_client_waits_until_the_first_is_done() {
    let mut rig = Rig::new();
    let server = listening(&rig.back);
    let first = Raw::connect(&rig.front);
    rig.is_up();
    let second = Raw::connect(&rig.front);
    second.bytes(&[2; 128], &[]).expect("send");
    assert!(!wait_readable(&[rig.relay.as_fd()], Duration::from_millis(200)), "nothing to be done for it");
    drop(first);
    rig.is_down("the client closed the connection");
    rig.is_up();
    let accept = || rustix::net::accept_with(&server, SocketFlags::NONBLOCK).expect("a connection");
    drop(accept());
    let theirs = accept();
    let mut got = [0; 200];
    let len = until("the second client's message", || {
        rig.relay.process();
        rustix::io::read(&theirs, &mut got).ok()
    });
    assert_eq!(got[..len], [2; 128]);
}

#[test]
fn a_socket_that_does_not_listen_is_refused() {
    let _alone = alone();
    let dial = || Err("never".to_owned());
    let error = Relay::new(eventfd(), Box::new(dial)).expect_err("an eventfd").to_string();
    assert!(error.contains("is no listening memif socket"), "{error}");
}
