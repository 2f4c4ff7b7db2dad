//! Who may register what: the tokens of the path must hold, and a name belongs to who registered it first.
//!
//! The owner is the identity of the path's first token, as Go's policy `client_allowed` has it. Of that token only a direct
//! caller's is proven, by the caller's certificate; a manager or proxy *asserts* its clients' identities, and any holder of an SVID
//! could claim to be one. So there are two switches: who may assert, and who may provide which service. Whether a name is
//! the caller's is decided where the record is, under its lock.

use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use tonic::Status;
use vwire_proto::nsm::registry::{NetworkService, NetworkServiceEndpoint};

use super::hops::subject;
use super::{Layer, Owner, Registry, RegistryCall};
use crate::chain::Origin;
use crate::config::List;
use crate::transport::Peer;

/// What a path's tokens must satisfy. Implemented by the policies of a role.
pub trait TokenRules: Send + Sync + 'static {
    /// As a server: `tokens` are those up to ours, the last but one is by `caller`.
    fn caller(&self, tokens: &[Arc<str>], caller: &Peer) -> Result<(), Status>;
    /// As a client: `tokens` are all that came back, the one after `index` is by `server`.
    fn server(&self, tokens: &[Arc<str>], index: u32, server: &Peer) -> Result<(), Status>;
    /// Whether a name is kept for who registered it first (`client_allowed`).
    fn keeps_owners(&self) -> bool {
        true
    }
}

/// Beyond the Go components' policies; all off unless set.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Strict {
    /// Who may register for others: SPIFFE IDs that begin so. Managers and proxies do; anybody may if it is empty.
    #[arg(long, env = "VWIRE_REGISTRY_ASSERTERS", value_name = "PREFIXES", default_value = "")]
    pub asserters: List<String>,
    /// Who may provide a service: service=spiffe://prefix. A service without a rule may be provided by anybody.
    #[arg(long, env = "VWIRE_REGISTRY_PROVIDERS", value_name = "RULES", default_value = "")]
    pub providers: List<Provider>,
}

/// `service=spiffe://prefix`: only identities that begin so may provide the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// The service's name.
    pub service: String,
    /// How the identity begins.
    pub prefix: String,
}

/// A rule that can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?}: write service=spiffe://domain/path")]
pub struct BadProvider(String);

impl FromStr for Provider {
    type Err = BadProvider;

    fn from_str(text: &str) -> Result<Self, BadProvider> {
        match text.split_once('=') {
            Some((service, prefix)) if !service.is_empty() && prefix.starts_with("spiffe://") => {
                Ok(Self { service: service.to_owned(), prefix: prefix.to_owned() })
            }
            _ => Err(BadProvider(text.to_owned())),
        }
    }
}

/// Asks before each registration. Finding is open to all who can connect, as it is in Go.
pub struct Authorize<R> {
    inner: R,
    rules: Option<Arc<dyn TokenRules>>,
    strict: Strict,
}

impl<R: Registry> Authorize<R> {
    /// Asks `rules`; without them (policies switched off) names have no owners.
    pub fn new(inner: R, rules: Option<Arc<dyn TokenRules>>, strict: Strict) -> Self {
        Self { inner, rules, strict }
    }

    /// Checks the call's tokens and says whose it is.
    fn check<'a>(
        &self,
        call: &mut RegistryCall,
        services: impl IntoIterator<Item = &'a String>,
    ) -> Result<(), Status> {
        let (Some(rules), Origin::Peer { peer, .. }) = (&self.rules, &call.origin) else { return Ok(()) };
        // Without TLS there is nobody to ask about: that was switched off by the operator, for all of it.
        let Some(asserter) = &peer.id else { return Ok(()) };
        let tokens = call.path.as_ref().map_or(&[][..], |path| path.up_to_here());
        rules.caller(tokens, peer)?;
        let asserter = asserter.to_string();
        let identity = tokens.first().map(|token| subject(token)).unwrap_or_default();
        let callers = tokens.len().checked_sub(2).and_then(|at| tokens.get(at)).map(|token| subject(token));
        if callers.is_some_and(|callers| callers != asserter) {
            return Err(refused("the caller's token names another identity than its certificate"));
        }
        if identity.is_empty() {
            return Err(refused("the path names no registrant"));
        }
        self.strict.check(&identity, &asserter, services)?;
        call.owner =
            rules.keeps_owners().then(|| Owner { identity: identity.into(), asserter: asserter.into() });
        Ok(())
    }
}

