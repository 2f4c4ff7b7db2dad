//! Other domains are found by a real name server (nsd): what its records say, how long an answer is kept, and what is told when there is
//! none. It listens on a loopback address of the test's own, at a port that needs no root.

mod plain_roles;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use plain_roles::{PATIENCE, Role, listening, own_address, pool};
use tonic::Code;
use vwire_control::discovery::{Discovery, Options, Part, Reach};
use vwire_control::transport::Target;

const PORT: u16 = 5300;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

/// nsd with the zone `b.test`. Killed when dropped.
struct NameServer {
    child: Child,
    at: SocketAddr,
    folder: tempfile::TempDir,
    serial: u32,
}

impl NameServer {
    async fn start(host: Ipv4Addr, records: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shown = folder.path().display();
        let config = format!(
            "server:\n  username: \"\"\n  ip-address: {host}@{PORT}\n  zonesdir: \"{shown}\"\n  zonelistfile: \"{shown}/zones\"\n  \
             xfrdfile: \"{shown}/xfrd\"\n  xfrdir: \"{shown}\"\n  database: \"\"\n  pidfile: \"{shown}/pid\"\n  server-count: 1\n\
             remote-control:\n  control-enable: no\nzone:\n  name: b.test\n  zonefile: b.zone\n"
        );
        let file = folder.path().join("nsd.conf");
        std::fs::write(&file, config).unwrap();
        let at = SocketAddr::from((host, PORT));
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let zone = folder.path().join("b.zone");
        write(&zone, 1, records);
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "SIGKILL", "nsd", "-d", "-c"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("nsd (Debian: apt-get install nsd)");
        let server = Self { child, at, folder, serial: 1 };
        server.serves(1).await;
        server
    }

    /// Has other records from now on.
    async fn change(&mut self, records: &str) {
        self.serial += 1;
        write(&self.folder.path().join("b.zone"), self.serial, records);
        let told = Command::new("kill").args(["-HUP", &self.child.id().to_string()]).status();
        assert!(told.unwrap().success());
        self.serves(self.serial).await;
    }

