//! Links between issuers of one machine, and of two.

use std::sync::Arc;

use clap::Parser;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::identity::{Identity, TokenSource};
use crate::obs::{Admin, AdminSocket, serve};
use crate::roles::ca;
use crate::transport::{Dialling, Hop, Limits, Pool, Server, Services};

#[derive(Parser)]
struct Ca {
    #[command(flatten)]
    settings: ca::Settings,
}

#[derive(Parser)]
struct Link {
    #[command(flatten)]
    args: LinkArgs,
}

/// Issuers in one folder, which is their `/run/vwire`, until it is dropped.
struct Machine {
    folder: tempfile::TempDir,
    ending: CancellationToken,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.ending.cancel();
    }
}

impl Machine {
    async fn with(domains: &[&str]) -> Self {
        let machine = Self { folder: tempfile::tempdir().unwrap(), ending: CancellationToken::new() };
        for domain in domains {
            machine.start(domain, true).await;
        }
        machine
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    async fn start(&self, domain: &str, links: bool) {
        let mut args = vec![
            "ca".to_owned(),
            format!("--trust-domain={domain}"),
            format!("--state={}", self.path(&format!("{domain}.state"))),
            format!("--workload=member={}", self.path(&format!("{domain}.workload"))),
            "--svid-lifetime=10s".to_owned(),
            "--refresh-hint=1s".to_owned(),
        ];
        if links {
            args.push("--bundle-endpoint=127.0.0.1:0".to_owned());
            args.push(format!("--federation={}", self.path(&format!("{domain}.links"))));
        }
        let admin = Admin::new("ca", domain);
        let socket = AdminSocket::bind(&self.admin(domain)).await.unwrap();
        tokio::spawn(serve(socket, admin.clone(), self.ending.clone()));
        tokio::spawn(ca::run(Ca::parse_from(args).settings, admin, self.ending.clone()));
        self.member(domain).await;
    }

    fn admin(&self, domain: &str) -> Target {
        Target::Unix(self.path(&format!("ca-{domain}.sock")).into())
    }

    async fn member(&self, domain: &str) -> Identity {
        let api = Target::Unix(self.path(&format!("{domain}.workload")).into());
        Identity::from_workload_api(&api).await.unwrap()
    }

    async fn link(&self, args: &[&str]) -> Result<(), String> {
        let run = format!("--run={}", self.folder.path().display());
        let place =
            (args[0] != "add" && !args.iter().any(|arg| arg.starts_with("--admin"))).then_some(run.as_str());
        let args = std::iter::once("link").chain(args.iter().copied()).chain(place);
        let link = Link::try_parse_from(args).map_err(|error| error.to_string())?;
        link.args.run().await.map_err(|error| error.to_string())
    }

    async fn add(&self, domains: &[&str]) -> Result<(), String> {
        let admins: Vec<String> = domains.iter().map(|domain| self.admin(domain).to_string()).collect();
        let args: Vec<&str> = std::iter::once("add").chain(admins.iter().map(String::as_str)).collect();
        self.link(&args).await
    }

    /// A session from a member of one domain to a server of another.
    async fn session(&self, from: &str, to: &str) -> Result<Hop, String> {
        let server =
            Server::bind(&[Target::parse("tcp://127.0.0.1:0").unwrap()], Limits::default()).await.unwrap();
        let target = server.targets().remove(0);
        let (routes, _) = Services::new().routes().await;
        tokio::spawn(server.serve(self.member(to).await, routes, self.ending.clone()));
        let client = self.member(from).await;
        let tokens = TokenSource::new(client.clone(), PATIENCE);
        let pool = Arc::new(Pool::new(client, tokens, Dialling { timeout: PATIENCE, ..Dialling::default() }));
        let hop = pool.hop(&target).await.map_err(|error| error.to_string())?;
        // In TLS 1.3 the client has finished when the server refuses it: a call notices.
        let mut health = tonic_health::pb::health_client::HealthClient::new(hop.clone());
        health
            .check(tonic_health::pb::HealthCheckRequest::default())
            .await
            .map_err(|error| error.to_string())?;
        Ok(hop)
    }
}

#[tokio::test]
async fn domains_that_are_linked_are_peers_until_the_link_is_removed() {
    let machine = Machine::with(&["a.test", "b.test", "c.test"]).await;
    assert!(machine.session("a.test", "b.test").await.is_err(), "strangers");
    machine.add(&["a.test", "b.test", "c.test"]).await.unwrap();
    let held = machine.session("a.test", "b.test").await.unwrap();
    machine.session("b.test", "a.test").await.unwrap();
    let other = machine.session("a.test", "c.test").await.unwrap();
    machine.link(&["list"]).await.unwrap();

    machine.link(&["remove", "b.test", "--admin", &machine.admin("a.test").to_string()]).await.unwrap();
    tokio::time::timeout(PATIENCE, held.closed()).await.expect("the session ends with the link");
    for (from, to) in [("a.test", "b.test"), ("b.test", "a.test")] {
        assert!(machine.session(from, to).await.is_err(), "{from} → {to}");
    }
    assert!(other.is_open(), "another link is not touched");
    let told = machine.link(&["remove", "d.test"]).await.unwrap_err();
    assert!(told.contains("no issuer"), "{told}");
}

async fn authorities(machine: &Machine, of: &str) -> Vec<Value> {
    let status: Status = AdminClient(machine.admin(of)).get("/status").await.unwrap();
    status.reports["link"]["authorities"].as_array().unwrap().clone()
}

async fn believed(machine: &Machine, by: &str, of: &str) -> Vec<Value> {
    let issuer = Issuer::at(&machine.admin(by)).await.unwrap();
    issuer.federated[of].as_array().cloned().unwrap_or_default()
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE * 4;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

#[tokio::test]
async fn an_authority_that_is_rotated_needs_no_new_link() {
    let machine = Machine::with(&["a.test", "b.test"]).await;
    machine.add(&["a.test", "b.test"]).await.unwrap();
    let before = authorities(&machine, "b.test").await;
    let admin = machine.admin("b.test").to_string();
    machine.link(&["rotate", "--admin", &admin]).await.unwrap();
    let told = machine.link(&["rotate", "--admin", &admin]).await.unwrap_err();
    assert!(told.contains("a rotation is under way"), "{told}");
    // From the first step to the last each is the other's peer.
    until("the rotation's end", async || {
        for (from, to) in [("a.test", "b.test"), ("b.test", "a.test")] {
            machine.session(from, to).await.unwrap_or_else(|told| panic!("{from} → {to}: {told}"));
        }
        let now = authorities(&machine, "b.test").await;
        now.len() == 1 && now != before
    })
    .await;
    let after = authorities(&machine, "b.test").await;
    until("the old authority is forgotten", async || believed(&machine, "a.test", "b.test").await == after)
        .await;

    // A domain that is followed is removed as any other: what it publishes does not bring it back.
    machine.link(&["remove", "b.test", "--admin", &machine.admin("a.test").to_string()]).await.unwrap();
    assert!(machine.session("a.test", "b.test").await.is_err());
    let links = std::fs::read_dir(machine.path("a.test.links")).unwrap();
    assert_eq!(links.count(), 0, "neither bundle nor endpoint");
}

#[tokio::test]
async fn a_bundle_is_carried_to_another_machine_as_a_file() {
    let (here, there) = (Machine::with(&["a.test"]).await, Machine::with(&["b.test"]).await);
    // What `export` prints.
    let bundle = |issuer: Issuer| format!("{:#}\n", issuer.bundle);
    let file = here.path("b.json");
    std::fs::write(&file, bundle(Issuer::at(&there.admin("b.test")).await.unwrap())).unwrap();
    here.link(&["import", &file]).await.unwrap();
    let told = here.link(&["import", &file, "--domain", "c.test"]).await.unwrap_err();
    assert!(told.contains("of trust domain b.test, not of c.test"), "{told}");
    let ours = here.path("a.json");
    std::fs::write(&ours, bundle(Issuer::at(&here.admin("a.test")).await.unwrap())).unwrap();
    let told = here.link(&["import", &ours]).await.unwrap_err();
    assert!(told.contains("own trust domain"), "{told}");
    std::fs::write(&ours, "{}").unwrap();
    let told = here.link(&["import", &ours]).await.unwrap_err();
    assert!(told.contains("a.json") && told.contains("no SPIFFE bundle"), "{told}");
    let member = here.member("a.test").await.current().unwrap();
    let names: Vec<String> = member.bundles.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["a.test", "b.test"]);
    there.link(&["export"]).await.unwrap();
}

#[tokio::test]
async fn what_can_not_be_linked_changes_nothing() {
    let machine = Machine::with(&["a.test"]).await;
    machine.start("b.test", false).await;
    let told = machine.add(&["a.test", "b.test"]).await.unwrap_err();
    assert!(told.contains("VWIRE_CA_FEDERATION"), "{told}");
    let told = machine.add(&["a.test", "a.test"]).await.unwrap_err();
    assert!(told.contains("both issuers of a.test"), "{told}");
    assert!(std::fs::read_dir(machine.path("a.test.links")).unwrap().next().is_none());
    let told = machine.link(&["export"]).await.unwrap_err();
    assert!(told.contains("--admin"), "{told}");
    let nowhere = format!("unix://{}", machine.path("nobody.sock"));
    assert!(machine.link(&["add", &nowhere, &nowhere]).await.unwrap_err().contains("nobody.sock"));
}
