//! A chain of elements: how a Request becomes a connection.
//!
//! Each element may change the request, call the rest of the chain, and change the answer. A run of the chain is a [`Call`]; what
//! elements remember of a connection between runs is its [`State`]. Runs for one connection never overlap: `begin` sees to it.
//!
//! ```text
//! caller ─▶ element 1 ─▶ element 2 ─▶ … ─▶ connect ─▶ next hop
//!        ◀─           ◀─           ◀─ … ◀─         ◀─
//! ```

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use tonic::Status;
use vwire_proto::nsm::connection::Connection;
use vwire_proto::nsm::networkservice::NetworkServiceRequest;

mod call;
mod fds;
mod packed;
pub mod service;
mod state;
#[cfg(test)]
pub(crate) mod testing;
mod validate;

pub(crate) use validate::connection as check_connection;

pub use call::{Call, Origin};
pub use fds::Fds;
pub use packed::{Packed, PackedMechanisms};
pub use state::State;

/// One step of a chain. Both methods by default do nothing but go on.
#[async_trait]
pub trait Element: Send + Sync + 'static {
    /// Makes, refreshes or changes a connection.
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        next.request(call, request).await
    }

    /// Ends a connection. Frees what this element holds for it even if the rest of the chain fails.
    async fn close(&self, call: &mut Call, connection: Connection, next: Next<'_>) -> Result<(), Status> {
        next.close(call, connection).await
    }
}

/// The rest of a chain.
#[derive(Clone, Copy)]
pub struct Next<'a>(&'a [Arc<dyn Element>]);

impl Next<'_> {
    /// Goes on. At the chain's end the request's connection is the answer.
    pub async fn request(
        self,
        call: &mut Call,
        request: NetworkServiceRequest,
    ) -> Result<Connection, Status> {
        match self.0.split_first() {
            Some((element, rest)) => element.request(call, request, Next(rest)).await,
            None => request
                .connection
                .ok_or_else(|| Status::invalid_argument("connection: missing from the request")),
        }
    }

    /// Goes on.
    pub async fn close(self, call: &mut Call, connection: Connection) -> Result<(), Status> {
        match self.0.split_first() {
            Some((element, rest)) => element.close(call, connection, Next(rest)).await,
            None => Ok(()),
        }
    }
}

/// A role's elements in their order.
pub struct Chain {
    /// The role's `NSM_NAME`: its name in paths.
    name: Arc<str>,
    elements: Vec<Arc<dyn Element>>,
}

/// A chain as its own elements see it, to start a run outside a call: a timer that closes, a watcher that refreshes.
pub type ChainHandle = Weak<Chain>;

impl Chain {
    /// Makes a chain of what `elements` returns; the handle works as soon as this has returned.
    pub fn new(
        name: impl Into<Arc<str>>,
        elements: impl FnOnce(ChainHandle) -> Vec<Arc<dyn Element>>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|handle| Self { name: name.into(), elements: elements(Weak::clone(handle)) })
    }

    /// The name in paths.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Runs the chain for a Request.
    ///
    /// # Errors
    /// What the first element that refuses says.
    pub async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
    ) -> Result<Connection, Status> {
        Next(&self.elements).request(call, request).await
    }

    /// Runs the chain for a Close.
    ///
    /// # Errors
    /// What the first element that refuses says.
    pub async fn close(&self, call: &mut Call, connection: Connection) -> Result<(), Status> {
        Next(&self.elements).close(call, connection).await
    }
}

#[cfg(test)]
mod tests;
