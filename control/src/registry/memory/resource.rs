//! What the two tables have in common: services and endpoints as the store sees them.

use std::sync::Arc;

use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

use crate::registry::{EndpointEvent, ServiceEvent, matching};

/// A thing that is registered under a name. A query is a thing of the same kind with some fields set.
pub(super) trait Resource: prost::Message + Clone + Default + Sync + 'static {
    /// For messages.
    const KIND: &'static str;
    /// What watchers are told.
    type Event: From<Change<Self>> + Send;

    fn name(&self) -> &str;
    /// The services by which it is found: named ones and those it has labels for.
    fn services(&self) -> impl Iterator<Item = &str>;
    /// True if `self`, a query, asks for `other`.
    fn asks_for(&self, other: &Self) -> bool;
    /// How many labels it has, for the limit.
    fn labels(&self) -> usize;
}

/// One change of a table.
pub(super) struct Change<T> {
    pub item: Arc<T>,
    pub deleted: bool,
}

impl<T> Clone for Change<T> {
    fn clone(&self) -> Self {
        Self { item: Arc::clone(&self.item), deleted: self.deleted }
    }
}

impl Resource for NetworkService {
    const KIND: &'static str = "network service";
    type Event = ServiceEvent;

    fn name(&self) -> &str {
        &self.name
    }

    fn services(&self) -> impl Iterator<Item = &str> {
        std::iter::empty()
    }

    fn asks_for(&self, other: &Self) -> bool {
        matching::service(self, other)
    }

    fn labels(&self) -> usize {
        let routes = |m: &vwire_proto::nsm::registry::Match| -> usize {
            m.routes.iter().map(|route| 1 + route.destination_selector.len()).sum()
        };
        self.matches.iter().map(|m| 1 + m.source_selector.len() + routes(m)).sum()
    }
}

impl Resource for NetworkServiceEndpoint {
    const KIND: &'static str = "endpoint";
    type Event = EndpointEvent;

    fn name(&self) -> &str {
        &self.name
    }

    fn services(&self) -> impl Iterator<Item = &str> {
        let labelled =
            self.network_service_labels.keys().filter(|name| !self.network_service_names.contains(name));
        self.network_service_names.iter().chain(labelled).map(String::as_str)
    }

    fn asks_for(&self, other: &Self) -> bool {
        matching::endpoint(self, other)
    }

    fn labels(&self) -> usize {
        self.network_service_labels.values().map(|labels| 1 + labels.labels.len()).sum()
    }
}

impl From<Change<NetworkService>> for ServiceEvent {
    fn from(change: Change<NetworkService>) -> Self {
        Self { service: change.item, deleted: change.deleted }
    }
}

impl From<Change<NetworkServiceEndpoint>> for EndpointEvent {
    fn from(change: Change<NetworkServiceEndpoint>) -> Self {
        Self { endpoint: change.item, deleted: change.deleted, socket: None }
    }
}
