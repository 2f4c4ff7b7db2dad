//! What a listener is told about itself and its interfaces.

use std::time::Duration;

use crate::handshake::{Mode, PeerLimits};
use crate::message::{Name, Secret};

/// How a listener treats those who connect.
#[derive(Debug, Clone)]
pub struct ListenerConfig {
    /// What this program calls itself in HELLO.
    pub program: Name,
    /// The only user whose processes may connect; any if `None`.
    pub expected_uid: Option<u32>,
    /// Handshakes under way at once. One more displaces the oldest that has not named its interface yet, of
    /// the process that has most of them.
    pub max_pending: usize,
    /// Time from connecting to CONNECT.
    pub handshake_timeout: Duration,
}

impl Default for ListenerConfig {
    fn default() -> Self {
        Self {
            program: Name::cut("vwire memif"),
            expected_uid: None,
            max_pending: 16,
            handshake_timeout: Duration::from_secs(2),
        }
    }
}

/// One interface of a listener.
#[derive(Debug, Clone)]
pub struct InterfaceConfig {
    /// What its frames are; a client must ask for the same.
    pub mode: Mode,
    /// Its name, told to the client.
    pub name: Name,
    /// What a client must know, or [`Secret::none`].
    pub secret: Secret,
    /// What a client may announce.
    pub limits: PeerLimits,
}

impl InterfaceConfig {
    /// An interface without a secret and with the default limits.
    pub fn new(mode: Mode, name: Name) -> Self {
        Self { mode, name, secret: Secret::none(), limits: PeerLimits::default() }
    }
}
