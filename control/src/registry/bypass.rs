//! The registry of an nsmgr-proxy: what goes out and comes back has this proxy's URL, and the proxy remembers whose it was
//! (sdk, `pkg/registry/common/{interdomainbypass,swapip,clusterinfo}`).

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use tonic::Status;
use vwire_proto::nsm::registry::NetworkServiceEndpoint;

use super::{EndpointEvent, Found, Layer, Registry, RegistryCall, find};
use crate::config::WatchedMap;
use crate::domain::{self, Ourselves, Places};
use crate::transport::{DEFAULT_TIME, Target};

/// What an nsmgr-proxy is for its own domain, and for others.
pub struct Settings {
    /// The URLs by which we are known.
    pub us: Ourselves,
    /// Our domain's registry.
    pub own: Arc<dyn Registry>,
    /// Added to the labels of endpoints that register in other domains.
    pub cluster: Arc<WatchedMap>,
}

/// In front of the registries of other domains.
pub struct Bypass<R> {
    inner: R,
    settings: Arc<Settings>,
    places: Arc<Places>,
}

impl<R: Registry> Bypass<R> {
    /// Puts this before `inner`; Requests find in `places` where they go on.
    pub fn new(inner: R, settings: Settings, places: Arc<Places>) -> Self {
        Self { inner, settings: Arc::new(settings), places }
    }

    /// An endpoint of ours as other domains see it.
    fn outward(&self, endpoint: &mut NetworkServiceEndpoint) {
        endpoint.url = self.settings.us.outside();
    }
}

/// What can be dialled from here on behalf of others: never a socket of this machine.
fn tcp(url: &str) -> Option<Target> {
    Target::parse(url).ok().filter(|target| matches!(target, Target::Tcp(_)))
}

/// What our domain is shown of an endpoint of another.
///
/// An endpoint of our own that registered there is used directly, as are its own connections; the rest is behind us.
async fn inward(settings: &Settings, places: &Places, event: &mut EndpointEvent) {
    let endpoint = Arc::make_mut(&mut event.endpoint);
    event.socket = None;
    if let Some(manager) = places.ours(&endpoint.name) {
        endpoint.url = manager.to_string();
        return;
    }
    if settings.us.have_forwarded(&endpoint.name, &endpoint.url) {
        return ours(settings, endpoint, event.deleted).await;
    }
    match tcp(&settings.us.outward(&endpoint.url)) {
        Some(proxy) if !event.deleted => places.found(&endpoint.name, proxy),
        Some(_) => {}
        None => tracing::info!(
            endpoint = endpoint.name,
            url = endpoint.url,
            "its URL is none that another domain's Requests may be sent to"
        ),
    }
    settings.us.inside().clone_into(&mut endpoint.url);
}

/// An endpoint of our own that the registry of several domains has from us (`NSMRS_ADDRESS`): here it is known by its bare name, and is
/// where our own registry says. It offers the service by the name that was asked for.
async fn ours(settings: &Settings, endpoint: &mut NetworkServiceEndpoint, deleted: bool) {
    let bare = domain::target(&endpoint.name).to_owned();
    let query = NetworkServiceEndpoint { name: bare.clone(), ..Default::default() };
    let mut call = RegistryCall::internal("an endpoint of ours", DEFAULT_TIME);
    match find::endpoints(&*settings.own, &mut call, query).await {
        Ok(found) => {
            let Some(here) = found.into_iter().find(|event| event.endpoint.name == bare) else {
                if deleted {
                    endpoint.name = bare;
                }
                return;
            };
            endpoint.url.clone_from(&here.endpoint.url);
            endpoint.name = bare;
        }
        Err(status) => {
            tracing::info!(endpoint = endpoint.name, %status, "an endpoint of ours is not looked up")
        }
    }
}

#[async_trait]
impl<R: Registry> Layer for Bypass<R> {
    type Inner = R;

    fn inner(&self) -> &R {
        &self.inner
    }

    async fn register_endpoint(
        &self,
        call: &mut RegistryCall,
        mut endpoint: NetworkServiceEndpoint,
    ) -> Result<NetworkServiceEndpoint, Status> {
        let original = endpoint.url.clone();
        let manager = tcp(&original).ok_or_else(|| {
            Status::invalid_argument(format!(
                "url: {original:?} of endpoint `{}` is not a manager's TCP address; other domains' Requests need one (tcp:// in the manager's NSM_LISTEN_ON)",
                endpoint.name
            ))
        })?;
        self.outward(&mut endpoint);
        let cluster = self.settings.cluster.current();
        for labels in endpoint.network_service_labels.values_mut() {
            labels.labels.extend(cluster.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        let mut registered = self.inner.register_endpoint(call, endpoint).await?;
        // By the name of the answer: an endpoint may have been given its domain's name on the way.
        self.places.register(&registered.name, manager);
        registered.url = original;
        Ok(registered)
    }

    async fn unregister_endpoint(
        &self,
        call: &mut RegistryCall,
        mut endpoint: NetworkServiceEndpoint,
    ) -> Result<(), Status> {
        self.places.unregister(&endpoint.name);
        self.outward(&mut endpoint);
        self.inner.unregister_endpoint(call, endpoint).await
    }

    async fn find_endpoints(
        &self,
        call: &mut RegistryCall,
        query: NetworkServiceEndpoint,
        watch: bool,
    ) -> Result<Found<EndpointEvent>, Status> {
        let found = self.inner.find_endpoints(call, query, watch).await?;
        let (settings, places) = (Arc::clone(&self.settings), Arc::clone(&self.places));
        let shown = found.then(move |event| {
            let (settings, places) = (Arc::clone(&settings), Arc::clone(&places));
            async move {
                let mut event = event?;
                inward(&settings, &places, &mut event).await;
                Ok(event)
            }
        });
        Ok(shown.boxed())
    }
}
