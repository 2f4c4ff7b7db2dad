//! What every role is told.

use std::path::PathBuf;
use std::time::Duration;

use super::{List, Maybe, boolean, duration};
use crate::identity::TrustDomain;
use crate::identity::policy::Transit;
use crate::obs::{LogFormat, LogLevel};
use crate::transport::Target;

/// Settings of every role; flattened into each role's own.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Every role")]
pub struct Common {
    /// A file of settings, TOML or YAML by its ending: what flags and environment leave open.
    #[arg(long, env = "VWIRE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// What is logged: ERROR, WARN, INFO, DEBUG or TRACE, or a filter as in `warn,vwire_control::chain=debug`.
    /// SIGUSR1 sets TRACE, SIGUSR2 sets it back.
    #[arg(long, env = "NSM_LOG_LEVEL", value_name = "LEVEL", default_value = "WARN")]
    pub log_level: LogLevel,

    /// How it is logged.
    #[arg(long, env = "VWIRE_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// The SPIFFE Workload API that says who we are.
    #[arg(long, env = "SPIFFE_ENDPOINT_SOCKET", value_name = "URL", default_value = "")]
    pub spiffe_endpoint_socket: Maybe<Target>,

    /// Runs without TLS and without identities: whoever reaches a socket may do anything.
    #[arg(long, env = "VWIRE_INSECURE", value_name = "BOOL", default_value = "false", value_parser = boolean,
          action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub insecure: bool,

    /// The longest life of a token that we make, and so of what it registers or connects without being renewed.
    #[arg(long, env = "NSM_MAX_TOKEN_LIFETIME", value_name = "DURATION", default_value = "10m", value_parser = duration)]
    pub max_token_lifetime: Duration,

    /// How long a peer has to accept a connection.
    #[arg(long, env = "NSM_DIAL_TIMEOUT", value_name = "DURATION", default_value = "750ms", value_parser = duration)]
    pub dial_timeout: Duration,

    /// Trust domains whose members are believed where we call; all that we hold a bundle of unless named.
    #[arg(long, env = "VWIRE_SERVER_TRUST_DOMAINS", value_name = "DOMAINS", default_value = "")]
    pub server_trust_domains: List<TrustDomain>,

    /// Policies for calls of our registry; masks of files, and the names of those built in.
    #[arg(
        long,
        env = "NSM_REGISTRY_SERVER_POLICIES",
        value_name = "MASKS",
        default_value = "etc/nsm/opa/common/.*.rego,etc/nsm/opa/registry/.*.rego,etc/nsm/opa/server/.*.rego"
    )]
    pub registry_server_policies: List<String>,

    /// Policies for what a registry answers us.
    #[arg(
        long,
        env = "NSM_REGISTRY_CLIENT_POLICIES",
        value_name = "MASKS",
        default_value = "etc/nsm/opa/common/.*.rego,etc/nsm/opa/registry/.*.rego,etc/nsm/opa/client/.*.rego"
    )]
    pub registry_client_policies: List<String>,

    /// Foreign trust domains that may speak for others than themselves, as domains that lie between two others do: VIA=DOMAIN or VIA=*.
    #[arg(long, env = "VWIRE_TRANSIT", value_name = "VIA=DOMAIN", default_value = "")]
    pub transit: List<Transit>,

    /// The admin port: a unix socket or host:port. /run/vwire/ROLE-NAME.sock where it is left out.
    #[arg(long, env = "VWIRE_ADMIN", value_name = "URL", default_value = "")]
    pub admin: Maybe<Target>,

    /// Accepted for the sake of manifests; there is no pprof here. CPU profiles come from perf.
    #[arg(long, env = "NSM_PPROF_ENABLED", hide = true, default_value = "false", value_parser = boolean,
          action = clap::ArgAction::Set)]
    pub pprof_enabled: bool,

    /// As above.
    #[arg(long, env = "NSM_PPROF_LISTEN_ON", hide = true, default_value = "localhost:6060")]
    pub pprof_listen_on: String,

    /// Accepted for the sake of manifests; metrics are at the admin port's /metrics.
    #[arg(long, env = "NSM_OPEN_TELEMETRY_ENDPOINT", hide = true, default_value = "")]
    pub open_telemetry_endpoint: String,

    /// As above.
    #[arg(long, env = "NSM_METRICS_EXPORT_INTERVAL", hide = true, default_value = "10s", value_parser = duration)]
    pub metrics_export_interval: Duration,
}
