//! What other domains are told of ours, where they ask the proxy instead of the registry: its endpoints are behind the proxy.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use tonic::Status;
use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

use super::{EndpointEvent, Found, Registry, RegistryCall, ServiceEvent};
use crate::domain::{self, AddressMap};

/// Names with a domain go `out`; finds of plain names are answered from our own registry. To register here from outside is refused.
pub struct Inbound<R> {
    out: R,
    own: Arc<dyn Registry>,
    url: String,
    addresses: Arc<AddressMap>,
}

impl<R: Registry> Inbound<R> {
    /// `own` is our domain's registry; `url` is where our nsmgr-proxy is, as our domain reaches it.
    pub fn new(out: R, own: Arc<dyn Registry>, url: String, addresses: Arc<AddressMap>) -> Self {
        Self { out, own, url, addresses }
    }
}

fn not_here(name: &str) -> Status {
    Status::permission_denied(format!(
        "name: `{name}` names no domain, and nothing is registered in this domain by way of its proxy; ask its registry"
    ))
}

#[async_trait]
impl<R: Registry> Registry for Inbound<R> {
    async fn register_service(
        &self,
        call: &mut RegistryCall,
        service: NetworkService,
    ) -> Result<NetworkService, Status> {
        if !domain::is_interdomain(&service.name) {
            return Err(not_here(&service.name));
        }
        self.out.register_service(call, service).await
    }

    async fn unregister_service(
        &self,
        call: &mut RegistryCall,
        service: NetworkService,
    ) -> Result<(), Status> {
        if !domain::is_interdomain(&service.name) {
            return Err(not_here(&service.name));
        }
        self.out.unregister_service(call, service).await
    }

    async fn find_services(
        &self,
        call: &mut RegistryCall,
        query: NetworkService,
        watch: bool,
    ) -> Result<Found<ServiceEvent>, Status> {
        if domain::is_interdomain(&query.name) {
            return self.out.find_services(call, query, watch).await;
        }
        self.own.find_services(call, query, watch).await
    }

    async fn register_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<NetworkServiceEndpoint, Status> {
        if domain::of_endpoint(&endpoint)?.is_none() {
            return Err(not_here(&endpoint.name));
        }
        self.out.register_endpoint(call, endpoint).await
    }

    async fn unregister_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<(), Status> {
        if domain::of_endpoint(&endpoint)?.is_none() {
            return Err(not_here(&endpoint.name));
        }
        self.out.unregister_endpoint(call, endpoint).await
    }

    async fn find_endpoints(
        &self,
        call: &mut RegistryCall,
        query: NetworkServiceEndpoint,
        watch: bool,
    ) -> Result<Found<EndpointEvent>, Status> {
        if domain::of_endpoint(&query)?.is_some() {
            return self.out.find_endpoints(call, query, watch).await;
        }
        let found = self.own.find_endpoints(call, query, watch).await?;
        let url = self.addresses.url_outward(&self.url);
        let shown = found.map(move |event| {
            event.map(|mut event| {
                Arc::make_mut(&mut event.endpoint).url.clone_from(&url);
                event.socket = None;
                event
            })
        });
        Ok(shown.boxed())
    }
}
