//! Restarts and losses: of the forwarder, of the engine, of a client's namespace. Needs root.

mod engine_support;
mod netns_support;

use std::path::Path;

use engine_support::*;
use netns_support::Netns;
use vwire_control::api::connection::Connection;
use vwire_control::api::networkservice::NetworkServiceRequest;
use vwire_control::lab::pings;

/// Two workloads with interfaces, and the connection between them.
struct Pair {
    nsc: Netns,
    nse: Netns,
    made: Connection,
}

async fn kernel_pair(rig: &Rig, seconds: u64) -> Pair {
    let (nsc, nse) = (Netns::new("nsc"), Netns::new("nse"));
    kernel_endpoint(rig, &nse);
    let mut request = asking("id-1", "ETHERNET", vec![kernel(&nsc, "nsm-1")]);
    let path = request.connection.as_mut().unwrap().path.as_mut().unwrap();
    let end = std::time::SystemTime::now() + std::time::Duration::from_secs(seconds);
    path.path_segments[0].expires = Some(end.into());
    let made = rig.request(request, Some(&nsc)).await.unwrap();
    Pair { nsc, nse, made }
}

fn kernel_endpoint(rig: &Rig, nse: &Netns) {
    *rig.endpoint.mechanism.lock().unwrap() = kernel(nse, "nsm-nse");
    *rig.endpoint.fd.lock().unwrap() = Some(nse.sent());
    *rig.endpoint.context.lock().unwrap() = addresses(false);
}

