//! What an endpoint is told at its start.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::super::guards::Guards;
use crate::api::mechanism::{PAYLOAD_ETHERNET, PAYLOAD_IP};
use crate::config::{self, Labels, List, Maybe};
use crate::transport::{Limits, Target};
use crate::vl3::dns::Template;
use crate::vl3::remotes::Remotes;

/// The endpoint's settings.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub common: config::Common,
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub limits: Limits,

    /// Our name in paths and in the registry.
    #[arg(long, env = "NSM_NAME", value_name = "NAME", default_value = "vL3-server")]
    pub name: String,

    /// The node's manager.
    #[arg(
        long,
        env = "NSM_CONNECT_TO",
        value_name = "URL",
        default_value = "unix:///var/lib/networkservicemesh/nsm.io.sock"
    )]
    pub connect_to: Target,

    /// Where we listen; a plain name is a socket in a new folder below the temporary one.
    #[arg(long, env = "NSM_LISTEN_ON", value_name = "URL", default_value = "listen.on.sock")]
    pub listen_on: String,

    /// How long a Request of ours to another endpoint may take.
    #[arg(long, env = "NSM_REQUEST_TIMEOUT", value_name = "DURATION", default_value = "15s", value_parser = config::duration)]
    pub request_timeout: Duration,

    /// The services that we are an endpoint of.
    #[arg(long, env = "NSM_SERVICE_NAMES", value_name = "NAMES", default_value = "vL3")]
    pub service_names: List<String>,

    /// What the services carry: IP, or ETHERNET for clients that speak nothing else, such as DPDK's memif driver.
    #[arg(long, env = "NSM_PAYLOAD", value_name = "PAYLOAD", default_value = PAYLOAD_IP, value_parser = [PAYLOAD_ETHERNET, PAYLOAD_IP])]
    pub payload: String,

    /// Our labels; services may ask for some.
    #[arg(long, env = "NSM_LABELS", value_name = "LABELS", default_value = "")]
    pub labels: Labels,

    /// The labels of our Requests to other endpoints.
    #[arg(long, env = "NSM_REQUEST_LABELS", value_name = "LABELS", default_value = "")]
    pub request_labels: Labels,

    /// The prefix services that grant us what we assign from: one, or one of each family.
    #[arg(long, env = "NSM_PREFIX_SERVER_URL", value_name = "URLS", default_value = "vl3-ipam:5006")]
    pub prefix_server_url: List<Target>,

    /// Prefixes to assign from without a prefix service. Other endpoints of the network must have others.
    #[arg(long, env = "VWIRE_VL3_PREFIX", value_name = "PREFIXES", default_value = "")]
    pub prefix: List<IpNet>,

    /// Other domains whose endpoints of the first service are our peers, too: names or addresses. `REMOTE_IP` and `REMOTE_CLUSTERIP` stand
    /// for it.
    #[arg(long, env = "NSM_REMOTE_NS_IP_LIST", value_name = "DOMAINS", default_value = "")]
    pub remotes: Remotes,

    /// The names of clients in DNS: templates over a connection.
    #[arg(
        long,
        env = "NSM_DNS_TEMPLATES",
        value_name = "TEMPLATES",
        default_value = "{{ index .Labels \"podName\" }}.{{ .NetworkService }}."
    )]
    pub dns_templates: List<Template>,

    /// How long those who ask may remember a name's address, and how long one may be wrong: it goes when its client goes.
    #[arg(long, env = "VWIRE_VL3_DNS_TTL", value_name = "DURATION", default_value = "1m", value_parser = config::duration)]
    pub dns_ttl: Duration,

    /// Ends when there was no client for this long, whatever links it has with other endpoints; 0: never.
    #[arg(long, env = "NSM_IDLE_TIMEOUT", value_name = "DURATION", default_value = "0s", value_parser = config::duration)]
    pub idle_timeout: Duration,

    /// Registers the services, too.
    #[arg(long, env = "NSM_REGISTER_SERVICE", value_name = "BOOL", default_value = "true", value_parser = config::boolean,
          action = clap::ArgAction::Set)]
    pub register_service: bool,

    /// At the end, takes the endpoint out of the registry and its clients out of the engine. With false both stay, and a restart finds
    /// them again, as it does after a crash.
    #[arg(long, env = "NSM_UNREGISTER_ITSELF", value_name = "BOOL", default_value = "true", value_parser = config::boolean,
          action = clap::ArgAction::Set)]
    pub unregister_itself: bool,

    /// Asks by packets whether other endpoints are there.
    #[arg(long, env = "NSM_LIVENESS_CHECK_ENABLED", value_name = "BOOL", default_value = "true", value_parser = config::boolean,
          action = clap::ArgAction::Set)]
    pub liveness_check_enabled: bool,

    /// How often.
    #[arg(long, env = "NSM_LIVENESS_CHECK_INTERVAL", value_name = "DURATION", default_value = "1200ms", value_parser = config::duration)]
    pub liveness_check_interval: Duration,

    /// How long an answer may take.
    #[arg(long, env = "NSM_LIVENESS_CHECK_TIMEOUT", value_name = "DURATION", default_value = "1s", value_parser = config::duration)]
    pub liveness_check_timeout: Duration,

    /// The network namespace of our sockets; our own if left out.
    #[arg(long, env = "VWIRE_NETNS", value_name = "FILE", default_value = "")]
    pub netns: Maybe<PathBuf>,

    /// Asks for our own service, too: an interface in our own namespace, at whose address our name server is, and from which it is asked
    /// whether other endpoints answer. It takes one of our addresses. Without it clients have no names.
    #[arg(long, env = "VWIRE_VL3_OWN_INTERFACE", value_name = "BOOL", default_value = "true", value_parser = config::boolean,
          action = clap::ArgAction::Set)]
    pub own_interface: bool,

    /// The socket of the packet engine. If left out, one is started that outlives us, and found again at the next start.
    #[arg(long, env = "VWIRE_DATAPLANE", value_name = "SOCKET", default_value = "")]
    pub dataplane: Maybe<Target>,

    /// Where an engine that we start has its socket, counters and log: in a directory of our name below this one.
    #[arg(long, env = "VWIRE_RUN", value_name = "FOLDER", default_value = "/run/vwire")]
    pub run: PathBuf,

    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened")]
    pub guards: Guards,
}
