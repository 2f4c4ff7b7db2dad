//! Counts what a registry is asked, by outcome.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use tonic::{Code, Status};
use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

use super::{EndpointEvent, Found, Layer, Registry, RegistryCall, ServiceEvent};
use crate::obs::{Metrics, Operation};

/// The layer that peers meet first: what it counts is what they got.
pub struct Counted {
    inner: Arc<dyn Registry>,
    metrics: Arc<Metrics>,
}

impl Counted {
    /// Counts at `metrics` what `inner` answers. Of a find the time until its stream begins.
    pub fn in_front_of(inner: Arc<dyn Registry>, metrics: &Arc<Metrics>) -> Arc<dyn Registry> {
        Arc::new(Self { inner, metrics: Arc::clone(metrics) })
    }

    async fn count<T>(
        &self,
        operation: Operation,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let began = Instant::now();
        let answer = answer.await;
        let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        self.metrics.answered(operation, code, began.elapsed());
        answer
    }
}

#[async_trait]
impl Layer for Counted {
    type Inner = dyn Registry;

    fn inner(&self) -> &dyn Registry {
        &*self.inner
    }

    async fn register_service(
        &self,
        call: &mut RegistryCall,
        service: NetworkService,
    ) -> Result<NetworkService, Status> {
        self.count(Operation::Register, self.inner().register_service(call, service)).await
    }

    async fn unregister_service(
        &self,
        call: &mut RegistryCall,
        service: NetworkService,
    ) -> Result<(), Status> {
        self.count(Operation::Unregister, self.inner().unregister_service(call, service)).await
    }

    async fn find_services(
        &self,
        call: &mut RegistryCall,
        query: NetworkService,
        watch: bool,
    ) -> Result<Found<ServiceEvent>, Status> {
        self.count(Operation::Find, self.inner().find_services(call, query, watch)).await
    }

    async fn register_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<NetworkServiceEndpoint, Status> {
        self.count(Operation::Register, self.inner().register_endpoint(call, endpoint)).await
    }

    async fn unregister_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<(), Status> {
        self.count(Operation::Unregister, self.inner().unregister_endpoint(call, endpoint)).await
    }

    async fn find_endpoints(
        &self,
        call: &mut RegistryCall,
        query: NetworkServiceEndpoint,
        watch: bool,
    ) -> Result<Found<EndpointEvent>, Status> {
        self.count(Operation::Find, self.inner().find_endpoints(call, query, watch)).await
    }
}
