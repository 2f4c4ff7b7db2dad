//! The remote pairs over VXLAN between two machines, which are namespaces. Needs root.

mod engine_support;
mod netns_support;

use std::sync::Arc;

use engine_support::*;
use netns_support::Netns;
use vwire_control::api::connection::Mechanism;
use vwire_control::elements::mechanisms::INNER;

const THERE: &str = "@/tmp/memif/nse/memif.socket";

fn memif_host<'a>(
    role: &'a str,
    socket: &'a str,
    payload: &str,
    address: &'a str,
    peer: &'a str,
) -> Vec<&'a str> {
    let mode = if payload == "IP" { "ip" } else { "ethernet" };
    let mut args = vec!["--role", role, "--socket", socket, "--mode", mode, "--address", address];
    if payload == "IP" {
        args.extend(["--gateway", peer]);
    }
    args
}

async fn pair(client_memif: bool, endpoint_memif: bool, payload: &str, v6: bool) {
    let [one, two] = Node::two(v6);
    let near = one.rig(Endpoint { remote: true, ..Endpoint::default() }).await;
    let far = two.rig(Endpoint::default()).await;
    *near.endpoint.other.lock().unwrap() = Some(Arc::clone(&far.chain));
    let (nsc, nse) = (Netns::new("nsc"), Netns::new("nse"));
    let before = (nsc.state(), nse.state());
    let _responder = endpoint_memif.then(|| {
        let args = memif_host("server", THERE, payload, "10.60.1.2/30", "10.60.1.1");
        Process::inside(&nse, &program("examples/icmp_responder"), &args)
    });
    let mut chosen = if endpoint_memif { memif(&nse) } else { kernel(&nse, "nsm-nse") };
    if endpoint_memif {
        chosen.parameters.insert("socketfile".into(), THERE.into());
    }
    *far.endpoint.mechanism.lock().unwrap() = chosen;
    *far.endpoint.fd.lock().unwrap() = Some(nse.sent());
    *far.endpoint.context.lock().unwrap() = addresses(false);
    let preference = if client_memif { memif(&nsc) } else { kernel(&nsc, "nsm-1") };
    let made = near.request(asking("id-1", payload, vec![preference]), Some(&nsc)).await.unwrap();

    let offered = near.endpoint.asked.lock().unwrap().clone().unwrap().mechanism_preferences;
    assert_eq!(
        offered.iter().map(|offer| &*offer.r#type).collect::<Vec<_>>(),
        ["VXLAN"],
        "remote offers only"
    );
    let agreed = near.dataplane.wanted.get("id-1").unwrap().note.toward_endpoint.unwrap().parameters;
    assert_eq!(agreed["vni"].parse::<u32>().unwrap() % 2, 0, "the client's address is the lower one");
    assert_eq!((&*agreed["src_port"], &*agreed["dst_port"]), ("4789", "4789"));
    let mtu = if v6 { 1500 - 74 } else { 1500 - 54 };
    assert_eq!((agreed["MTU"].parse(), made.context.clone().unwrap().mtu), (Ok(mtu), mtu));
    assert_eq!(agreed.get(INNER).map(String::as_str), (payload == "IP").then_some("ip"));
    if client_memif {
        let socket = made.mechanism.clone().unwrap().parameters["socketfile"].clone();
        let mut args = memif_host("client", &socket, payload, "10.60.1.1/30", "10.60.1.2");
        args.extend(["--count", "5", "--interval", "0.01", "10.60.1.2"]);
        Process::inside(&nsc, &program("examples/ping"), &args).success().unwrap();
    } else {
        assert!(nsc.ip("-o link show nsm-1").contains(&format!("mtu {mtu}")));
        ping(&nsc, "10.60.1.2", &[]).unwrap();
        // The longest packet goes through in one piece.
        if !endpoint_memif {
            let size = (mtu - 28).to_string();
            ping(&nsc, "10.60.1.2", &["-M", "do", "-s", &size]).unwrap();
        }
    }
    near.close(&made).await.unwrap();
    drop(_responder);
    for rig in [&near, &far] {
        assert_eq!(rig.ports().await, Vec::<String>::new());
        assert!(rig.dataplane.wanted.vnis.is_empty() && rig.dataplane.wanted.ids().is_empty());
    }
    assert_eq!((nsc.state(), nse.state()), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn kernel_to_kernel_over_vxlan() {
    pair(false, false, "ETHERNET", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kernel_to_memif_over_vxlan() {
    pair(false, true, "ETHERNET", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memif_to_kernel_over_vxlan() {
    pair(true, false, "ETHERNET", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memif_to_memif_over_vxlan() {
    pair(true, true, "ETHERNET", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kernel_to_kernel_over_vxlan_on_ipv6() {
    pair(false, false, "ETHERNET", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ip_between_machines_goes_behind_a_header_of_ours() {
    pair(false, false, "IP", false).await;
    pair(true, true, "IP", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_remote_forwarder_may_not_say_is_refused_by_name() {
    let [one, two] = Node::two(false);
    let far = two.rig(Endpoint::default()).await;
    let nse = Netns::new("nse");
    *far.endpoint.mechanism.lock().unwrap() = kernel(&nse, "nsm-nse");
    *far.endpoint.fd.lock().unwrap() = Some(nse.sent());
    let offer = |key: &str, value: &str| {
        let usual = [("src_ip", "10.9.0.1"), ("src_port", "4789"), ("MTU", "1446")];
        let usual: Vec<_> = usual.into_iter().map(|(key, value)| (key, value.to_owned())).collect();
        let mut offer = mechanism("REMOTE", "VXLAN", &usual);
        offer.parameters.insert(key.into(), value.into());
        offer
    };
    let ask =
        async |payload: &str, offer: Mechanism| far.request(asking("id-2", payload, vec![offer]), None).await;
    let cases = [
        ("src_ip", "10.9.0.2", "is this forwarder's own tunnel address"),
        ("src_ip", "", "is not an IP address"),
        ("src_ip", "224.0.0.1", "is no machine's address"),
        ("src_ip", "fd09::1", "is not of the family"),
        ("src_port", "4790", "set NSM_VXLAN_PORT alike"),
        ("vni", "16777216", "from 0 to 16777215"),
        ("inner", "ip", "does not fit the payload"),
    ];
    for (key, value, what) in cases {
        let status = ask("ETHERNET", offer(key, value)).await.unwrap_err();
        assert!(status.message().contains(key) && status.message().contains(what), "{status}");
    }
    let status = ask("IP", offer("MTU", "1446")).await.unwrap_err();
    assert!(status.message().contains("does not know inner=ip"), "{status}");
    assert!(far.dataplane.wanted.vnis.is_empty() && far.ports().await.is_empty());

    // One identifier is one connection's, and the next gets another of the same half.
    let made = far.request(asking("id-1", "ETHERNET", vec![offer("MTU", "1200")]), None).await.unwrap();
    let agreed = made.mechanism.clone().unwrap().parameters;
    assert_eq!(
        (&*agreed["MTU"], made.context.clone().unwrap().mtu),
        ("1200", 1200),
        "the smaller of both ends"
    );
    let status = ask("ETHERNET", offer("vni", &agreed["vni"])).await.unwrap_err();
    assert!(status.message().contains("belongs to another connection"), "{status}");
    far.close(&made).await.unwrap();

    // A peer that does not echo inner=ip does not know it.
    let near = one.rig(Endpoint { remote: true, ..Endpoint::default() }).await;
    let nsc = Netns::new("nsc");
    let go = mechanism(
        "REMOTE",
        "VXLAN",
        &[("dst_ip", "10.9.0.2".into()), ("vni", "4".into()), (INNER, String::new())],
    );
    *near.endpoint.mechanism.lock().unwrap() = go;
    let status =
        near.request(asking("id-3", "IP", vec![kernel(&nsc, "nsm-1")]), Some(&nsc)).await.unwrap_err();
    assert!(status.message().contains("the endpoint's forwarder does not know inner=ip"), "{status}");
    assert!(near.ports().await.is_empty() && near.dataplane.wanted.vnis.is_empty());
}
