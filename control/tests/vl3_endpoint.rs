//! One endpoint of a virtual network (`vwire vl3`) as a process, with clients that have kernel interfaces on two nodes, and one that
//! attaches a memif: they reach each other through it, while it dies, and after its packet engine did. Needs root.

mod lab_support;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab_support::{Pings, Run};
use vwire_control::cli::AdminClient;
use vwire_control::lab::{Lab, Silent, Spec};
use vwire_control::obs::ConnectionView;
use vwire_dataplane::netns::in_netns;

/// How long anything may take on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

/// The endpoint is granted a /30: three addresses for clients.
const LAB: &str = r#"
name: vl3
domains:
  - name: solo
    ipam: [172.16.0.0/28, "fd16:1::/64"]
    nodes:
      - name: node-1
        split: true
        vl3:
          - {name: router, services: [net], env: {VWIRE_VL3_OWN_INTERFACE: "false"}}
        clients:
          - {name: one, services: ["kernel://net/nsm-1"]}
          - {name: memif, services: ["memif://net"]}
      - name: node-2
        clients:
          - {name: two, services: ["kernel://net/nsm-1"]}
checks: []
"#;

async fn views(lab: &Lab, process: &str) -> Vec<ConnectionView> {
    AdminClient(lab.layout().admin(process)).get("/connections").await.unwrap_or_default()
}

/// A client's addresses: IPv4, IPv6.
async fn addresses(lab: &Lab, client: &str) -> [IpAddr; 2] {
    let views = views(lab, &format!("nsc-{client}")).await;
    let [view] = &views[..] else { panic!("{views:?}") };
    let parse = |text: &String| text.split('/').next().unwrap().parse::<IpAddr>().unwrap();
    let mut all: Vec<IpAddr> = view.client_addresses.iter().map(parse).collect();
    all.sort();
    all.try_into().unwrap()
}

fn inside<T: Send>(lab: &Lab, part: &str, work: impl FnOnce() -> T + Send) -> T {
    let file = std::fs::File::open(lab.layout().namespace_file(part)).unwrap();
    in_netns(Some(file.as_fd()), work).unwrap()
}

/// Carries so many bytes by TCP from one client to another.
fn carries(lab: &Lab, from: &str, to: (&str, IpAddr), bytes: usize) {
    let listener = inside(lab, to.0, || TcpListener::bind(SocketAddr::new(to.1, 5000)).unwrap());
    std::thread::scope(|scope| {
        let received = scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            all
        });
        let mut stream =
            inside(lab, from, || TcpStream::connect_timeout(&SocketAddr::new(to.1, 5000), PATIENCE).unwrap());
        let sent: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
        stream.write_all(&sent).unwrap();
        drop(stream);
        assert!(received.join().unwrap() == sent, "what came is not what was sent");
    });
}

