//! The examples with each other, as two processes: what scripts rely on is that pings are answered and how
//! they end.

mod support;

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use support::{Place, until};

/// A program of `examples/`, which `cargo test` builds beside the tests.
fn example(name: &str) -> Command {
    let tests = std::env::current_exe().expect("a path");
    let path: PathBuf = tests.ancestors().nth(2).expect("target/debug").join("examples").join(name);
    assert!(path.exists(), "{} is not built: cargo build --examples", path.display());
    Command::new(path)
}

/// A responder; killed when dropped.
struct Responder(Child);

impl Responder {
    fn start(role: &str, place: &Place, mode: &str) -> Self {
        let mut command = example("icmp_responder");
        command.args(["--role", role, "--mode", mode, "--socket"]).arg(place.path("m.sock"));
        command.args(["--address", "10.60.1.2/30", "--address", "fd60::2/64"]);
        Self(command.stderr(Stdio::null()).spawn().expect("start"))
    }

    /// Asks it to end, as systemd and shells do.
    fn end(mut self, signal: rustix::process::Signal) -> ExitStatus {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), signal).expect("kill");
        until("the responder to end", || self.0.try_wait().expect("wait"))
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ping(role: &str, place: &Place, mode: &str, rest: &[&str]) -> Output {
    let mut command = example("ping");
    command.args(["--role", role, "--mode", mode, "--socket"]).arg(place.path("m.sock"));
    command.args(["--interval", "0.01", "--address", "10.60.1.1/30", "--address", "fd60::1/64"]).args(rest);
    command.output().expect("run")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn pings_are_answered_in_both_roles_modes_and_families() {
    for (ours, theirs) in [("client", "server"), ("server", "client")] {
        for mode in ["ethernet", "ip"] {
            let place = Place::new();
            let responder = Responder::start(theirs, &place, mode);
            if theirs == "server" {
                until("its socket", || place.path("m.sock").exists().then_some(()));
            }
            for (target, size) in
                [("10.60.1.2", "56"), ("10.60.1.2", "1472"), ("fd60::2", "56"), ("fd60::2", "1452")]
            {
                let output = ping(ours, &place, mode, &["--count", "5", "--size", size, target]);
                let said = text(&output);
                assert!(output.status.success(), "{ours} {mode} {target} {size}: {output:?}");
                let replies = said.matches(&format!("{size} bytes from {target}: icmp_seq=")).count();
                assert_eq!(replies, 5, "{said}");
                assert!(said.contains("5 packets transmitted, 5 received, 0% packet loss"), "{said}");
                assert!(said.contains("rtt min/avg/max = "), "{said}");
            }
            let signal =
                if mode == "ip" { rustix::process::Signal::TERM } else { rustix::process::Signal::INT };
            assert!(responder.end(signal).success(), "a clean end");
            assert!(!place.path("m.sock").exists(), "which takes the socket's file along");
        }
    }
}

#[test]
fn lost_pings_and_missing_links_have_exit_codes() {
    let place = Place::new();
    let output = ping("client", &place, "ip", &["--wait", "0.3", "10.60.1.2"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("ping: no link within 300ms"));

    let _responder = Responder::start("server", &place, "ethernet");
    until("its socket", || place.path("m.sock").exists().then_some(()));
    let lost = ["--count", "3", "--timeout", "0.1", "--quiet", "fd60::3"];
    let output = ping("client", &place, "ethernet", &lost);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output).contains("3 packets transmitted, 0 received, 100% packet loss"), "{output:?}");

    let output = ping("client", &place, "ethernet", &["--size", "1473", "10.60.1.2"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr)
            .contains("--size 1473 does not fit --mtu 1500: 1472 bytes do")
    );
}
