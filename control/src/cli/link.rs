//! `vwire link`: trust domains that believe each other.
//!
//! A link is a bundle in the federation folder of each issuer (`vwire ca --federation`): the folders are all there is to it. On one
//! machine `vwire link add` puts each issuer's bundle into the others' folders. Between machines `vwire link export` on the one, and
//! `vwire link import` on the other, do one direction; a link needs both. Where an issuer publishes its bundle, the link says so, and
//! the others follow it from then on: a rotation of its authority needs no new link.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use url::Url;

use super::table::Table;
use super::{AdminClient, Output, VerbError, Where, print, print_json};
use crate::identity::issuer::{Endpoint, Folder, IssuerError, bundle};
use crate::identity::{SpiffeId, TrustDomain};
use crate::obs::Status;
use crate::transport::Target;

/// How long an issuer may take to see what was put into its folder.
const PATIENCE: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(100);

/// `vwire link`
#[derive(Debug, Clone, clap::Args)]
pub struct LinkArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Verb {
    /// Lets issuers of this machine believe each other.
    Add {
        /// Admin ports of issuers, two or more.
        #[arg(value_name = "ADMIN", num_args = 2.., required = true)]
        issuers: Vec<Target>,
    },
    /// Shows whom each issuer believes.
    List {
        #[command(flatten)]
        place: Where,
        /// table or json.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Makes issuers stop believing a trust domain: all of this machine that do, or those named. Sessions with it end at once.
    Remove {
        /// The trust domain.
        domain: TrustDomain,
        #[command(flatten)]
        place: Where,
    },
    /// Writes an issuer's bundle, for another machine's `vwire link import`: a SPIFFE bundle, as SPIRE reads it, too.
    Export {
        #[command(flatten)]
        place: Where,
    },
    /// Gives an issuer a new authority. Those who follow its bundle believe it before it signs; SVIDs of the old one stay good until they end.
    Rotate {
        #[command(flatten)]
        place: Where,
    },
    /// Makes an issuer believe the trust domain whose bundle this is: PEM or a SPIFFE bundle.
    Import {
        /// The bundle.
        file: PathBuf,
        /// Whose it is, if its certificates don't say.
        #[arg(long, value_name = "DOMAIN")]
        domain: Option<TrustDomain>,
        /// Where the domain publishes its bundle, https://host:port/path: it is followed from there. `vwire link list` shows ours.
        #[arg(long, value_name = "URL")]
        endpoint: Option<Url>,
        /// The SPIFFE ID of who serves it (profile https_spiffe). Without it its host is known by its web certificate (https_web).
        #[arg(long, value_name = "ID", requires = "endpoint")]
        endpoint_id: Option<SpiffeId>,
        #[command(flatten)]
        place: Where,
    },
}

impl LinkArgs {
    /// Does it.
    ///
    /// # Errors
    /// [`VerbError`].
    pub async fn run(&self) -> Result<(), VerbError> {
        match &self.verb {
            Verb::Add { issuers } => add(issuers).await,
            Verb::List { place, output } => list(place, *output).await,
            Verb::Remove { domain, place } => remove(domain, place).await,
            Verb::Export { place } => print(&format!("{:#}\n", only(issuers(place).await?, place)?.bundle)),
            Verb::Rotate { place } => {
                let issuer = only(issuers(place).await?, place)?;
                print(&AdminClient(issuer.admin).put("/do/rotate", String::new()).await?)
            }
            Verb::Import { file, domain, endpoint, endpoint_id, place } => {
                let endpoint = endpoint.clone().map(|url| Endpoint::new(url, endpoint_id.as_ref()));
                let endpoint = endpoint.transpose().map_err(VerbError::Which)?;
                import(&only(issuers(place).await?, place)?, file, domain.as_ref(), endpoint.as_ref()).await
            }
        }
    }
}

/// An issuer that runs, as its admin port describes it.
struct Issuer {
    admin: Target,
    domain: TrustDomain,
    bundle: Value,
    folder: Option<PathBuf>,
    /// Where it publishes its bundle.
    endpoint: Option<Endpoint>,
    /// Whom it believes: domains and their authorities' fingerprints.
    federated: Value,
}

fn which<T>(told: String) -> Result<T, VerbError> {
    Err(VerbError::Which(told))
}

impl Issuer {
    fn of(admin: Target, status: &Status) -> Option<Self> {
        let link = status.reports.get("link")?;
        let text = |key: &str| link.get(key).and_then(Value::as_str);
        Some(Self {
            domain: TrustDomain::new(text("trust_domain")?).ok()?,
            bundle: link.get("bundle")?.clone(),
            folder: text("federation").map(PathBuf::from),
            endpoint: link.get("endpoint").and_then(|at| serde_json::from_value(at.clone()).ok()),
            federated: link.get("federated")?.clone(),
            admin,
        })
    }

