//! The registry as a manager serves it: endpoints of its node in front, the mesh's registry beyond.

use std::sync::Arc;

use super::authorize::{Authorize, Strict, TokenRules};
use super::cache::Cached;
use super::hops::Hops;
use super::local_bypass::{self, Edit, LocalBypass};
use super::memory::{self, Store};
use super::remote::Remote;
use super::sockets::Sockets;
use super::{Registry, expiry};
use crate::identity::TokenSource;
use crate::transport::{Pool, Target};

/// How a manager's registry is set up.
pub struct Settings {
    /// The mesh's registry (`NSM_REGISTRY_URL`). None: the manager is its own, in memory.
    pub registry: Option<Target>,
    /// The URL by which other nodes call the manager.
    pub public_url: String,
    /// Adds the node's labels to an endpoint that registers.
    pub edit: Option<Edit>,
    /// What callers' tokens must satisfy (`NSM_REGISTRY_SERVER_POLICIES`).
    pub server_rules: Option<Arc<dyn TokenRules>>,
    /// What the registry's tokens must satisfy (`NSM_REGISTRY_CLIENT_POLICIES`).
    pub client_rules: Option<Arc<dyn TokenRules>>,
    /// Rules beyond the policies.
    pub strict: Strict,
    /// How much is taken where the manager is its own registry.
    pub store: memory::Limits,
}

/// A manager's registry.
pub struct Nsmgr {
    /// What callers get.
    pub served: Arc<dyn Registry>,
    /// What the manager itself asks: local endpoints have their own URLs and sockets.
    pub internal: Arc<dyn Registry>,
}

impl Nsmgr {
    /// Puts it together. Needs a runtime.
    pub fn new(settings: Settings, pool: Arc<Pool>, tokens: TokenSource) -> Self {
        let beyond: Arc<dyn Registry> = match settings.registry {
            Some(target) => {
                Arc::new(Cached::new(Remote::new(pool, target).with_rules(settings.client_rules)))
            }
            None => {
                let store = memory::Settings { expire: expiry::DEFAULT, limits: settings.store };
                Arc::new(Store::new(store))
            }
        };
        let bypass = local_bypass::Settings {
            public_url: settings.public_url,
            // As the Go manager has it, which can't be told otherwise either.
            expire: expiry::DEFAULT,
            edit: settings.edit,
        };
        let internal: Arc<dyn Registry> = Arc::new(LocalBypass::new(beyond, bypass));
        let sockets = Sockets::new(Arc::clone(&internal));
        let authorized = Authorize::new(sockets, settings.server_rules, settings.strict);
        let served = Arc::new(Hops::new(authorized, tokens));
        Self { served, internal }
    }
}