fn mtu(lab: &Lab, client: &str) -> u32 {
    let shown = Command::new("ip")
        .args(["-n", &lab.layout().namespace(client), "-o", "link", "show", "nsm-1"])
        .output()
        .unwrap();
    let text = String::from_utf8(shown.stdout).unwrap();
    text.split("mtu ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

async fn eventually(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !so().await {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_reach_each_other_whatever_dies_of_their_endpoint() {
    let mut spec: Spec = LAB.parse().unwrap();
    let run = Run::of(&mut spec, "vl3");
    let mut lab = run.up(&spec).await;
    let (one, two, memif) =
        (addresses(&lab, "one").await, addresses(&lab, "two").await, addresses(&lab, "memif").await);
    let mut all = [one, two, memif].concat();
    all.sort();
    let expected = ["172.16.0.1", "172.16.0.2", "172.16.0.3", "fd16:1::1", "fd16:1::2", "fd16:1::3"];
    assert_eq!(all, expected.map(|text| text.parse::<IpAddr>().unwrap()));
    let gateways = ["172.16.0.0".parse::<IpAddr>().unwrap(), "fd16:1::".parse().unwrap()];
    for (client, targets) in [("one", [two, memif, gateways]), ("two", [one, memif, gateways])] {
        for target in targets.concat() {
            Pings::count(&lab, client, &target.to_string(), 5).end().await;
            let pings = Pings::on_and_on(&lab, client, &target.to_string());
            pings.answered(5).await;
        }
    }
    // The tunnel to the other node is the smallest link, and nobody has more.
    let small = mtu(&lab, "two");
    assert!((1280..1500).contains(&small), "{small}");
    eventually("all have the MTU of the smallest link", async || mtu(&lab, "one") == small).await;
    for family in [0, 1] {
        carries(&lab, "one", ("two", two[family]), 3 << 20);
        carries(&lab, "two", ("one", one[family]), 3 << 20);
    }
    exhausted(&lab).await;

    // The endpoint is killed: nothing that flows is lost, and when it is back, all are as they were.
    let pings = Pings::on_and_on(&lab, "one", &two[0].to_string());
    pings.answered(10).await;
    lab.kill("vl3-router").await.unwrap();
    pings.answered(30).await;
    lab.restart("vl3-router").await.unwrap();
    eventually("the endpoint knows its clients again", async || views(&lab, "vl3-router").await.len() == 3)
        .await;
    pings.answered(60).await;
    let (_, lost) = pings.interrupt().await;
    assert_eq!(lost, [0; 0], "packets while the endpoint was dead");
    // A client that is started anew has its connection, and its address.
    lab.kill("nsc-one").await.unwrap();
    lab.restart("nsc-one").await.unwrap();
    lab.connected("nsc-one", 1).await.unwrap();
    assert_eq!([addresses(&lab, "one").await, addresses(&lab, "two").await], [one, two]);
    assert_eq!(views(&lab, "vl3-router").await.len(), 3);

    // Its engine is killed: another one holds the same, and the clients connect again.
    lab.kill("router.engine").await.unwrap();
    lab.restart("router.engine").await.unwrap();
    let pings = Pings::on_and_on(&lab, "one", &two[0].to_string());
    pings.answered(10).await;
    drop(pings);
    assert_eq!([addresses(&lab, "one").await, addresses(&lab, "two").await], [one, two]);
    carries(&lab, "one", ("two", two[0]), 1 << 20);
    lab.down(&Silent).await.unwrap();
}

/// A client more than there are addresses is told so, and is not there.
async fn exhausted(lab: &Lab) {
    let before = views(lab, "vl3-router").await.len();
    let (vwire, layout) = (Path::new(env!("CARGO_BIN_EXE_vwire")), lab.layout());
    let admin = layout.directory().join("fourth.admin");
    // With the identity of another client, which has ended nothing by that.
    let mut client = Command::new(vwire);
    client.arg("nsc").env_clear().stdin(Stdio::null());
    client.env("SPIFFE_ENDPOINT_SOCKET", layout.workload_api("nsc-one").to_string());
    client.env("NSM_NAME", "fourth").env("VWIRE_ADMIN", format!("unix://{}", admin.display()));
    client.env("NSM_CONNECT_TO", manager(lab)).env("NSM_NETWORK_SERVICES", "memif://net");
    client.env("NSM_LOCAL_DNS_SERVER_ENABLED", "false").env("VWIRE_MEMIF_EXPORT", "true");
    let log = layout.directory().join("fourth.log");
    let out = std::fs::File::create(&log).unwrap();
    client.stdout(out.try_clone().unwrap()).stderr(out);
    let mut child = client.spawn().unwrap();
    let told = || std::fs::read_to_string(&log).unwrap_or_default();
    let end = Instant::now() + PATIENCE;
    while !told().contains("prefix 172.16.0.0/30 of this endpoint has no free address") {
        assert!(Instant::now() < end, "{}", told());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(views(lab, "vl3-router").await.len(), before);
}

fn manager(lab: &Lab) -> String {
    let (_, node) = lab.spec().nodes().next().unwrap();
    lab.layout().manager(node).to_string()
}

/// DPDK's memif driver, which speaks Ethernet and nothing else, as a client's program: it answers ARP and pings. Killed when dropped.
struct Testpmd(Child, PathBuf);

impl Testpmd {
    fn start(lab: &Lab, client: &str, socket: &str) -> Self {
        let directory = lab.layout().directory().join("dpdk");
        std::fs::create_dir_all(&directory).unwrap();
        let log = directory.join("testpmd.log");
        let out = std::fs::File::create(&log).unwrap();
        let mut arguments = "-l 0,1 --no-pci -m 256 --no-telemetry --no-huge --no-shconf".to_owned();
        let name = socket.trim_start_matches('@');
        arguments += &format!(" --vdev=net_memif0,role=client,id=0,socket={name},socket-abstract=yes");
        arguments +=
            " --log-level=pmd.net.memif:debug -- --forward-mode=icmpecho --auto-start --disable-link-check";
        arguments += " --tx-offloads=0x8000 --no-flush-rx --mbuf-size=2176 --total-num-mbufs=16384";
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &lab.layout().namespace(client), "dpdk-testpmd"]);
        command.args(arguments.split(' ')).env("RUNTIME_DIRECTORY", &directory);
        command.stdin(Stdio::piped()).stdout(out.try_clone().unwrap()).stderr(out);
        Self(command.spawn().expect("iproute2 is installed"), log)
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        if std::thread::panicking() {
            eprintln!("testpmd said:\n{}", std::fs::read_to_string(&self.1).unwrap_or_default());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dpdk_client_and_a_kernel_client_are_in_one_network() {
    let mut spec: Spec = LAB.parse().unwrap();
    let run = Run::of(&mut spec, "vl3-dpdk");
    let node = &mut spec.domains[0].nodes[0];
    node.vl3[0].env.insert("NSM_PAYLOAD".into(), "ETHERNET".into());
    node.clients[1].env.insert("VWIRE_MEMIF_EXPORT".into(), "true".into());
    spec.domains[0].nodes.truncate(1);
    let lab = run.up(&spec).await;
    let dpdk = addresses(&lab, "memif").await;
    let log = lab.layout().log("nsc-memif");
    let mut socket = String::new();
    eventually("the memif's socket is told", async || {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        let told = log.split("memif socket ").nth(1).and_then(|rest| rest.split(' ').next());
        socket = told.unwrap_or_default().trim().to_owned();
        !socket.is_empty()
    })
    .await;
    let _testpmd = Testpmd::start(&lab, "memif", &socket);
    let pings = Pings::on_and_on(&lab, "one", &dpdk[0].to_string());
    pings.answered(20).await;
    drop(pings);
    let counted = Pings::count(&lab, "one", &dpdk[0].to_string(), 20).end().await;
    assert_eq!(vwire_control::lab::pings::lost(&counted, 20), [0; 0], "{counted}");
    let gateway = Pings::count(&lab, "one", "172.16.0.0", 5).end().await;
    assert_eq!(vwire_control::lab::pings::lost(&gateway, 5), [0; 0], "{gateway}");
    lab.down(&Silent).await.unwrap();
}
