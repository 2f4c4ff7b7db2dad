//! `vwire ca`: the built-in issuer, for labs and single hosts.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::config;
use crate::identity::issuer::{
    self, Endpoint, Folder, Following, Issuer, IssuerError, Keys, Links, Name, Pace, Rotation, Rule, bundle,
};
use crate::identity::{Bundles, SpiffeId, TrustDomain};
use crate::obs::{Admin, Reporter};
use crate::transport::{Limits, ServeError, Target};

/// Shortest life of an SVID: peers' clocks differ, and each renewal makes connections anew.
const SHORTEST_LIFE: Duration = Duration::from_secs(10);

/// The issuer's settings.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub common: config::Common,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub limits: Limits,

    /// The trust domain that we are the authority of.
    #[arg(long, env = "VWIRE_CA_TRUST_DOMAIN", value_name = "DOMAIN", default_value = "vwire.local")]
    pub trust_domain: TrustDomain,

    /// Where the authority's key is kept, readable for us alone. In memory if left out: peers must then ask again after a restart.
    #[arg(long, env = "VWIRE_CA_STATE", value_name = "FOLDER")]
    pub state: Option<PathBuf>,

    /// The Workload API's socket for callers that rules name; none if empty.
    #[arg(long, env = "VWIRE_CA_LISTEN_ON", value_name = "URL", default_value = "")]
    pub listen_on: config::Maybe<Target>,

    /// A workload with a socket of its own: NAME=SOCKET. Whoever reaches the socket is `spiffe://DOMAIN/NAME`. May be repeated.
    #[arg(long = "workload", env = "VWIRE_CA_WORKLOADS", value_name = "NAME=SOCKET", value_delimiter = ',')]
    pub workloads: Vec<Workload>,

    /// Who calls at the common socket: uid=N,program=/path:/NAME, the first that fits; conditions may be left out. Separated by `;`.
    /// Whom no rule names is /uid/UID/PROGRAM.
    #[arg(long = "rule", env = "VWIRE_CA_RULES", value_name = "RULE", value_delimiter = ';')]
    pub rules: Vec<Rule>,

    /// How long an SVID lives; it is renewed at half of that.
    #[arg(long, env = "VWIRE_CA_SVID_LIFETIME", value_name = "DURATION", default_value = "1h", value_parser = config::duration)]
    pub svid_lifetime: Duration,

    /// Where our bundle is written, PEM, for others to federate with us.
    #[arg(long, env = "VWIRE_CA_BUNDLE", value_name = "FILE")]
    pub bundle: Option<PathBuf>,

    /// Another trust domain that our workloads shall believe: DOMAIN=FILE with its bundle, PEM or SPIFFE JSON. Read again when it changes.
    #[arg(long = "federate", env = "VWIRE_CA_FEDERATE", value_name = "DOMAIN=FILE", value_delimiter = ',')]
    pub federate: Vec<Federation>,

    /// A folder of such bundles: each file DOMAIN.pem (PEM) or DOMAIN.json (a SPIFFE bundle) makes its domain believed for as long as
    /// it is there. `vwire link` puts them there and takes them away. A file DOMAIN.endpoint beside it says where the domain publishes
    /// its bundle, which is then followed.
    #[arg(long, env = "VWIRE_CA_FEDERATION", value_name = "FOLDER")]
    pub federation: Option<PathBuf>,

    /// Where our bundle is published for others to follow, over TLS: a SPIFFE bundle endpoint (profile https_spiffe). Nowhere if empty.
    #[arg(long, env = "VWIRE_CA_BUNDLE_ENDPOINT", value_name = "ADDRESS", default_value = "")]
    pub bundle_endpoint: config::Maybe<Target>,

    /// How others reach it, if not at that address: https://host:port/path.
    #[arg(long, env = "VWIRE_CA_BUNDLE_ENDPOINT_URL", value_name = "URL")]
    pub bundle_endpoint_url: Option<Url>,

    /// How often others shall look at our bundle again. A new authority signs after twice as long.
    #[arg(long, env = "VWIRE_CA_REFRESH_HINT", value_name = "DURATION", default_value = "5m", value_parser = config::duration)]
    pub refresh_hint: Duration,

    /// How long an authority signs before a new one takes its place by itself. Only `vwire link rotate` does it if this is 0.
    #[arg(long, env = "VWIRE_CA_ROTATE_EVERY", value_name = "DURATION", default_value = "0s", value_parser = config::duration)]
    pub rotate_every: Duration,

    /// The authorities of the web, PEM, for bundles that others publish with a web certificate (profile https_web).
    #[arg(long, env = "VWIRE_CA_WEB_ROOTS", value_name = "FILE", default_value = issuer::WEB_ROOTS)]
    pub web_roots: PathBuf,
}

