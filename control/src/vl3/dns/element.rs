//! Names as a step of an endpoint's chain.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use ipnet::IpNet;
use tokio::sync::watch;
use tonic::Status;
use vwire_proto::nsm::connection::Connection;
use vwire_proto::nsm::connectioncontext::DnsConfig;
use vwire_proto::nsm::networkservice::NetworkServiceRequest;

use super::directory::{Directory, search_domains};
use crate::chain::{Call, Element, Next};

/// Tells each client where the name server is, and gives it its names. Stands before what assigns addresses.
pub struct Vl3Dns {
    directory: Arc<Directory>,
    own: watch::Receiver<Option<IpAddr>>,
    /// The last that there was: while our interface is made again, no client's refresh shall fail for it.
    last: Mutex<Option<IpAddr>>,
    name: Arc<str>,
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
        Self { directory, own, last: Mutex::default(), name: name.into() }
    }

    /// What a client is told; nothing if it is the endpoint itself, and there is no address yet.
    fn config(&self, connection: &Connection, domains: Vec<String>) -> Result<Option<DnsConfig>, Status> {
        match self.address() {
            Some(own) => {
                Ok(Some(DnsConfig { dns_server_ips: vec![own.to_string()], search_domains: domains }))
            }
            None if self.is_own(connection) => Ok(None),
            None => Err(Status::unavailable(
                "dns_context: the address of this endpoint's name server is initializing",
            )),
        }
    }

    fn address(&self) -> Option<IpAddr> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = self.own.borrow().or(*last);
        *last
    }

    fn is_own(&self, connection: &Connection) -> bool {
        let first = connection.path.as_ref().and_then(|path| path.path_segments.first());
        first.is_some_and(|segment| segment.name == *self.name)
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
        let config = self.config(connection, search_domains(&names))?;
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
            self.directory.records.set(&connection.id, &names, &addresses(connection));
            self.directory.set_prefixes(network(connection));
        }
        answer
    }

    async fn close(&self, call: &mut Call, connection: Connection, next: Next<'_>) -> Result<(), Status> {
        self.directory.records.remove(&connection.id);
        next.close(call, connection).await
    }
}

/// The client's addresses.
fn addresses(connection: &Connection) -> Vec<IpAddr> {
    let context = connection.context.as_ref().and_then(|context| context.ip_context.as_ref());
    let texts = context.map(|context| context.src_ip_addrs.as_slice()).unwrap_or_default();
    let bare = |text: &String| text.split('/').next().and_then(|address| address.parse().ok());
    texts.iter().filter_map(bare).collect()
}

/// What is behind us, as the client is told.
fn network(connection: &Connection) -> Vec<IpNet> {
    let context = connection.context.as_ref().and_then(|context| context.ip_context.as_ref());
    let routes = context.map(|context| context.src_routes.as_slice()).unwrap_or_default();
    routes.iter().filter_map(|route| route.prefix.parse().ok()).collect()
}

#[cfg(test)]
#[path = "element_tests.rs"]
mod tests;
