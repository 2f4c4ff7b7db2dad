//! Configuring an interface in a namespace, and taking everything back. Needs root.

mod netns_support;

use netns_support::Netns;
use tonic::{Code, Status};
use vwire_control::api::connection::{Connection, Path, PathSegment};
use vwire_control::api::connectioncontext::{
    ConnectionContext, EthernetContext, IpContext, IpNeighbor, PolicyRoute, Route,
};
use vwire_control::dataplane::kernel::{self, Interface, Side};

fn route(prefix: &str, next_hop: &str) -> Route {
    Route { prefix: prefix.into(), next_hop: next_hop.into() }
}

fn ip_context() -> IpContext {
    IpContext {
        src_ip_addrs: vec!["169.254.7.1/32".into(), "fd00:7::1/128".into()],
        dst_ip_addrs: vec!["169.254.7.0/32".into(), "fd00:7::/128".into()],
        src_routes: vec![route("172.16.0.0/16", ""), route("fd01::/64", ""), route("0.0.0.0/0", "")],
        ip_neighbors: vec![IpNeighbor {
            ip: "169.254.7.0".into(),
            hardware_address: "02:00:00:00:00:07".into(),
        }],
        policies: vec![PolicyRoute {
            from: "169.254.7.1/32".into(),
            proto: "6".into(),
            dst_port: "6666".into(),
            src_port: "1000-2000".into(),
            routes: vec![route("10.99.0.0/16", "169.254.7.0")],
        }],
        ..Default::default()
    }
}

fn wanted(ip: IpContext, mtu: u32) -> Interface {
    let context = ConnectionContext {
        ip_context: Some(ip),
        ethernet_context: Some(EthernetContext { src_mac: "02:00:00:00:00:08".into(), ..Default::default() }),
        mtu,
        ..Default::default()
    };
    let path = Path {
        path_segments: vec![PathSegment { id: "root-0".into(), ..Default::default() }],
        ..Default::default()
    };
    let connection = Connection { context: Some(context), path: Some(path), ..Default::default() };
    Interface::of(&connection, Side::Server).unwrap()
}

async fn configure(
    netns: &Netns,
    wanted: &Interface,
    tables: &[u32],
    fresh: bool,
) -> Result<Vec<u32>, Status> {
    let (wanted, tables) = (wanted.clone(), tables.to_vec());
    let applied = netns.namespace().run(move || kernel::configure("nsm-1", &wanted, &tables, fresh)).await?;
    Ok(applied.tables)
}

#[tokio::test]
async fn everything_is_set_refreshed_and_taken_back() {
    let netns = Netns::new("kif");
    netns.ip("tuntap add mode tap dev eth0");
    netns.ip("address add 10.1.0.5/24 dev eth0");
    netns.ip("link set eth0 up");
    netns.ip("route add default via 10.1.0.1");
    netns.ip("rule add from 10.7.7.7 table 5001");
    let before = netns.state();

    // With a carrier: without one the kernel forgets neighbours.
    netns.ip("link add nsm-1 type veth peer name far");
    netns.ip("link set nsm-1 addrgenmode none");
    netns.ip("link set far addrgenmode none up");
    let first = wanted(ip_context(), 1400);
    let tables = configure(&netns, &first, &[], true).await.unwrap();
    assert_eq!(tables, [5002], "a table that a rule of the workload names is not free");
    let state = netns.state();
    for line in [
        "mtu 1400",
        "02:00:00:00:00:08",
        "alias server-root-0",
        "inet 169.254.7.1/32",
        "inet6 fd00:7::1/128",
        "169.254.7.0 dev nsm-1 proto 78 scope link",
        "172.16.0.0/16 via 169.254.7.0 dev nsm-1 proto 78 onlink",
        "0.0.0.0/1 via 169.254.7.0 dev nsm-1 proto 78 onlink",
        "128.0.0.0/1 via 169.254.7.0 dev nsm-1 proto 78 onlink",
        "default via 10.1.0.1 dev eth0",
        "fd01::/64 via fd00:7:: dev nsm-1",
        "lladdr 02:00:00:00:00:07 REACHABLE",
        "10.99.0.0/16 via 169.254.7.0 dev nsm-1 table 5002 proto 78 onlink",
        "from 169.254.7.1 ipproto tcp sport 1000-2000 dport 6666 lookup 5002 proto 78",
    ] {
        assert!(state.contains(line), "{line:?} is not in\n{state}");
    }

    // What agrees is not touched; the namespace of one who looks on tells.
    let again = configure(&netns, &first, &tables, false).await.unwrap();
    assert_eq!((again, netns.state()), (tables.clone(), state));

    let mut ip = ip_context();
    ip.src_ip_addrs = vec!["169.254.7.9/32".into()];
    ip.dst_ip_addrs = vec!["169.254.7.8/32".into()];
    ip.src_routes = vec![route("172.17.0.0/16", "")];
    ip.policies[0].dst_port = "7777".into();
    let tables = configure(&netns, &wanted(ip, 1300), &tables, false).await.unwrap();
    let state = netns.state();
    for line in ["mtu 1300", "169.254.7.9/32", "172.17.0.0/16 via 169.254.7.8", "dport 7777 lookup 5002"] {
        assert!(state.contains(line), "{line:?} is not in\n{state}");
    }
    for line in ["inet 169.254.7.1/32", "fd00:7::", "172.16.0.0", "dport 6666", "0.0.0.0/1"] {
        assert!(!state.contains(line), "{line:?} is still in\n{state}");
    }

    netns.ip("link del nsm-1");
    netns.namespace().run(move || kernel::unconfigure(&tables)).await.unwrap();
    assert_eq!(netns.state(), before);
}

