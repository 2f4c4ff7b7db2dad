//! What is registered, and watching it: one trait, implemented by the store, by a remote registry's client, and by layers around
//! either.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::Stream;
use tonic::Status;
use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

use crate::chain::Origin;
use crate::transport::SharedFd;

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
}

/// The `path` metadata of registry calls (reference/nsm-protocol.md §1.6, §2.3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistryPath {
    /// Whose coordinates it is in.
    pub index: u32,
    /// A JWT for each hop.
    pub tokens: Vec<Arc<str>>,
}

impl RegistryCall {
    /// A call for `origin` that has `time`.
    pub fn new(origin: Origin, time: Duration) -> Self {
        Self { origin, deadline: Instant::now() + time, path: None, socket: None }
    }

    /// A call that the role itself makes.
    pub fn internal(why: &'static str, time: Duration) -> Self {
        Self::new(Origin::Internal(why), time)
    }
}

/// A network service that was found, or went.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceEvent {
    /// As registered; of one that went, as it was last.
    pub service: NetworkService,
    /// True if it went.
    pub deleted: bool,
}

/// An endpoint that was found, or went.
#[derive(Debug, Clone)]
pub struct EndpointEvent {
    /// As registered; of one that went, as it was last.
    pub endpoint: NetworkServiceEndpoint,
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

    /// Services that agree with all that `query` sets (reference/nsm-protocol.md §5.1); with `watch` also what changes afterwards.
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
