//! Connections to peers, kept open.
//!
//! A peer made of grpcfd, as the Go components are, holds on to every descriptor that comes by a connection until that connection ends;
//! there everybody dials for each call. So calls beside which descriptors go have connections of their own here, *carriers*, on which
//! no stream stays open. After some descriptors, or some time, a carrier takes no more calls, and ends with its last.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tonic::Status;

use super::Target;
use super::dial::dial;
use super::hop::Hop;
use super::limits::accepted;
use super::tls::Tls;
use crate::identity::{Identity, TokenSource, TrustDomain};
use crate::obs::Metrics;

/// Idle connections are looked for this many times in the time they may be idle.
const LOOKS: u32 = 4;
/// A server may have got a new SVID when half of the one it showed us is over; its tokens are then signed with the new key. From
/// then on a connection is kept no longer than this.
const SECOND_HALF_AGE: Duration = Duration::from_secs(60);

/// Descriptors that go by one carrier, and how long it is used: what piles up at the peer meanwhile.
const CARRIED: usize = 32;
const CARRIER_AGE: Duration = Duration::from_secs(30);

/// How a process dials.
#[derive(Debug, Clone)]
pub struct Dialling {
    /// How long dialling a peer may take: connecting, TLS, HTTP/2 (`NSM_DIAL_TIMEOUT`).
    pub timeout: Duration,
    /// After which silence of a peer with calls under way it is asked for a sign of life.
    pub silence: Duration,
    /// How long it may take to give one; then the connection and its calls end.
    pub sign_of_life: Duration,
    /// How long a connection that nobody uses stays open.
    pub idle: Duration,
    /// Trust domains whose members are believed as servers; all that we hold a bundle of unless named.
    pub trust_domains: Vec<TrustDomain>,
    /// Where dials are counted.
    pub metrics: Option<Arc<Metrics>>,
}

impl Default for Dialling {
    fn default() -> Self {
        Self {
            timeout: Duration::from_millis(750),
            silence: Duration::from_secs(5),
            sign_of_life: Duration::from_secs(3),
            idle: Duration::from_secs(180),
            trust_domains: Vec::new(),
            metrics: None,
        }
    }
}

/// Connections by target: each is dialled once, shared by all calls, and dialled anew when it has broken or our SVID has changed.
/// Beside it there may be a carrier to the same target.
pub struct Pool(Arc<Inner>);

struct Inner {
    tls: Tls,
    tokens: TokenSource,
    how: Dialling,
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    by_line: HashMap<Line, Place>,
    sweeping: bool,
}

#[derive(Default)]
struct Place {
    hop: Option<Hop>,
    dialling: Option<Dial>,
}

/// Which connection.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Line {
    target: Target,
    carrier: bool,
}

type Dial = Shared<BoxFuture<'static, Result<Hop, Status>>>;

impl Pool {
    /// Dials as `identity`, with tokens of `tokens`.
    pub fn new(identity: Identity, tokens: TokenSource, dialling: Dialling) -> Self {
        let tls = Tls::new(identity, accepted(&dialling.trust_domains));
        Self(Arc::new(Inner { tls, tokens, how: dialling, places: Mutex::default() }))
    }

    /// A connection to whoever listens at `target`. Callers that ask at the same time share one dial.
    ///
    /// # Errors
    /// UNAVAILABLE, naming the target and the reason.
    pub async fn hop(&self, target: &Target) -> Result<Hop, Status> {
        self.on(Line { target: target.clone(), carrier: false }).await
    }

    /// A connection for one call beside which so many descriptors go; not to be kept beyond that call.
    ///
    /// # Errors
    /// As [`hop`](Self::hop).
    pub async fn hop_with(&self, target: &Target, descriptors: usize) -> Result<Hop, Status> {
        let carrier = descriptors > 0 && target.is_local();
        let hop = self.on(Line { target: target.clone(), carrier }).await?;
        hop.carries(descriptors);
        Ok(hop)
    }

    async fn on(&self, line: Line) -> Result<Hop, Status> {
        let kept = self.kept(&line);
        let fit = |hop: &&Hop| !(self.0.is_outdated(hop) || line.carrier && is_spent(hop));
        if let Some(hop) = kept.as_ref().filter(fit) {
            return Ok(hop.clone());
        }
        match (self.dial(&line).await, kept) {
            // One that is only outdated is better than none.
            (Err(_), Some(old)) if old.is_open() => Ok(old),
            (dialled, _) => dialled,
        }
    }

