//! What an endpoint tells of itself.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Map, Value};

use crate::obs::{ConnectionView, Reporter};
use crate::vl3::Network;
use crate::vl3::peers::Peers;

/// What `vwire status` and `vwire path` show.
pub(super) struct Report(pub Arc<Network>, pub Arc<Peers>);

#[async_trait]
impl Reporter for Report {
    async fn connections(&self) -> Vec<ConnectionView> {
        let clients = self.0.hub.connections();
        let clients = clients.iter().map(|connection| ConnectionView::of(connection));
        clients.chain(self.1.connections()).collect()
    }

    async fn report(&self) -> Map<String, Value> {
        let figures = self.0.addresses.figures();
        let prefixes: Vec<Value> = figures.iter().map(|(prefix, ..)| prefix.to_string().into()).collect();
        let free = figures.iter().map(|(_, _, free)| *free).min().unwrap_or_default();
        Map::from_iter([
            ("engine".to_owned(), self.0.router.client().socket().display().to_string().into()),
            ("prefixes".to_owned(), prefixes.into()),
            ("free_addresses".to_owned(), u64::try_from(free).unwrap_or(u64::MAX).into()),
            ("mtu".to_owned(), self.0.mtu.get().into()),
            ("ports".to_owned(), self.0.router.ports().len().into()),
            ("routes".to_owned(), self.0.router.routes().len().into()),
            ("watches".to_owned(), self.0.hub.watchers().into()),
            ("peers".to_owned(), self.1.report()),
        ])
    }
}
