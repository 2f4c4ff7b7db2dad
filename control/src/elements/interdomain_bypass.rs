//! `interdomainbypass`: which way a Request for an endpoint of another domain goes on from an nsmgr-proxy.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::{Code, Status};

use super::lookup;
use crate::api::connection::Connection;
use crate::api::networkservice::NetworkServiceRequest;
use crate::chain::{Call, Element, Next};
use crate::domain::{self, Domain, Ourselves, Places};
use crate::registry::Registry;
use crate::transport::Target;

/// Sends Requests out of the domain, names as they are; and into it, by the names that the domain itself knows.
///
/// Whether an endpoint is here or elsewhere: what passed this proxy's registry is known. For the rest, as after a restart or beside
/// other proxies of the same name, the domains that are ours decide, if we are told them; if not, an endpoint is here if our own
/// registry has one of its bare name, and elsewhere otherwise.
pub struct InterdomainBypass {
    places: Arc<Places>,
    own: Arc<dyn Registry>,
    beyond: Arc<dyn Registry>,
    domains: Vec<String>,
    us: Ourselves,
}

/// Which way a connection went; kept for its refreshes.
#[derive(Debug, Clone)]
enum Way {
    /// To this proxy, or to this manager of an endpoint that is registered elsewhere.
    Through(Target),
    /// To this manager, by bare names.
    Into(Target),
}

/// The way of the endpoint of this name, in a connection's state.
struct Went(String, Way);

impl InterdomainBypass {
    /// `own` is our domain's registry, `beyond` leads to those of others. `domains` are the names of ours, as far as they are told; `us` are
    /// our URLs.
    pub fn new(
        places: Arc<Places>,
        own: Arc<dyn Registry>,
        beyond: Arc<dyn Registry>,
        domains: Vec<String>,
        us: Ourselves,
    ) -> Self {
        Self { places, own, beyond, domains, us }
    }

    async fn way(&self, call: &Call, name: &str) -> Result<Way, Status> {
        if let Some(target) = self.places.of(name) {
            return Ok(Way::Through(target));
        }
        if let Some(Went(known, way)) = call.state.get::<Went>()
            && known == name
        {
            return Ok(way.clone());
        }
        let (bare, of) = domain::split(name);
        if of.is_some_and(|of| self.is_elsewhere(of)) {
            return self.elsewhere(call, name, None).await;
        }
        match lookup::endpoint(&*self.own, bare, call.remaining()).await {
            Ok(found) => lookup::target(&found).map(Way::Into),
            Err(here) if of.is_none() || self.is_ours(of) => Err(here),
            Err(here) => self.elsewhere(call, name, Some(here)).await,
        }
    }

    fn is_ours(&self, of: Option<&str>) -> bool {
        of.is_some_and(|of| self.domains.iter().any(|domain| domain.eq_ignore_ascii_case(of)))
    }

    /// True if it is certain. That an address is ours can't be seen from inside.
    fn is_elsewhere(&self, of: &str) -> bool {
        !self.domains.is_empty()
            && !self.is_ours(Some(of))
            && matches!(Domain::parse(of), Ok(Domain::Name(_)))
    }

    /// Where else the endpoint is reached, when nobody is there any more: another proxy of its domain. What is registered elsewhere by
    /// way of us has one manager only.
    async fn another(&self, call: &mut Call, name: &str, gone: &Target) -> Option<Target> {
        if self.places.ours(name).is_some() {
            return None;
        }
        let way = self.elsewhere(call, name, None).await.ok()?;
        match &way {
            Way::Through(target) if target != gone => {
                tracing::info!(endpoint = name, %gone, %target, "another proxy of the domain is taken");
                let target = target.clone();
                call.state.insert(Went(name.to_owned(), way));
                Some(target)
            }
            _ => None,
        }
    }

    async fn elsewhere(&self, call: &Call, name: &str, here: Option<Status>) -> Result<Way, Status> {
        let found = match (lookup::endpoint(&*self.beyond, name, call.remaining()).await, here) {
            (Ok(found), _) => found,
            (Err(there), None) => return Err(there),
            (Err(there), Some(here)) => {
                let code = if there.code() == Code::NotFound { here.code() } else { there.code() };
                return Err(Status::new(code, format!("{}; {}", here.message(), there.message())));
            }
        };
        if self.us.have_forwarded(name, &found.endpoint.url) {
            // We have registered it there on behalf of our domain (`NSMRS_ADDRESS`).
            let here = lookup::endpoint(&*self.own, domain::target(name), call.remaining()).await?;
            return lookup::target(&here).map(Way::Into);
        }
        let target = lookup::target(&found)?;
        if !matches!(target, Target::Tcp(_)) {
            return Err(Status::failed_precondition(format!(
                "endpoint `{name}`: its URL {target} is none that another domain's Requests may be sent to"
            )));
        }
        self.places.found(name, target.clone());
        Ok(Way::Through(target))
    }
}

/// Names as the endpoint's own domain knows them.
fn strip(connection: &mut Connection) {
    for name in [&mut connection.network_service_endpoint_name, &mut connection.network_service] {
        *name = domain::target(name).to_owned();
    }
}

#[async_trait]
impl Element for InterdomainBypass {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let connection = request.connection.get_or_insert_default();
        let endpoint = connection.network_service_endpoint_name.clone();
        if endpoint.is_empty() {
            return Err(Status::invalid_argument(
                "connection.network_service_endpoint_name: empty; the client's forwarder chooses the endpoint of another domain",
            ));
        }
        let way = self.way(call, &endpoint).await?;
        call.state.insert(Went(endpoint.clone(), way.clone()));
        let target = match way {
            Way::Through(target) => {
                call.next_hop = Some(target.clone());
                let failed = match next.request(call, request.clone()).await {
                    Err(status) if status.code() == Code::Unavailable => status,
                    answer => return answer,
                };
                let Some(other) = self.another(call, &endpoint, &target).await else { return Err(failed) };
                call.next_hop = Some(other);
                return next.request(call, request).await;
            }
            Way::Into(target) => target,
        };
        call.next_hop = Some(target);
        let service = connection.network_service.clone();
        strip(connection);
        let mut made = next.request(call, request).await?;
        (made.network_service_endpoint_name, made.network_service) = (endpoint, service);
        Ok(made)
    }

    async fn close(&self, call: &mut Call, mut connection: Connection, next: Next<'_>) -> Result<(), Status> {
        let endpoint = connection.network_service_endpoint_name.clone();
        // What is held must be freed, even if nobody knows any more where it went.
        match self.way(call, &endpoint).await {
            Ok(Way::Through(target)) => {
                call.next_hop = Some(target.clone());
                let failed = match next.close(call, connection.clone()).await {
                    Err(status) if status.code() == Code::Unavailable => status,
                    answer => return answer,
                };
                let Some(other) = self.another(call, &endpoint, &target).await else { return Err(failed) };
                call.next_hop = Some(other);
            }
            Ok(Way::Into(target)) => {
                call.next_hop = Some(target);
                strip(&mut connection);
            }
            Err(status) => tracing::info!(endpoint, %status, "closing here only"),
        }
        next.close(call, connection).await
    }
}