/// A workload with a socket of its own.
#[derive(Debug, Clone)]
pub struct Workload {
    name: Name,
    socket: Target,
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, socket) = text.split_once('=').ok_or_else(|| format!("{text:?}: write NAME=SOCKET"))?;
        let path = socket.strip_prefix("unix://").or_else(|| socket.strip_prefix("unix:")).unwrap_or(socket);
        if path.is_empty() || path.contains("://") {
            return Err(format!("{socket:?}: a workload's socket is a path"));
        }
        Ok(Self { name: name.parse()?, socket: Target::Unix(path.into()) })
    }
}

/// Another trust domain's bundle.
#[derive(Debug, Clone)]
pub struct Federation {
    domain: TrustDomain,
    file: PathBuf,
}

impl FromStr for Federation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (domain, file) = text.split_once('=').ok_or_else(|| format!("{text:?}: write DOMAIN=FILE"))?;
        let domain = TrustDomain::new(domain).map_err(|error| format!("{domain:?}: {error}"))?;
        if file.is_empty() {
            return Err(format!("{text:?}: no file"));
        }
        Ok(Self { domain, file: file.into() })
    }
}

/// Why the issuer can't run.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The authority or a file of its.
    #[error(transparent)]
    Issuer(#[from] IssuerError),
    /// A socket.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// A setting.
    #[error("{0}")]
    Setting(String),
}

/// Issues SVIDs until `shutdown`.
///
/// # Errors
/// [`CaError`] if a setting, the authority's files, a federated bundle or a socket is no good.
pub async fn run(settings: Settings, admin: Admin, shutdown: CancellationToken) -> Result<(), CaError> {
    check(&settings)?;
    let pace = Pace { announce: settings.refresh_hint * 2, believe: settings.svid_lifetime };
    let rotation = Rotation::open(settings.state.clone(), settings.trust_domain.clone(), pace)?;
    let rotation = Arc::new(rotation);
    let keys = rotation.keys();
    if let Some(file) = &settings.bundle {
        issuer::export(&keys.borrow().bundle(), file)?;
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(keep_exported(keys.clone(), file.clone())));
    }
    let links = Links {
        files: settings.federate.iter().map(|with| (with.domain.clone(), with.file.clone())).collect(),
        folder: settings.federation.as_deref().map(Folder::open).transpose()?,
    };
    if let Some(folder) = links.folder.clone() {
        let following = Following { folder, web_roots: settings.web_roots.clone() };
        tokio::spawn(following.run(shutdown.clone()));
    }
    let federated = links.follow(settings.trust_domain.clone(), shutdown.clone())?;
    let endpoint = publish(&settings, keys.clone(), &shutdown).await?;
    let every = (!settings.rotate_every.is_zero()).then_some(settings.rotate_every);
    let (rotating, ending) = (Arc::clone(&rotation), shutdown.clone());
    tokio::spawn(async move { ending.run_until_cancelled(rotating.run(every)).await });
    admin.report(Arc::new(Figures {
        settings: settings.clone(),
        rotation,
        endpoint,
        federated: federated.clone(),
    }));
    let issuer = Arc::new(Issuer::new(keys, settings.svid_lifetime, settings.rules.clone(), federated));
    let common = settings.listen_on.0.clone().map(|socket| (socket, None));
    let own =
        settings.workloads.iter().map(|workload| (workload.socket.clone(), Some(workload.name.clone())));
    let mut serving = JoinSet::new();
    for (socket, name) in common.into_iter().chain(own) {
        let (issuer, limits, shutdown) = (Arc::clone(&issuer), settings.limits.clone(), shutdown.clone());
        serving.spawn(async move { issuer::serve(issuer, &socket, name, limits, shutdown).await });
    }
    tracing::info!(domain = %settings.trust_domain, sockets = serving.len(), "issuing SVIDs");
    while let Some(ended) = serving.join_next().await {
        // The rest ends with the set.
        ended.map_err(|error| CaError::Setting(format!("a listener's task: {error}")))??;
    }
    Ok(())
}

/// Publishes our bundle, if it shall be, and says where.
async fn publish(
    settings: &Settings,
    keys: watch::Receiver<Arc<Keys>>,
    shutdown: &CancellationToken,
) -> Result<Option<Endpoint>, CaError> {
    let Some(Target::Tcp(address)) = &settings.bundle_endpoint.0 else { return Ok(None) };
    let bad = |error: &dyn std::fmt::Display| {
        CaError::Setting(format!(
            "VWIRE_CA_BUNDLE_ENDPOINT, VWIRE_CA_BUNDLE_ENDPOINT_URL: {address}: {error}"
        ))
    };
    let all = if address.starts_with(':') { format!("[::]{address}") } else { address.clone() };
    let listener = TcpListener::bind(&all).await.map_err(|error| bad(&error))?;
    let at = listener.local_addr().map_err(|error| bad(&error))?;
    if settings.bundle_endpoint_url.is_none() && at.ip().is_unspecified() {
        return Err(bad(&"say by VWIRE_CA_BUNDLE_ENDPOINT_URL how others reach it"));
    }
    let id = SpiffeId::new(format!("{}{}", settings.trust_domain.id_string(), issuer::ISSUER));
    let id = id.map_err(|error| bad(&error))?;
    let url = settings.bundle_endpoint_url.clone().map_or_else(|| Url::parse(&format!("https://{at}/")), Ok);
    let endpoint =
        Endpoint::new(url.map_err(|error| bad(&error))?, Some(&id)).map_err(|error| bad(&error))?;
    tracing::info!(url = %endpoint.url, %id, "our bundle is published");
    tokio::spawn(issuer::publish(listener, keys, settings.refresh_hint, shutdown.clone()));
    Ok(Some(endpoint))
}

