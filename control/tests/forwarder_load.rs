//! Many connections at one time: all are made, all can be told apart, and nothing is left of any. Prints how fast it went, and asserts
//! nothing about that. Needs root.

mod engine_support;
mod netns_support;

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use engine_support::*;
use memif::{Event, InterfaceConfig, Link, Listener, ListenerConfig, Mode, Name};
use netns_support::Netns;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::sync::Semaphore;
use vwire_control::dataplane::client::Change;
use vwire_control::dataplane::wanted::Redial;
use vwire_dataplane::netns::in_netns;
use vwire_proto::dataplane::v1 as pb;

const CONNECTIONS: usize = 128;

async fn many(rig: &Arc<Rig>, nsc: &Arc<Netns>, at_once: usize) {
    let places = Arc::new(Semaphore::new(at_once));
    let begun = Instant::now();
    let mut asking_all = tokio::task::JoinSet::new();
    for at in 0..CONNECTIONS {
        let (rig, nsc, places) = (Arc::clone(rig), Arc::clone(nsc), Arc::clone(&places));
        asking_all.spawn(async move {
            let _place = places.acquire().await.unwrap();
            let offer = mechanism(
                "REMOTE",
                "VXLAN",
                &[("src_ip", "10.9.0.2".into()), ("src_port", "4789".into()), ("MTU", "1446".into())],
            );
            let _ = &nsc;
            rig.request(asking(&format!("id-{at}"), "ETHERNET", vec![offer]), None).await.unwrap()
        });
    }
    let made = asking_all.join_all().await;
    let took = begun.elapsed();
    let numbers: std::collections::BTreeSet<_> =
        made.iter().map(|one| one.mechanism.clone().unwrap().parameters["vni"].clone()).collect();
    assert_eq!(numbers.len(), CONNECTIONS, "each has a number of its own");
    assert_eq!(rig.ports().await.len(), 3 * CONNECTIONS, "two ports and their cross-connect each");
    let closing = Instant::now();
    let mut ends = tokio::task::JoinSet::new();
    for one in made {
        let (rig, places) = (Arc::clone(rig), Arc::clone(&places));
        ends.spawn(async move {
            let _place = places.acquire().await.unwrap();
            rig.close(&one).await.unwrap();
        });
    }
    ends.join_all().await;
    let rate = |took: std::time::Duration| CONNECTIONS as f64 / took.as_secs_f64();
    eprintln!("{at_once:3} at once: {:5.0} Requests/s, {:5.0} Closes/s", rate(took), rate(closing.elapsed()));
    assert!(rig.ports().await.is_empty() && rig.dataplane.wanted.vnis.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_to_interfaces() {
    let [one, _two] = Node::two(false);
    let rig = Arc::new(one.rig(Endpoint::default()).await);
    let nse = Arc::new(Netns::new("nse"));
    // An interface for each connection, named by the forwarder.
    *rig.endpoint.mechanism.lock().unwrap() =
        mechanism("LOCAL", "KERNEL", &[("inodeURL", nse.sent().0.to_string())]);
    *rig.endpoint.fd.lock().unwrap() = Some(nse.sent());
    for at_once in [1, 16, 64] {
        many(&rig, &nse, at_once).await;
    }
    assert_eq!(nse.ip("-o link").lines().count(), 1, "only lo is left");
}

/// A memif server: on a thread of its own it accepts one connection, and looks at the world at that moment. Ends with this.
struct Server {
    end: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<Option<bool>>>,
}

impl Server {
    /// Listens as `@name` in the namespace; `look` is asked when somebody connects.
    fn start(netns: &Netns, name: &str, look: impl FnOnce() -> bool + Send + 'static) -> Self {
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
        let listening = in_netns(Some(netns.namespace().fd().as_fd()), || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket =
                rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
            rustix::net::bind(&socket, &address).unwrap();
            rustix::net::listen(&socket, 8).unwrap();
            socket
        });
        let (listening, end) = (listening.unwrap(), Arc::<AtomicBool>::default());
        let ending = Arc::clone(&end);
        let thread = std::thread::spawn(move || serve(&listening, look, &ending));
        Self { end, thread: Some(thread) }
    }

    /// What `look` said, if somebody connected.
    fn seen(mut self) -> Option<bool> {
        self.end.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

fn readable(fd: impl AsFd) -> bool {
    let tick = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
    rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&tick)) == Ok(1)
}

fn serve(listening: &OwnedFd, look: impl FnOnce() -> bool, end: &AtomicBool) -> Option<bool> {
    let mut seen = None;
    let mut look = Some(look);
    let mut links: Vec<Link> = Vec::new();
    let mut server = Listener::detached(ListenerConfig::default()).unwrap();
    server.add_interface(0, InterfaceConfig::new(Mode::Ethernet, Name::cut("server")));
    while !end.load(Ordering::Relaxed) {
        match rustix::net::accept(listening) {
            Ok(connected) => {
                seen = seen.or(look.take().map(|look| look()));
                server.adopt(connected).unwrap();
            }
            Err(error) => assert_eq!(std::io::Error::from(error).kind(), ErrorKind::WouldBlock),
        }
        if readable(&server) {
            links.extend(server.process().into_iter().filter_map(|event| match event {
                Event::Connected { link, .. } => Some(link),
                _ => None,
            }));
        }
    }
    seen
}

/// A memif's server waits two seconds for the handshake, and many interfaces take the kernel longer than that.
#[tokio::test(flavor = "multi_thread")]
async fn a_memif_is_dialled_only_when_the_interface_beside_it_is_there() {
    const AT_ONCE: usize = 32;
    let [one, _two] = Node::two(false);
    let rig = Arc::new(one.rig(Endpoint::default()).await);
    let (nsc, nse) = (Arc::new(Netns::new("nsc")), Netns::new("nse"));
    let mut chosen = memif(&nse);
    chosen.parameters.insert("socketfile".into(), "@/tmp/memif/{id}/memif.socket".into());
    *rig.endpoint.mechanism.lock().unwrap() = chosen;
    *rig.endpoint.fd.lock().unwrap() = Some(nse.sent());
    let mut servers = Vec::new();
    let mut asking_all = tokio::task::JoinSet::new();
    for at in 0..AT_ONCE {
        let (rig, nsc, id, ifname) =
            (Arc::clone(&rig), Arc::clone(&nsc), format!("id-{at}"), format!("nsm-{at}"));
        let look = {
            let (nsc, ifname) = (Arc::clone(&nsc), ifname.clone());
            move || nsc.ip("-o link").contains(&format!(" {ifname}:"))
        };
        servers.push(Server::start(&nse, &format!("/tmp/memif/{id}/memif.socket"), look));
        asking_all.spawn(async move {
            let request = asking(&id, "ETHERNET", vec![kernel(&nsc, &ifname)]);
            // As a client does: those who wait for their interfaces longest have little time left.
            loop {
                match rig.request(request.clone(), Some(&nsc)).await {
                    Err(status) if status.message().contains("handshake") => panic!("{status}"),
                    Err(status) => eprintln!("{id} asks again: {status}"),
                    Ok(made) => return made,
                }
            }
        });
    }
    let made = asking_all.join_all().await;
    assert_eq!(rig.ports().await.len(), 3 * AT_ONCE);
    for one in made {
        rig.close(&one).await.unwrap();
    }
    for (at, server) in servers.into_iter().enumerate() {
        assert_eq!(server.seen(), Some(true), "{at}: its interface was there when it was dialled");
    }
    assert!(rig.ports().await.is_empty());
}

/// One memif connection is good for one attempt: who is in one transaction with a change that is refused gets another.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_refused_spoils_no_memif_connection_of_another() {
    const EACH: usize = 8;
    let home = Home::new();
    let rig = Rig::new(&home).await;
    let nse = Netns::new("nse");
    let client = &rig.dataplane.client;
    let servers: Vec<Server> =
        (0..EACH).map(|at| Server::start(&nse, &format!("/vw/{at}"), || true)).collect();
    let memif = |name: String, role: pb::memif::Role, socket: String| {
        let memif =
            pb::Memif { role: role.into(), socket, mode: pb::Mode::Ethernet.into(), ..Default::default() };
        pb::Port { name, kind: Some(pb::port::Kind::Memif(memif)), ..Default::default() }
    };
    let good = (0..EACH).map(|at| {
        let mut change = Change::default();
        let to = Redial { namespace: nse.namespace(), socket: format!("@/vw/{at}") };
        let port = memif(format!("good{at}"), pb::memif::Role::Client, String::new());
        change.push_dialled(port, to, Instant::now() + PATIENCE);
        client.apply(change)
    });
    let bad = (0..EACH).map(|at| {
        let mut change = Change::default();
        let port = memif(format!("bad{at}"), pb::memif::Role::Server, format!("/proc/nobody/{at}"));
        change.push(pb::op::Op::SetPort(port));
        client.apply(change)
    });
    let (good, bad) = tokio::join!(futures::future::join_all(good), futures::future::join_all(bad));
    good.into_iter().for_each(|made| made.unwrap());
    bad.into_iter().for_each(|made| assert!(made.is_err()));
    for at in 0..EACH {
        client.wait_up(&format!("good{at}"), Instant::now() + PATIENCE).await.unwrap();
    }
    for server in servers {
        assert_eq!(server.seen(), Some(true));
    }
}
