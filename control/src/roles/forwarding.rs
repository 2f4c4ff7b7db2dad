//! Forwarding what a domain has registered to a registry of several domains: a part of its registry, or of its proxy, as the first NSM had
//! it. One of both does it: the other registry takes a name from one of them only.

use std::sync::Arc;
use std::time::Duration;

use super::Process;
use crate::config::{self, Maybe};
use crate::registry::Registry;
use crate::registry::authorize::TokenRules;
use crate::registry::mirror::{self, Outside};
use crate::registry::remote::Remote;
use crate::transport::Target;

/// Endpoints register again within seconds after their registry was away.
const GRACE: Duration = Duration::from_secs(15);

/// The settings, flattened into those of the role.
#[derive(Debug, Clone, clap::Args)]
pub struct Forwarding {
    /// A registry of several domains (`vwire nsmrs`): what is registered in our domain is registered there, too. Nobody here waits for it.
    #[arg(long, env = "NSMRS_ADDRESS", value_name = "ADDRESS", default_value = "")]
    pub nsmrs_address: Maybe<Target>,

    /// How often that is repeated, so that it is not forgotten there: a duration, or seconds.
    #[arg(long, env = "NSE_TRACKING_INTERVAL", value_name = "DURATION", default_value = "2m", value_parser = config::seconds)]
    pub tracking_interval: Duration,

    /// The URL that our endpoints have there: our nsmgr-proxy's, as other domains reach it. If it is empty a proxy says its own, and a registry
    /// leaves each endpoint's as it is.
    #[arg(long, env = "VWIRE_NSMRS_ENDPOINT_URL", value_name = "URL", default_value = "")]
    pub nsmrs_endpoint_url: Maybe<Target>,

    /// The service of forwarders, which are not registered there.
    #[arg(
        long,
        env = "NSM_FORWARDER_NETWORK_SERVICE_NAME",
        value_name = "NAME",
        default_value = "forwarder"
    )]
    pub forwarder_network_service_name: String,
}

impl Forwarding {
    /// # Errors
    /// What is wrong with the settings, with the variable's name.
    pub fn check(&self) -> Result<(), String> {
        match self.tracking_interval < Duration::from_secs(1) {
            true => Err(format!("NSE_TRACKING_INTERVAL: {:?} is below 1s", self.tracking_interval)),
            false => Ok(()),
        }
    }

    /// Forwards what is in `ours` until the process ends, if there is somewhere to. `outside` is the URL that endpoints get unless the settings
    /// name one.
    pub fn start(
        &self,
        process: &Process,
        rules: Option<Arc<dyn TokenRules>>,
        ours: Arc<dyn Registry>,
        outside: Option<Outside>,
    ) {
        let Some(target) = self.nsmrs_address.0.clone() else { return };
        let there = Remote::new(Arc::clone(&process.pool), target).with_rules(rules);
        let named = self.nsmrs_endpoint_url.0.as_ref().map(ToString::to_string);
        let how = mirror::Settings {
            interval: self.tracking_interval,
            grace: GRACE,
            outside: named.map(|url| Arc::new(move || url.clone()) as Outside).or(outside),
            private: [self.forwarder_network_service_name.clone()].into(),
            domain: process.identity.current().map(|svid| svid.id.trust_domain().clone()),
        };
        tokio::spawn(mirror::run(ours, Arc::new(there), how, process.shutdown.clone()));
    }
}
