//! The four local pairs of kernel interface and memif through an engine, and what is left when they end. Needs root.

mod engine_support;
mod netns_support;

use engine_support::*;
use netns_support::Netns;
use tonic::Code;
use vwire_control::api::connection::{Connection, Mechanism};
use vwire_control::api::connectioncontext::PolicyRoute;

/// One end's program or interface, once the connection is made.
fn memif_args<'a>(
    role: &'a str,
    socket: &'a str,
    payload: &'a str,
    address: &'a str,
    peer: &'a str,
) -> Vec<&'a str> {
    let mut args =
        vec!["--role", role, "--socket", socket, "--mode", if payload == "IP" { "ip" } else { "ethernet" }];
    args.extend(["--address", address]);
    if payload == "IP" {
        args.extend(["--gateway", peer]);
    }
    args
}

fn socket(connection: &Mechanism) -> String {
    connection.parameters["socketfile"].clone()
}

/// Makes one pair, pings through it, closes it, and compares everything with what was before.
async fn pair(client_memif: bool, endpoint_memif: bool, payload: &str) {
    pair_at(client_memif, endpoint_memif, payload, false).await;
}

async fn pair_at(client_memif: bool, endpoint_memif: bool, payload: &str, direct: bool) {
    let home = Home::new();
    let rig = if direct { Rig::direct(&home).await } else { Rig::new(&home).await };
    let (nsc, nse) = (Netns::new("nsc"), Netns::new("nse"));
    let networks = [&nsc, &nse].map(cluster_network);
    let before = (nsc.state(), nse.state(), rig.ports().await);
    let open_before = open_files([&nsc, &nse]);
    let there = "@/tmp/memif/nse/memif.socket";
    let responder = endpoint_memif.then(|| {
        let args = memif_args("server", there, payload, "10.60.1.2/30", "10.60.1.1");
        Process::inside(&nse, &program("examples/icmp_responder"), &args)
    });
    let mut chosen = if endpoint_memif { memif(&nse) } else { kernel(&nse, "nsm-nse") };
    if endpoint_memif {
        chosen.parameters.insert("socketfile".into(), there.into());
    }
    *rig.endpoint.mechanism.lock().unwrap() = chosen;
    *rig.endpoint.fd.lock().unwrap() = Some(nse.sent());
    let mut context = addresses(false);
    context.ip_context.as_mut().unwrap().policies =
        vec![PolicyRoute { from: "10.60.1.1/32".into(), dst_port: "80".into(), ..Default::default() }];
    *rig.endpoint.context.lock().unwrap() = context;
    let preference = if client_memif { memif(&nsc) } else { kernel(&nsc, "nsm-1") };

    let made = rig.request(asking("id-1", payload, vec![preference]), Some(&nsc)).await.unwrap();
    let mechanism = made.mechanism.clone().unwrap();
    assert_eq!(
        mechanism.r#type,
        if client_memif { "MEMIF" } else { "KERNEL" },
        "the answer has the client's mechanism"
    );
    assert_eq!(mechanism.parameters["inodeURL"], nsc.sent().0.to_string());
    let offered: Vec<_> = offers(&rig).into_iter().map(|offer| offer.r#type).collect();
    assert_eq!(offered, ["MEMIF", "KERNEL"], "local offers only, memif first");
    if client_memif {
        assert!(socket(&mechanism).starts_with("@/tmp/memif/"));
        let (socket, count) = (socket(&mechanism), ["--count", "5", "--interval", "0.01", "10.60.1.2"]);
        let mut args = memif_args("client", &socket, payload, "10.60.1.1/30", "10.60.1.2");
        args.extend(count);
        Process::inside(&nsc, &program("examples/ping"), &args).success().unwrap();
    } else {
        let links = nsc.ip("-o link show nsm-1");
        assert!(links.contains("mtu 1500") && links.contains("alias server-root-id-1"), "{links}");
        assert!(nsc.ip("rule").contains("from 10.60.1.1 dport 80 lookup 5001"), "{}", nsc.ip("rule"));
        ping(&nsc, "10.60.1.2", &[]).unwrap();
    }
    // Without link layer and kernel, pings are all that there is: 5 of them, and their answers.
    let exactly = if client_memif && endpoint_memif && payload == "IP" { Some(5) } else { None };
    assert_counted(&rig, &made, &nsc, exactly, direct).await;
    assert_eq!(
        [&nsc, &nse].map(shown_of_cluster_network),
        networks,
        "the cluster's network while there is a vWire"
    );

    rig.close(&made).await.unwrap();
    drop(responder);
    assert_eq!(rig.endpoint.closed.lock().unwrap().len(), 1, "the next hop heard of it");
    assert_eq!((nsc.state(), nse.state(), rig.ports().await), before);
    *rig.endpoint.fd.lock().unwrap() = None;
    assert_eq!(open_files([&nsc, &nse]), open_before, "no descriptor is left");
}

/// An interface, address and default route as a CNI plugin gives them to a pod. Returns how they look.
fn cluster_network(netns: &Netns) -> String {
    netns.ip("link add eth0 type veth peer name cni0");
    for interface in ["eth0", "cni0"] {
        // Addresses that the kernel makes up come later than a look at them.
        netns.ip(&format!("link set {interface} addrgenmode none"));
        netns.ip(&format!("link set {interface} up"));
    }
    netns.ip("address add 10.244.0.5/24 dev eth0");
    netns.ip("route add default via 10.244.0.1 dev eth0");
    shown_of_cluster_network(netns)
}

fn shown_of_cluster_network(netns: &Netns) -> String {
    let looks =
        ["-d -o link show dev eth0", "-o address show dev eth0", "route show default", "route show dev eth0"];
    looks.map(|look| netns.ip(look)).concat()
}

/// The path's metrics of a refresh are of this connection: at least three packets each way, or exactly so many, and then no drops.
/// (A kernel sends what nobody asked for, which an IP payload does not carry.)
async fn assert_counted(rig: &Rig, made: &Connection, nsc: &Netns, exactly: Option<u64>, direct: bool) {
    const PACKETS: [&str; 4] = ["server_rx", "server_tx", "client_rx", "client_tx"];
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let metrics = refresh(rig, made, nsc).await;
        let count = |key: String| metrics.get(&key).map_or(0, |value| value.parse::<u64>().unwrap());
        let packets = PACKETS.map(|way| count(format!("{way}_packets")));
        if direct {
            return assert_eq!(packets, [0; 4], "what is handed through is not counted: {metrics:?}");
        }
        // Counters may be a second old.
        if packets.iter().all(|packets| *packets >= exactly.unwrap_or(3)) {
            let bytes = PACKETS.map(|way| count(format!("{way}_bytes")));
            if let Some(exactly) = exactly {
                assert_eq!(packets, [exactly; 4], "{metrics:?}");
                assert!(bytes.iter().all(|each| *each == bytes[0] && each % exactly == 0), "{metrics:?}");
                let drops = ["server_drops", "client_drops"].map(|key| count(key.into()));
                assert_eq!(drops, [0; 2], "{metrics:?}");
            }
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{metrics:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

fn offers(rig: &Rig) -> Vec<Mechanism> {
    rig.endpoint.asked.lock().unwrap().clone().unwrap().mechanism_preferences
}

/// Refreshes, checks that nothing at the engine changed, and returns the metrics of our segment.
async fn refresh(rig: &Rig, made: &Connection, nsc: &Netns) -> std::collections::HashMap<String, String> {
    let before = rig.ports().await;
    let again = vwire_control::api::networkservice::NetworkServiceRequest {
        connection: Some(made.clone()),
        mechanism_preferences: vec![],
    };
    let refreshed = rig.request(again, Some(nsc)).await.unwrap();
    assert_eq!(rig.ports().await, before);
    assert_eq!(refreshed.mechanism, made.mechanism);
    refreshed.path.unwrap().path_segments[1].metrics.clone().into_iter().collect()
}

/// Our open descriptors of these namespaces; other tests of this process have their own.
fn open_files(namespaces: [&Netns; 2]) -> usize {
    let ours = |link: &str| {
        let by_number =
            |netns: &&Netns| link == format!("net:[{}]", netns.sent().0.ino) || link.ends_with(&netns.path());
        namespaces.iter().any(by_number)
    };
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let links = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    links.filter(|link| ours(&link.to_string_lossy())).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn kernel_to_kernel_ethernet() {
    pair(false, false, "ETHERNET").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kernel_to_kernel_ip() {
    pair(false, false, "IP").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kernel_to_memif_ethernet() {
    pair(false, true, "ETHERNET").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kernel_to_memif_ip() {
    pair(false, true, "IP").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memif_to_kernel_ethernet() {
    pair(true, false, "ETHERNET").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memif_to_kernel_ip() {
    pair(true, false, "IP").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memif_to_memif_ethernet() {
    pair(true, true, "ETHERNET").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memif_to_memif_ip() {
    pair(true, true, "IP").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memif_to_memif_handed_through() {
    pair_at(true, true, "ETHERNET", true).await;
    pair_at(true, true, "IP", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_fails_leaves_nothing() {
    let home = Home::new();
    let rig = Rig::new(&home).await;
    let (nsc, nse) = (Netns::new("nsc"), Netns::new("nse"));
    nsc.ip("tuntap add mode tap dev taken");
    *rig.endpoint.fd.lock().unwrap() = Some(nse.sent());
    *rig.endpoint.context.lock().unwrap() = addresses(true);
    let before = (nsc.state(), nse.state(), rig.ports().await);
    let set = |mechanism: Mechanism| *rig.endpoint.mechanism.lock().unwrap() = mechanism;
    let ask = |name: &str| asking("id-1", "ETHERNET", vec![kernel(&nsc, name)]);

    // The client's interface is there already; the endpoint's was made, and is gone again.
    set(kernel(&nse, "nsm-nse"));
    let status = rig.request(ask("taken"), Some(&nsc)).await.unwrap_err();
    assert!(status.message().contains("taken") && status.message().contains("exist"), "{status}");
    assert_eq!((nsc.state(), nse.state(), rig.ports().await), before);

    // Nobody listens on the endpoint's memif.
    let mut dead = memif(&nse);
    dead.parameters.insert("socketfile".into(), "@/nobody".into());
    set(dead);
    let status = rig.request(ask("nsm-1"), Some(&nsc)).await.unwrap_err();
    assert!(status.message().contains("memif socket @/nobody"), "{status}");
    assert_eq!((nsc.state(), nse.state(), rig.ports().await), before);

    // The endpoint's addresses can't be set: a route of the workload is in the way.
    nsc.ip("link set taken up");
    nsc.ip("route add 10.60.1.2/32 dev taken");
    let before = (nsc.state(), nse.state(), rig.ports().await);
    set(kernel(&nse, "nsm-nse"));
    let status = rig.request(ask("nsm-1"), Some(&nsc)).await.unwrap_err();
    assert!(status.message().contains("another interface has it"), "{status}");
    assert_eq!((nsc.state(), nse.state(), rig.ports().await), before);
    assert!(rig.dataplane.wanted.ids().is_empty() && rig.dataplane.wanted.vnis.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_may_not_ask_is_refused_by_name() {
    let home = Home::new();
    let rig = Rig::new(&home).await;
    let (nsc, nse) = (Netns::new("nsc"), Netns::new("nse"));
    *rig.endpoint.mechanism.lock().unwrap() = kernel(&nse, "nsm-nse");
    *rig.endpoint.fd.lock().unwrap() = Some(nse.sent());
    let own = vwire_dataplane::fdpass::identify(std::fs::File::open("/proc/self/ns/net").unwrap()).unwrap();
    let with = |key: &str, value: &str| {
        let mut mechanism = kernel(&nsc, "nsm-1");
        mechanism.parameters.insert(key.into(), value.into());
        mechanism
    };
    let cases = [
        (
            with("inodeURL", "file:///proc/1/ns/net"),
            Code::InvalidArgument,
            "only inode://DEV/INO of a descriptor",
        ),
        (with("inodeURL", ""), Code::InvalidArgument, "only inode://DEV/INO"),
        (with("inodeURL", &own.to_string()), Code::FailedPrecondition, "did not come with the Request"),
        (with("name", "0123456789abcdef"), Code::InvalidArgument, "it has 16 bytes, Linux takes 1 to 15"),
        (with("name", "../x"), Code::InvalidArgument, "must not contain '/'"),
        (with("vlan", "7"), Code::InvalidArgument, "vlan"),
        (mechanism("REMOTE", "SRV6", &[]), Code::InvalidArgument, "\"SRV6\" is not known here"),
    ];
    for (preference, code, what) in cases {
        let status = rig.request(asking("id-1", "ETHERNET", vec![preference]), Some(&nsc)).await.unwrap_err();
        assert!(status.code() == code && status.message().contains(what), "{what}: {status}");
    }
    let status = rig.request(asking("id-1", "ETHERNET", vec![]), None).await.unwrap_err();
    assert!(status.message().contains("this forwarder has MEMIF, KERNEL; of the client's: none"), "{status}");
    let status =
        rig.request(asking("id-1", "SMELL", vec![kernel(&nsc, "nsm-1")]), Some(&nsc)).await.unwrap_err();
    assert!(status.message().contains("payload \"SMELL\""), "{status}");
    assert_eq!(rig.ports().await, Vec::<String>::new());
}
