//! The examples of vL3 as their scripts run them, and names over a whole vL3. Needs root, and the Debian packages that the scripts name.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use vwire_control::lab::{Lab, Programs, Spec};

mod lab_support;
use lab_support::{Run, inside};

const PATIENCE: Duration = Duration::from_secs(60);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn shipped(file: &str) -> Spec {
    Spec::load(&root().join("config/lab").join(file)).unwrap()
}

/// Runs a script with the programs of this build, on labs in this folder.
fn script(run: &Run, name: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(root().join("scripts").join(name));
    let programs = Path::new(env!("CARGO_BIN_EXE_vwire")).parent().unwrap();
    command.env("VWIRE_BIN", programs).env("VWIRE_LABS", run.folder()).env_remove("VWIRE_LOGS");
    command.args(arguments).stdin(std::process::Stdio::null()).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// The first address of a client, and the name server that it was told.
fn told(lab: &Lab, client: &str) -> (String, String) {
    let socket = lab.layout().directory().join(format!("admin/nsc-{client}.sock"));
    let output =
        Command::new("curl").args(["-sS", "--unix-socket"]).arg(socket).arg("http://x/connections").output();
    let views: serde_json::Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    let address = views[0]["client_addresses"][0].as_str().unwrap().split('/').next().unwrap().to_owned();
    (address, views[0]["dns"][0]["servers"][0].as_str().unwrap().to_owned())
}

/// Looks until a client's dig says so.
async fn dig(lab: &Lab, client: &str, server: &str, words: &[&str], wanted: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let at = format!("@{server}");
        let (_, answer) = inside(lab, client, &[&["dig", &at, "+tries=1"], words].concat());
        if answer.contains(wanted) {
            return;
        }
        assert!(Instant::now() < deadline, "{client} asks {server} for {words:?}: {answer}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_two_endpoints_find_each_other_by_name() {
    let mut spec = shipped("vl3-single.yaml");
    let run = Run::of(&mut spec, "vl3names");
    let lab = run.up(&spec).await;
    let ((one, near), (two, far)) = (told(&lab, "hello-1"), told(&lab, "hello-2"));
    assert_ne!(near, far, "each endpoint has its name server");
    // Its own endpoint's clients, and those of the other.
    for (name, address) in [("hello-1", &one), ("hello-2", &two)] {
        for server in [&near, &far] {
            dig(&lab, "hello-1", server, &["+short", &format!("{name}.vl3"), "A"], address).await;
            dig(&lab, "hello-1", server, &["+short", "-x", address], &format!("{name}.vl3.")).await;
        }
    }
    dig(&lab, "hello-1", &near, &["+tcp", "hello-2.vl3", "A"], &two).await;
    dig(&lab, "hello-1", &near, &["nobody.vl3", "A"], "status: NXDOMAIN").await;
    // glibc's resolver, in a file system where /etc/resolv.conf is the one that a client would have.
    let file = run.folder().join("resolv.conf");
    std::fs::write(&file, format!("nameserver {near}\nsearch vl3\n")).unwrap();
    let mount = format!("mount --bind {} /etc/resolv.conf && exec \"$@\"", file.display());
    let getent = |name: &str| {
        inside(
            &lab,
            "hello-1",
            &[
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                &mount,
                "sh",
                "getent",
                "hosts",
                name,
            ],
        )
    };
    let (found, answer) = getent("hello-2");
    assert!(found && answer.starts_with(&two), "{answer}");
    let (found, answer) = getent(&two);
    assert!(found && answer.contains("hello-2.vl3"), "{answer}");
    assert!(!getent("nobody").0);
    // A client that ends takes its name with it, everywhere.
    let (place, _) = lab.processes().into_iter().find(|(place, _)| place.name == "nsc-hello-2").unwrap();
    assert!(Command::new("kill").arg(place.pid.to_string()).status().unwrap().success());
    for server in [&near, &far] {
        dig(&lab, "hello-1", server, &["hello-2.vl3", "A"], "status: NXDOMAIN").await;
        dig(&lab, "hello-1", server, &["-x", &two], "status: NXDOMAIN").await;
    }
}

/// A client with a name server of its own asks the vL3's for what is there: whole names, short ones by the search domain that it was told,
/// addresses, and as many endpoints away as there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_own_name_server_knows_the_network() {
    let mut spec = shipped("vl3-single.yaml");
    let run = Run::of(&mut spec, "vl3own");
    std::fs::create_dir_all(run.folder()).unwrap();
    let file = run.folder().join("resolv.conf");
    // Of a net that cannot be reached from there.
    let before = "nameserver 192.0.2.53\noptions timeout:3\n";
    std::fs::write(&file, before).unwrap();
    let client = &mut spec.domains[0].nodes[0].clients[0];
    assert_eq!(client.name, "hello-1");
    client.env.insert("NSM_LOCAL_DNS_SERVER_ENABLED".into(), "true".into());
    client.env.insert("VWIRE_RESOLV_CONF".into(), file.display().to_string());
    let lab = run.up(&spec).await;
    assert!(std::fs::read_to_string(&file).unwrap().contains("\nnameserver 127.0.0.1\n"));
    for name in ["hello-1", "hello-2"] {
        let (address, _) = told(&lab, name);
        let whole = format!("{name}.vl3");
        dig(&lab, "hello-1", "127.0.0.1", &["+short", &whole, "A"], &address).await;
        dig(&lab, "hello-1", "127.0.0.1", &["+short", "+tcp", &whole, "A"], &address).await;
        // With the name that it stands for, as stub resolvers want to see it.
        dig(&lab, "hello-1", "127.0.0.1", &["+short", name, "A"], &format!("{whole}.\n{address}")).await;
        dig(&lab, "hello-1", "127.0.0.1", &["+short", "-x", &address], &format!("{whole}.")).await;
    }
    dig(&lab, "hello-1", "127.0.0.1", &["nobody.vl3", "A"], "status: NXDOMAIN").await;
    // Who is gone has no name there, either; and at the client's end resolv.conf is as it was.
    let end = |process: &str| {
        let (place, _) = lab.processes().into_iter().find(|(place, _)| place.name == process).unwrap();
        assert!(Command::new("kill").arg(place.pid.to_string()).status().unwrap().success());
    };
    end("nsc-hello-2");
    dig(&lab, "hello-1", "127.0.0.1", &["hello-2.vl3", "A"], "status: NXDOMAIN").await;
    end("nsc-hello-1");
    let deadline = Instant::now() + PATIENCE;
    while std::fs::read_to_string(&file).unwrap() != before {
        assert!(Instant::now() < deadline, "{}", std::fs::read_to_string(&file).unwrap());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_runs_both_examples_and_the_check_names_a_broken_link() {
    let mut spec = shipped("vl3-single.yaml");
    let run = Run::of(&mut spec, "vl3demo");
    let name = spec.name.clone();
    std::fs::create_dir_all(run.folder()).unwrap();
    let file = run.folder().join("cluster.yaml");
    let text = std::fs::read_to_string(root().join("config/lab/vl3-single.yaml")).unwrap();
    std::fs::write(&file, text.replace("name: vl3-single\n", &format!("name: {name}\n"))).unwrap();
    let cluster = format!("--kconf_clus1={}", file.display());

    let without = script(&run, "demo_vl3_single.sh", &["--hello"]);
    assert_eq!(without.status.code(), Some(2), "{}", said(&without));
    assert!(said(&without).contains("--kconf_clus1 is missing"), "{}", said(&without));
    let unknown = script(&run, "demo_vl3_single.sh", &[&cluster, "--helo"]);
    assert_eq!(unknown.status.code(), Some(2), "{}", said(&unknown));

    let demo = script(&run, "demo_vl3_single.sh", &[&cluster, "--hello", "--mysql", "--nowait"]);
    let text = said(&demo);
    assert!(demo.status.success(), "{text}");
    assert!(text.contains("Hello version: v1, instance: hello-3") && text.contains("links work"), "{text}");
    assert!(text.contains("inserted on the primary, and on the replica"), "{text}");

    // By name, too; and then without a link, and only that one.
    let whole = script(&run, "check_vl3.sh", &["--names", &name]);
    assert!(whole.status.success(), "{}", said(&whole));
    assert!(said(&whole).contains("hello-2.vl3"), "{}", said(&whole));
    let programs = Programs::beside(Path::new(env!("CARGO_BIN_EXE_vwire"))).unwrap();
    let lab = Lab::find(run.folder(), &name, &programs).unwrap().expect("it stays up");
    let (one, _) = told(&lab, "hello-1");
    assert!(inside(&lab, "hello-3", &["ip", "route", "add", "blackhole", &format!("{one}/32")]).0);
    let broken = script(&run, "check_vl3.sh", &["--time", "2", &name]);
    assert_eq!(broken.status.code(), Some(1), "{}", said(&broken));
    let text = said(&broken);
    let named: Vec<&str> = text.lines().filter(|line| line.starts_with("  ")).map(str::trim).collect();
    assert_eq!(named.len(), 2, "{text}");
    assert!(
        named[0].starts_with("hello-1 → hello-3 (") && named[1].starts_with("hello-3 → hello-1 ("),
        "{text}"
    );
    assert!(inside(&lab, "hello-3", &["ip", "route", "del", "blackhole", &format!("{one}/32")]).0);
    let mended = script(&run, "check_vl3.sh", &[&name]);
    assert!(mended.status.success(), "{}", said(&mended));

    // Twice: what is gone is gone.
    for _ in 0..2 {
        let delete =
            script(&run, "demo_vl3_single.sh", &[&cluster, "--mysql", "--hello", "--nowait", "--delete"]);
        assert!(delete.status.success(), "{}", said(&delete));
    }
    assert!(!run.folder().join(&name).exists());
    let none = script(&run, "check_vl3.sh", &[&name]);
    assert_eq!(none.status.code(), Some(2), "{}", said(&none));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hello_goes_through_two_and_three_domains() {
    for (file, name) in [("vl3-domains.yaml", "vl3two"), ("vl3-three-domains.yaml", "vl3three")] {
        let mut spec = shipped(file);
        let run = Run::of(&mut spec, name);
        let lab = run.up(&spec).await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Domains find each other in their own time; what is asked is that they do.
            let check = script(&run, "check_vl3.sh", &["--start", "--time", "2", &spec.name]);
            if check.status.success() {
                break;
            }
            assert!(Instant::now() < deadline, "{file}: {}", said(&check));
        }
        drop(lab);
    }
}

/// What `bench_vl3.sh` measures is another matter: here it is looked at whether packets come at all, by both ways.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn iperf3_runs_across_two_endpoints_and_beside_it_by_the_kernel() {
    let run = Run::of(&mut shipped("vl3-single.yaml"), "vl3iperf");
    let ran = script(&run, "bench_vl3.sh", &["--rounds", "1", "--seconds", "1"]);
    let text = said(&ran);
    assert!(ran.status.success(), "{text}");
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    for kind in ["tcp", "udp-1300", "udp-64"] {
        for family in ["v4", "v6"] {
            // The kind, the version of IP, the unit, and the figures of the kernel and of the network.
            let row = rows.iter().find(|row| row.len() == 6 && row[..2] == [kind, family]);
            let row = row.unwrap_or_else(|| panic!("{kind} {family} is missing: {text}"));
            for figure in &row[3..5] {
                assert!(figure.parse::<f64>().unwrap() > 0.0, "{row:?}");
            }
        }
    }
}
