//! What every role counts, in Prometheus' terms.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tonic::Code;

/// Bounds of latencies, seconds: from a refresh in memory to a Request that runs into its time limit.
const LATENCIES: [f64; 13] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0];

/// What a peer asks of a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A connection is made, refreshed or changed.
    Request,
    /// A connection is ended.
    Close,
    /// Something is registered, or renewed.
    Register,
    /// Something is unregistered.
    Unregister,
    /// Something is looked for.
    Find,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    operation: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    operation: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

/// What one role counts. Labels have few values each: no names of clients, no ids.
#[derive(Debug)]
pub struct Metrics {
    calls: Family<Answered, Counter>,
    latencies: Family<Asked, Histogram, fn() -> Histogram>,
    records: Family<Kind, Gauge>,
    peers: Family<Kind, Gauge>,
    checks: Family<Outcome, Counter>,
    dials: Family<Outcome, Counter>,
    heals: Family<Outcome, Counter>,
    heal_time: Histogram,
    questions: Family<Outcome, Counter>,
    /// Connections that the role holds.
    pub connections: Gauge,
    /// Clients that watch the registry, or monitor connections.
    pub watches: Gauge,
}

impl Operation {
    fn label(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Close => "close",
            Self::Register => "register",
            Self::Unregister => "unregister",
            Self::Find => "find",
        }
    }
}

/// A status code as a label.
fn outcome(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

fn done(ok: bool) -> Outcome {
    Outcome { outcome: if ok { "ok" } else { "failed" } }
}

impl Metrics {
    /// Nothing counted yet.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let latencies: fn() -> Histogram = || Histogram::new(LATENCIES);
        let metrics = Self {
            calls: Family::default(),
            latencies: Family::new_with_constructor(latencies),
            records: Family::default(),
            peers: Family::default(),
            checks: Family::default(),
            dials: Family::default(),
            heals: Family::default(),
            heal_time: Histogram::new(LATENCIES),
            questions: Family::default(),
            connections: Gauge::default(),
            watches: Gauge::default(),
        };
        registry.register("calls", "Calls answered, by outcome", metrics.calls.clone());
        registry.register_with_unit(
            "call_latency",
            "From a call's arrival to its answer",
            Unit::Seconds,
            metrics.latencies.clone(),
        );
        registry.register("connections", "Connections held", metrics.connections.clone());
        registry.register("registry_records", "Services and endpoints registered", metrics.records.clone());
        registry.register(
            "vl3_peers",
            "Endpoints of the same vL3 service: linked, and announcements of theirs that were refused",
            metrics.peers.clone(),
        );
        registry.register("watches", "Clients that watch or monitor", metrics.watches.clone());
        registry.register(
            "policy_checks",
            "Calls and answers whose tokens were checked",
            metrics.checks.clone(),
        );
        registry.register("dials", "Connections dialled to peers", metrics.dials.clone());
        registry.register("heals", "Attempts to make a connection whole", metrics.heals.clone());
        registry.register_with_unit(
            "heal_time",
            "From the first sign to the answer",
            Unit::Seconds,
            metrics.heal_time.clone(),
        );
        registry.register(
            "dns_questions",
            "What came to our name server, by outcome",
            metrics.questions.clone(),
        );
        metrics
    }

    /// A call was answered after `took`.
    pub fn answered(&self, operation: Operation, code: Code, took: Duration) {
        let operation = operation.label();
        self.calls.get_or_create(&Answered { operation, outcome: outcome(code) }).inc();
        self.latencies.get_or_create(&Asked { operation }).observe(took.as_secs_f64());
    }

    /// So many services or endpoints are registered.
    pub fn records(&self, kind: &'static str, count: usize) {
        self.records.get_or_create(&Kind { kind }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// So many endpoints of a vL3 service are linked to this one, and so many announcements were refused until now.
    pub fn peers(&self, linked: usize, refused: u64) {
        self.peers.get_or_create(&Kind { kind: "linked" }).set(i64::try_from(linked).unwrap_or(i64::MAX));
        self.peers.get_or_create(&Kind { kind: "refused" }).set(i64::try_from(refused).unwrap_or(i64::MAX));
    }

    /// The tokens of a call or an answer were looked at by the policies.
    pub fn checked(&self, ok: bool) {
        self.checks.get_or_create(&done(ok)).inc();
    }

    /// A peer was dialled.
    pub fn dialled(&self, ok: bool) {
        self.dials.get_or_create(&done(ok)).inc();
    }

    /// A message came to our name server, and this became of it.
    pub fn asked(&self, outcome: &'static str) {
        self.questions.get_or_create(&Outcome { outcome }).inc();
    }

    /// An attempt to heal a connection: `took` is since the first sign.
    pub fn healed(&self, ok: bool, took: Duration) {
        self.heals.get_or_create(&done(ok)).inc();
        if ok {
            self.heal_time.observe(took.as_secs_f64());
        }
    }
}