impl Strict {
    fn check<'a>(
        &self,
        identity: &str,
        asserter: &str,
        services: impl IntoIterator<Item = &'a String>,
    ) -> Result<(), Status> {
        let may_assert = || self.asserters.iter().any(|prefix| asserter.starts_with(prefix.as_str()));
        if identity != asserter && !self.asserters.is_empty() && !may_assert() {
            return Err(refused(format!(
                "{asserter} may not register for others (VWIRE_REGISTRY_ASSERTERS)"
            )));
        }
        for service in services {
            let mut rules = self.providers.iter().filter(|rule| rule.service == *service).peekable();
            if rules.peek().is_some() && !rules.any(|rule| identity.starts_with(&rule.prefix)) {
                let told = format!("{identity} may not provide `{service}` (VWIRE_REGISTRY_PROVIDERS)");
                return Err(refused(told));
            }
        }
        Ok(())
    }
}

fn refused(why: impl std::fmt::Display) -> Status {
    Status::permission_denied(format!("no sufficient privileges: {why}"))
}

#[async_trait]
impl<R: Registry> Layer for Authorize<R> {
    type Inner = R;

    fn inner(&self) -> &R {
        &self.inner
    }

    async fn register_service(
        &self,
        call: &mut RegistryCall,
        service: NetworkService,
    ) -> Result<NetworkService, Status> {
        self.check(call, [])?;
        self.inner.register_service(call, service).await
    }

    async fn unregister_service(
        &self,
        call: &mut RegistryCall,
        service: NetworkService,
    ) -> Result<(), Status> {
        self.check(call, [])?;
        self.inner.unregister_service(call, service).await
    }

    async fn register_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<NetworkServiceEndpoint, Status> {
        self.check(call, &endpoint.network_service_names)?;
        self.inner.register_endpoint(call, endpoint).await
    }

    async fn unregister_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<(), Status> {
        self.check(call, [])?;
        self.inner.unregister_endpoint(call, endpoint).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn providers_are_read() {
        let rule: Provider = "forwarder=spiffe://k8s.nsm/ns/nsm-system/".parse().unwrap();
        assert_eq!(
            (rule.service.as_str(), rule.prefix.as_str()),
            ("forwarder", "spiffe://k8s.nsm/ns/nsm-system/")
        );
        for bad in ["", "forwarder", "=spiffe://a/", "forwarder=k8s.nsm"] {
            let error = bad.parse::<Provider>().unwrap_err().to_string();
            assert!(error.contains("service=spiffe://"), "{error}");
        }
    }

    #[test]
    fn strict_rules_say_who_asserts_and_who_provides() {
        let strict = Strict {
            asserters: "spiffe://a/nsmgr".parse().unwrap(),
            providers: "forwarder=spiffe://a/system/".parse().unwrap(),
        };
        let services = |name: &str| [name.to_owned()];
        assert!(strict.check("spiffe://a/nse", "spiffe://a/nse", &services("icmp")).is_ok(), "for itself");
        assert!(strict.check("spiffe://a/nse", "spiffe://a/nsmgr-1", &services("icmp")).is_ok());
        let told = strict.check("spiffe://a/nse", "spiffe://a/evil", &services("icmp")).unwrap_err();
        assert!(told.message().contains("VWIRE_REGISTRY_ASSERTERS"), "{told}");
        let told = strict.check("spiffe://a/nse", "spiffe://a/nse", &services("forwarder")).unwrap_err();
        assert_eq!(told.code(), tonic::Code::PermissionDenied);
        assert!(strict.check("spiffe://a/system/f", "spiffe://a/system/f", &services("forwarder")).is_ok());
        assert!(Strict::default().check("spiffe://a/b", "spiffe://a/c", &services("forwarder")).is_ok());
    }
}
