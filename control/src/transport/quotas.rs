//! How much one identity may have open at a server, however many connections it makes.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use hyper::body::{Bytes, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use super::Limits;
use crate::identity::SpiffeId;

/// What all identities have open. Callers without one (TLS is off) are not counted.
pub(super) struct Quotas {
    connections: usize,
    calls: usize,
    per_second: u32,
    open: Mutex<HashMap<SpiffeId, Open>>,
}

/// What one identity has open.
struct Open {
    connections: usize,
    calls: Arc<Calls>,
}

struct Calls {
    under_way: AtomicUsize,
    rate: Mutex<Rate>,
}

/// A bucket of a second's calls.
struct Rate {
    left: f64,
    at: Instant,
}

/// A connection's place among those of its identity.
pub(super) struct Place {
    quotas: Arc<Quotas>,
    id: SpiffeId,
    calls: Arc<Calls>,
}

impl Quotas {
    pub fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            connections: limits.connections_per_identity,
            calls: limits.calls_per_identity,
            per_second: limits.calls_per_second,
            open: Mutex::default(),
        })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<SpiffeId, Open>> {
        // Every change is one step, so a panic elsewhere does not spoil it.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more connection of `id`.
    pub fn connect(self: &Arc<Self>, id: &SpiffeId) -> io::Result<Place> {
        let mut open = self.open();
        let of = open
            .entry(id.clone())
            .or_insert_with(|| Open { connections: 0, calls: Calls::new(self.per_second) });
        if of.connections >= self.connections {
            return Err(io::Error::other(format!(
                "{id} has {} connections open already: the limit for one identity (VWIRE_MAX_CONNECTIONS_PER_IDENTITY)",
                of.connections
            )));
        }
        of.connections += 1;
        Ok(Place { quotas: Arc::clone(self), id: id.clone(), calls: Arc::clone(&of.calls) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.quotas.open();
        let Some(of) = open.get_mut(&self.id) else { return };
        of.connections -= 1;
        if of.connections == 0 {
            open.remove(&self.id);
        }
    }
}

impl Place {
    /// A place for one more call.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED with the limit and its setting.
    pub fn call(&self) -> Result<UnderWay, Status> {
        let Quotas { calls: most, per_second, .. } = *self.quotas;
        let full = |what: String, setting: &str| {
            Err(Status::resource_exhausted(format!(
                "{}: {what}: the limit of this server for one identity ({setting})",
                self.id
            )))
        };
        let under_way = UnderWay::new(&self.calls);
        if self.calls.under_way.load(Ordering::Relaxed) > most {
            return full(
                format!("{most} calls and watches are under way already"),
                "VWIRE_MAX_CALLS_PER_IDENTITY",
            );
        }
        if !self.calls.in_time(per_second) {
            return full(format!("more than {per_second} calls in a second"), "VWIRE_MAX_CALLS_PER_SECOND");
        }
        Ok(under_way)
    }
}

impl Calls {
    fn new(per_second: u32) -> Arc<Self> {
        let rate = Mutex::new(Rate { left: f64::from(per_second), at: Instant::now() });
        Arc::new(Self { under_way: AtomicUsize::new(0), rate })
    }

    /// Whether one more call is within the rate; 0 is none.
    fn in_time(&self, per_second: u32) -> bool {
        if per_second == 0 {
            return true;
        }
        let most = f64::from(per_second);
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let since = now.saturating_duration_since(rate.at).as_secs_f64();
        (rate.left, rate.at) = ((rate.left + since * most).min(most), now);
        let is = rate.left >= 1.0;
        if is {
            rate.left -= 1.0;
        }
        is
    }
}

/// A call that counts until it is dropped.
pub(super) struct UnderWay(Arc<Calls>);

impl UnderWay {
    fn new(calls: &Arc<Calls>) -> Self {
        calls.under_way.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(calls))
    }

    /// Counts until the answer's end: a watch's answer ends with the watch.
    pub fn until_end_of(self, answer: http::Response<Body>) -> http::Response<Body> {
        answer.map(|body| Body::new(Counted { body, _call: self }))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer's body that holds its call's place.
struct Counted {
    body: Body,
    _call: UnderWay,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
