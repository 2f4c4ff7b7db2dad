//! The one of a domain's addresses that answers.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use lru::LruCache;
use tonic::{Code, Status};

use super::{Discovery, Found, Part};
use crate::transport::{Pool, Target};

/// Domains whose last good address is remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// Finds a part of a domain and dials it. The address that answered last is tried first while it is among those that are found.
pub struct Reach {
    discovery: Discovery,
    pool: Arc<Pool>,
    last: Mutex<LruCache<(String, Part), Target>>,
}

/// What answered, and how it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// Where it is.
    pub target: Target,
    /// What was asked, and what the answer was, for errors.
    pub story: String,
}

impl Reach {
    /// Dials over these connections.
    pub fn new(discovery: Discovery, pool: Arc<Pool>) -> Self {
        Self { discovery, pool, last: Mutex::new(LruCache::new(REMEMBERED)) }
    }

    /// The domain's registry.
    ///
    /// # Errors
    /// As [`Discovery::find`]; UNAVAILABLE if none of its addresses answers, with each one's reason.
    pub async fn registry(&self, domain: &str, deadline: Instant) -> Result<Reached, Status> {
        let found = self.find(domain, Part::Registry, deadline).await?;
        match self.first_that_answers(domain, Part::Registry, &found, deadline).await {
            Ok(target) => Ok(Reached { target, story: found.story }),
            Err(reasons) => Err(Status::unavailable(format!(
                "domain {domain:?}: its registry does not answer: {reasons} ({})",
                found.story
            ))),
        }
    }

    /// The domain's nsmgr-proxy; none if the domain is a registry and no more. One that alone is recorded is taken at its word; of
    /// several, the first that answers is taken, and the first if none does: whoever asks it then hears why not.
    ///
    /// # Errors
    /// UNAVAILABLE if nobody could be asked whether there is one.
    pub async fn proxy(&self, domain: &str, deadline: Instant) -> Result<Option<Target>, Status> {
        let found = match self.find(domain, Part::Proxy, deadline).await {
            Ok(found) => found,
            Err(status) if status.code() == Code::NotFound => {
                tracing::debug!(domain, %status, "a domain without nsmgr-proxy: its endpoints keep their URLs");
                return Ok(None);
            }
            Err(status) => return Err(status),
        };
        if let ([only], false) = (&found.targets[..], found.guessed) {
            return Ok(Some(only.clone()));
        }
        match self.first_that_answers(domain, Part::Proxy, &found, deadline).await {
            Ok(target) => Ok(Some(target)),
            Err(reasons) if found.guessed => {
                tracing::debug!(
                    domain,
                    reasons,
                    "no nsmgr-proxy at the usual ports: its endpoints keep their URLs"
                );
                Ok(None)
            }
            Err(reasons) => {
                tracing::info!(domain, reasons, "no nsmgr-proxy of the domain answers");
                Ok(found.targets.first().cloned())
            }
        }
    }

    async fn find(&self, domain: &str, part: Part, deadline: Instant) -> Result<Found, Status> {
        let found = tokio::time::timeout_at(deadline.into(), self.discovery.find(domain, part)).await;
        found.unwrap_or_else(|_| {
            Err(Status::deadline_exceeded(format!(
                "domain {domain:?}: looking up its {part} took longer than the call's time"
            )))
        })
    }

    async fn first_that_answers(
        &self,
        domain: &str,
        part: Part,
        found: &Found,
        deadline: Instant,
    ) -> Result<Target, String> {
        let key = (domain.to_ascii_lowercase(), part);
        let last = self.last().get(&key).cloned().filter(|last| found.targets.contains(last));
        let others = found.targets.iter().filter(|target| Some(*target) != last.as_ref());
        let mut reasons = Vec::new();
        for target in last.iter().chain(others) {
            match tokio::time::timeout_at(deadline.into(), self.pool.hop(target)).await {
                Ok(Ok(_)) => {
                    self.last().put(key, target.clone());
                    return Ok(target.clone());
                }
                Ok(Err(status)) => reasons.push(status.message().to_owned()),
                Err(_) => {
                    reasons.push(format!("{target}: not reached within the call's time"));
                    break;
                }
            }
        }
        Err(reasons.join("; "))
    }

    fn last(&self) -> MutexGuard<'_, LruCache<(String, Part), Target>> {
        // Every change is of one entry, so a panic elsewhere does not spoil it.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
