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
mod tests;
