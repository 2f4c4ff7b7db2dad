//! What a role serves, with health and reflection for it.

use std::convert::Infallible;

use axum::response::IntoResponse;
use http::Request;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, health_reporter};
use tower::Service;

/// Collects a role's gRPC services; [`routes`](Self::routes) adds health (`grpc.health.v1`) for each and as a whole, and
/// reflection (`v1` and `v1alpha`), so that grpcurl can explore every role.
#[derive(Default)]
pub struct Services {
    routes: Routes,
    names: Vec<String>,
    claimed: Vec<String>,
    descriptors: Vec<&'static [u8]>,
}

impl Services {
    /// None yet; descriptors of NSM's API are known.
    pub fn new() -> Self {
        Self { descriptors: vec![vwire_proto::nsm::FILE_DESCRIPTOR_SET], ..Self::default() }
    }

    /// Adds a service.
    #[must_use]
    pub fn serve<S>(self, service: S) -> Self
    where
        S: Service<Request<Body>, Error = Infallible> + NamedService + Clone + Send + Sync + 'static,
        S::Response: IntoResponse,
        S::Future: Send + 'static,
    {
        let routes = self.routes.add_service(service);
        Self { routes, ..self }.named(S::NAME)
    }

    /// Changes the routes by a function that adds services; name them by [`named`](Self::named).
    #[must_use]
    pub fn with(self, add: impl FnOnce(Routes) -> Routes) -> Self {
        Self { routes: add(self.routes), ..self }
    }

    /// Tells health and reflection of a service (`networkservice.NetworkService`).
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.names.push(name.into());
        self
    }

    /// Tells health, but not reflection, of a service that is not served here: tools of Go's ask for it.
    #[must_use]
    pub fn claimed(mut self, name: impl Into<String>) -> Self {
        self.claimed.push(name.into());
        self
    }

    /// Lets reflection know more than NSM's API: an encoded `FileDescriptorSet`. A name that is also of NSM's API, as v0.2's are,
    /// is described by that: reflection keeps what it was told last.
    #[must_use]
    pub fn described_by(mut self, descriptors: &'static [u8]) -> Self {
        self.descriptors.insert(0, descriptors);
        self
    }

    /// All of it, to be served; and the switch by which the role says how it is. Everything is SERVING at first.
    ///
    /// # Panics
    /// If a descriptor set is no `FileDescriptorSet`: they are compiled in.
    pub async fn routes(self) -> (Routes, Health) {
        let (reporter, health) = health_reporter();
        let names: Vec<String> = self.names.iter().chain(&self.claimed).cloned().collect();
        let health_of = Health { reporter, names };
        health_of.set(true).await;
        let reflection = || {
            let names = self.names.iter().cloned().chain([HEALTH.to_owned()]);
            let builder = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
            let builder = self
                .descriptors
                .iter()
                .fold(builder, |builder, set| builder.register_encoded_file_descriptor_set(set));
            names.fold(builder, |builder, name| builder.with_service_name(name))
        };
        let (v1, v1alpha) = (reflection().build_v1(), reflection().build_v1alpha());
        let routes = self
            .routes
            .add_service(health)
            .add_service(v1.expect("compiled-in descriptors"))
            .add_service(v1alpha.expect("compiled-in descriptors"));
        (routes, health_of)
    }
}

const HEALTH: &str = "grpc.health.v1.Health";

/// Says how the role's services are.
#[derive(Clone)]
pub struct Health {
    reporter: HealthReporter,
    names: Vec<String>,
}

impl Health {
    /// Sets all services and the whole: as the end comes, NOT_SERVING keeps new calls away.
    pub async fn set(&self, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.reporter.set_service_status("", status).await;
        for name in &self.names {
            self.reporter.set_service_status(name, status).await;
        }
    }
}
