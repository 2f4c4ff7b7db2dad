//! A manager's own endpoints: the mesh calls them by the manager's URL, this node by their own.
//!
//! A registration goes on with the manager's URL, and the endpoint's own URL and socket are kept here. What local callers find has
//! its own URL again; what has the manager's URL and is not known here is left over from an earlier life of the manager, and is not
//! shown (sdk, `pkg/registry/common/localbypass`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt;
use tokio::sync::Notify;
use tonic::Status;
use vwire_proto::nsm::registry::NetworkServiceEndpoint;

use super::serial::Serial;
use super::sockets::INODE;
use super::{EndpointEvent, Found, Layer, Owner, Registry, RegistryCall, RegistryPath, expiry};
use crate::chain::Origin;
use crate::transport::{PeerAddress, SharedFd};

/// How long the end of an expired endpoint may take in the registry beyond.
const EXPIRY_TIME: Duration = Duration::from_secs(5);

/// Changes an endpoint that registers, before it goes on: the node's labels are added so.
pub type Edit = Arc<dyn Fn(&mut NetworkServiceEndpoint) + Send + Sync>;

/// How a bypass is set up.
pub struct Settings {
    /// The URL by which other nodes call the manager.
    pub public_url: String,
    /// How long an endpoint stays without being renewed.
    pub expire: Duration,
    /// Applied to each endpoint that registers.
    pub edit: Option<Edit>,
}

/// A registry that knows which endpoints are local, in front of one that knows all.
pub struct LocalBypass<R: Registry>(Arc<Shared<R>>);

struct Shared<R> {
    inner: R,
    settings: Settings,
    local: Mutex<HashMap<Arc<str>, Local>>,
    serial: Serial,
    /// The first end has come closer.
    sooner: Notify,
}

/// A local endpoint.
#[derive(Clone)]
struct Local {
    url: String,
    socket: Option<SharedFd>,
    owner: Option<Owner>,
    /// When it goes unless it is renewed.
    until: Instant,
    /// As it was registered beyond, and the path it came by: its end is told on the registrant's behalf.
    endpoint: NetworkServiceEndpoint,
    path: Option<RegistryPath>,
}

impl<R: Registry> LocalBypass<R> {
    /// Puts this before `inner`. Needs a runtime: a task of it ends what is not renewed, until this is dropped.
    pub fn new(inner: R, settings: Settings) -> Self {
        let (local, serial, sooner) = (Mutex::default(), Serial::default(), Notify::new());
        let shared = Arc::new(Shared { inner, settings, local, serial, sooner });
        tokio::spawn(expire(Arc::downgrade(&shared)));
        Self(shared)
    }

    /// How many endpoints are local.
    pub fn len(&self) -> usize {
        self.0.local().len()
    }

    /// True if none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<R: Registry> Shared<R> {
    fn local(&self) -> MutexGuard<'_, HashMap<Arc<str>, Local>> {
        // Every change is one insertion or removal, so a panic elsewhere does not spoil it.
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The record of a name, if the caller may change it.
    fn record(&self, name: &str, caller: Option<&Owner>) -> Result<Option<Local>, Status> {
        let record = self.local().get(name).cloned();
        let owner = record.as_ref().and_then(|record| record.owner.as_ref());
        super::memory::check_owner("endpoint", name, owner, caller)?;
        Ok(record)
    }

    async fn register(
        &self,
        call: &mut RegistryCall,
        mut endpoint: NetworkServiceEndpoint,
    ) -> Result<NetworkServiceEndpoint, Status> {
        if endpoint.name.is_empty() {
            return Err(Status::invalid_argument("name: an endpoint needs one"));
        }
        if endpoint.url.is_empty() {
            return Err(Status::invalid_argument(format!("url: endpoint `{}` needs one", endpoint.name)));
        }
        let name: Arc<str> = endpoint.name.as_str().into();
        let _turn = self.serial.turn(&name).await;
        let before = self.record(&name, call.owner.as_ref())?;
        let socket = self.socket(call, &endpoint.url, before.as_ref())?;
        let end =
            expiry::end(endpoint.expiration_time.as_ref(), call.not_after.as_ref(), self.settings.expire)?;
        endpoint.expiration_time = Some(end);
        let url = std::mem::replace(&mut endpoint.url, self.settings.public_url.clone());
        self.settings.edit.iter().for_each(|edit| edit(&mut endpoint));
        // Known before it is registered beyond: whoever watches there would not be shown it otherwise.
        let record = Local {
            url,
            socket,
            owner: call.owner.clone().or_else(|| before.as_ref().and_then(|before| before.owner.clone())),
            until: expiry::instant(&end),
            endpoint: endpoint.clone(),
            path: call.path.clone(),
        };
        let undo = Undo { shared: self, name: Arc::clone(&name), before: Some(before) };
        self.local().insert(Arc::clone(&name), record.clone());
        let mut registered = self.inner.register_endpoint(call, endpoint).await?;
        undo.keep();
        let until = registered.expiration_time.as_ref().map_or(record.until, expiry::instant);
        registered.url = record.url.clone();
        self.local().insert(name, Local { until: record.until.min(until), ..record });
        self.sooner.notify_one();
        Ok(registered)
    }

