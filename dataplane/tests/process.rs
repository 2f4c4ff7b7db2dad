//! The process: what it says about a configuration that won't do, how it ends, and what it leaves behind.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(10);

fn binary() -> Command {
    Command::new(env!("CARGO_BIN_EXE_vwire-dataplane"))
}

/// A running engine that is killed with the test.
struct Engine(Child);

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Engine {
    fn start(config: &Path) -> Self {
        let child = binary().arg("--config").arg(config).stderr(Stdio::piped()).spawn().unwrap();
        Self(child)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    fn wait(&mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(2));
        };
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status.code(), said)
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// A configuration file with its own sockets and segment, and `rest`.
    fn config(&self, rest: &str) -> std::path::PathBuf {
        let dir = self.dir.path().display().to_string();
        let text = format!("{rest}\n[stats]\npath = \"$DIR/stats\"\n[api]\nsocket = \"$DIR/api.sock\"\n");
        let file = self.path("vwire.toml");
        std::fs::write(&file, text.replace("$DIR", &dir)).unwrap();
        file
    }
}

fn run(config: &Path, args: &[&str]) -> (Output, Duration) {
    let begin = Instant::now();
    let output = binary().arg("--config").arg(config).args(args).output().unwrap();
    (output, begin.elapsed())
}

#[test]
fn a_configuration_that_wont_do_ends_the_start_with_file_key_and_reason() {
    let place = Place::new();
    let memif = "[[port]]\nname = \"a\"\nkind = \"memif\"\nrole = \"server\"\n";
    let deep = format!("x = {}1{}", "[".repeat(10_000), "]".repeat(10_000));
    let cases: Vec<(String, &str)> = vec![
        ("colour = \"red\"".into(), ": colour: unknown field `colour`"),
        ("[workers]\ncores = \"all\"".into(), ": workers.cores: invalid type"),
        ("[workers]\ncores = [-1]".into(), ": workers.cores[0]: invalid value"),
        ("[workers]\ncores = [99999]".into(), ": workers.cores: workers.cores names core 99999"),
        ("[[port]]\nname = \"a\"".into(), ": port[0]: missing field `kind`"),
        (memif.into(), ": port[0]: missing field `socket`"),
        (format!("{memif}socket = \"/no/dir/\\u0000\""), ": port[0].socket: "),
        (format!("{memif}socket = \"/dev/null/x\""), ": port[0]: port a: "),
        (format!("{memif}socket = \"/tmp/x\"\nring_size = 3"), ": port[0].ring_size: ring_size can be a power of two"),
        (
            "[[port]]\nname = \"k\"\nkind = \"kernel\"\nifname = \"k\"\nnetns = \"/run/netns/vwire-none\"".into(),
            ": port[0]: port k: network namespace /run/netns/vwire-none: No such file",
        ),
        (
            "[[port]]\nname = \"t\"\nkind = \"vxlan\"\nvni = 1\nlocal = \"198.51.100.1\"\nremote = \"198.51.100.2\"".into(),
            ": port[0]: port t: underlay 198.51.100.1:4789: no interface here has this address",
        ),
        ("[admin]\nlisten = \"198.51.100.1:1\"".into(), ": admin.listen: 198.51.100.1:1: "),
        ("[log]\nfilter = \"a=b=c\"".into(), ": log.filter: "),
        (deep, ": "),
        ("x = \"".into(), ": "),
    ];
    for (text, expected) in cases {
        let file = place.config(&text);
        let (output, took) = run(&file, &[]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}: {said}");
        assert!(said.starts_with(&file.display().to_string()), "{said}");
        assert!(said.contains(expected), "{said} does not say {expected}");
        assert_eq!(said.trim_end().lines().count(), 1, "{said}");
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert!(!place.path("api.sock").exists(), "nothing is left behind by {text}");
    }
}

#[test]
fn files_that_are_none_end_the_start_too() {
    let place = Place::new();
    let big = place.path("big.toml");
    std::fs::write(&big, vec![b'\n'; 10 << 20]).unwrap();
    let none = place.path("none.toml");
    for (file, expected) in [
        (none.as_path(), "No such file or directory"),
        (place.dir.path(), "is not a plain file"),
        (Path::new("/dev/zero"), "is not a plain file"),
        (&big, "has 10485760 bytes; at most 4194304 are read"),
    ] {
        let (output, took) = run(file, &["--check"]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(said.starts_with(&file.display().to_string()) && said.contains(expected), "{said}");
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
}

#[test]
fn every_shipped_configuration_passes_the_check() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config");
    let (mut open, mut checked) = (vec![root], 0);
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "toml") {
            let (output, _) = run(&path, &["--check"]);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            checked += 1;
        }
    }
    assert!(checked >= 4, "only {checked} were found");
}

#[test]
fn it_stops_at_sigterm_and_sigint_and_takes_its_sockets_along() {
    for signal in [Signal::TERM, Signal::INT] {
        let place = Place::new();
        let config = place.config(
            "[[port]]\nname = \"a\"\nkind = \"memif\"\nrole = \"server\"\nsocket = \"$DIR/a.sock\"\n",
        );
        let mut engine = Engine::start(&config);
        wait_for("the memif socket", || place.path("a.sock").exists());
        wait_for("the API", || std::os::unix::net::UnixStream::connect(place.path("api.sock")).is_ok());
        engine.signal(signal);
        assert_eq!(engine.wait(), (Some(0), String::new()), "and says nothing");
        assert!(!place.path("a.sock").exists() && !place.path("api.sock").exists());
    }
}

