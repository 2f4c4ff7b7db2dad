//! Discovery, asking a zone that is held in memory.

use std::collections::HashMap;
use std::sync::Mutex;

use tonic::Code;

use super::*;

/// What a zone has; what it does not have is not there, and `dead` means that nobody answers.
#[derive(Default)]
struct Zone {
    srv: HashMap<String, Vec<Srv>>,
    addresses: HashMap<String, Vec<IpAddr>>,
    dead: bool,
    asked: Mutex<Vec<String>>,
}

impl Zone {
    fn srv(mut self, name: &str, records: &[(u16, u16, &str)]) -> Self {
        let records = records.iter().map(|(priority, port, host)| Srv {
            priority: *priority,
            weight: 1,
            port: *port,
            host: (*host).to_owned(),
        });
        self.srv.insert(name.to_owned(), records.collect());
        self
    }

    fn at(mut self, name: &str, addresses: &[&str]) -> Self {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        self.addresses.insert(name.to_owned(), addresses);
        self
    }

    fn answer<T: Clone>(&self, what: String, known: Option<&Vec<T>>) -> Result<Vec<T>, LookupError> {
        self.asked.lock().unwrap().push(what);
        if self.dead {
            return Err(LookupError::Failed("request timed out".into()));
        }
        known.cloned().ok_or_else(|| LookupError::None("no such record (NXDOMAIN)".into()))
    }
}

#[async_trait]
impl Lookup for Zone {
    async fn srv(&self, name: &str) -> Result<Vec<Srv>, LookupError> {
        self.answer(format!("SRV {name}"), self.srv.get(name))
    }

    async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, LookupError> {
        self.answer(format!("A {name}"), self.addresses.get(name))
    }

    fn servers(&self) -> String {
        "10.0.0.53:53".into()
    }
}

fn discovery(zone: Zone) -> Discovery {
    let known = vec!["known.test=10.9.0.1:5002".parse().unwrap()];
    Discovery::new(known, Arc::new(zone), Ports { registry: vec![5002, 5005, 80], proxy: vec![5004, 5006] })
}

async fn targets(discovery: &Discovery, domain: &str, part: Part) -> (Vec<String>, bool) {
    let found = discovery.find(domain, part).await.unwrap();
    (found.targets.iter().map(ToString::to_string).collect(), found.guessed)
}

#[tokio::test]
async fn our_srv_records_come_first_by_priority_with_every_address_of_every_target() {
    let zone = Zone::default()
        .srv("_nsm-registry._tcp.b.test", &[(20, 8081, "r2.b.test."), (10, 8080, "r1.b.test."), (5, 1, ".")])
        .srv("registry.nsm-system.b.test", &[(1, 5002, "other.b.test.")])
        .at("r1.b.test", &["10.0.0.1", "fd00::1"])
        .at("r2.b.test", &["10.0.0.2", "10.0.0.1"]);
    let discovery = discovery(zone);
    let (found, guessed) = targets(&discovery, "B.test", Part::Registry).await;
    let expected =
        ["tcp://10.0.0.1:8080", "tcp://[fd00::1]:8080", "tcp://10.0.0.2:8081", "tcp://10.0.0.1:8081"];
    assert_eq!(found, expected);
    assert!(!guessed);
}

#[tokio::test]
async fn then_gos_with_the_ports_of_its_records_at_the_addresses_of_its_own_name() {
    let zone = Zone::default()
        .srv("registry.nsm-system.my.cluster2", &[(0, 5002, "registry.somewhere.")])
        .at("registry.nsm-system.my.cluster2", &["172.18.0.5", "fd00::5"])
        .srv("nsmgr-proxy.nsm-system.my.cluster2", &[(0, 5004, "p.my.cluster2.")])
        .at("p.my.cluster2", &["172.18.0.6"]);
    let discovery = discovery(zone);
    let (found, guessed) = targets(&discovery, "my.cluster2", Part::Registry).await;
    assert_eq!(
        (found, guessed),
        (vec!["tcp://172.18.0.5:5002".into(), "tcp://[fd00::5]:5002".into()], false)
    );
    // A zone as the RFC has it, with the target's addresses only: Go would fail here.
    let (found, _) = targets(&discovery, "my.cluster2", Part::Proxy).await;
    assert_eq!(found, ["tcp://172.18.0.6:5004"]);
}

#[tokio::test]
async fn a_domain_without_srv_records_and_an_address_have_the_usual_ports() {
    let zone = Zone::default().at("old.test", &["10.0.0.1", "10.0.0.2"]);
    let discovery = discovery(zone);
    let (found, guessed) = targets(&discovery, "old.test", Part::Registry).await;
    assert_eq!(&found[..3], ["tcp://10.0.0.1:5002", "tcp://10.0.0.2:5002", "tcp://10.0.0.1:5005"]);
    assert!(guessed && found.len() == 6);
    let (found, guessed) = targets(&discovery, "fd00::7", Part::Proxy).await;
    assert_eq!((found, guessed), (vec!["tcp://[fd00::7]:5004".into(), "tcp://[fd00::7]:5006".into()], true));
    let (found, guessed) = targets(&discovery, "10.1.1.1:6000", Part::Registry).await;
    assert_eq!((found, guessed), (vec!["tcp://10.1.1.1:6000".into()], false));
    let (found, guessed) = targets(&discovery, "tcp://10.1.1.1:6000", Part::Proxy).await;
    assert_eq!((&found[..1], guessed), (&["tcp://10.1.1.1:5004".to_owned()][..], true));
}

#[tokio::test]
async fn the_static_map_is_asked_first_and_nobody_else() {
    let discovery = discovery(Zone { dead: true, ..Default::default() });
    let (found, _) = targets(&discovery, "Known.test", Part::Registry).await;
    assert_eq!(found, ["tcp://10.9.0.1:5002"]);
    let told = discovery.find("known.test", Part::Proxy).await.unwrap_err();
    assert_eq!(told.code(), Code::NotFound);
}

#[tokio::test]
async fn errors_name_the_domain_each_query_and_its_answer() {
    let told = discovery(Zone::default()).find("nowhere.test", Part::Registry).await.unwrap_err();
    assert_eq!(told.code(), Code::NotFound);
    for part in [
        "\"nowhere.test\"",
        "SRV _nsm-registry._tcp.nowhere.test: no such record (NXDOMAIN)",
        "SRV registry.nsm-system.nowhere.test: no such record",
        "A, AAAA nowhere.test: no such record",
        "asked 10.0.0.53:53",
    ] {
        assert!(told.message().contains(part), "{part}: {told}");
    }
    let dead = discovery(Zone { dead: true, ..Default::default() });
    let told = dead.find("b.test", Part::Proxy).await.unwrap_err();
    assert_eq!(told.code(), Code::Unavailable);
    assert!(told.message().contains("SRV _nsm-nsmgr._tcp.b.test: request timed out"), "{told}");
    let told = dead.find("b@a", Part::Registry).await.unwrap_err();
    assert_eq!(told.code(), Code::InvalidArgument);
}
