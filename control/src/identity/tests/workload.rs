//! The Workload API, both sides.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};
use vwire_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use vwire_proto::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use vwire_proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest,
    X509svidResponse,
};

use super::certificates::authority;
use crate::identity::issuer::{Authority, Issuer, Keys, Name, read_bundle, serve};
use crate::identity::*;
use crate::transport::{Dialling, Limits, Pool, Server, Target};

struct Agent {
    socket: Target,
    federated: watch::Sender<Bundles>,
    _shutdown: DropGuard,
}

fn agent(folder: &Path, authority: Authority, life: Duration, name: Option<&str>) -> Agent {
    let socket = Target::Unix(folder.join("agent.sock"));
    let (federated, receiver) = watch::channel(Bundles::new());
    let issuer = Arc::new(Issuer::new(Keys::fixed(authority), life, Vec::new(), receiver));
    let shutdown = CancellationToken::new();
    let name = name.map(|name| name.parse::<Name>().unwrap());
    let (at, ending) = (socket.clone(), shutdown.clone());
    tokio::spawn(async move { serve(issuer, &at, name, Limits::default(), ending).await.unwrap() });
    Agent { socket, federated, _shutdown: shutdown.drop_guard() }
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn an_identity_waits_for_the_issuer_and_follows_its_rotation() {
    let folder = tempfile::tempdir().unwrap();
    let socket = Target::Unix(folder.path().join("agent.sock"));
    let waiting = tokio::spawn(async move { Identity::from_workload_api(&socket).await });
    // Nobody is there yet: the identity is asked for again until somebody is.
    let agent = agent(folder.path(), authority("example.org"), Duration::from_secs(2), Some("nsmgr"));
    let identity = waiting.await.unwrap().unwrap();
    let first = identity.current().unwrap();
    assert_eq!(first.id.to_string(), "spiffe://example.org/nsmgr");
    let mut changes = identity.changes();
    let newer = changes.wait_for(|svid| svid.as_ref().is_some_and(|svid| svid.not_after > first.not_after));
    assert_eq!(newer.await.unwrap().as_ref().unwrap().id, first.id);
    drop(agent);
}

#[tokio::test]
async fn an_issuer_that_dies_is_found_again_by_those_who_had_an_svid() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let domain = || TrustDomain::new("example.org").unwrap();
    let first = agent(folder.path(), Authority::open(&state, domain()).unwrap(), HOUR, Some("x"));
    let identity = Identity::from_workload_api(&first.socket).await.unwrap();
    let before = identity.current().unwrap();
    drop(first);
    // The socket's file is gone when the first agent is.
    while folder.path().join("agent.sock").exists() {
        tokio::task::yield_now().await;
    }
    assert_eq!(identity.current().unwrap().id, before.id, "what we have stays good");
    let _second = agent(folder.path(), Authority::open(&state, domain()).unwrap(), HOUR, Some("x"));
    let mut changes = identity.changes();
    let after = changes
        .wait_for(|svid| !Arc::ptr_eq(svid.as_ref().unwrap(), &before))
        .await
        .unwrap()
        .clone()
        .unwrap();
    assert_eq!(after.bundles, before.bundles, "the authority was kept");
}

#[tokio::test]
async fn callers_are_named_by_the_kernel_where_the_socket_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(folder.path(), authority("example.org"), HOUR, None);
    let identity = Identity::from_workload_api(&agent.socket).await.unwrap();
    let program = std::env::current_exe().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    let uid = rustix::process::getuid().as_raw();
    assert_eq!(identity.current().unwrap().id.path(), format!("/uid/{uid}/{program}"));
}

#[tokio::test]
async fn federated_bundles_come_along_and_their_change_is_sent_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(folder.path(), authority("ours.test"), HOUR, Some("x"));
    let identity = Identity::from_workload_api(&agent.socket).await.unwrap();
    assert_eq!(identity.current().unwrap().bundles.len(), 1);
    let theirs = authority("theirs.test");
    agent.federated.send_modify(|bundles| bundles.extend(theirs.bundles()));
    let mut changes = identity.changes();
    let now =
        changes.wait_for(|svid| svid.as_ref().unwrap().bundles.len() == 2).await.unwrap().clone().unwrap();
    assert_eq!(now.bundles[theirs.domain()], [theirs.certificate().clone()]);
}

