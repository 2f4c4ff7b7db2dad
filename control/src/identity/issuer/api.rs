//! The SPIFFE Workload API, served by the built-in issuer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use vwire_proto::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use vwire_proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest,
    X509svidResponse,
};

use super::{Caller, Keys, Name, Rule};
use crate::identity::source::Bundles;
use crate::transport::{self, Limits, PeerAddress, ServeError, Server, Services, Target};

/// Without it a call could be one that a browser was talked into (SPIFFE Workload Endpoint §3.1).
const HEADER: &str = "workload.spiffe.io";
/// How long to wait after an SVID could not be made.
const RETRY: Duration = Duration::from_secs(5);

/// Issues SVIDs over the Workload API.
pub struct Issuer {
    keys: watch::Receiver<Arc<Keys>>,
    life: Duration,
    rules: Vec<Rule>,
    federated: watch::Receiver<Bundles>,
}

impl Issuer {
    /// Issues SVIDs of the authority that signs among `keys`, which live for `life` and are renewed at half of it, to callers named by `rules` (the first that
    /// fits; none: `/uid/<uid>/<program>`), with the bundles of `federated` domains.
    pub fn new(
        keys: watch::Receiver<Arc<Keys>>,
        life: Duration,
        rules: Vec<Rule>,
        federated: watch::Receiver<Bundles>,
    ) -> Self {
        Self { keys, life, rules, federated }
    }

    /// To wait for what is in the answers and changes.
    fn changes(&self) -> Changes {
        Changes { keys: self.keys.clone(), federated: self.federated.clone() }
    }

    fn name(&self, caller: &Caller) -> String {
        self.rules.iter().find_map(|rule| rule.name(caller)).unwrap_or_else(|| Name::default().of(caller))
    }

    fn svid(&self, path: &str) -> Result<X509svidResponse, Status> {
        let keys = self.keys.borrow().clone();
        let svid = keys.signs.issue(path, self.life);
        let svid = svid.map_err(|error| Status::internal(format!("issuing an SVID: {error}")))?;
        tracing::info!(id = %svid.id, life = ?self.life, "issued an SVID");
        let ours = X509svid {
            spiffe_id: svid.id.to_string(),
            x509_svid: joined(&svid.chain),
            x509_svid_key: svid.key.secret_pkcs8_der().to_vec(),
            bundle: joined(&keys.bundle()),
            hint: String::new(),
        };
        let federated = by_id(&self.federated.borrow());
        Ok(X509svidResponse { svids: vec![ours], crl: Vec::new(), federated_bundles: federated })
    }

    fn bundles(&self) -> X509BundlesResponse {
        let mut bundles = by_id(&self.federated.borrow());
        let keys = self.keys.borrow().clone();
        bundles.insert(keys.signs.domain().id_string(), joined(&keys.bundle()));
        X509BundlesResponse { crl: Vec::new(), bundles }
    }
}