    /// The socket of an endpoint's URL: the one that came, or the one that is kept for the same URL.
    fn socket(
        &self,
        call: &RegistryCall,
        url: &str,
        before: Option<&Local>,
    ) -> Result<Option<SharedFd>, Status> {
        let kept = || before.filter(|before| before.url == url).and_then(|before| before.socket.clone());
        match call.socket.clone().or_else(kept) {
            None if url.starts_with(INODE) => {
                Err(Status::invalid_argument(format!("url: {url} came without its descriptor")))
            }
            socket => Ok(socket),
        }
    }

    async fn unregister(&self, call: &mut RegistryCall, name: &str) -> Result<(), Status> {
        let _turn = self.serial.turn(name).await;
        let Some(record) = self.record(name, call.owner.as_ref())? else { return Ok(()) };
        self.inner.unregister_endpoint(call, record.endpoint).await?;
        self.local().remove(name);
        Ok(())
    }

    /// Ends an endpoint that was not renewed, if that is still so when its turn has come.
    async fn end(&self, name: &str) {
        let _turn = self.serial.turn(name).await;
        let now = Instant::now();
        let ended = match self.local().get(name) {
            Some(record) if record.until <= now => record.clone(),
            _ => return,
        };
        let mut call = RegistryCall::internal("expiry", EXPIRY_TIME);
        (call.path, call.owner) = (ended.path, ended.owner);
        if let Err(status) = self.inner.unregister_endpoint(&mut call, ended.endpoint).await {
            // It expires there, too.
            tracing::info!(endpoint = %name, %status, "the end of an expired endpoint could not be told to the registry");
        }
        self.local().remove(name);
        tracing::info!(endpoint = %name, "endpoint expired");
    }

    /// What a caller is shown of a found endpoint; nothing of one that is left over.
    fn show(&self, mut event: EndpointEvent, local_caller: bool) -> Option<EndpointEvent> {
        if event.deleted {
            return Some(event);
        }
        match self.local().get(event.endpoint.name.as_str()) {
            Some(record) if local_caller => {
                Arc::make_mut(&mut event.endpoint).url.clone_from(&record.url);
                event.socket.clone_from(&record.socket);
            }
            Some(_) => {}
            None if event.endpoint.url == self.settings.public_url => return None,
            None => {}
        }
        Some(event)
    }
}

/// Puts back what was there before, unless the registration succeeds; also if the caller goes away meanwhile.
struct Undo<'a, R: Registry> {
    shared: &'a Shared<R>,
    name: Arc<str>,
    before: Option<Option<Local>>,
}

impl<R: Registry> Undo<'_, R> {
    fn keep(mut self) {
        self.before = None;
    }
}

impl<R: Registry> Drop for Undo<'_, R> {
    fn drop(&mut self) {
        match self.before.take() {
            Some(Some(before)) => drop(self.shared.local().insert(Arc::clone(&self.name), before)),
            Some(None) => drop(self.shared.local().remove(&self.name)),
            None => {}
        }
    }
}

/// Ends endpoints when their time has come.
async fn expire<R: Registry>(shared: Weak<Shared<R>>) {
    loop {
        let Some(bypass) = shared.upgrade() else { return };
        let now = Instant::now();
        // A node has tens of endpoints, not thousands.
        let ended: Vec<Arc<str>> =
            bypass.local().iter().filter(|(_, r)| r.until <= now).map(|(name, _)| Arc::clone(name)).collect();
        for name in ended {
            let bypass = Arc::clone(&bypass);
            tokio::spawn(async move { bypass.end(&name).await });
        }
        let first = bypass.local().values().map(|record| record.until).filter(|until| *until > now).min();
        // The bypass is not kept alive while waiting; a look now and then is enough to see that it is gone.
        let look = now + Duration::from_secs(1);
        let until = first.map_or(look, |first| first.min(look));
        let sooner = bypass.sooner.notified();
        tokio::select! {
            () = sooner => {}
            () = tokio::time::sleep_until(until.into()) => {}
        }
    }
}

/// True if the caller can use this node's sockets.
fn is_local(origin: &Origin) -> bool {
    match origin {
        Origin::Peer { peer, .. } => !matches!(peer.address, PeerAddress::Tcp(_)),
        Origin::Internal(_) => true,
    }
}

#[async_trait]
impl<R: Registry> Layer for LocalBypass<R> {
    type Inner = R;

    fn inner(&self) -> &R {
        &self.0.inner
    }

    async fn register_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<NetworkServiceEndpoint, Status> {
        self.0.register(call, endpoint).await
    }

    async fn unregister_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<(), Status> {
        self.0.unregister(call, &endpoint.name).await
    }

    async fn find_endpoints(
        &self,
        call: &mut RegistryCall,
        query: NetworkServiceEndpoint,
        watch: bool,
    ) -> Result<Found<EndpointEvent>, Status> {
        let local_caller = is_local(&call.origin);
        let found = self.0.inner.find_endpoints(call, query, watch).await?;
        let shared = Arc::clone(&self.0);
        let shown = found.filter_map(move |event| {
            let event = match event {
                Ok(event) => shared.show(event, local_caller).map(Ok),
                Err(status) => Some(Err(status)),
            };
            std::future::ready(event)
        });
        Ok(shown.boxed())
    }
}
