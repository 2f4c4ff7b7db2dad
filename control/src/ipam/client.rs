//! An endpoint's prefix: asked for, kept, and asked for again when the service was away.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use ipnet::IpNet;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use vwire_proto::nsm::ipam::ipam_client::IpamClient;
use vwire_proto::nsm::ipam::{PrefixRequest, PrefixResponse, Type};

use super::Grant;
use crate::transport::{Pool, Target};

/// The pause after a first failure, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Keeps a prefix of the service at `target` until `shutdown`, and tells each difference: none before the first answer. While the
/// service is away, and while it has nothing to give, what it gave last remains. `previous` is what the endpoint had before it was started
/// anew: it gets the same again where the service still keeps it, and is told so like any other.
///
/// The service keeps the prefix for its owner for a time after the end; nothing is given back here.
pub fn lease(
    pool: Arc<Pool>,
    target: Target,
    previous: Option<IpNet>,
    shutdown: CancellationToken,
) -> watch::Receiver<Option<Grant>> {
    let (grant, told) = watch::channel(None);
    let lease = Lease { pool, target, previous, grant, pause: FIRST_PAUSE, complained: None };
    tokio::spawn(shutdown.run_until_cancelled_owned(lease.run()));
    told
}

/// A prefix that needs no service: the same for as long as the process lasts.
pub fn fixed(prefix: IpNet, shutdown: CancellationToken) -> watch::Receiver<Option<Grant>> {
    let (grant, told) = watch::channel(Some(Grant::of(prefix)));
    tokio::spawn(async move {
        // Receivers take a sender that is gone for the end.
        shutdown.cancelled().await;
        drop(grant);
    });
    told
}

struct Lease {
    pool: Arc<Pool>,
    target: Target,
    previous: Option<IpNet>,
    grant: watch::Sender<Option<Grant>>,
    pause: Duration,
    /// The failure that was logged last; the same again is not news.
    complained: Option<String>,
}

impl Lease {
    async fn run(mut self) {
        loop {
            let Err(status) = self.stream().await;
            self.complain(&status);
            tokio::time::sleep(self.pause.mul_f64(rand::random_range(0.5..1.0))).await;
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One stream, until it breaks.
    async fn stream(&mut self) -> Result<std::convert::Infallible, Status> {
        let hop = self.pool.hop(&self.target).await?;
        let wanted = PrefixRequest {
            r#type: Type::Allocate.into(),
            prefix: self.previous.map_or_else(String::new, |prefix| prefix.to_string()),
            exclude_prefixes: Vec::new(),
        };
        // The prefix is ours for as long as the stream lasts, so our side of it stays open.
        let requests = stream::iter([wanted]).chain(stream::pending());
        let mut answers = IpamClient::new(hop).manage_prefixes(requests).await?.into_inner();
        while let Some(answer) = answers.message().await? {
            self.take(&answer)?;
        }
        Err(Status::unavailable("the service ended the stream"))
    }

    fn take(&mut self, answer: &PrefixResponse) -> Result<(), Status> {
        let grant = Grant::read(answer).map_err(|error| Status::failed_precondition(error.to_string()))?;
        (self.pause, self.complained) = (FIRST_PAUSE, None);
        self.previous = Some(grant.prefix);
        self.grant.send_if_modified(|current| {
            let changed = current.as_ref() != Some(&grant);
            if changed {
                tracing::info!(
                    prefix = %grant.prefix, from = %self.target,
                    before = ?current.as_ref().map(|before| before.prefix.to_string()),
                    "a prefix for this endpoint"
                );
                *current = Some(grant);
            }
            changed
        });
        Ok(())
    }

    /// Says once why there is no stream.
    fn complain(&mut self, status: &Status) {
        let reason = format!("{:?}: {}", status.code(), status.message());
        if self.complained.as_deref() == Some(reason.as_str()) {
            return tracing::debug!(service = %self.target, %reason, "no prefix service");
        }
        let prefix = self.previous.map(|prefix| prefix.to_string());
        tracing::warn!(service = %self.target, prefix, %reason, "the prefix service does not serve us; asking on");
        self.complained = Some(reason);
    }
}
