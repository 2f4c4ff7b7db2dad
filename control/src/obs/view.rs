//! What a role shows of itself: its connections, and how it is.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::api::connection::{Connection, Mechanism, State};
use crate::api::path::{self, PathExt};

/// A connection as one role sees it. No tokens.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectionView {
    /// The role that says so.
    pub role: String,
    /// The id at this hop.
    pub id: String,
    /// The id at the client, by which people know the vWire.
    pub root: String,
    /// The network service.
    pub service: String,
    /// The endpoint's name, once there is one.
    pub endpoint: String,
    /// ETHERNET or IP.
    pub payload: String,
    /// UP, DOWN, REFRESH_REQUESTED or RESELECT_REQUESTED.
    pub state: String,
    /// Which of `hops` this role is.
    pub index: u32,
    /// From the client to the endpoint.
    pub hops: Vec<HopView>,
    /// How the legs at this hop are carried: toward the client, and toward the endpoint where there is one.
    pub mechanisms: Vec<MechanismView>,
    /// The client's addresses.
    pub client_addresses: Vec<String>,
    /// The endpoint's addresses.
    pub endpoint_addresses: Vec<String>,
    /// Name servers that come with the connection.
    pub dns: Vec<DnsView>,
    /// When it ends here unless it is refreshed: seconds since 1970.
    pub expires: Option<i64>,
    /// When and why it was last healed.
    pub last_heal: Option<Heal>,
}

/// One hop of a path.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HopView {
    /// The role's name.
    pub name: String,
    /// The id there.
    pub id: String,
    /// Who it is, if its token says so. Read, not verified.
    pub spiffe_id: Option<String>,
    /// When its token ends: seconds since 1970.
    pub expires: Option<i64>,
    /// What it reports: counters and interface names.
    pub metrics: BTreeMap<String, String>,
}

/// Where names are asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsView {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Domains that are added to short names.
    pub search: Vec<String>,
}

/// How a leg is carried.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MechanismView {
    /// `client` or `endpoint`: where the leg leads, seen from this hop.
    pub side: String,
    /// KERNEL, MEMIF, VXLAN.
    pub kind: String,
    /// Its parameters.
    pub parameters: BTreeMap<String, String>,
}

/// A connection that was made whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Heal {
    /// When it was done: seconds since 1970.
    pub at: i64,
    /// Why it was needed.
    pub reason: String,
    /// From the first sign to the answer.
    pub seconds: f64,
}

impl Heal {
    /// One that was just done.
    pub fn now(reason: impl Into<String>, took: Duration) -> Self {
        Self { at: seconds(SystemTime::now()), reason: reason.into(), seconds: took.as_secs_f64() }
    }
}

/// A process and what its roles report; the admin port's `/status`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The role, as in `vwire ROLE`.
    pub role: String,
    /// Its name in paths.
    pub name: String,
    /// Of vwire.
    pub version: String,
    /// The process.
    pub pid: u32,
    /// How long it runs.
    pub uptime_seconds: u64,
    /// Why it is not ready yet; empty if it is.
    pub not_ready: Vec<String>,
    /// True if it runs without TLS.
    pub insecure: bool,
    /// Who it is; none without TLS, and of an issuer.
    pub spiffe_id: Option<String>,
    /// When its SVID ends: seconds since 1970.
    pub svid_expires: Option<i64>,
    /// Connections in state UP.
    pub up: usize,
    /// Connections in another state.
    pub down: usize,
    /// What its roles report: `services`, `endpoints`, `watches`, `ports`, …
    pub reports: Map<String, Value>,
}

/// Seconds since 1970.
pub fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl MechanismView {
    /// The leg toward the `client` or the `endpoint`.
    pub fn of(side: &str, mechanism: &Mechanism) -> Self {
        Self {
            side: side.to_owned(),
            kind: mechanism.r#type.clone(),
            parameters: mechanism.parameters.clone().into_iter().collect(),
        }
    }
}

impl ConnectionView {
    /// What a message says of a connection, in the coordinates of the role that it is for. The role adds the leg toward
    /// the endpoint, and its heals.
    pub fn of(connection: &Connection) -> Self {
        let path = path::of(connection);
        let ip = connection.context.as_ref().and_then(|context| context.ip_context.as_ref());
        let state = State::try_from(connection.state).unwrap_or_default();
        let dns = connection.context.as_ref().and_then(|context| context.dns_context.as_ref());
        let dns = dns.map(|dns| dns.configs.as_slice()).unwrap_or_default().iter();
        Self {
            role: String::new(),
            id: connection.id.clone(),
            root: path.root_id().to_owned(),
            service: connection.network_service.clone(),
            endpoint: connection.network_service_endpoint_name.clone(),
            payload: connection.payload.clone(),
            state: state.as_str_name().to_owned(),
            index: path.index,
            hops: path.path_segments.iter().map(HopView::of).collect(),
            mechanisms: connection.mechanism.iter().map(|leg| MechanismView::of("client", leg)).collect(),
            client_addresses: ip.map(|ip| ip.src_ip_addrs.clone()).unwrap_or_default(),
            endpoint_addresses: ip.map(|ip| ip.dst_ip_addrs.clone()).unwrap_or_default(),
            dns: dns
                .map(|config| DnsView {
                    servers: config.dns_server_ips.clone(),
                    search: config.search_domains.clone(),
                })
                .collect(),
            expires: path.current().and_then(|segment| segment.expires.as_ref()).map(|end| end.seconds),
            last_heal: None,
        }
    }

    /// With the leg toward the endpoint.
    #[must_use]
    pub fn toward_endpoint(mut self, mechanism: &Mechanism) -> Self {
        self.mechanisms.push(MechanismView::of("endpoint", mechanism));
        self
    }
}

impl HopView {
    fn of(segment: &crate::api::connection::PathSegment) -> Self {
        Self {
            name: segment.name.clone(),
            id: segment.id.clone(),
            spiffe_id: subject(&segment.token),
            expires: segment.expires.as_ref().map(|end| end.seconds),
            metrics: segment.metrics.clone().into_iter().collect(),
        }
    }
}

/// Who a token says that made it. For show: nothing is verified.
fn subject(token: &str) -> Option<String> {
    let token = jsonwebtoken::dangerous::insecure_decode::<Value>(token).ok()?;
    Some(token.claims.get("sub")?.as_str()?.to_owned())
}
