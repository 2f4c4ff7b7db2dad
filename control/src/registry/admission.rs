//! A bound on what other domains may have under way in a proxy's registry.

use async_trait::async_trait;
use futures::StreamExt;
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;
use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

use super::{EndpointEvent, Found, Registry, RegistryCall, ServiceEvent};
use crate::transport::Gate;

/// Lets in so many calls, and so many watches, at one time. A find counts until its last answer is sent.
pub struct Admission<R> {
    inner: R,
    calls: Gate,
    watches: Gate,
}

impl<R: Registry> Admission<R> {
    /// Before `inner`.
    pub fn new(inner: R, calls: Gate, watches: Gate) -> Self {
        Self { inner, calls, watches }
    }

    fn find(&self, watch: bool) -> Result<OwnedSemaphorePermit, Status> {
        if watch { self.watches.enter() } else { self.calls.enter() }
    }
}

/// Keeps the place as long as the stream.
fn keeping<T: Send + 'static>(found: Found<T>, place: OwnedSemaphorePermit) -> Found<T> {
    found
        .map(move |event| {
            let _ = &place;
            event
        })
        .boxed()
}

#[async_trait]
impl<R: Registry> Registry for Admission<R> {
    async fn register_service(
        &self,
        call: &mut RegistryCall,
        service: NetworkService,
    ) -> Result<NetworkService, Status> {
        let _place = self.calls.enter()?;
        self.inner.register_service(call, service).await
    }

    async fn unregister_service(
        &self,
        call: &mut RegistryCall,
        service: NetworkService,
    ) -> Result<(), Status> {
        let _place = self.calls.enter()?;
        self.inner.unregister_service(call, service).await
    }

    async fn find_services(
        &self,
        call: &mut RegistryCall,
        query: NetworkService,
        watch: bool,
    ) -> Result<Found<ServiceEvent>, Status> {
        let place = self.find(watch)?;
        Ok(keeping(self.inner.find_services(call, query, watch).await?, place))
    }

    async fn register_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<NetworkServiceEndpoint, Status> {
        let _place = self.calls.enter()?;
        self.inner.register_endpoint(call, endpoint).await
    }

    async fn unregister_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<(), Status> {
        let _place = self.calls.enter()?;
        self.inner.unregister_endpoint(call, endpoint).await
    }

    async fn find_endpoints(
        &self,
        call: &mut RegistryCall,
        query: NetworkServiceEndpoint,
        watch: bool,
    ) -> Result<Found<EndpointEvent>, Status> {
        let place = self.find(watch)?;
        Ok(keeping(self.inner.find_endpoints(call, query, watch).await?, place))
    }
}
