//! Names as a step of an endpoint's chain.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;
use vwire_proto::nsm::connection::Connection;
use vwire_proto::nsm::connectioncontext::DnsConfig;
use vwire_proto::nsm::networkservice::NetworkServiceRequest;

use super::directory::{Directory, search_domains};
use crate::chain::{Call, Element, Next};
use crate::vl3::peers::is_own;

/// How long, at the endpoint's start, Requests wait for the name server's address.
const START: Duration = Duration::from_secs(5);

/// Tells each client where the name server is, and gives it its names. Stands before what assigns addresses.
///
/// Requests that come before the address is known wait for it a little; clients that are answered without it are asked to refresh
/// when it is there ([`tell_clients`](super::tell_clients)). Go's endpoint refuses them until then, and all of them if it never is.
pub struct Vl3Dns {
    directory: Arc<Directory>,
    own: watch::Receiver<Option<IpAddr>>,
    /// The last that there was: while our interface is made again, no client's refresh shall fail for it.
    last: Mutex<Option<IpAddr>>,
    name: Arc<str>,
    /// Until then Requests wait.
    patience: Instant,
}

/// What we added to a connection.
struct Added(DnsConfig);

impl Vl3Dns {
    /// `own` is the name server's address, `name` the endpoint's own name (`NSM_NAME`), whose Requests to itself are how it gets one.
    pub fn new(
        directory: Arc<Directory>,
        own: watch::Receiver<Option<IpAddr>>,
        name: impl Into<Arc<str>>,
    ) -> Self {
        Self { directory, own, last: Mutex::default(), name: name.into(), patience: Instant::now() + START }
    }

    /// What a client is told; nothing as long as there is no address.
    async fn config(&self, call: &Call, connection: &Connection, domains: Vec<String>) -> Option<DnsConfig> {
        let mut address = self.address();
        if address.is_none() && !is_own(&self.name, connection) {
            let until = self.patience.min(Instant::now() + call.remaining() / 2);
            let mut own = self.own.clone();
            let _ = tokio::time::timeout_at(until, own.wait_for(Option::is_some)).await;
            address = self.address();
        }
        let server = address?.to_string();
        Some(DnsConfig { dns_server_ips: vec![server], search_domains: domains })
    }

    fn address(&self) -> Option<IpAddr> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = self.own.borrow().or(*last);
        *last
    }
}

#[async_trait]
impl Element for Vl3Dns {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let Some(connection) = request.connection.as_mut().filter(|_| self.directory.has_templates()) else {
            return next.request(call, request).await;
        };
        let names = self.directory.names(connection);
        let config = self.config(call, connection, search_domains(&names)).await;
        let configs =
            &mut connection.context.get_or_insert_default().dns_context.get_or_insert_default().configs;
        let before = call.state.remove::<Added>();
        configs.retain(|config| before.as_ref().is_none_or(|before| before.0 != *config));
        if let Some(config) = &config {
            // What another endpoint of the network has said before the client came to us: its server may be no more.
            let same = |other: &DnsConfig| {
                !other.search_domains.is_empty() && other.search_domains == config.search_domains
            };
            configs.retain(|other| other != config && !same(other));
        }
        configs.extend(config.clone());
        let answer = next.request(call, request).await;
        if let Some(config) = config.or(before.map(|before| before.0)) {
            call.state.insert(Added(config));
        }
        if let Ok(connection) = &answer {
            self.directory.set(connection, &names);
        }
        answer
    }

    async fn close(&self, call: &mut Call, connection: Connection, next: Next<'_>) -> Result<(), Status> {
        self.directory.records.remove(&connection.id);
        next.close(call, connection).await
    }
}

#[cfg(test)]
#[path = "element_tests.rs"]
mod tests;
