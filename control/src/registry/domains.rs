//! The registries of other domains, each found by its domain's name (sdk, `pkg/registry/common/dnsresolve`).
//!
//! Names go out as their own domain knows them, and come back with it. Endpoints come back with the URL of their domain's nsmgr-proxy,
//! if it has one: what is behind that is not ours to reach.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use tonic::Status;
use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

use super::authorize::TokenRules;
use super::remote::Remote;
use super::{EndpointEvent, Found, Registry, RegistryCall, ServiceEvent};
use crate::discovery::Reach;
use crate::domain;
use crate::transport::Pool;

/// All other domains' registries as one.
pub struct Domains {
    reach: Arc<Reach>,
    pool: Arc<Pool>,
    rules: Option<Arc<dyn TokenRules>>,
}

impl Domains {
    /// Finds them with `reach`; `rules` are what their tokens must satisfy.
    pub fn new(reach: Arc<Reach>, pool: Arc<Pool>, rules: Option<Arc<dyn TokenRules>>) -> Self {
        Self { reach, pool, rules }
    }

    /// A domain's registry, in a connection that stands.
    async fn of(&self, domain: &str, call: &RegistryCall) -> Result<Remote, Status> {
        let reached = self.reach.registry(domain, call.deadline).await?;
        tracing::debug!(domain, registry = %reached.target, how = reached.story, "the domain's registry");
        Ok(Remote::new(Arc::clone(&self.pool), reached.target).with_rules(self.rules.clone()))
    }
}

/// The domain of a service's name.
fn of_service(service: &NetworkService) -> Result<String, Status> {
    let domain = domain::domain(&service.name).ok_or_else(|| no_domain("name", &service.name))?;
    Ok(domain.to_owned())
}

/// The domain of an endpoint's names.
fn of_endpoint(endpoint: &NetworkServiceEndpoint) -> Result<String, Status> {
    let domain = domain::of_endpoint(endpoint)?;
    Ok(domain.ok_or_else(|| no_domain("name, network_service_names", &endpoint.name))?.to_owned())
}

fn no_domain(field: &str, name: &str) -> Status {
    Status::invalid_argument(format!("{field}: `{name}` names no other domain; write name@domain"))
}

/// An error of a domain's registry, with the domain.
fn from_domain(domain: &str, status: &Status) -> Status {
    Status::new(status.code(), format!("domain {domain:?}: {}", status.message()))
}

fn strip_service(service: &mut NetworkService) {
    service.name = domain::target(&service.name).to_owned();
}

fn join_service(service: &mut NetworkService, domain: &str) {
    service.name = domain::join(&service.name, domain);
}

#[async_trait]
impl Registry for Domains {
    async fn register_service(
        &self,
        call: &mut RegistryCall,
        mut service: NetworkService,
    ) -> Result<NetworkService, Status> {
        let domain = of_service(&service)?;
        let registry = self.of(&domain, call).await?;
        strip_service(&mut service);
        let registered = registry.register_service(call, service).await;
        let mut registered = registered.map_err(|status| from_domain(&domain, &status))?;
        join_service(&mut registered, &domain);
        Ok(registered)
    }

    async fn unregister_service(
        &self,
        call: &mut RegistryCall,
        mut service: NetworkService,
    ) -> Result<(), Status> {
        let domain = of_service(&service)?;
        let registry = self.of(&domain, call).await?;
        strip_service(&mut service);
        let done = registry.unregister_service(call, service).await;
        done.map_err(|status| from_domain(&domain, &status))
    }

    async fn find_services(
        &self,
        call: &mut RegistryCall,
        mut query: NetworkService,
        watch: bool,
    ) -> Result<Found<ServiceEvent>, Status> {
        let domain = of_service(&query)?;
        let registry = self.of(&domain, call).await?;
        strip_service(&mut query);
        let found = registry.find_services(call, query, watch).await;
        let found = found.map_err(|status| from_domain(&domain, &status))?;
        let renamed = found.map(move |event| match event {
            Ok(mut event) => {
                join_service(Arc::make_mut(&mut event.service), &domain);
                Ok(event)
            }
            Err(status) => Err(from_domain(&domain, &status)),
        });
        Ok(renamed.boxed())
    }

    async fn register_endpoint(
        &self,
        call: &mut RegistryCall,
        mut endpoint: NetworkServiceEndpoint,
    ) -> Result<NetworkServiceEndpoint, Status> {
        let domain = of_endpoint(&endpoint)?;
        let registry = self.of(&domain, call).await?;
        domain::strip_endpoint(&mut endpoint);
        let registered = registry.register_endpoint(call, endpoint).await;
        let mut registered = registered.map_err(|status| from_domain(&domain, &status))?;
        domain::join_endpoint(&mut registered, &domain);
        Ok(registered)
    }

    async fn unregister_endpoint(
        &self,
        call: &mut RegistryCall,
        mut endpoint: NetworkServiceEndpoint,
    ) -> Result<(), Status> {
        let domain = of_endpoint(&endpoint)?;
        let registry = self.of(&domain, call).await?;
        domain::strip_endpoint(&mut endpoint);
        let done = registry.unregister_endpoint(call, endpoint).await;
        done.map_err(|status| from_domain(&domain, &status))
    }

    async fn find_endpoints(
        &self,
        call: &mut RegistryCall,
        mut query: NetworkServiceEndpoint,
        watch: bool,
    ) -> Result<Found<EndpointEvent>, Status> {
        let domain = of_endpoint(&query)?;
        let registry = self.of(&domain, call).await?;
        let proxy = self.reach.proxy(&domain, call.deadline).await?.map(|target| target.to_string());
        domain::strip_endpoint(&mut query);
        let found = registry.find_endpoints(call, query, watch).await;
        let found = found.map_err(|status| from_domain(&domain, &status))?;
        let renamed = found.map(move |event| match event {
            Ok(mut event) => {
                let endpoint = Arc::make_mut(&mut event.endpoint);
                domain::join_endpoint(endpoint, &domain);
                proxy.iter().for_each(|proxy| endpoint.url.clone_from(proxy));
                event.socket = None;
                Ok(event)
            }
            Err(status) => Err(from_domain(&domain, &status)),
        });
        Ok(renamed.boxed())
    }
}
