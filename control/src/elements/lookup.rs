//! What elements ask of a registry.

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use tonic::{Code, Status};

use crate::api::registry::{NetworkService, NetworkServiceEndpoint};
use crate::registry::{EndpointEvent, Registry, RegistryCall};
use crate::transport::Target;

/// The service of this name and, unless that is empty, payload.
///
/// # Errors
/// NOT_FOUND, or the registry's.
pub(super) async fn service(
    registry: &dyn Registry,
    name: &str,
    payload: &str,
    time: Duration,
) -> Result<Arc<NetworkService>, Status> {
    let query = NetworkService { name: name.to_owned(), payload: payload.to_owned(), ..Default::default() };
    let work = async {
        let mut call = RegistryCall::internal("finding a service", time);
        let mut found = registry.find_services(&mut call, query, false).await?;
        while let Some(event) = found.try_next().await? {
            // Older registries find by a part of the name.
            if !event.deleted && event.service.name == name {
                return Ok(Some(event.service));
            }
        }
        Ok(None)
    };
    let of_payload = || if payload.is_empty() { String::new() } else { format!(" with payload {payload}") };
    within(time, &format!("service `{name}`"), work).await?.ok_or_else(|| {
        Status::not_found(format!("network service `{name}`{} is not registered", of_payload()))
    })
}

/// The endpoints that agree with a query.
///
/// # Errors
/// The registry's.
pub(super) async fn endpoints(
    registry: &dyn Registry,
    query: NetworkServiceEndpoint,
    what: &str,
    time: Duration,
) -> Result<Vec<EndpointEvent>, Status> {
    let work = async {
        let mut call = RegistryCall::internal("finding endpoints", time);
        let found = registry.find_endpoints(&mut call, query, false).await?;
        found.try_filter(|event| std::future::ready(!event.deleted)).try_collect().await
    };
    within(time, what, work).await
}

/// The endpoint of this name.
///
/// # Errors
/// NOT_FOUND, or the registry's.
pub(super) async fn endpoint(
    registry: &dyn Registry,
    name: &str,
    time: Duration,
) -> Result<EndpointEvent, Status> {
    let query = NetworkServiceEndpoint { name: name.to_owned(), ..Default::default() };
    let found = endpoints(registry, query, &format!("endpoint `{name}`"), time).await?;
    found
        .into_iter()
        .find(|event| event.endpoint.name == name)
        .ok_or_else(|| Status::not_found(format!("endpoint `{name}` is not registered")))
}

async fn within<T>(
    time: Duration,
    what: &str,
    work: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(time, work).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(status)) => {
            // A Request can't be of help to one who may not ask our registry; it is our failure, not the caller's.
            let code = match status.code() {
                Code::Unauthenticated | Code::PermissionDenied => Code::Internal,
                code => code,
            };
            Err(Status::new(code, format!("finding {what}: {}", status.message())))
        }
        Err(_) => {
            let text = format!("finding {what}: the registry did not answer within {} ms", time.as_millis());
            Err(Status::deadline_exceeded(text))
        }
    }
}

/// Where an endpoint listens.
///
/// # Errors
/// UNAVAILABLE if its URL can't be dialled from here.
pub(super) fn target(event: &EndpointEvent) -> Result<Target, Status> {
    let endpoint = &event.endpoint;
    let bad = |reason: String| Status::unavailable(format!("endpoint `{}`: url {reason}", endpoint.name));
    if !endpoint.url.starts_with("inode://") {
        return Target::parse(&endpoint.url).map_err(|error| bad(error.to_string()));
    }
    let inode = endpoint.url.parse().map_err(|error| bad(format!("{:?}: {error}", endpoint.url)))?;
    match &event.socket {
        Some(file) => Ok(Target::File { inode, file: Arc::clone(file) }),
        None => Err(bad(format!("{:?} came without the socket's descriptor", endpoint.url))),
    }
}
