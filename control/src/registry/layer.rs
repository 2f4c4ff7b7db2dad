//! A registry in front of another.
//!
//! Implement it by its path where calls are made on an `Arc` of a registry: an `Arc` is a layer, too, and with both traits in scope
//! the compiler asks which of them is meant.

use async_trait::async_trait;
use tonic::Status;
use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

use super::{EndpointEvent, Found, Registry, RegistryCall, ServiceEvent};

/// A registry in front of another: it defines what it does itself, and all else goes on as it is. Every layer is a [`Registry`].
#[async_trait]
pub trait Layer: Send + Sync + 'static {
    /// What is behind it.
    type Inner: Registry + ?Sized;

    /// Where a call goes on.
    fn inner(&self) -> &Self::Inner;

    /// See [`Registry::register_service`].
    async fn register_service(
        &self,
        call: &mut RegistryCall,
        service: NetworkService,
    ) -> Result<NetworkService, Status> {
        self.inner().register_service(call, service).await
    }

    /// See [`Registry::unregister_service`].
    async fn unregister_service(
        &self,
        call: &mut RegistryCall,
        service: NetworkService,
    ) -> Result<(), Status> {
        self.inner().unregister_service(call, service).await
    }

    /// See [`Registry::find_services`].
    async fn find_services(
        &self,
        call: &mut RegistryCall,
        query: NetworkService,
        watch: bool,
    ) -> Result<Found<ServiceEvent>, Status> {
        self.inner().find_services(call, query, watch).await
    }

    /// See [`Registry::register_endpoint`].
    async fn register_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<NetworkServiceEndpoint, Status> {
        self.inner().register_endpoint(call, endpoint).await
    }

    /// See [`Registry::unregister_endpoint`].
    async fn unregister_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<(), Status> {
        self.inner().unregister_endpoint(call, endpoint).await
    }

    /// See [`Registry::find_endpoints`].
    async fn find_endpoints(
        &self,
        call: &mut RegistryCall,
        query: NetworkServiceEndpoint,
        watch: bool,
    ) -> Result<Found<EndpointEvent>, Status> {
        self.inner().find_endpoints(call, query, watch).await
    }
}

#[async_trait]
impl<L: Layer> Registry for L {
    async fn register_service(
        &self,
        call: &mut RegistryCall,
        service: NetworkService,
    ) -> Result<NetworkService, Status> {
        Layer::register_service(self, call, service).await
    }

    async fn unregister_service(
        &self,
        call: &mut RegistryCall,
        service: NetworkService,
    ) -> Result<(), Status> {
        Layer::unregister_service(self, call, service).await
    }

    async fn find_services(
        &self,
        call: &mut RegistryCall,
        query: NetworkService,
        watch: bool,
    ) -> Result<Found<ServiceEvent>, Status> {
        Layer::find_services(self, call, query, watch).await
    }

    async fn register_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<NetworkServiceEndpoint, Status> {
        Layer::register_endpoint(self, call, endpoint).await
    }

    async fn unregister_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<(), Status> {
        Layer::unregister_endpoint(self, call, endpoint).await
    }

    async fn find_endpoints(
        &self,
        call: &mut RegistryCall,
        query: NetworkServiceEndpoint,
        watch: bool,
    ) -> Result<Found<EndpointEvent>, Status> {
        Layer::find_endpoints(self, call, query, watch).await
    }
}
