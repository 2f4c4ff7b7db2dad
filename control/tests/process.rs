//! `vwire` as a process: settings by their precedence, wrong ones refused, signals, the admin port.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use vwire_control::cli::AdminClient;
use vwire_control::transport::Target;

/// `vwire` with nothing of our own environment.
fn vwire(args: &[&str], env: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vwire"));
    command.args(args).env_clear().envs(env.iter().copied()).stdin(Stdio::null());
    command
}

fn run(args: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = vwire(args, env).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

/// A process that does not outlive its test.
struct Running(Child);

impl Running {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn url(path: &Path) -> String {
    format!("unix://{}", path.display())
}

async fn eventually<T>(what: &str, mut is_so: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = is_so().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn a_wrong_setting_ends_the_start_with_its_name_and_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.toml");
    std::fs::write(&file, "max_token_lifetime = 600\n").unwrap();
    let file = file.to_str().unwrap();
    /// Arguments, environment, and what the error says.
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);
    let cases: [Case<'_>; 6] = [
        (&["ca"], &[("NSM_DIAL_TIMEOUT", "750")], "NSM_DIAL_TIMEOUT: \"750\": 750 has no unit"),
        (&["ca"], &[("NSM_LOG_LEVEL", "")], "NSM_LOG_LEVEL: \"\": not a level"),
        (
            &["ca", "--dial-timeout=x"],
            &[("NSM_DIAL_TIMEOUT", "1s")],
            "--dial-timeout: \"x\": \"x\" is no unit",
        ),
        (&["ca"], &[("VWIRE_INSECURE", "yes")], "VWIRE_INSECURE: \"yes\": not a boolean"),
        (&["ca"], &[("VWIRE_CONFIG", file)], "max_token_lifetime: \"600\": 600 has no unit"),
        (&["ca", "--config", "/nonexistent.yaml"], &[], "/nonexistent.yaml: No such file"),
    ];
    for (args, env, reason) in cases {
        let (code, said) = run(args, env);
        assert_eq!(code, Some(2), "{args:?} {env:?}: {said}");
        assert!(said.contains(reason), "{args:?} {env:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn help_is_no_error_and_an_unknown_role_is() {
    assert_eq!(run(&["--help"], &[]).0, Some(0));
    assert_eq!(run(&["ca", "--help"], &[]).0, Some(0));
    assert_eq!(run(&["nsmngr"], &[]).0, Some(2));
}

#[tokio::test]
async fn without_tls_a_role_runs_only_if_told_so_and_says_it_loudly() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (listen, admin) = (url(&path("registry.sock")), url(&path("admin.sock")));
    let env =
        [("NSM_LISTEN_ON", listen.as_str()), ("VWIRE_ADMIN", admin.as_str()), ("NSM_LOG_LEVEL", "ERROR")];
    let (code, said) = run(&["registry"], &env);
    assert_ne!(code, Some(0));
    assert!(said.contains("SPIFFE_ENDPOINT_SOCKET") && said.contains("--insecure"), "{said}");
    let log = std::fs::File::create(path("log")).unwrap();
    let mut command = vwire(&["registry", "--insecure"], &env);
    let process = Running(command.stderr(log).spawn().unwrap());
    let client = AdminClient(Target::Unix(path("admin.sock")));
    let ready = async || {
        client.get::<Value>("/status").await.ok().filter(|status| status["not_ready"] == Value::Array(vec![]))
    };
    let status = eventually("the role", ready).await;
    assert_eq!((&status["insecure"], &status["spiffe_id"]), (&Value::Bool(true), &Value::Null), "{status}");
    let said = std::fs::read_to_string(path("log")).unwrap();
    assert!(said.contains("INSECURE: no TLS"), "{said}");
    drop(process);
}

#[tokio::test]
async fn flag_beats_environment_beats_file_and_signals_are_heard() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let file = path("ca.yaml");
    std::fs::write(
        &file,
        "ca_svid_lifetime: 20m\nmax_token_lifetime: 5m\ndial_timeout: 2s\nlog_level: INFO\nca_trust_domain: file.test\n",
    )
    .unwrap();
    let admin = path("ca-file.test.sock");
    let workload = format!("/x={}", path("api.sock").display());
    let env = [
        ("VWIRE_ADMIN", url(&admin)),
        ("VWIRE_CONFIG", file.display().to_string()),
        ("VWIRE_CA_WORKLOADS", workload),
        ("NSM_MAX_TOKEN_LIFETIME", "6m".to_owned()),
        ("NSM_DIAL_TIMEOUT", "3s".to_owned()),
    ];
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let log = std::fs::File::create(path("log")).unwrap();
    let mut command = vwire(&["ca", "--dial-timeout", "4s"], &env);
    let mut process = Running(command.stderr(log).spawn().unwrap());
    let client = AdminClient(Target::Unix(admin.clone()));
    let settings: Vec<Value> = eventually("the admin port", async || client.get("/config").await.ok()).await;
    let setting = |name: &str| {
        let setting = settings.iter().find(|setting| setting["name"] == name).unwrap();
        (setting["value"].as_str().unwrap().to_owned(), setting["origin"].as_str().unwrap().to_owned())
    };
    assert_eq!(setting("NSM_DIAL_TIMEOUT"), ("4s".into(), "--dial-timeout".into()));
    assert_eq!(setting("NSM_MAX_TOKEN_LIFETIME"), ("6m".into(), "NSM_MAX_TOKEN_LIFETIME".into()));
    let from_file = |key: &str| format!("{}: {key}", file.display());
    assert_eq!(setting("VWIRE_CA_SVID_LIFETIME"), ("20m".into(), from_file("ca_svid_lifetime")));
    assert_eq!(setting("NSM_PPROF_ENABLED").1, "default of NSM_PPROF_ENABLED");

    let status: Value = client.get("/status").await.unwrap();
    assert_eq!((status["role"].as_str(), status["name"].as_str()), (Some("ca"), Some("file.test")));

    let level = async || client.get::<Value>("/log").await.unwrap()["level"].as_str().unwrap().to_owned();
    assert_eq!(level().await, "INFO");
    process.signal(Signal::USR1);
    eventually("TRACE", async || (level().await == "TRACE").then_some(())).await;
    process.signal(Signal::USR2);
    eventually("INFO", async || (level().await == "INFO").then_some(())).await;
    client.put("/log", "warn,vwire_control=debug".to_owned()).await.unwrap();
    assert_eq!(level().await, "warn,vwire_control=debug");
    assert!(client.put("/log", "loud".to_owned()).await.unwrap_err().to_string().contains("not a level"));
    client.put("/log", String::new()).await.unwrap();
    assert_eq!(level().await, "INFO");

    let shown =
        Command::new(env!("CARGO_BIN_EXE_vwire")).args(["status", "--run"]).arg(dir.path()).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(
        shown.lines().nth(1).is_some_and(|line| line.starts_with("ca") && line.contains("file.test")),
        "{shown}"
    );

    process.signal(Signal::TERM);
    let ended = tokio::task::spawn_blocking(move || process.0.wait().map(|status| status.code())).await;
    assert_eq!(ended.unwrap().unwrap(), Some(0));
    assert!(!admin.exists() && !path("api.sock").exists(), "sockets go with their process");
}
