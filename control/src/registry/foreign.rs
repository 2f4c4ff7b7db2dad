//! What members of other trust domains may register here.
//!
//! Go's floating domains live from foreign registrations: `nse@floating` arrives, from the foreign proxy, as plain `nse` for plain
//! `service`. So these can't be refused as such. But in a domain that also runs workloads they must not take what is its own: a foreign
//! endpoint that offered our `icmp-responder` would get our clients. Hence `apart`, the default: foreign endpoints may offer what none of
//! our own endpoints offers; if one of ours comes later, it is registered, and the foreign ones are refused when they renew, and expire.
//! Likewise a name that a foreign identity took is ours when a member of our domain registers it.
//!
//! Whom a registration is for is said by its path, of which the policy `foreign_domain` lets a foreign peer name its own members only.

use std::collections::BTreeSet;
use std::str::FromStr;

use async_trait::async_trait;
use tonic::Status;
use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

use super::layer::Layer;
use super::{Registry, RegistryCall, find};
use crate::chain::Origin;
use crate::identity::policy::foreign;
use crate::identity::{SpiffeId, TrustDomain};

/// Which registrations of foreign trust domains are taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Admit {
    /// What none of our own members has registered.
    #[default]
    Apart,
    /// All: the registry of a domain that has no workloads of its own.
    Any,
    /// None.
    Nobody,
    /// All of these trust domains, nothing of others.
    Only(BTreeSet<TrustDomain>),
}

impl FromStr for Admit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "apart" => Ok(Self::Apart),
            "any" => Ok(Self::Any),
            "none" => Ok(Self::Nobody),
            names => names
                .split(',')
                .map(|name| TrustDomain::new(name.trim()))
                .collect::<Result<_, _>>()
                .map(Self::Only)
                .map_err(|error| format!("{names:?}: write apart, any, none, or trust domains: {error}")),
        }
    }
}

/// A registry that looks at what foreign members register.
pub struct Foreign<R> {
    inner: R,
    admit: Admit,
}

/// From where a registration comes.
enum From {
    /// A member of ours, or a role itself.
    Us(Option<TrustDomain>),
    /// Another trust domain; then ours.
    Them(TrustDomain, TrustDomain),
}

impl<R: Registry> Foreign<R> {
    /// Looks at what goes into `inner`.
    pub fn new(inner: R, admit: Admit) -> Self {
        Self { inner, admit }
    }

    fn from(call: &RegistryCall) -> From {
        let Origin::Peer { peer, .. } = &call.origin else { return From::Us(None) };
        let ours = peer.local.as_ref().map(|svid| svid.id.trust_domain().clone());
        match (foreign(peer), ours) {
            (Some(theirs), Some(ours)) => From::Them(theirs.clone(), ours),
            (_, ours) => From::Us(ours),
        }
    }

    /// Refuses foreign registrations of what is ours: `offered` are services.
    async fn admit(
        &self,
        theirs: &TrustDomain,
        ours: &TrustDomain,
        offered: &[String],
    ) -> Result<(), Status> {
        match &self.admit {
            Admit::Any => Ok(()),
            Admit::Only(domains) if domains.contains(theirs) => Ok(()),
            Admit::Nobody | Admit::Only(_) => Err(refused(format!(
                "members of trust domain {theirs} may not register here (VWIRE_REGISTRY_FOREIGN)"
            ))),
            Admit::Apart => match self.ours_too(ours, offered).await? {
                None => Ok(()),
                Some(service) => Err(refused(format!(
                    "`{service}` is offered by endpoints of trust domain {ours} itself, and {theirs} may not offer it here (VWIRE_REGISTRY_FOREIGN)"
                ))),
            },
        }
    }

    /// A service among these that an endpoint of our own offers.
    async fn ours_too<'a>(
        &self,
        ours: &TrustDomain,
        services: &'a [String],
    ) -> Result<Option<&'a str>, Status> {
        for service in services {
            let query =
                NetworkServiceEndpoint { network_service_names: vec![service.clone()], ..Default::default() };
            let found = find::endpoints(&self.inner, &mut looking(), query).await?;
            if found.iter().any(|event| is_of(&event.endpoint.path_ids, ours)) {
                return Ok(Some(service));
            }
        }
        Ok(None)
    }
}

fn looking() -> RegistryCall {
    RegistryCall::internal("whose it is", crate::transport::DEFAULT_TIME)
}

/// Whose a registration is: its path's first identity says.
fn is_of(path_ids: &[String], domain: &TrustDomain) -> bool {
    path_ids.first().and_then(|id| SpiffeId::new(id).ok()).is_some_and(|id| id.trust_domain() == domain)
}

/// True if it is known to be of another trust domain.
fn is_foreign(path_ids: &[String], ours: &TrustDomain) -> bool {
    !path_ids.is_empty() && !is_of(path_ids, ours)
}

fn refused(why: String) -> Status {
    Status::permission_denied(format!("no sufficient privileges: {why}"))
}

impl<R: Registry> Foreign<R> {
    /// Removes a service of this name that a foreign member registered.
    async fn take_service(&self, name: &str, ours: &TrustDomain) -> Result<(), Status> {
        let query = NetworkService { name: name.to_owned(), ..Default::default() };
        for old in find::services(&self.inner, &mut looking(), query.clone()).await? {
            if old.name == name && is_foreign(&old.path_ids, ours) {
                tracing::warn!(
                    service = name,
                    "a service that another trust domain had registered is taken over by ours"
                );
                self.inner.unregister_service(&mut looking(), query.clone()).await?;
            }
        }
        Ok(())
    }

    /// Likewise an endpoint.
    async fn take_endpoint(&self, name: &str, ours: &TrustDomain) -> Result<(), Status> {
        let query = NetworkServiceEndpoint { name: name.to_owned(), ..Default::default() };
        for old in find::endpoints(&self.inner, &mut looking(), query.clone()).await? {
            if old.endpoint.name == name && is_foreign(&old.endpoint.path_ids, ours) {
                tracing::warn!(
                    endpoint = name,
                    "a name that another trust domain had registered is taken over by ours"
                );
                self.inner.unregister_endpoint(&mut looking(), query.clone()).await?;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl<R: Registry> Layer for Foreign<R> {
    type Inner = R;

    fn inner(&self) -> &R {
        &self.inner
    }

    async fn register_service(
        &self,
        call: &mut RegistryCall,
        service: NetworkService,
    ) -> Result<NetworkService, Status> {
        match Self::from(call) {
            From::Them(theirs, ours) => {
                self.admit(&theirs, &ours, std::slice::from_ref(&service.name)).await?
            }
            From::Us(Some(ours)) if self.admit == Admit::Apart => {
                self.take_service(&service.name, &ours).await?
            }
            From::Us(_) => {}
        }
        self.inner.register_service(call, service).await
    }

    async fn register_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<NetworkServiceEndpoint, Status> {
        match Self::from(call) {
            From::Them(theirs, ours) => self.admit(&theirs, &ours, &endpoint.network_service_names).await?,
            From::Us(Some(ours)) if self.admit == Admit::Apart => {
                self.take_endpoint(&endpoint.name, &ours).await?
            }
            From::Us(_) => {}
        }
        self.inner.register_endpoint(call, endpoint).await
    }
}