/// An agent that tells its SVID once and its bundles as they change, or no bundles at all.
struct Quiet {
    svid: X509svidResponse,
    bundles: Option<watch::Receiver<X509BundlesResponse>>,
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Quiet {
    type FetchX509SVIDStream = BoxStream<'static, Result<X509svidResponse, Status>>;
    type FetchX509BundlesStream = BoxStream<'static, Result<X509BundlesResponse, Status>>;
    type FetchJWTBundlesStream = BoxStream<'static, Result<JwtBundlesResponse, Status>>;

    async fn fetch_x509svid(
        &self,
        _: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let once = stream::once(std::future::ready(Ok(self.svid.clone())));
        Ok(Response::new(once.chain(stream::pending()).boxed()))
    }

    async fn fetch_x509_bundles(
        &self,
        _: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let bundles = self.bundles.clone().ok_or_else(|| Status::unimplemented("SVIDs only"))?;
        Ok(Response::new(tokio_stream::wrappers::WatchStream::new(bundles).map(Ok).boxed()))
    }

    async fn fetch_jwtsvid(&self, _: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn validate_jwtsvid(
        &self,
        _: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

async fn quiet(
    socket: &Target,
    bundles: Option<watch::Receiver<X509BundlesResponse>>,
) -> (Authority, CancellationToken) {
    let ours = authority("ours.test");
    let svid = ours.issue("/x", HOUR).unwrap();
    let svid = X509svid {
        spiffe_id: svid.id.to_string(),
        x509_svid: svid.chain[0].to_vec(),
        x509_svid_key: svid.key.secret_pkcs8_der().to_vec(),
        bundle: ours.certificate().to_vec(),
        hint: String::new(),
    };
    let svid = X509svidResponse { svids: vec![svid], ..Default::default() };
    let ending = CancellationToken::new();
    let server = Server::bind(std::slice::from_ref(socket), Limits::default()).await.unwrap();
    let routes = Routes::new(SpiffeWorkloadApiServer::new(Quiet { svid, bundles }));
    tokio::spawn(server.serve_plain(routes, ending.clone()));
    (ours, ending)
}

#[tokio::test]
async fn bundles_that_change_without_a_new_svid_are_taken_up_and_those_that_go_are_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let socket = Target::Unix(folder.path().join("agent.sock"));
    let (sender, bundles) = watch::channel(X509BundlesResponse::default());
    let (ours, _ending) = quiet(&socket, Some(bundles)).await;
    let identity = Identity::from_workload_api(&socket).await.unwrap();
    let first = identity.current().unwrap();
    let theirs = authority("theirs.test");
    let told = |authority: &Authority| (authority.domain().id_string(), authority.certificate().to_vec());
    let mut changes = identity.changes();
    sender.send_modify(|response| response.bundles = [told(&ours), told(&theirs)].into());
    let has = |count: usize| move |svid: &Option<Arc<Svid>>| svid.as_ref().unwrap().bundles.len() == count;
    let now = changes.wait_for(has(2)).await.unwrap().clone().unwrap();
    assert_eq!(now.bundles[theirs.domain()], [theirs.certificate().clone()]);
    assert_eq!(now.chain, first.chain, "the same SVID");
    // An authority that is added to our own is believed, too; and a domain that is gone is not.
    let newer = authority("ours.test");
    let both = [ours.certificate().to_vec(), newer.certificate().to_vec()].concat();
    sender.send_modify(|response| response.bundles = [(ours.domain().id_string(), both)].into());
    let now = changes.wait_for(has(1)).await.unwrap().clone().unwrap();
    assert_eq!(now.bundles[ours.domain()], [ours.certificate().clone(), newer.certificate().clone()]);
    // One that leaves out our own says nothing of it.
    sender.send_modify(|response| response.bundles = [told(&theirs)].into());
    let now = changes.wait_for(has(2)).await.unwrap().clone().unwrap();
    assert_eq!(now.bundles[ours.domain()].len(), 2);
}

#[tokio::test]
async fn an_agent_without_bundles_is_good_for_svids() {
    let folder = tempfile::tempdir().unwrap();
    let socket = Target::Unix(folder.path().join("agent.sock"));
    let (ours, _ending) = quiet(&socket, None).await;
    let identity = Identity::from_workload_api(&socket).await.unwrap();
    assert_eq!(identity.current().unwrap().bundles, ours.bundles());
}

#[tokio::test]
async fn the_api_asks_for_its_header_and_says_that_it_has_no_jwts() {
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(folder.path(), authority("example.org"), HOUR, Some("x"));
    Identity::from_workload_api(&agent.socket).await.unwrap();
    let plain = Identity::insecure();
    let pool = Pool::new(plain.clone(), TokenSource::new(plain, HOUR), Dialling::default());
    let mut client = SpiffeWorkloadApiClient::new(pool.hop(&agent.socket).await.unwrap());
    let error = client.fetch_x509svid(X509svidRequest {}).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let error = client.fetch_x509_bundles(X509BundlesRequest {}).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let error = client.fetch_jwtsvid(JwtsvidRequest::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    let mut asked = tonic::Request::new(X509BundlesRequest {});
    asked.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    let bundles =
        client.fetch_x509_bundles(asked).await.unwrap().into_inner().message().await.unwrap().unwrap();
    assert_eq!(bundles.bundles.keys().collect::<Vec<_>>(), ["spiffe://example.org"]);
}

#[test]
fn an_authority_is_kept_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("ca");
    let domain = TrustDomain::new("example.org").unwrap();
    let made = Authority::open(&state, domain.clone()).unwrap();
    let mode = |file: &Path| std::fs::metadata(file).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&state), mode(&state.join("authority.key"))), (0o700, 0o600));
    let again = Authority::open(&state, domain.clone()).unwrap();
    assert_eq!(made.certificate(), again.certificate());
    let exported = folder.path().join("bundle.pem");
    again.export(&exported).unwrap();
    assert_eq!(read_bundle(&exported).unwrap(), [made.certificate().clone()]);

    let other = Authority::open(&state, TrustDomain::new("other.org").unwrap()).err().unwrap().to_string();
    assert!(other.contains("other.org") && other.contains("authority.der"), "{other}");
    let stranger = authority("example.org");
    std::fs::write(state.join("authority.der"), stranger.certificate()).unwrap();
    let parts = Authority::open(&state, domain).err().unwrap().to_string();
    assert!(parts.contains("don't belong together"), "{parts}");
}

#[test]
fn a_bundle_without_certificates_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "nothing").unwrap();
    assert!(read_bundle(file.path()).unwrap_err().to_string().contains("no certificate"));
    assert!(read_bundle(Path::new("/nowhere/x.pem")).is_err());
}