    async fn at(admin: &Target) -> Result<Self, VerbError> {
        let status: Status = AdminClient(admin.clone()).get("/status").await?;
        match Self::of(admin.clone(), &status) {
            Some(issuer) => Ok(issuer),
            None => which(format!("{admin}: a {}, not an issuer (`vwire ca`)", status.role)),
        }
    }

    /// Where its links are. Only on its own machine: the folders are files there.
    fn folder(&self) -> Result<Folder, VerbError> {
        let Some(path) = &self.folder else {
            return which(format!(
                "the issuer of {} has no federation folder: start it with --federation FOLDER (VWIRE_CA_FEDERATION)",
                self.domain
            ));
        };
        if !path.is_dir() {
            return which(format!(
                "{}, the federation folder of {}, is not on this machine: use `vwire link export` and `vwire link import` there",
                path.display(),
                self.domain
            ));
        }
        Folder::open(path).map_err(|error| VerbError::Which(error.to_string()))
    }

    /// Puts a bundle into the folder, waits until the issuer believes it, and says where it is followed from.
    async fn believe(
        &self,
        domain: &TrustDomain,
        authorities: &bundle::Authorities,
        endpoint: Option<&Endpoint>,
    ) -> Result<(), VerbError> {
        if *domain == self.domain {
            return which(format!("{domain} is the issuer's own trust domain; a link is with another one"));
        }
        let told = |error: IssuerError| VerbError::Which(error.to_string());
        let folder = self.folder()?;
        // It is not followed meanwhile, so that what it publishes does not come between.
        folder.put_endpoint(domain, None).map_err(told)?;
        folder.put(domain, authorities).map_err(told)?;
        self.sees(domain, Some(&bundle::fingerprints(authorities))).await?;
        folder.put_endpoint(domain, endpoint).map_err(told)?;
        print(&format!("{} believes {domain}\n", self.domain))
    }