    /// Waits until a resolver that remembers nothing hears of a version of the zone: each has a host of its own.
    async fn serves(&self, serial: u32) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let at = format!("v{serial}.b.test");
            if self.resolver().find(&at, Part::Registry).await.is_ok() {
                return;
            }
            assert!(Instant::now() < deadline, "nsd does not serve version {serial} of its zone");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A resolver that remembers nothing yet.
    fn resolver(&self) -> Discovery {
        let settings = ["x".to_owned(), format!("--dns-server={}", self.at)];
        Cli::parse_from(settings).options.discovery().unwrap()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        // It ends its children itself, if it is asked to.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

fn write(zone: &PathBuf, serial: u32, records: &str) {
    let text = format!(
        "$ORIGIN b.test.\n$TTL 300\n@ SOA ns hostmaster {serial} 60 60 60 1\n@ NS ns\nns A 127.0.0.1\nv{serial} A 127.0.0.1\n{records}"
    );
    std::fs::write(zone, text).unwrap();
}

async fn targets(discovery: &Discovery, domain: &str) -> Vec<String> {
    let found = discovery.find(domain, Part::Registry).await.unwrap();
    found.targets.iter().map(ToString::to_string).collect()
}

/// An answer lives this long.
const TTL: u64 = 6;

fn one_registry(address: &str) -> String {
    format!("_nsm-registry._tcp {TTL} SRV 0 0 5002 registry\nregistry {TTL} A {address}\n")
}

#[tokio::test]
async fn an_answer_is_kept_for_its_ttl_and_no_longer() {
    let mut server = NameServer::start(own_address(1, 1), &one_registry("192.0.2.1")).await;
    let mut address = 1;
    // On a machine that is busy the zone's change may take longer than the answer lives: then once more.
    loop {
        let discovery = server.resolver();
        let old = vec![format!("tcp://192.0.2.{address}:5002")];
        let asked = Instant::now();
        assert_eq!(targets(&discovery, "b.test").await, old);
        address += 1;
        server.change(&one_registry(&format!("192.0.2.{address}"))).await;
        let new = vec![format!("tcp://192.0.2.{address}:5002")];
        assert_eq!(targets(&server.resolver(), "b.test").await, new, "who asks for the first time");
        let kept = targets(&discovery, "b.test").await;
        if asked.elapsed() >= Duration::from_secs(TTL) {
            continue;
        }
        assert_eq!(kept, old, "who has an answer that is good");
        let deadline = Instant::now() + PATIENCE;
        while targets(&discovery, "b.test").await != new {
            assert!(Instant::now() < deadline, "the old answer outlives its time");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // Both answers are kept, the service's and the host's: neither ends before its time.
        assert!(asked.elapsed() >= Duration::from_secs(TTL - 1), "{:?}", asked.elapsed());
        return;
    }
}

#[tokio::test]
async fn that_a_domain_is_not_there_is_told_with_each_query_and_forgotten_within_seconds() {
    let mut server = NameServer::start(own_address(2, 1), "").await;
    let discovery = server.resolver();
    let told = discovery.find("new.b.test", Part::Registry).await.unwrap_err();
    assert_eq!(told.code(), Code::NotFound);
    for part in [
        "domain \"new.b.test\"",
        "SRV _nsm-registry._tcp.new.b.test: no such record",
        "SRV registry.nsm-system.new.b.test: no such record",
        "A, AAAA new.b.test: no such record",
        &server.at.to_string(),
    ] {
        assert!(told.message().contains(part), "{part}: {told}");
    }
    server.change("_nsm-registry._tcp.new SRV 0 0 5002 registry\nregistry A 192.0.2.1\n").await;
    let deadline = Instant::now() + PATIENCE;
    while discovery.find("new.b.test", Part::Registry).await.is_err() {
        assert!(Instant::now() < deadline, "a negative answer is kept");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Nobody answers any more: what is known stays good, and of the rest it is said who does not answer.
    let at = server.at;
    drop(server);
    assert_eq!(targets(&discovery, "new.b.test").await, ["tcp://192.0.2.1:5002"]);
    let told = discovery.find("other.b.test", Part::Registry).await.unwrap_err();
    assert_eq!(told.code(), Code::Unavailable, "{told}");
    assert!(told.message().contains("other.b.test") && told.message().contains(&at.to_string()), "{told}");
}

#[tokio::test]
async fn records_come_by_priority_and_weight_with_every_address_of_both_families() {
    let records = "_nsm-registry._tcp SRV 20 0 8082 last\n_nsm-registry._tcp SRV 10 0 8080 first\n\
                   _nsm-registry._tcp SRV 15 900 8081 heavy\n_nsm-registry._tcp SRV 15 100 8081 light\n\
                   first A 192.0.2.1\nfirst A 192.0.2.2\nfirst AAAA 2001:db8::1\nheavy A 192.0.2.3\nlight A 192.0.2.4\nlast A 192.0.2.5\n\
                   registry.nsm-system.go SRV 0 0 5003 elsewhere\nregistry.nsm-system.go A 192.0.2.6\n\
                   old A 192.0.2.7\nold AAAA 2001:db8::7\n";
    let server = NameServer::start(own_address(3, 1), records).await;
    let discovery = server.resolver();
    let mut heavy_first = 0;
    for _ in 0..200 {
        let found = targets(&discovery, "b.test").await;
        let mut first = found[..3].to_vec();
        first.sort();
        assert_eq!(first, ["tcp://192.0.2.1:8080", "tcp://192.0.2.2:8080", "tcp://[2001:db8::1]:8080"]);
        assert_eq!(found.len(), 6);
        assert_eq!(found[5], "tcp://192.0.2.5:8082");
        heavy_first += u32::from(found[3] == "tcp://192.0.2.3:8081");
    }
    // 180 are expected; the odds against fewer than 150 or against all are beyond a million to one.
    assert!((150..200).contains(&heavy_first), "{heavy_first} of 200");
    // T1: the seed's name is asked for first, Go's when there is none.
    assert_eq!(targets(&discovery, "go.b.test").await, ["tcp://192.0.2.6:5003"]);
    // T11: an address of either family, at the usual ports, where there is no SRV record.
    let mut old = targets(&discovery, "old.b.test").await[..2].to_vec();
    old.sort();
    assert_eq!(old, ["tcp://192.0.2.7:5002", "tcp://[2001:db8::7]:5002"]);
}

#[tokio::test]
async fn a_dead_record_and_dead_addresses_are_passed_over_and_named_if_all_are() {
    let (dns, live) = (own_address(4, 1), own_address(4, 2));
    let [dead, deader] = [3, 4].map(|host| own_address(4, host));
    let records = format!(
        "_nsm-registry._tcp SRV 1 0 5002 dead\n_nsm-registry._tcp SRV 2 0 5002 half\n\
         dead A {dead}\nhalf A {deader}\nhalf A {live}\n\
         _nsm-registry._tcp.all SRV 1 0 5002 dead\n_nsm-registry._tcp.all SRV 2 0 5002 deader\ndeader A {deader}\n"
    );
    let server = NameServer::start(dns, &records).await;
    let directory = tempfile::tempdir().unwrap();
    let target = Target::Tcp(format!("{live}:5002"));
    let _registry = Role::start("registry", directory.path(), &[("NSM_LISTEN_ON", target.to_string())]);
    let pool = pool();
    listening(&pool, &target).await;
    let reach = Reach::new(server.resolver(), pool);
    let until = || Instant::now() + PATIENCE;
    assert_eq!(reach.registry("b.test", until()).await.unwrap().target, target);
    let told = reach.registry("all.b.test", until()).await.unwrap_err();
    assert_eq!(told.code(), Code::Unavailable);
    let (dead, deader) = (format!("{dead}:5002"), format!("{deader}:5002"));
    for part in ["domain \"all.b.test\"", &dead, &deader, "SRV _nsm-registry._tcp.all.b.test"] {
        assert!(told.message().contains(part), "{part}: {told}");
    }
}
