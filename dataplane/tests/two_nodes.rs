//! The program as it is used: two nodes joined by a veth underlay, an engine on each, and hosts that ping
//! through them.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(15);

fn ip(args: &[&str]) -> String {
    let output = Command::new("ip").args(args).output().unwrap();
    assert!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Namespaces and engines of one test; all gone with it.
struct Nodes {
    dir: tempfile::TempDir,
    netns: Vec<String>,
    engines: Vec<Child>,
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for engine in &mut self.engines {
            let _ = engine.kill();
            let _ = engine.wait();
        }
        for netns in &self.netns {
            let _ = Command::new("ip").args(["netns", "del", netns]).status();
        }
    }
}

impl Nodes {
    /// Namespaces for nodes and pods 1 and 2, the nodes joined by a veth pair with these addresses.
    fn new(tag: &str, underlay: [&str; 2]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let name = |kind: &str, n: usize| format!("vw-{tag}{kind}{n}-{}", std::process::id());
        let mut nodes = Self { dir, netns: Vec::new(), engines: Vec::new() };
        for (kind, n) in [("n", 1), ("n", 2), ("p", 1), ("p", 2)] {
            ip(&["netns", "add", &name(kind, n)]);
            nodes.netns.push(name(kind, n));
        }
        let (one, two) = (nodes.netns[0].clone(), nodes.netns[1].clone());
        ip(&["link", "add", "u1", "netns", &one, "type", "veth", "peer", "name", "u2", "netns", &two]);
        for (netns, device, address) in [(one, "u1", underlay[0]), (two, "u2", underlay[1])] {
            ip(&["-n", &netns, "address", "add", address, "dev", device, "nodad"]);
            ip(&["-n", &netns, "link", "set", device, "up"]);
        }
        nodes
    }

