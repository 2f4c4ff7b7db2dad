//! How a client treats its connections.

use std::sync::Arc;
use std::time::Duration;

use crate::obs::Metrics;

/// Times and limits of a client's sessions.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    /// How long a Request or Close may take; a Request less where tokens are short.
    pub request_timeout: Duration,
    /// How long our tokens live (`NSM_MAX_TOKEN_LIFETIME`), if there are any.
    pub token_life: Option<Duration>,
    /// How often the data plane is asked whether it lives; `None`: never, and what it would say is then unknown.
    pub liveness: Option<LivenessSettings>,
    /// The first pause after a failure, doubled after each further one.
    pub first_retry: Duration,
    /// The longest pause after a failure. That the next hop can be reached again ends a pause early.
    pub last_retry: Duration,
    /// Where heals are counted.
    pub metrics: Option<Arc<Metrics>>,
}

/// `NSM_LIVENESS_CHECK_INTERVAL`, `NSM_LIVENESS_CHECK_TIMEOUT`.
#[derive(Debug, Clone, Copy)]
pub struct LivenessSettings {
    /// From one check's end to the next's start.
    pub interval: Duration,
    /// Without any answer for this long a connection is dead.
    pub timeout: Duration,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            request_timeout: Duration::from_secs(15),
            token_life: None,
            liveness: Some(LivenessSettings::default()),
            first_retry: Duration::from_millis(50),
            last_retry: Duration::from_secs(1),
            metrics: None,
        }
    }
}

impl Default for LivenessSettings {
    fn default() -> Self {
        Self { interval: Duration::from_millis(200), timeout: Duration::from_secs(1) }
    }
}
