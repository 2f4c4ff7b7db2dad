//! Finding without watching, with the answer in one piece.

use std::sync::Arc;

use futures::TryStreamExt;
use tonic::Status;
use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

use super::{EndpointEvent, Registry, RegistryCall};

/// The service of this name.
///
/// # Errors
/// NOT_FOUND, naming it; or what the registry says.
pub async fn service(
    registry: &dyn Registry,
    call: &mut RegistryCall,
    name: &str,
) -> Result<Arc<NetworkService>, Status> {
    let query = NetworkService { name: name.to_owned(), ..Default::default() };
    // Old registries find by parts of a name, too.
    let found = services(registry, call, query).await?.into_iter().find(|service| service.name == name);
    found.ok_or_else(|| Status::not_found(format!("network service `{name}` is not registered")))
}

/// All services that `query` asks for.
///
/// # Errors
/// What the registry says.
pub async fn services(
    registry: &dyn Registry,
    call: &mut RegistryCall,
    query: NetworkService,
) -> Result<Vec<Arc<NetworkService>>, Status> {
    let found = registry.find_services(call, query, false).await?;
    found
        .try_filter_map(|event| async move { Ok((!event.deleted).then_some(event.service)) })
        .try_collect()
        .await
}

/// The endpoint of this name.
///
/// # Errors
/// NOT_FOUND, naming it; or what the registry says.
pub async fn endpoint(
    registry: &dyn Registry,
    call: &mut RegistryCall,
    name: &str,
) -> Result<EndpointEvent, Status> {
    let query = NetworkServiceEndpoint { name: name.to_owned(), ..Default::default() };
    let found = endpoints(registry, call, query).await?.into_iter().find(|found| found.endpoint.name == name);
    found.ok_or_else(|| Status::not_found(format!("endpoint `{name}` is not registered")))
}

/// All endpoints that `query` asks for, with their sockets.
///
/// # Errors
/// What the registry says.
pub async fn endpoints(
    registry: &dyn Registry,
    call: &mut RegistryCall,
    query: NetworkServiceEndpoint,
) -> Result<Vec<EndpointEvent>, Status> {
    let found = registry.find_endpoints(call, query, false).await?;
    found.try_filter(|event| std::future::ready(!event.deleted)).try_collect().await
}