fn again(made: &Connection) -> NetworkServiceRequest {
    NetworkServiceRequest { connection: Some(made.clone()), mechanism_preferences: vec![] }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarder_that_starts_again_finds_its_vwires_and_no_packet_is_lost() {
    let home = Home::new();
    let rig = Rig::new(&home).await;
    let pair = kernel_pair(&rig, 600).await;
    let before = (rig.ports().await, pair.nsc.ip("-o link"), pair.nse.ip("-o link"));
    let arguments = pings::arguments(100);
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    arguments.push("10.60.1.2");
    let ping = Process::inside(&pair.nsc, Path::new("ping"), &arguments);
    drop(rig);
    let rig = Rig::new(&home).await;
    assert_eq!(rig.dataplane.wanted.ids(), ["id-1"]);
    kernel_endpoint(&rig, &pair.nse);
    let refreshed = rig.request(again(&pair.made), Some(&pair.nsc)).await.unwrap();
    assert_eq!(refreshed.mechanism, pair.made.mechanism);
    let after = (rig.ports().await, pair.nsc.ip("-o link"), pair.nse.ip("-o link"));
    assert_eq!(after, before, "what agrees is not touched");
    let said = tokio::task::spawn_blocking(|| ping.success()).await.unwrap().unwrap();
    assert_eq!(pings::lost(&said, 100), [0; 0], "{said}");

    drop(rig);
    let rig = Rig::new(&home).await;
    rig.close(&pair.made).await.unwrap();
    assert_eq!(rig.endpoint.closed.lock().unwrap().len(), 1, "a Close after a restart goes all the way");
    assert_eq!(rig.ports().await, Vec::<String>::new());
    assert!(!pair.nsc.ip("-o link").contains("nsm-1") && !pair.nse.ip("-o link").contains("nsm-nse"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_refreshes_after_a_restart_ends_at_its_time() {
    let home = Home::new();
    let rig = Rig::new(&home).await;
    let pair = kernel_pair(&rig, 2).await;
    drop(rig);
    let rig = Rig::new(&home).await;
    rig.eventually("it ends", async |rig| rig.ports().await.is_empty()).await;
    assert!(!pair.nsc.ip("-o link").contains("nsm-1"));
    assert!(rig.dataplane.wanted.ids().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_engines_death_interfaces_are_reported_down_and_made_again_by_a_request() {
    let home = Home::new();
    let rig = Rig::new(&home).await;
    let pair = kernel_pair(&rig, 600).await;
    ping(&pair.nsc, "10.60.1.2", &[]).unwrap();
    home.kill_engine();
    rig.eventually("it is reported", async |rig| {
        rig.downs.lock().unwrap().iter().any(|down| down.starts_with("id-1"))
    })
    .await;
    rig.request(again(&pair.made), Some(&pair.nsc)).await.unwrap();
    ping(&pair.nsc, "10.60.1.2", &[]).unwrap();
    rig.close(&pair.made).await.unwrap();
    assert_eq!(rig.ports().await, Vec::<String>::new());
}

/// Where a memif endpoint listens.
const THERE: &str = "@/tmp/memif/nse/memif.socket";

/// Two workloads with memifs, and the connection between them.
struct MemifPair {
    nsc: Netns,
    _nse: Netns,
    responder: Process,
    made: Connection,
}

impl MemifPair {
    async fn new(rig: &Rig) -> Self {
        let (nsc, nse) = (Netns::new("nsc"), Netns::new("nse"));
        let args = ["--role", "server", "--socket", THERE, "--address", "10.60.1.2/30"];
        let responder = Process::inside(&nse, &program("examples/icmp_responder"), &args);
        memif_endpoint(rig, &nse);
        let made = rig.request(asking("id-1", "ETHERNET", vec![memif(&nsc)]), Some(&nsc)).await.unwrap();
        Self { nsc, _nse: nse, responder, made }
    }

    /// A program that attaches to the client's end and pings so often.
    fn client(&self, count: &str) -> Process {
        let socket = &self.made.mechanism.as_ref().unwrap().parameters["socketfile"];
        let place = ["--role", "client", "--socket", socket, "--address", "10.60.1.1/30"];
        let pings = ["--interval", "0.01", "--count", count, "10.60.1.2"];
        Process::inside(&self.nsc, &program("examples/ping"), &[&place[..], &pings].concat())
    }
}

fn memif_endpoint(rig: &Rig, nse: &Netns) {
    let mut chosen = memif(nse);
    chosen.parameters.insert("socketfile".into(), THERE.into());
    *rig.endpoint.mechanism.lock().unwrap() = chosen;
    *rig.endpoint.fd.lock().unwrap() = Some(nse.sent());
    *rig.endpoint.context.lock().unwrap() = addresses(false);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_engines_death_memifs_are_made_again_without_a_request() {
    for direct in [false, true] {
        let home = Home::new();
        let rig = if direct { Rig::direct(&home).await } else { Rig::new(&home).await };
        let pair = MemifPair::new(&rig).await;
        pair.client("5").success().unwrap();
        let ports = rig.ports().await;
        home.kill_engine();
        rig.eventually("the ports are back", async |rig| {
            rig.dataplane.client.snapshot().await.is_ok() && rig.ports().await == ports
        })
        .await;
        pair.client("5").success().unwrap();
        rig.close(&pair.made).await.unwrap();
        assert_eq!(rig.ports().await, Vec::<String>::new());
    }
}

/// A client of a memif that leaves is no fault; the next one has the vWire. Its endpoint's end is reported.
#[tokio::test(flavor = "multi_thread")]
async fn a_memif_client_may_leave_and_another_come() {
    for direct in [false, true] {
        let home = Home::new();
        let rig = if direct { Rig::direct(&home).await } else { Rig::new(&home).await };
        let pair = MemifPair::new(&rig).await;
        let port = rig.dataplane.wanted.get("id-1").unwrap().server.unwrap().port.name;
        let up = |rig: &Rig| rig.dataplane.client.link(&port).is_some_and(|link| link.up);
        for _ in 0..2 {
            pair.client("5").success().unwrap();
            rig.eventually("the client has left", async |rig| !up(rig)).await;
        }
        let endless = pair.client("30000");
        rig.eventually("a third client", async |rig| up(rig)).await;
        assert_eq!(*rig.downs.lock().unwrap(), Vec::<String>::new(), "direct: {direct}");
        drop(pair.responder);
        rig.eventually("the endpoint's end is reported", async |rig| !rig.downs.lock().unwrap().is_empty())
            .await;
        drop(endless);
        rig.close(&pair.made).await.unwrap();
        assert_eq!(rig.ports().await, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memif_endpoint_that_comes_back_is_dialled_again() {
    let home = Home::new();
    let rig = Rig::new(&home).await;
    let (nsc, nse) = (Netns::new("nsc"), Netns::new("nse"));
    let responder = || {
        let args = ["--role", "server", "--socket", THERE, "--address", "10.60.1.2/32"];
        Process::inside(
            &nse,
            &program("examples/icmp_responder"),
            &[&args[..], &["--gateway", "10.60.1.1"]].concat(),
        )
    };
    let first = responder();
    memif_endpoint(&rig, &nse);
    let made = rig.request(asking("id-1", "IP", vec![kernel(&nsc, "nsm-1")]), Some(&nsc)).await;
    // The responder speaks Ethernet, the connection IP: memif refuses the mismatch, and the Request says so.
    let refused = made.unwrap_err();
    assert!(refused.message().contains("did not come up"), "{refused}");
    assert_eq!(rig.ports().await, Vec::<String>::new());
    drop(first);

    let second = responder();
    let made =
        rig.request(asking("id-2", "ETHERNET", vec![kernel(&nsc, "nsm-1")]), Some(&nsc)).await.unwrap();
    let port = rig.dataplane.wanted.get("id-2").unwrap().client.unwrap().port.name;
    let up = async |rig: &Rig| rig.dataplane.client.link(&port).is_some_and(|link| link.up);
    assert!(up(&rig).await);
    drop(second);
    rig.eventually("the loss is seen", async |rig| !up(rig).await).await;
    let _third = responder();
    rig.eventually("it is dialled again", up).await;
    rig.close(&made).await.unwrap();
    assert_eq!(rig.ports().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_namespace_that_goes_away_is_noticed_at_once() {
    let home = Home::new();
    let rig = Rig::new(&home).await;
    let Pair { nsc, nse, made } = kernel_pair(&rig, 600).await;
    drop(nsc);
    rig.eventually("it is reported", async |rig| !rig.downs.lock().unwrap().is_empty()).await;
    rig.close(&made).await.unwrap();
    assert_eq!(rig.ports().await, Vec::<String>::new());
    assert!(!nse.ip("-o link").contains("nsm-nse"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_repairs_and_changes_only_what_differs() {
    let home = Home::new();
    let rig = Rig::new(&home).await;
    let Pair { nsc, nse: _nse, made } = kernel_pair(&rig, 600).await;
    let ports = rig.ports().await;
    let mut smaller = again(&made);
    smaller.connection.as_mut().unwrap().context.get_or_insert_default().mtu = 1300;
    rig.request(smaller, Some(&nsc)).await.unwrap();
    assert!(nsc.ip("-o link show nsm-1").contains("mtu 1300"));
    assert_eq!(rig.ports().await, ports, "an MTU is no reason for another interface");

    nsc.ip("address flush dev nsm-1");
    rig.request(again(&made), Some(&nsc)).await.unwrap();
    ping(&nsc, "10.60.1.2", &[]).unwrap();

    nsc.ip("link del nsm-1");
    rig.eventually("the loss is seen", async |rig| !rig.downs.lock().unwrap().is_empty()).await;
    rig.request(again(&made), Some(&nsc)).await.unwrap();
    ping(&nsc, "10.60.1.2", &[]).unwrap();
    rig.close(&made).await.unwrap();
    assert_eq!(rig.ports().await, Vec::<String>::new());
}
