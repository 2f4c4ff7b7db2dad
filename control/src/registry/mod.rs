//! What is registered, and watching it: one trait, implemented by the store, by a remote registry's client, and by layers around
//! either.
//!
//! | to find … | look in |
//! |---|---|
//! | what agrees with a query | [`matching`] |
//! | the store: indexes, watches, expiry, limits | [`memory`] |
//! | how a registry is put before another | [`layer`] |
//! | the tokens of the hops, in the `path` metadata | [`path`] |

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::Stream;
use prost_types::Timestamp;
use tonic::Status;
use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

use crate::chain::Origin;
use crate::transport::SharedFd;

pub mod admission;
pub mod authorize;
pub mod bypass;
pub mod cache;
pub mod counted;
pub mod domains;
pub mod expiry;
pub mod find;
pub mod foreign;
pub mod hops;
pub mod inbound;
pub mod interdomain;
pub mod keeper;
pub mod layer;
pub mod local_bypass;
pub mod manifest;
pub mod matching;
pub mod memory;
pub mod mirror;
pub mod nsmgr;
pub mod path;
pub mod remote;
mod serial;
pub mod server;
pub mod sockets;
pub mod v02;

#[cfg(test)]
mod tests;

pub use layer::Layer;
pub use path::RegistryPath;

/// One call of a registry.
pub struct RegistryCall {
    /// Who asks.
    pub origin: Origin,
    /// When the answer is of no use any more.
    pub deadline: Instant,
    /// The tokens of the hops from the registrant to the caller, as the `path` metadata has them, and then ours. None if the caller
    /// sent none.
    pub path: Option<RegistryPath>,
    /// The socket that an endpoint's `unix://` or `inode://` URL names, if it came with the call.
    pub socket: Option<SharedFd>,
    /// For whom a name is registered. None where nobody checks: with policies off, and in calls that the role itself makes.
    pub owner: Option<Owner>,
    /// The earliest end of the caller's token and of ours for it: a registration lasts no longer.
    pub not_after: Option<Timestamp>,
}

/// To whom a registered name belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The SPIFFE ID of the registrant: the first of the path.
    pub identity: Arc<str>,
    /// The SPIFFE ID of the peer that said so: the registrant itself, or a manager or proxy between.
    pub asserter: Arc<str>,
}

impl RegistryCall {
    /// A call for `origin` that has `time`.
    pub fn new(origin: Origin, time: Duration) -> Self {
        let deadline = Instant::now() + time;
        Self { origin, deadline, path: None, socket: None, owner: None, not_after: None }
    }

    /// A call that the role itself makes.
    pub fn internal(why: &'static str, time: Duration) -> Self {
        Self::new(Origin::Internal(why), time)
    }

    /// How long there is time.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// A network service that was found, or went.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceEvent {
    /// As registered; of one that went, as it was last.
    pub service: Arc<NetworkService>,
    /// True if it went.
    pub deleted: bool,
}

/// An endpoint that was found, or went.
#[derive(Debug, Clone)]
pub struct EndpointEvent {
    /// As registered; of one that went, as it was last.
    pub endpoint: Arc<NetworkServiceEndpoint>,
    /// True if it went.
    pub deleted: bool,
    /// The socket's file, if the URL is `inode://` and the descriptor is at hand.
    pub socket: Option<SharedFd>,
}

/// What is found: without `watch` it ends, with it it goes on with changes.
pub type Found<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Where services and endpoints are registered and found.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// Adds or replaces a service.
    async fn register_service(
        &self,
        call: &mut RegistryCall,
        service: NetworkService,
    ) -> Result<NetworkService, Status>;

    /// Removes a service; one that is not there is removed already.
    async fn unregister_service(
        &self,
        call: &mut RegistryCall,
        service: NetworkService,
    ) -> Result<(), Status>;

    /// Services that agree with all that `query` sets; with `watch` also what changes afterwards.
    async fn find_services(
        &self,
        call: &mut RegistryCall,
        query: NetworkService,
        watch: bool,
    ) -> Result<Found<ServiceEvent>, Status>;

    /// Adds or replaces an endpoint, or renews it.
    async fn register_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<NetworkServiceEndpoint, Status>;

    /// Removes an endpoint; one that is not there is removed already.
    async fn unregister_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<(), Status>;

    /// Endpoints that agree with all that `query` sets; with `watch` also what changes afterwards.
    async fn find_endpoints(
        &self,
        call: &mut RegistryCall,
        query: NetworkServiceEndpoint,
        watch: bool,
    ) -> Result<Found<EndpointEvent>, Status>;
}

impl<R: Registry + ?Sized> Layer for Arc<R> {
    type Inner = R;

    fn inner(&self) -> &R {
        self
    }
}