    /// A connection dialled after `hop`, which was found wanting: its server signs with the key of a newer SVID than it showed.
    ///
    /// # Errors
    /// As [`hop`](Self::hop).
    pub async fn renew(&self, hop: &Hop) -> Result<Hop, Status> {
        let line = Line { target: hop.target().clone(), carrier: false };
        match self.kept(&line) {
            Some(newer) if !newer.same_as(hop) && newer.age() < hop.age() => Ok(newer),
            _ => self.dial(&line).await,
        }
    }

    /// How many connections are kept.
    pub fn len(&self) -> usize {
        self.0.places().by_line.values().filter(|place| place.hop.is_some()).count()
    }

    /// True if none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn kept(&self, line: &Line) -> Option<Hop> {
        let places = self.0.places();
        places.by_line.get(line)?.hop.clone().filter(Hop::is_open)
    }

    fn dial(&self, line: &Line) -> Dial {
        let mut places = self.0.places();
        if !std::mem::replace(&mut places.sweeping, true) {
            tokio::spawn(sweep(Arc::downgrade(&self.0)));
        }
        let place = places.by_line.entry(line.clone()).or_default();
        if let Some(dialling) = &place.dialling {
            return dialling.clone();
        }
        let task = tokio::spawn(Arc::clone(&self.0).dial(line.clone()));
        let ended = async move {
            task.await.unwrap_or_else(|_| Err(Status::unavailable("dialling was interrupted")))
        };
        place.dialling.insert(ended.boxed().shared()).clone()
    }
}

impl Inner {
    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Dials, and keeps what came of it. Runs on its own, so that a caller that gives up does not take the others along.
    async fn dial(self: Arc<Self>, line: Line) -> Result<Hop, Status> {
        let target = &line.target;
        let dialled = match tokio::time::timeout(
            self.how.timeout,
            dial(target, &self.tls, self.tokens.clone(), &self.how),
        )
        .await
        {
            Ok(Ok(hop)) => Ok(hop),
            Ok(Err(error)) => Err(Status::unavailable(format!("dialling {target}: {error}"))),
            Err(_) => {
                let reason = format!(
                    "dialling {target}: no connection within {:?} (NSM_DIAL_TIMEOUT)",
                    self.how.timeout
                );
                Err(Status::unavailable(reason))
            }
        };
        if let Some(metrics) = &self.how.metrics {
            metrics.dialled(dialled.is_ok());
        }
        let mut places = self.places();
        if let Ok(hop) = &dialled {
            let place = places.by_line.entry(line).or_default();
            (place.hop, place.dialling) = (Some(hop.clone()), None);
        } else if let Some(place) = places.by_line.get_mut(&line) {
            place.dialling = None;
            if !place.hop.as_ref().is_some_and(Hop::is_open) {
                places.by_line.remove(&line);
            }
        }
        dialled
    }

    /// True if calls to come should use a new connection: we have a new SVID, or the peer may have one.
    fn is_outdated(&self, hop: &Hop) -> bool {
        let peer = hop.peer();
        let ours = match (&peer.local, self.tls.identity().current()) {
            (Some(then), Some(now)) => Arc::ptr_eq(then, &now),
            (None, None) => true,
            _ => false,
        };
        let theirs = hop.middle().is_none_or(|middle| SystemTime::now() < middle);
        !ours || !theirs && hop.age() > SECOND_HALF_AGE
    }
}

/// True if a carrier takes no more calls.
fn is_spent(hop: &Hop) -> bool {
    hop.carried() >= CARRIED || hop.age() > CARRIER_AGE
}

/// Closes connections that nobody uses, and carriers that have been used enough.
async fn sweep(inner: Weak<Inner>) {
    let Some(idle) = inner.upgrade().map(|inner| inner.how.idle) else { return };
    loop {
        tokio::time::sleep(idle.min(CARRIER_AGE) / LOOKS).await;
        let Some(inner) = inner.upgrade() else { return };
        inner.places().by_line.retain(|line, place| {
            let unused = |hop: &Hop| {
                let spent = line.carrier && is_spent(hop);
                spent || !hop.is_open() || hop.idle().is_some_and(|for_| for_ > idle)
            };
            if place.hop.as_ref().is_some_and(unused) {
                place.hop = None;
            }
            place.hop.is_some() || place.dialling.is_some()
        });
    }
}
