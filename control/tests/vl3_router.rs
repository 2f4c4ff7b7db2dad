//! The routing domain of a vL3 endpoint at an engine: memifs that are attached are routed between, restarts of either side touch nothing
//! that agrees, and errors leave nothing behind. Needs root.

mod engine_support;
mod netns_support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use engine_support::*;
use ipnet::IpNet;
use netns_support::Netns;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use vwire_control::dataplane::client::Client;
use vwire_control::dataplane::ends::Payload;
use vwire_control::vl3::router::{Attachment, End, Place, Restored, Route, Router};

/// A router that stops following the engine when it is dropped, as a process that dies.
struct Started {
    router: Arc<Router>,
    restored: Vec<Restored>,
    shutdown: CancellationToken,
}

impl Started {
    async fn at(home: &Home) -> Self {
        // Not by the client: it would start another one when the test has ended this one.
        home.launcher.ensure().await.unwrap();
        let (client, events) = Client::new(&home.launcher.socket(), None);
        let shutdown = CancellationToken::new();
        let (router, restored) = Router::start(client, events, "vl3", shutdown.clone()).await.unwrap();
        Self { router, restored, shutdown }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn routes(prefixes: &[&str]) -> Vec<Route> {
    prefixes.iter().map(|prefix| prefix.parse::<IpNet>().unwrap().into()).collect()
}

fn listening(netns: &Netns, socket: &str, prefixes: &[&str]) -> Attachment {
    let place = Place { namespace: netns.namespace(), socket: socket.to_owned() };
    Attachment {
        end: End::Listen(place),
        payload: Payload::Ip,
        mtu: 1500,
        routes: routes(prefixes),
        note: socket.into(),
    }
}

fn example(name: &str) -> PathBuf {
    program(&format!("examples/{name}"))
}

/// A host that answers pings, at a port that listens.
fn host(netns: &Netns, socket: &str, address: &str) -> Process {
    let args = ["--role", "client", "--socket", socket, "--mode", "ip", "--address", address];
    Process::inside(netns, &example("icmp_responder"), &[&args[..], &["--gateway", "10.60.0.0"]].concat())
}

/// Five pings from a host at a port that listens.
fn pinged(netns: &Netns, socket: &str, address: &str, to: &str) -> Result<String, String> {
    let mut args = vec!["--role", "client", "--socket", socket, "--mode", "ip", "--address", address];
    args.extend(["--gateway", "10.60.0.0", "--count", "5", "--interval", "0.01", to]);
    Process::inside(netns, &example("ping"), &args).success()
}

async fn up(router: &Router, port: &str) {
    router.wait_up(port, Instant::now() + PATIENCE).await.unwrap();
}

async fn snapshot(router: &Router) -> vwire_proto::dataplane::v1::GetSnapshotResponse {
    router.client().snapshot().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_attached_is_routed_and_survives_both_sides() {
    let (home, netns) = (Home::new(), Netns::new("vl3"));
    let started = Started::at(&home).await;
    let router = &started.router;
    assert_eq!(started.restored, []);
    router.set_gateways(&["10.60.0.0".parse().unwrap()]).await.unwrap();
    router.attach("a", listening(&netns, "@vl3-a", &["10.60.0.1/32"])).await.unwrap();
    router.attach("b", listening(&netns, "@vl3-b", &["10.60.0.2/32"])).await.unwrap();
    let _b = host(&netns, "@vl3-b", "10.60.0.2/32");
    up(router, "b").await;
    let ping = |to: &'static str| pinged(&netns, "@vl3-a", "10.60.0.1/32", to);
    ping("10.60.0.0").unwrap();
    ping("10.60.0.2").unwrap();
    // A source that does not lead to the port.
    pinged(&netns, "@vl3-a", "10.60.0.9/32", "10.60.0.2").unwrap_err();

    // The same once more is no change.
    let before = snapshot(router).await;
    router.attach("b", listening(&netns, "@vl3-b", &["10.60.0.2/32"])).await.unwrap();
    assert_eq!(snapshot(router).await.generation, before.generation);

    // Refused: a prefix of another port. Nothing of it is left.
    let taken = router.attach("c", listening(&netns, "@vl3-c", &["10.60.0.3/32", "10.60.0.2/32"])).await;
    let taken = taken.unwrap_err();
    assert_eq!((taken.code(), taken.message().contains("port b")), (Code::AlreadyExists, true), "{taken}");
    assert_eq!(
        (router.ports(), snapshot(router).await.generation),
        (vec!["a".into(), "b".into()], before.generation)
    );

    // We die and come back: nothing is touched, the link is as it was.
    drop(started);
    let started = Started::at(&home).await;
    let router = &started.router;
    let after = snapshot(router).await;
    assert_eq!((after.generation, after.instance), (before.generation, before.instance));
    let restored: Vec<_> =
        started.restored.iter().map(|port| (&port.port[..], &port.note[..], port.mtu)).collect();
    assert_eq!(restored, [("a", &b"@vl3-a"[..], 1500), ("b", b"@vl3-b", 1500)]);
    assert_eq!(started.restored[1].routes, routes(&["10.60.0.2/32"]));
    assert_eq!(router.gateways(), ["10.60.0.0".parse::<std::net::IpAddr>().unwrap()]);
    router.attach("a", listening(&netns, "@vl3-a", &["10.60.0.1/32"])).await.unwrap();
    router.attach("b", listening(&netns, "@vl3-b", &["10.60.0.2/32"])).await.unwrap();
    assert_eq!(snapshot(router).await.generation, before.generation);
    assert!(router.link("b").unwrap().up);
    ping("10.60.0.2").unwrap();

    // Other routes and another MTU, of one port and of all.
    router.set_routes("b", routes(&["10.60.0.2/32", "10.61.0.0/16"])).await.unwrap();
    router.lower_mtu(1400).await.unwrap();
    let state = snapshot(router).await.state.unwrap();
    let domain = &state.domains[0];
    assert_eq!(domain.ports.iter().map(|port| port.mtu).collect::<Vec<_>>(), [1400, 1400]);
    assert_eq!(domain.routes.len(), 3);

    // The engine dies: another one holds the same, and the hosts connect again.
    home.kill_engine();
    let deadline = Instant::now() + PATIENCE;
    let holds = async || {
        // The one that was killed may still accept.
        home.launcher.ensure().await.unwrap();
        let Ok(now) = router.client().snapshot().await else { return false };
        now.instance != before.instance
            && now.state.is_some_and(|now| now.domains == state.domains && now.ports.len() == 2)
    };
    while !holds().await {
        assert!(Instant::now() < deadline, "{:?}", router.client().snapshot().await);
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    drop(_b);
    let _b = host(&netns, "@vl3-b", "10.60.0.2/32");
    up(router, "b").await;
    ping("10.60.0.2").unwrap();

    router.detach("a").await.unwrap();
    router.detach("a").await.unwrap();
    assert_eq!(router.routes().len(), 2);
    router.clear().await.unwrap();
    let state = snapshot(router).await.state.unwrap();
    assert_eq!((state.ports.len(), state.domains.len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_we_dial_is_a_port_like_any_other() {
    let (home, netns) = (Home::new(), Netns::new("vl3"));
    let started = Started::at(&home).await;
    let router = &started.router;
    router.set_gateways(&["10.60.0.0".parse().unwrap()]).await.unwrap();
    router.attach("a", listening(&netns, "@vl3-a", &["10.60.0.1/32"])).await.unwrap();
    let dialled = || {
        let place = Place { namespace: netns.namespace(), socket: "@peer".to_owned() };
        Attachment { end: End::Dial(place), ..listening(&netns, "@peer", &["10.60.1.0/24"]) }
    };
    let nobody = router.attach("peer", dialled()).await.unwrap_err();
    assert_eq!(nobody.code(), Code::Unavailable, "{nobody}");
    assert_eq!(router.ports(), ["a"]);
    let args = ["--role", "server", "--socket", "@peer", "--mode", "ip", "--address", "10.60.1.7/24"];
    let args = [&args[..], &["--gateway", "10.60.0.0"]].concat();
    let peer = Process::inside(&netns, &example("icmp_responder"), &args);
    router.attach("peer", dialled()).await.unwrap();
    up(router, "peer").await;
    let ping = || pinged(&netns, "@vl3-a", "10.60.0.1/32", "10.60.1.7");
    ping().unwrap();

    // It goes and comes back: it is dialled again.
    drop(peer);
    let _peer = Process::inside(&netns, &example("icmp_responder"), &args);
    let deadline = Instant::now() + PATIENCE;
    while ping().is_err() {
        assert!(Instant::now() < deadline, "{:?}", router.link("peer"));
    }
}
