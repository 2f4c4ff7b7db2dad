//! A registry in which nothing expires: a real one looks at the clock, which does not keep up with a test's time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::{StreamExt, stream};
use tokio::sync::broadcast;
use tonic::Status;
use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

use crate::registry::{EndpointEvent, Found, Registry, RegistryCall, ServiceEvent};

pub(super) struct Book {
    endpoints: Mutex<BTreeMap<String, Arc<NetworkServiceEndpoint>>>,
    told: broadcast::Sender<(Arc<NetworkServiceEndpoint>, bool)>,
}

impl Default for Book {
    fn default() -> Self {
        Self { endpoints: Mutex::default(), told: broadcast::Sender::new(64) }
    }
}

fn event((endpoint, deleted): (Arc<NetworkServiceEndpoint>, bool)) -> EndpointEvent {
    EndpointEvent { endpoint, deleted, socket: None }
}

impl Book {
    pub fn put(&self, endpoint: NetworkServiceEndpoint) {
        let endpoint = Arc::new(endpoint);
        self.endpoints.lock().unwrap().insert(endpoint.name.clone(), Arc::clone(&endpoint));
        let _ = self.told.send((endpoint, false));
    }

    pub fn remove(&self, name: &str) {
        if let Some(gone) = self.endpoints.lock().unwrap().remove(name) {
            let _ = self.told.send((gone, true));
        }
    }
}

fn not_here<T>() -> Result<T, Status> {
    Err(Status::unimplemented("not in this test"))
}

#[async_trait]
impl Registry for Book {
    async fn register_service(
        &self,
        _: &mut RegistryCall,
        _: NetworkService,
    ) -> Result<NetworkService, Status> {
        not_here()
    }

    async fn unregister_service(&self, _: &mut RegistryCall, _: NetworkService) -> Result<(), Status> {
        not_here()
    }

    async fn find_services(
        &self,
        _: &mut RegistryCall,
        _: NetworkService,
        _: bool,
    ) -> Result<Found<ServiceEvent>, Status> {
        not_here()
    }

    async fn register_endpoint(
        &self,
        _: &mut RegistryCall,
        _: NetworkServiceEndpoint,
    ) -> Result<NetworkServiceEndpoint, Status> {
        not_here()
    }

    async fn unregister_endpoint(
        &self,
        _: &mut RegistryCall,
        _: NetworkServiceEndpoint,
    ) -> Result<(), Status> {
        not_here()
    }

    /// All of them, and what changes: as a registry that finds by parts of names tells more than was asked for.
    async fn find_endpoints(
        &self,
        _: &mut RegistryCall,
        _: NetworkServiceEndpoint,
        _: bool,
    ) -> Result<Found<EndpointEvent>, Status> {
        let endpoints = self.endpoints.lock().unwrap();
        let told = self.told.subscribe();
        let now: Vec<_> =
            endpoints.values().map(|endpoint| Ok(event((Arc::clone(endpoint), false)))).collect();
        let later = stream::unfold(told, |mut told| async move {
            let next = told.recv().await.ok()?;
            Some((Ok(event(next)), told))
        });
        Ok(Box::pin(stream::iter(now).chain(later)))
    }
}
