//! DPDK as a workload: a `dpdk-testpmd` attaches to two vWires by memif, one to an endpoint with a kernel interface and one to an
//! endpoint with memif, and passes frames between them. So a ping from the one endpoint to the other goes through the packet engine, the
//! sockets that the forwarder handed through, and DPDK's own driver, there and back. Needs root and dpdk-dev.

mod lab_support;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab_support::Run;
use vwire_control::cli::AdminClient;
use vwire_control::lab::{Lab, Silent, Spec, pings};
use vwire_control::obs::ConnectionView;

/// How long anything may take on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);
const PINGS: u32 = 20;

fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < end, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A testpmd with two memif ports, in a workload's namespace; killed when dropped.
struct Testpmd {
    child: Child,
    log: PathBuf,
}

impl Testpmd {
    /// As client of two abstract sockets.
    fn start(namespace: &str, sockets: &[String; 2], directory: &Path) -> Self {
        let log = directory.join("testpmd.log");
        let out = File::create(&log).unwrap();
        let mut arguments = "-l 0,1 --no-pci -m 256 --no-telemetry --no-huge --no-shconf".to_owned();
        for (port, socket) in sockets.iter().enumerate() {
            let name = socket.trim_start_matches('@');
            arguments +=
                &format!(" --vdev=net_memif{port},role=client,id=0,socket={name},socket-abstract=yes");
        }
        arguments +=
            " --log-level=pmd.net.memif:debug -- --forward-mode=io --auto-start --disable-link-check";
        arguments += " --tx-offloads=0x8000 --no-flush-rx --mbuf-size=2176 --total-num-mbufs=16384";
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, "dpdk-testpmd"]).args(arguments.split(' '));
        // Where DPDK keeps what it shares between its processes.
        command.env("RUNTIME_DIRECTORY", directory);
        command.stdin(Stdio::piped()).stdout(out.try_clone().unwrap()).stderr(out);
        let child = command.spawn().expect("iproute2 is installed");
        let mut testpmd = Self { child, log };
        until("DPDK to be connected to both sockets", || {
            testpmd.assert_runs();
            (testpmd.log().matches("memif_connect(): Connected.").count() == 2).then_some(())
        });
        testpmd
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn assert_runs(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("testpmd ended with {status}; is dpdk-dev installed?\n{}", self.log());
        }
    }

    /// Ends it. Returns the frames that each port received and sent, as DPDK counted them.
    fn end(mut self) -> Vec<(u64, u64)> {
        writeln!(self.child.stdin.take().unwrap()).unwrap();
        until("testpmd to end", || self.child.try_wait().unwrap());
        let log = self.log();
        let figures = |name: &str| -> Vec<u64> {
            let after = log.split(name).skip(1);
            after.filter_map(|rest| rest.split_whitespace().next()?.parse().ok()).collect()
        };
        // One for each port, and their sum.
        let (received, sent) = (figures("RX-packets: "), figures("TX-packets: "));
        received.into_iter().zip(sent).take(2).collect()
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("testpmd said:\n{}", self.log());
        }
    }
}

/// The sockets that the client printed for its connections, in their order.
fn sockets(lab: &Lab) -> [String; 2] {
    let log = lab.layout().log("nsc-nsc-dpdk");
    until("two sockets to connect to", || {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        let socket = |number: usize| {
            let line = log.lines().find(|line| line.contains(&format!("-{number}: memif socket ")))?;
            Some(line.split("memif socket ").nth(1)?.split(' ').next()?.to_owned())
        };
        Some([socket(0)?, socket(1)?])
    })
}

fn ip(namespace: &str, arguments: &str) -> String {
    let output = Command::new("ip").args(["-n", namespace]).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn ping(namespace: &str, arguments: &[String], address: &str) -> String {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, "ping", "-M", "do"]).args(arguments);
    let output = command.arg(address).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Pings without loss, by frames of two sizes; once DPDK forwards, which it does not tell.
fn assert_pings(namespace: &str, address: &str) {
    // The kernel endpoint knows nothing of the other vWire's addresses.
    let links = ip(namespace, "-o link");
    let names = links.lines().filter_map(|line| line.split(": ").nth(1));
    let interface = names.map(|name| name.split('@').next().unwrap()).find(|name| *name != "lo").unwrap();
    ip(namespace, &format!("route replace {address}/32 dev {interface}"));
    let once = ["-c", "1", "-W", "5"].map(str::to_owned);
    until("DPDK to forward", || ping(namespace, &once, address).contains(" 1 received").then_some(()));
    for size in [56, 1372] {
        let mut arguments = pings::arguments(PINGS);
        arguments.extend(["-s".to_owned(), size.to_string()]);
        let said = ping(namespace, &arguments, address);
        assert_eq!(pings::lost(&said, PINGS), [0; 0], "{said}");
    }
}

#[tokio::test]
async fn dpdk_carries_frames_between_a_kernel_endpoint_and_a_memif_endpoint() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/lab/one-node.yaml");
    let mut spec = Spec::load(&file).unwrap();
    let run = Run::of(&mut spec, "dpdk");
    let clients = &mut spec.domains[0].nodes[0].clients;
    clients.retain(|client| client.name == "nsc-memif");
    clients[0].name = "nsc-dpdk".to_owned();
    clients[0].services = vec!["memif://icmp-kernel".to_owned(), "memif://icmp-memif".to_owned()];
    clients[0].env.insert("VWIRE_MEMIF_EXPORT".to_owned(), "true".to_owned());
    spec.checks.clear();

    let lab = run.up(&spec).await;
    frames_pass(&lab, run.folder()).await;
    lab.down(&Silent).await.unwrap();
}

async fn frames_pass(lab: &Lab, directory: &Path) {
    let sockets = sockets(lab);
    let admin = AdminClient(lab.layout().admin("nsc-nsc-dpdk"));
    let views: Vec<ConnectionView> = admin.get("/connections").await.unwrap();
    let far = views.iter().find(|view| view.service == "icmp-memif").unwrap();
    let far = far.endpoint_addresses[0].split('/').next().unwrap().to_owned();

    let endpoint = lab.layout().namespace("nse-kernel");
    let workload = lab.layout().namespace("nsc-dpdk");
    let first = Testpmd::start(&workload, &sockets, directory);
    assert_pings(&endpoint, &far);
    // It is killed without warning. The vWires are as they were, and whoever comes next to the same sockets has them.
    drop(first);
    let second = Testpmd::start(&workload, &sockets, directory);
    assert_pings(&endpoint, &far);
    let views: Vec<ConnectionView> = admin.get("/connections").await.unwrap();
    for view in views {
        assert!(
            view.last_heal.is_none() && view.state == "UP",
            "{}: {} {:?}",
            view.id,
            view.state,
            view.last_heal
        );
    }
    let counted = second.end();
    assert_eq!(counted.len(), 2, "two ports");
    for (port, (received, sent)) in counted.into_iter().enumerate() {
        assert!(received.min(sent) >= 2 * u64::from(PINGS), "port {port}: {received} in, {sent} out");
    }
}
