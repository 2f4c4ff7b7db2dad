//! What one process accepts from its peers.

use std::time::Duration;

use crate::identity::{Accepted, TrustDomain};

/// Limits and strictness of a role's listeners. The defaults let every Go peer work.
#[derive(Debug, Clone, clap::Args)]
pub struct Limits {
    /// Mode of unix sockets, octal. The default is the Go components'; TLS decides who gets in.
    #[arg(long = "socket-mode", env = "VWIRE_SOCKET_MODE", default_value = "0777", value_parser = octal)]
    pub socket_mode: u32,
    /// Most connections open at one time, on each listener.
    #[arg(long = "max-connections", env = "VWIRE_MAX_CONNECTIONS", default_value_t = 4096)]
    pub connections: usize,
    /// Most connections whose TLS handshake is not finished, on each listener.
    #[arg(long = "max-handshakes", env = "VWIRE_MAX_HANDSHAKES", default_value_t = 256)]
    pub handshakes: usize,
    /// Most calls under way on one connection; a monitored connection is one.
    #[arg(long = "max-streams", env = "VWIRE_MAX_STREAMS", default_value_t = 20_000)]
    pub streams: u32,
    /// Most connections that one identity may have open, on all listeners.
    #[arg(
        long = "max-connections-per-identity",
        env = "VWIRE_MAX_CONNECTIONS_PER_IDENTITY",
        default_value_t = 1024
    )]
    pub connections_per_identity: usize,
    /// Most calls of one identity under way, on all its connections; a watch and a monitored connection are one each.
    #[arg(long = "max-calls-per-identity", env = "VWIRE_MAX_CALLS_PER_IDENTITY", default_value_t = 20_000)]
    pub calls_per_identity: usize,
    /// Most calls that one identity may begin in a second; 0 is no limit.
    #[arg(long = "max-calls-per-second", env = "VWIRE_MAX_CALLS_PER_SECOND", default_value_t = 0)]
    pub calls_per_second: u32,
    /// Most bytes of one call's metadata; a registry's path travels there.
    #[arg(long = "max-metadata", env = "VWIRE_MAX_METADATA", default_value_t = 256 * 1024)]
    pub metadata: u32,
    /// Trust domains whose members may call; all that we hold a bundle of unless named.
    #[arg(long = "trust-domains", env = "VWIRE_TRUST_DOMAINS", value_delimiter = ',')]
    pub trust_domains: Vec<TrustDomain>,
    /// How long a handshake may take.
    #[arg(skip = Duration::from_secs(5))]
    pub handshake_time: Duration,
    /// How long calls may go on after the end of the process was asked for.
    #[arg(skip = Duration::from_secs(2))]
    pub drain_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            socket_mode: 0o777,
            connections: 4096,
            handshakes: 256,
            streams: 20_000,
            connections_per_identity: 1024,
            calls_per_identity: 20_000,
            calls_per_second: 0,
            metadata: 256 * 1024,
            trust_domains: Vec::new(),
            handshake_time: Duration::from_secs(5),
            drain_time: Duration::from_secs(2),
        }
    }
}

impl Limits {
    /// The trust domains as the verifier wants them.
    pub(super) fn accepted(&self) -> Accepted {
        accepted(&self.trust_domains)
    }
}

/// Only the named ones, or all with a bundle if none is.
pub(super) fn accepted(domains: &[TrustDomain]) -> Accepted {
    if domains.is_empty() { Accepted::WithBundle } else { Accepted::Only(domains.iter().cloned().collect()) }
}

fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text.trim_start_matches("0o"), 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(format!("{text:?} is no file mode; write it in octal, 0000 to 0777")),
    }
}