#[test]
fn counters_can_be_read_after_it_was_killed_and_it_starts_again_over_what_it_left() {
    let place = Place::new();
    let port = "[[port]]\nname = \"a\"\nkind = \"memif\"\nrole = \"server\"\nsocket = \"$DIR/a.sock\"\n";
    let config = place.config(port);
    let stats = || {
        let output = binary().arg("stats").arg("--path").arg(place.path("stats")).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let mut engine = Engine::start(&config);
    wait_for("the port", || stats().contains("\na  "));
    assert!(stats().contains("running"));
    engine.signal(Signal::KILL);
    engine.wait();
    let left = stats();
    assert!(left.contains(", gone") && left.contains("\na                        memif   down"), "{left}");
    assert!(
        place.path("a.sock").exists() && place.path("api.sock").exists(),
        "a killed process cleans nothing"
    );
    let _second = Engine::start(&config);
    wait_for("the second", || stats().contains("running"));
    wait_for("its API", || std::os::unix::net::UnixStream::connect(place.path("api.sock")).is_ok());
}

#[test]
fn a_second_engine_on_the_same_sockets_is_refused_and_the_first_goes_on() {
    let place = Place::new();
    let config = place.config("");
    let mut first = Engine::start(&config);
    wait_for("the API", || std::os::unix::net::UnixStream::connect(place.path("api.sock")).is_ok());
    wait_for("the counters", || place.path("stats").exists());
    let pid = std::fs::read(place.path("stats")).unwrap();
    let (output, _) = run(&config, &[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(": api.socket: ") && said.contains("another process listens on it"), "{said}");
    assert_eq!(std::fs::read(place.path("stats")).unwrap(), pid, "the first one's counters are untouched");
    assert!(std::os::unix::net::UnixStream::connect(place.path("api.sock")).is_ok());
    first.signal(Signal::TERM);
    assert_eq!(first.wait().0, Some(0));
}

#[test]
fn logs_are_quiet_by_default_and_json_if_asked() {
    let place = Place::new();
    let config = place.config("");
    let mut command = binary();
    command
        .arg("--config")
        .arg(&config)
        .args(["--log", "info", "--log-format", "json"])
        .stderr(Stdio::piped());
    let mut engine = Engine(command.spawn().unwrap());
    wait_for("the API", || std::os::unix::net::UnixStream::connect(place.path("api.sock")).is_ok());
    engine.signal(Signal::TERM);
    let (code, said) = engine.wait();
    assert_eq!(code, Some(0));
    assert!(said.lines().count() >= 2, "{said}");
    assert!(said.lines().all(|line| line.starts_with("{\"timestamp\":") && line.ends_with('}')), "{said}");
}

#[test]
fn usage_mistakes_are_explained() {
    let none = binary().output().unwrap();
    assert!(!none.status.success());
    assert!(String::from_utf8_lossy(&none.stderr).contains("Usage:"));
    let capture = binary().args(["capture", "--api", "/nowhere/api.sock", "--port", "a"]).output().unwrap();
    let said = String::from_utf8(capture.stderr).unwrap();
    assert_eq!(said, "/nowhere/api.sock: No such file or directory (os error 2)\n");
    let stats = binary().args(["stats", "--path", "/dev/null"]).output().unwrap();
    assert!(
        !stats.status.success() && String::from_utf8_lossy(&stats.stderr).contains("0 bytes are too few")
    );
}

#[test]
fn a_socket_that_it_was_started_with_is_served() {
    let place = Place::new();
    let path = place.path("their.sock");
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::empty(),
        None,
    )
    .unwrap();
    rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&socket, 4).unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&socket);
    let port = "[[port]]\nname = \"a\"\nkind = \"memif\"\nrole = \"server\"\n";
    let client = "[[port]]\nname = \"c\"\nkind = \"memif\"\nrole = \"client\"\n";
    let config =
        place.config(&format!("{port}socket = \"fd:{number}\"\n{client}socket = \"{}\"\n", path.display()));
    let mut engine = Engine::start(&config);
    let up = || {
        let output = binary().arg("stats").arg("--path").arg(place.path("stats")).output().unwrap();
        String::from_utf8(output.stdout).unwrap().matches(" up ").count()
    };
    wait_for("both ends of the link", || up() == 2);
    engine.signal(Signal::TERM);
    assert_eq!(engine.wait(), (Some(0), String::new()));
    assert!(path.exists(), "a socket that somebody else made is not removed");
}

#[test]
fn it_stops_while_somebody_captures() {
    let place = Place::new();
    let config = place.config("[[port]]\nname = \"a\"\nkind = \"pipe\"\npipe = \"p\"\n");
    let mut engine = Engine::start(&config);
    wait_for("the API", || std::os::unix::net::UnixStream::connect(place.path("api.sock")).is_ok());
    let file = place.path("a.pcapng");
    let mut command = binary();
    command.args(["capture", "--port", "a", "--api"]).arg(place.path("api.sock")).arg("-w").arg(&file);
    let mut capture = Engine(command.stderr(Stdio::piped()).spawn().unwrap());
    wait_for("the capture", || std::fs::metadata(&file).is_ok_and(|meta| meta.len() > 0));
    engine.signal(Signal::TERM);
    assert_eq!(engine.wait(), (Some(0), String::new()));
    capture.wait();
    assert!(!place.path("api.sock").exists());
}