    async fn sees(&self, domain: &TrustDomain, wanted: Option<&Vec<String>>) -> Result<(), VerbError> {
        let until = Instant::now() + PATIENCE;
        loop {
            let now = Self::at(&self.admin).await?.federated;
            if now.get(domain.to_string()) == wanted.map(|wanted| Value::from(wanted.clone())).as_ref() {
                return Ok(());
            }
            if Instant::now() > until {
                return which(format!(
                    "the issuer of {} has not taken the change of {domain} up within {PATIENCE:?}; its log says why",
                    self.domain
                ));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn authorities(&self) -> Result<bundle::Authorities, VerbError> {
        let read = bundle::parse(self.bundle.to_string().as_bytes());
        read.map_err(|error| VerbError::Which(format!("{}: its bundle: {error}", self.admin)))
    }
}

async fn issuers(place: &Where) -> Result<Vec<Issuer>, VerbError> {
    let answers: Vec<(Target, Status)> = place.ask("/status").await?;
    Ok(answers.into_iter().filter_map(|(admin, status)| Issuer::of(admin, &status)).collect())
}

fn only(mut issuers: Vec<Issuer>, place: &Where) -> Result<Issuer, VerbError> {
    match issuers.len() {
        1 => Ok(issuers.remove(0)),
        0 => which(format!("no issuer (`vwire ca`) answers in {}", place.place())),
        _ => {
            let all: Vec<String> =
                issuers.iter().map(|one| format!("{} at {}", one.domain, one.admin)).collect();
            which(format!("several issuers run here; name one by --admin: {}", all.join(", ")))
        }
    }
}

async fn add(admins: &[Target]) -> Result<(), VerbError> {
    let mut all = Vec::new();
    for admin in admins {
        all.push(Issuer::at(admin).await?);
    }
    // All is looked at before anything is changed.
    for (at, one) in all.iter().enumerate() {
        one.folder()?;
        if let Some(twin) = all[..at].iter().find(|other| other.domain == one.domain) {
            return which(format!("{} and {} are both issuers of {}", twin.admin, one.admin, one.domain));
        }
    }
    for one in &all {
        for other in all.iter().filter(|other| other.domain != one.domain) {
            one.believe(&other.domain, &other.authorities()?, other.endpoint.as_ref()).await?;
        }
    }
    Ok(())
}

async fn list(place: &Where, output: Output) -> Result<(), VerbError> {
    let issuers = issuers(place).await?;
    if output == Output::Json {
        let one = |issuer: &Issuer| serde_json::json!({"trust_domain": issuer.domain.to_string(), "admin": issuer.admin.to_string(), "believes": issuer.federated, "publishes": issuer.endpoint});
        return print_json(&issuers.iter().map(one).collect::<Vec<_>>());
    }
    let mut table = Table::new(&["TRUST DOMAIN", "PUBLISHED AT", "BELIEVES", "BY AUTHORITY"]);
    for issuer in &issuers {
        let at = issuer.endpoint.as_ref().map_or(String::new(), |at| at.url.to_string());
        let links = issuer.federated.as_object().into_iter().flatten();
        let mut none = true;
        for (domain, authorities) in links {
            let authorities = authorities.as_array().into_iter().flatten().filter_map(Value::as_str);
            let short: Vec<&str> = authorities.map(|print| &print[..print.len().min(16)]).collect();
            table.row([issuer.domain.to_string(), at.clone(), domain.clone(), short.join(" ")]);
            none = false;
        }
        if none {
            table.row([issuer.domain.to_string(), at, String::new(), String::new()]);
        }
    }
    print(&table.text())
}

async fn remove(domain: &TrustDomain, place: &Where) -> Result<(), VerbError> {
    let mut any = false;
    for issuer in issuers(place).await? {
        if issuer.federated.get(domain.to_string()).is_none() {
            continue;
        }
        any = true;
        let removed = issuer.folder()?.remove(domain).map_err(|error| VerbError::Which(error.to_string()))?;
        if !removed {
            return which(format!(
                "{} believes {domain} by its setting VWIRE_CA_FEDERATE, not by a link: change the setting",
                issuer.domain
            ));
        }
        issuer.sees(domain, None).await?;
        print(&format!("{} does not believe {domain} any more\n", issuer.domain))?;
    }
    if any { Ok(()) } else { which(format!("no issuer in {} believes {domain}", place.place())) }
}

async fn import(
    issuer: &Issuer,
    file: &Path,
    domain: Option<&TrustDomain>,
    endpoint: Option<&Endpoint>,
) -> Result<(), VerbError> {
    let bad = |reason: String| VerbError::Which(format!("{}: {reason}", file.display()));
    let bytes = std::fs::read(file).map_err(|error| bad(error.to_string()))?;
    let authorities = bundle::parse(&bytes).map_err(bad)?;
    let named = bundle::domain(&authorities);
    let domain = match (domain, &named) {
        (Some(told), Some(named)) if told != named => {
            return Err(bad(format!("its certificates are of trust domain {named}, not of {told}")));
        }
        (Some(domain), _) | (None, Some(domain)) => domain,
        (None, None) => {
            return Err(bad("its certificates don't name their trust domain; add --domain".to_owned()));
        }
    };
    issuer.believe(domain, &authorities, endpoint).await
}

#[cfg(test)]
mod tests {
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
            let place = (args[0] != "add" && !args.iter().any(|arg| arg.starts_with("--admin")))
                .then_some(run.as_str());
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
            let server = Server::bind(&[Target::parse("tcp://127.0.0.1:0").unwrap()], Limits::default())
                .await
                .unwrap();
            let target = server.targets().remove(0);
            let (routes, _) = Services::new().routes().await;
            tokio::spawn(server.serve(self.member(to).await, routes, self.ending.clone()));
            let client = self.member(from).await;
            let tokens = TokenSource::new(client.clone(), PATIENCE);
            let pool =
                Arc::new(Pool::new(client, tokens, Dialling { timeout: PATIENCE, ..Dialling::default() }));
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
        until("the old authority is forgotten", async || {
            believed(&machine, "a.test", "b.test").await == after
        })
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
}