    fn pod(&self, n: usize) -> &str {
        &self.netns[1 + n]
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts node `n`'s engine with `ports`.
    fn start(&mut self, n: usize, ports: &str) {
        let dir = self.dir.path().display().to_string();
        let text =
            format!("[stats]\npath = \"$DIR/stats{n}\"\n[api]\nsocket = \"$DIR/api{n}.sock\"\n{ports}");
        let file = self.path(&format!("node{n}.toml"));
        std::fs::write(&file, text.replace("$DIR", &dir).replace("$POD", self.pod(n))).unwrap();
        let mut command = Command::new("ip");
        command.args([
            "netns",
            "exec",
            &self.netns[n - 1],
            env!("CARGO_BIN_EXE_vwire-dataplane"),
            "--config",
        ]);
        self.engines.push(command.arg(&file).stderr(Stdio::inherit()).spawn().unwrap());
    }

    /// Pings until an answer comes (the engines may still be starting), then `count` times without a loss.
    fn ping(&self, target: &str, more: &[&str]) {
        let netns = self.pod(1);
        let ping = |args: &[&str]| {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", netns, "ping", "-n", "-W", "1"]).args(args).args(more).arg(target);
            command.output().unwrap()
        };
        let deadline = Instant::now() + PATIENCE;
        while !ping(&["-c", "1"]).status.success() {
            assert!(Instant::now() < deadline, "no answer from {target}");
        }
        // With a deadline ping waits for 20 answers, and may send more meanwhile; without, it waits for the last ones only twice as
        // long as the slowest took so far.
        let output = ping(&["-c", "20", "-i", "0.01", "-w", "20"]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let answered = |number: u32| said.contains(&format!("icmp_seq={number} ttl="));
        assert!((1..=20).all(answered), "{said}");
    }

    fn stats(&self, n: usize) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vwire-dataplane"));
        command.arg("stats").arg("--path").arg(self.path(&format!("stats{n}")));
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }
}

fn tap_and_tunnel(n: usize, address: &str, local: &str, remote: &str) -> String {
    format!(
        "[[port]]\nname = \"k\"\nkind = \"kernel\"\nifname = \"nsm-{n}\"\nnetns = \"/run/netns/$POD\"\n\
         addresses = [\"{address}\"]\nmtu = 1430\n[[port]]\nname = \"t\"\nkind = \"vxlan\"\nvni = 42\n\
         local = \"{local}\"\nremote = \"{remote}\"\n[[xconnect]]\nports = [\"k\", \"t\"]\n"
    )
}

#[test]
fn hosts_on_two_nodes_ping_through_taps_and_a_tunnel() {
    let mut nodes = Nodes::new("a", ["10.9.0.1/24", "10.9.0.2/24"]);
    nodes.start(1, &tap_and_tunnel(1, "10.60.1.1/30", "10.9.0.1", "10.9.0.2"));
    nodes.start(2, &tap_and_tunnel(2, "10.60.1.2/30", "10.9.0.2", "10.9.0.1"));
    nodes.ping("10.60.1.2", &[]);
    nodes.ping("10.60.1.2", &["-s", "1402", "-M", "do"]);
    for n in [1, 2] {
        let stats = nodes.stats(n);
        assert!(!stats.contains("dropped too_big"), "{stats}");
    }
}

#[test]
fn a_tunnel_over_ipv6_carries_ipv6() {
    let mut nodes = Nodes::new("b", ["fd00:9::1/64", "fd00:9::2/64"]);
    nodes.start(1, &tap_and_tunnel(1, "fd00:60::1/64", "fd00:9::1", "fd00:9::2"));
    nodes.start(2, &tap_and_tunnel(2, "fd00:60::2/64", "fd00:9::2", "fd00:9::1"));
    nodes.ping("fd00:60::2", &[]);
}

#[test]
fn an_interface_that_somebody_deletes_takes_its_link_down_and_nothing_else() {
    let mut nodes = Nodes::new("c", ["10.9.0.1/24", "10.9.0.2/24"]);
    let second =
        "[[port]]\nname = \"x\"\nkind = \"kernel\"\nifname = \"gone\"\nnetns = \"/run/netns/$POD\"\n";
    nodes.start(1, &(tap_and_tunnel(1, "10.60.1.1/30", "10.9.0.1", "10.9.0.2") + second));
    nodes.start(2, &tap_and_tunnel(2, "10.60.1.2/30", "10.9.0.2", "10.9.0.1"));
    nodes.ping("10.60.1.2", &[]);
    ip(&["-n", nodes.pod(1), "link", "del", "gone"]);
    let deadline = Instant::now() + PATIENCE;
    let down = |stats: &str| stats.lines().any(|line| line.starts_with("x ") && line.contains(" down "));
    while !down(&nodes.stats(1)) {
        assert!(Instant::now() < deadline, "{}", nodes.stats(1));
        std::thread::sleep(Duration::from_millis(10));
    }
    nodes.ping("10.60.1.2", &[]);
}

#[test]
fn a_capture_by_the_program_is_read_by_tshark() {
    let mut nodes = Nodes::new("d", ["10.9.0.1/24", "10.9.0.2/24"]);
    nodes.start(1, &tap_and_tunnel(1, "10.60.1.1/30", "10.9.0.1", "10.9.0.2"));
    nodes.start(2, &tap_and_tunnel(2, "10.60.1.2/30", "10.9.0.2", "10.9.0.1"));
    nodes.ping("10.60.1.2", &[]);
    let file = nodes.path("k.pcapng");
    let mut command = Command::new(env!("CARGO_BIN_EXE_vwire-dataplane"));
    command.args(["capture", "--port", "k", "--api"]).arg(nodes.path("api1.sock")).arg("-w").arg(&file);
    // Beside the engines it ends with the test, however that ends.
    nodes.engines.push(command.spawn().unwrap());
    let tshark = |filter: &str| {
        let output = Command::new("tshark").arg("-r").arg(&file).args(["-Y", filter]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let deadline = Instant::now() + PATIENCE;
    while tshark("icmp.type == 0 && frame.packet_flags_direction == 2").lines().count() < 10 {
        assert!(Instant::now() < deadline, "{}", tshark("frame"));
        nodes.ping("10.60.1.2", &[]);
    }
    let capture = nodes.engines.last_mut().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_child(capture), rustix::process::Signal::INT)
        .unwrap();
    assert!(capture.wait().unwrap().success());
    assert_eq!(tshark("_ws.malformed"), "");
    assert!(tshark("icmp.type == 8 && frame.packet_flags_direction == 1").lines().count() >= 10);
}