#[tokio::test]
async fn refusals_name_the_interface_and_what_the_kernel_said() {
    let netns = Netns::new("kif");
    let gone = configure(&netns, &wanted(ip_context(), 0), &[], true).await.unwrap_err();
    assert_eq!(
        (gone.code(), gone.message()),
        (Code::NotFound, "interface nsm-1 is gone from the workload's namespace")
    );
    netns.ip("tuntap add mode tap dev eth0");
    netns.ip("link set eth0 up");
    netns.ip("route add 169.254.7.0/32 dev eth0");
    netns.ip("tuntap add mode tap dev nsm-1");
    let taken = configure(&netns, &wanted(ip_context(), 0), &[], true).await.unwrap_err();
    assert_eq!(taken.code(), Code::FailedPrecondition);
    assert!(
        taken.message().contains("the route 169.254.7.0/32 to nsm-1: another interface has it"),
        "{taken}"
    );
}

#[tokio::test]
async fn what_a_dead_forwarder_left_is_removed_by_its_alias() {
    let netns = Netns::new("kif");
    for (name, alias) in [("old", "server-root-0"), ("nsm-1", "x"), ("other", "server-root-1")] {
        netns.ip(&format!("tuntap add mode tap dev {name}"));
        netns.ip(&format!("link set {name} alias {alias}"));
    }
    let removed =
        netns.namespace().run(|| kernel::apply::remove_leftover("nsm-1", "server-root-0")).await.unwrap();
    assert!(!removed, "nsm-1 is somebody else's");
    configure(&netns, &wanted(ip_context(), 0), &[], true).await.unwrap();
    let links = netns.ip("-o link");
    assert!(!links.contains("old") && links.contains("other") && links.contains("nsm-1"), "{links}");
    assert!(
        netns.namespace().run(|| kernel::apply::remove_leftover("nsm-1", "server-root-0")).await.unwrap()
    );
    assert!(!netns.ip("-o link").contains("nsm-1"));
}

/// A process that ends with this.
struct Busy(std::process::Child);

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Another process changes the tables all the time; a dump that is interrupted is asked for again.
#[tokio::test]
async fn dumps_survive_changes_from_elsewhere() {
    let netns = Netns::new("kif");
    netns.ip("tuntap add mode tap dev eth0");
    netns.ip("link set eth0 up");
    for i in 0..250 {
        netns.ip(&format!("route add 10.200.{i}.0/24 dev eth0"));
    }
    netns.ip("tuntap add mode tap dev nsm-1");
    let wanted = wanted(ip_context(), 0);
    let mut tables = configure(&netns, &wanted, &[], true).await.unwrap();
    let mut busy = std::process::Command::new("ip");
    busy.args(["netns", "exec", &netns.0, "sh", "-c"])
        .arg("while ip route add 10.9.0.0/24 dev eth0 && ip route del 10.9.0.0/24; do :; done");
    let busy = Busy(busy.spawn().unwrap());
    for _ in 0..50 {
        tables = configure(&netns, &wanted, &tables, false).await.unwrap();
    }
    drop(busy);
    assert_eq!(tables.len(), 1);
}
