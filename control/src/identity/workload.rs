//! Our SVID from a SPIFFE Workload API: SPIRE's agent, or the built-in issuer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use spiffe::transport::{GrpcStatusCode, TransportError};
use spiffe::{WorkloadApiClient, WorkloadApiError, X509BundleSet, X509Context};
use tokio::sync::watch;

use super::source::Bundles;
use super::{Identity, Svid};
use crate::transport::Target;

/// How long to wait after a failure: doubled each time, up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often the log says that we still wait.
const REMINDER: Duration = Duration::from_secs(10);

/// Why there will be no identity.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// The Workload API is on a unix socket or on a TCP port of an IP address.
    #[error("SPIFFE_ENDPOINT_SOCKET {0}: write unix:///path or tcp://address:port")]
    Address(Target),
    /// Nobody can give one any more.
    #[error("the task that fetches SVIDs has ended")]
    Ended,
}

impl Identity {
    /// The identity that the Workload API at `endpoint` gives us: waits for the first SVID however long it takes, says in the log
    /// what it waits for, and follows rotation as long as anybody holds the identity.
    ///
    /// # Errors
    /// [`WorkloadError::Address`] if `endpoint` can't be one.
    pub async fn from_workload_api(endpoint: &Target) -> Result<Self, WorkloadError> {
        if spiffe::transport::Endpoint::parse(&endpoint.to_string()).is_err() {
            return Err(WorkloadError::Address(endpoint.clone()));
        }
        let (svids, mut ours) = watch::channel(None);
        tokio::spawn(follow(endpoint.to_string(), svids));
        ours.wait_for(Option::is_some).await.map_err(|_| WorkloadError::Ended)?;
        Ok(Self::rotated_by(ours))
    }
}

/// Fetches until nobody wants SVIDs any more.
async fn follow(endpoint: String, svids: watch::Sender<Option<Arc<Svid>>>) {
    let mut patience = Patience { pause: FIRST_PAUSE, since: Instant::now(), told: None };
    loop {
        let ended = tokio::select! {
            () = svids.closed() => return,
            ended = take(&endpoint, &svids, &mut patience) => ended,
        };
        patience.tell(&endpoint, &ended, svids.borrow().as_deref());
        tokio::select! {
            () = svids.closed() => return,
            () = tokio::time::sleep(patience.pause) => {}
        }
        patience.pause = (patience.pause * 2).min(LONGEST_PAUSE);
    }
}

/// Takes SVIDs from one stream; returns why it ended.
async fn take(endpoint: &str, svids: &watch::Sender<Option<Arc<Svid>>>, patience: &mut Patience) -> String {
    let client = match WorkloadApiClient::connect_to(endpoint).await {
        Ok(client) => client,
        Err(error) => return error.to_string(),
    };
    let mut contexts = match client.stream_x509_contexts().await {
        Ok(contexts) => contexts.fuse(),
        Err(error) => return error.to_string(),
    };
    // Bundles change more often than SVIDs: an agent tells them here, and need not make new SVIDs for it.
    // Opened beside the SVIDs: Go's servers answer a stream with its first message.
    let mut bundles = stream::once(async { client.stream_x509_bundles().await }).try_flatten().boxed().fuse();
    loop {
        // Both tell all that is so at that moment: the last one counts.
        let told = tokio::select! {
            context = contexts.next() => match context {
                Some(Ok(context)) => svid(&context),
                Some(Err(error)) => return error.to_string(),
                None => return "the stream ended".to_owned(),
            },
            Some(set) = bundles.next() => match set {
                Ok(set) => match rebundled(svids.borrow().as_deref(), &set) {
                    Some(told) => told,
                    None => continue,
                },
                // An agent that has SVIDs only.
                Err(error) if unimplemented(&error) => continue,
                Err(error) => return error.to_string(),
            },
        };
        match told {
            Ok(svid) => {
                let lives = svid.not_after.elapsed().err().map(|left| left.duration());
                tracing::info!(id = %svid.id, ?lives, trusts = svid.bundles.len(), "we have an SVID");
                svids.send_replace(Some(Arc::new(svid)));
                *patience = Patience { pause: FIRST_PAUSE, since: Instant::now(), told: None };
            }
            // The one we have stays: it is good until it ends.
            Err(reason) => {
                tracing::error!(%endpoint, %reason, "the Workload API gave an SVID that can't be used")
            }
        }
    }
}

/// The default SVID, which is the first, and all bundles.
fn svid(context: &X509Context) -> Result<Svid, String> {
    let svid = context.default_svid().ok_or("no SVID for us")?;
    let der = |certificate: &spiffe::cert::Certificate| CertificateDer::from(certificate.as_bytes().to_vec());
    let chain = svid.cert_chain().iter().map(der).collect();
    let key = PrivatePkcs8KeyDer::from(svid.private_key().as_bytes().to_vec());
    Svid::new(chain, key, authorities(context.bundle_set())).map_err(|error| error.to_string())
}

fn authorities(set: &X509BundleSet) -> Bundles {
    let der = |certificate: &spiffe::cert::Certificate| CertificateDer::from(certificate.as_bytes().to_vec());
    set.iter()
        .map(|(domain, bundle)| (domain.clone(), bundle.authorities().iter().map(der).collect()))
        .collect()
}

/// The SVID that we have, with what is believed now; none if nothing changes.
fn rebundled(have: Option<&Svid>, set: &X509BundleSet) -> Option<Result<Svid, String>> {
    let have = have?;
    let mut bundles = authorities(set);
    let own = have.id.trust_domain();
    // Our own domain's comes with the SVID in any case.
    if bundles.get(own).is_none_or(Vec::is_empty) {
        bundles.insert(own.clone(), have.bundles.get(own).cloned().unwrap_or_default());
    }
    if bundles == have.bundles {
        return None;
    }
    let svid = Svid::new(have.chain.clone(), have.key.clone_key(), bundles);
    Some(svid.map_err(|error| error.to_string()))
}

fn unimplemented(error: &WorkloadApiError) -> bool {
    let WorkloadApiError::Transport(TransportError::Status(status)) = error else { return false };
    status.code() == GrpcStatusCode::Unimplemented
}

/// How long we wait already, and when the log said so.
struct Patience {
    pause: Duration,
    since: Instant,
    told: Option<Instant>,
}

impl Patience {
    fn tell(&mut self, endpoint: &str, reason: &str, have: Option<&Svid>) {
        if self.told.is_some_and(|told| told.elapsed() < REMINDER) {
            return;
        }
        self.told = Some(Instant::now());
        let waited = self.since.elapsed().as_secs();
        match have {
            None => tracing::warn!(%endpoint, %reason, waited_s = waited, "waiting for our first SVID"),
            Some(svid) => {
                let left = svid.not_after.elapsed().err().map(|left| left.duration());
                tracing::warn!(%endpoint, %reason, ours_lives = ?left, "the Workload API is away; asking again");
            }
        }
    }
}