/// Certificates behind one another, as the API has them.
fn joined(certificates: &[CertificateDer<'static>]) -> Vec<u8> {
    certificates.iter().flat_map(|der| der.as_ref()).copied().collect()
}

fn by_id(bundles: &Bundles) -> BTreeMap<String, Vec<u8>> {
    bundles.iter().map(|(domain, authorities)| (domain.id_string(), joined(authorities))).collect()
}

/// Serves the Workload API on `listen` until `shutdown`. Whoever calls there is `name`, or whom the issuer's rules name.
///
/// # Errors
/// [`ServeError`] if the socket can't be opened.
pub async fn serve(
    issuer: Arc<Issuer>,
    listen: &Target,
    name: Option<Name>,
    limits: Limits,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let api = Api { issuer, name, ending: shutdown.clone() };
    // Health and reflection answer without the header: they tell nobody's secrets. (SPIRE's agent does likewise.)
    let services = Services::new().described_by(vwire_proto::workload::FILE_DESCRIPTOR_SET);
    let (routes, _health) = services.serve(SpiffeWorkloadApiServer::new(api)).routes().await;
    Server::bind(std::slice::from_ref(listen), limits).await?.serve_plain(routes, shutdown).await;
    Ok(())
}

/// The API on one socket.
struct Api {
    issuer: Arc<Issuer>,
    /// Who calls here, if the socket says so.
    name: Option<Name>,
    ending: CancellationToken,
}

impl Api {
    /// The caller's path; INVALID_ARGUMENT without the header.
    fn admit<T>(&self, request: &Request<T>) -> Result<String, Status> {
        if request.metadata().get(HEADER).is_none_or(|value| value != "true") {
            return Err(Status::invalid_argument(format!("metadata: {HEADER} must be \"true\"")));
        }
        let PeerAddress::Unix { pid, uid } = transport::peer(request)?.address else {
            return Err(Status::permission_denied("only callers on unix sockets can be told apart"));
        };
        let caller = Caller::of(pid, uid);
        let path = self.name.as_ref().map_or_else(|| self.issuer.name(&caller), |name| name.of(&caller));
        tracing::debug!(?caller, %path, "a workload asks");
        Ok(path)
    }
}

const NO_JWT: &str = "this issuer gives X.509-SVIDs only: NSM's tokens are signed with their keys";

#[tonic::async_trait]
impl SpiffeWorkloadApi for Api {
    type FetchX509SVIDStream = BoxStream<'static, Result<X509svidResponse, Status>>;
    type FetchX509BundlesStream = BoxStream<'static, Result<X509BundlesResponse, Status>>;
    type FetchJWTBundlesStream = BoxStream<'static, Result<JwtBundlesResponse, Status>>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let path = self.admit(&request)?;
        let issuer = Arc::clone(&self.issuer);
        let changes = issuer.changes();
        let first = issuer.svid(&path)?;
        let renewed = stream::unfold((issuer, path, changes), |(issuer, path, mut changes)| async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(issuer.life / 2) => {}
                    () = changes.next() => {}
                }
                match issuer.svid(&path) {
                    Ok(svid) => return Some((Ok(svid), (issuer, path, changes))),
                    Err(error) => tracing::error!(%error, %path, "an SVID was not renewed; trying again"),
                }
                tokio::time::sleep(RETRY).await;
            }
        });
        let all = stream::once(std::future::ready(Ok(first))).chain(renewed);
        Ok(Response::new(all.take_until(self.ending.clone().cancelled_owned()).boxed()))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.admit(&request)?;
        let issuer = Arc::clone(&self.issuer);
        let changes = issuer.changes();
        let first = issuer.bundles();
        let later = stream::unfold((issuer, changes), |(issuer, mut changes)| async move {
            changes.next().await;
            Some((Ok(issuer.bundles()), (issuer, changes)))
        });
        let all = stream::once(std::future::ready(Ok(first))).chain(later);
        Ok(Response::new(all.take_until(self.ending.clone().cancelled_owned()).boxed()))
    }

    async fn fetch_jwtsvid(&self, _: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        Err(Status::unimplemented(NO_JWT))
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(Status::unimplemented(NO_JWT))
    }

    async fn validate_jwtsvid(
        &self,
        _: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        Err(Status::unimplemented(NO_JWT))
    }
}

/// Waits for other authorities, of ours or of others.
struct Changes {
    keys: watch::Receiver<Arc<Keys>>,
    federated: watch::Receiver<Bundles>,
}

impl Changes {
    async fn next(&mut self) {
        tokio::select! {
            () = changed(&mut self.keys) => {}
            () = changed(&mut self.federated) => {}
        }
    }
}

/// Waits for a change; for ever if nobody can make one any more.
async fn changed<T>(watched: &mut watch::Receiver<T>) {
    if watched.changed().await.is_err() {
        std::future::pending().await
    }
}