/// Writes the bundle's file anew whenever the authorities change.
async fn keep_exported(mut keys: watch::Receiver<Arc<Keys>>, file: PathBuf) {
    while keys.changed().await.is_ok() {
        let bundle = keys.borrow_and_update().bundle();
        if let Err(error) = issuer::export(&bundle, &file) {
            tracing::error!(%error, "the bundle's file is not of today");
        }
    }
}

fn check(settings: &Settings) -> Result<(), CaError> {
    let bad = |text: String| Err(CaError::Setting(text));
    if settings.workloads.is_empty() && settings.listen_on.0.is_none() {
        return bad(
            "nobody could ask: name a socket by VWIRE_CA_WORKLOADS (NAME=SOCKET) or VWIRE_CA_LISTEN_ON"
                .to_owned(),
        );
    }
    if !settings.listen_on.0.as_ref().is_none_or(|target| matches!(target, Target::Unix(_))) {
        return bad(
            "VWIRE_CA_LISTEN_ON: callers are told apart on unix sockets only; write unix:///path".to_owned()
        );
    }
    if settings.svid_lifetime < SHORTEST_LIFE {
        return bad(format!(
            "VWIRE_CA_SVID_LIFETIME: {:?} is below {SHORTEST_LIFE:?}",
            settings.svid_lifetime
        ));
    }
    if !settings.bundle_endpoint.0.as_ref().is_none_or(|target| matches!(target, Target::Tcp(_))) {
        return bad("VWIRE_CA_BUNDLE_ENDPOINT: it is asked over HTTPS; write host:port".to_owned());
    }
    if settings.refresh_hint < Duration::from_secs(1) {
        return bad(format!("VWIRE_CA_REFRESH_HINT: {:?} is below 1s", settings.refresh_hint));
    }
    if !settings.rotate_every.is_zero() && settings.rotate_every < settings.svid_lifetime {
        return bad(format!(
            "VWIRE_CA_ROTATE_EVERY: {:?} is shorter than VWIRE_CA_SVID_LIFETIME, {:?}",
            settings.rotate_every, settings.svid_lifetime
        ));
    }
    match settings.federate.iter().find(|with| with.domain == settings.trust_domain) {
        Some(own) => bad(format!("VWIRE_CA_FEDERATE: {} is our own trust domain", own.domain)),
        None => Ok(()),
    }
}

/// What `vwire link` needs to know.
struct Figures {
    settings: Settings,
    rotation: Arc<Rotation>,
    endpoint: Option<Endpoint>,
    federated: watch::Receiver<Bundles>,
}

#[async_trait]
impl Reporter for Figures {
    async fn report(&self) -> Map<String, Value> {
        let federated = self.federated.borrow().clone();
        let one = |(domain, authorities): (&TrustDomain, &bundle::Authorities)| {
            (domain.to_string(), bundle::fingerprints(authorities).into())
        };
        let folder = self.settings.federation.as_ref();
        let folder = folder.map(|folder| std::path::absolute(folder).unwrap_or_else(|_| folder.clone()));
        let keys = self.rotation.keys().borrow().clone();
        let bundle = bundle::to_json(&keys.bundle(), keys.sequence, self.settings.refresh_hint.as_secs());
        let bundle: Value = bundle.ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        let link = json!({
            "trust_domain": self.settings.trust_domain.to_string(),
            "bundle": bundle,
            "authorities": bundle::fingerprints(&keys.bundle()),
            "rotating": self.rotation.is_under_way(),
            "endpoint": self.endpoint,
            "federation": folder,
            "federated": federated.iter().map(one).collect::<Map<_, _>>(),
        });
        [("linked".to_owned(), federated.len().into()), ("link".to_owned(), link)].into_iter().collect()
    }

    async fn act(&self, verb: &str) -> Option<Result<String, String>> {
        (verb == "rotate").then(|| {
            if self.rotation.is_under_way() {
                return Err("a rotation is under way".to_owned());
            }
            let (rotation, pace) = (Arc::clone(&self.rotation), self.settings.refresh_hint * 2);
            tokio::spawn(async move {
                if let Err(error) = rotation.rotate().await {
                    tracing::error!(%error, "the authority was not rotated; the next start goes on from there");
                }
            });
            Ok(format!("a new authority is announced; it signs in {pace:?}"))
        })
    }
}

#[cfg(test)]
mod tests;
