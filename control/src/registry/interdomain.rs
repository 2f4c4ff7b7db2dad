//! Names of other domains: `name@domain` is not ours to keep, and goes to the proxy registry.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::Status;
use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

use super::{EndpointEvent, Found, Registry, RegistryCall, ServiceEvent};
use crate::domain::is_interdomain;

/// A registry that keeps the names of its own domain, and passes on those of others (`NSM_PROXY_REGISTRY_URL`).
pub struct Interdomain<R> {
    own: R,
    proxy: Option<Arc<dyn Registry>>,
}

/// The name of an endpoint, or one of its services, that is of another domain.
fn foreign(endpoint: &NetworkServiceEndpoint) -> Option<&str> {
    let names = std::iter::once(&endpoint.name).chain(&endpoint.network_service_names);
    names.map(String::as_str).find(|name| is_interdomain(name))
}

impl<R: Registry> Interdomain<R> {
    /// Keeps in `own` what has no `@`; the rest goes to `proxy`, or is refused.
    pub fn new(own: R, proxy: Option<Arc<dyn Registry>>) -> Self {
        Self { own, proxy }
    }

    fn to(&self, foreign: Option<&str>) -> Result<&dyn Registry, Status> {
        let Some(name) = foreign else { return Ok(&self.own) };
        self.proxy.as_deref().ok_or_else(|| {
            Status::failed_precondition(format!(
                "`{name}` is of another domain, and this registry knows no way there: set NSM_PROXY_REGISTRY_URL"
            ))
        })
    }

    fn for_service(&self, service: &NetworkService) -> Result<&dyn Registry, Status> {
        self.to(Some(service.name.as_str()).filter(|name| is_interdomain(name)))
    }
}

#[async_trait]
impl<R: Registry> Registry for Interdomain<R> {
    async fn register_service(
        &self,
        call: &mut RegistryCall,
        service: NetworkService,
    ) -> Result<NetworkService, Status> {
        self.for_service(&service)?.register_service(call, service).await
    }

    async fn unregister_service(
        &self,
        call: &mut RegistryCall,
        service: NetworkService,
    ) -> Result<(), Status> {
        self.for_service(&service)?.unregister_service(call, service).await
    }

    async fn find_services(
        &self,
        call: &mut RegistryCall,
        query: NetworkService,
        watch: bool,
    ) -> Result<Found<ServiceEvent>, Status> {
        self.for_service(&query)?.find_services(call, query, watch).await
    }

    async fn register_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<NetworkServiceEndpoint, Status> {
        self.to(foreign(&endpoint))?.register_endpoint(call, endpoint).await
    }

    async fn unregister_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<(), Status> {
        self.to(foreign(&endpoint))?.unregister_endpoint(call, endpoint).await
    }

    async fn find_endpoints(
        &self,
        call: &mut RegistryCall,
        query: NetworkServiceEndpoint,
        watch: bool,
    ) -> Result<Found<EndpointEvent>, Status> {
        self.to(foreign(&query))?.find_endpoints(call, query, watch).await
    }
}
