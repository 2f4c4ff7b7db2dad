//! `forwarder`: vwire's forwarder without a data plane. Its chain is that of `vwire forwarder`, but mechanisms are only agreed on, and
//! no engine is told. The Go peers' forwarder has the same: `NSM_DATAPLANE=none`.

use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use vwire_control::api::connection::{Connection, Mechanism};
use vwire_control::api::mechanism::{KERNEL, LOCAL};
use vwire_control::api::networkservice::NetworkServiceRequest;
use vwire_control::api::registry::{NetworkServiceEndpoint, NetworkServiceLabels};
use vwire_control::chain::service::Service;
use vwire_control::chain::{Call, Chain, Element, Next};
use vwire_control::elements::monitor::Strictness;
use vwire_control::elements::{
    Authorize, Begin, Binding, Connect, Discover, Follow, ForgetFds, Hub, Monitor, RecvFd, RoundRobin,
    SendFd, Timeout, TrimPath, UpdatePath, UpdateToken,
};
use vwire_control::identity::policy::Policies;
use vwire_control::registry::Registry;
use vwire_control::registry::cache::Cached;
use vwire_control::registry::keeper::Keeper;
use vwire_control::registry::remote::Remote;
use vwire_control::transport::{Limits, Server, Target};

use crate::{Common, Member, text};

const NAME: &str = "forwarder";

/// The forwarder's settings.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    #[command(flatten)]
    common: Common,
    /// Where we listen, and what we register.
    #[arg(long, env = "NSM_LISTEN_ON")]
    listen_on: Target,
}

/// Forwards until the process is ended.
pub async fn run(settings: Settings) -> Result<(), String> {
    let member = Member::new(&settings.common).await?;
    let pool = member.pool();
    let policies = Arc::new(Policies::standard());
    let manager =
        Remote::new(Arc::clone(&pool), settings.common.connect_to.clone()).with_rules(Some(policies.clone()));
    let registry: Arc<dyn Registry> = Arc::new(Cached::new(manager));
    let hub = Hub::new(Strictness::Strict);
    let follow = Follow::new(NAME, Arc::clone(&hub), Arc::clone(&pool));
    let chain = Chain::new(NAME, |handle| {
        let elements: Vec<Arc<dyn Element>> = vec![
            Arc::new(UpdatePath::new(NAME)),
            Arc::new(Begin::new(Binding::Healing)),
            Arc::new(UpdateToken::new(member.tokens.clone())),
            Arc::new(Authorize::new(policies)),
            Arc::new(Timeout::new(handle)),
            Arc::new(Monitor::new(Arc::clone(&hub))),
            Arc::new(TrimPath),
            Arc::new(ForgetFds),
            Arc::new(RecvFd),
            Arc::new(SendFd),
            Arc::new(Discover::new(Arc::clone(&registry))),
            Arc::new(RoundRobin::default()),
            Arc::new(AgreeOnly),
            Arc::new(Connect::new(Arc::clone(&pool)).following(follow)),
        ];
        elements
    });
    let service = Service::new(chain, hub, member.identity.clone());
    let server =
        Server::bind(std::slice::from_ref(&settings.listen_on), Limits::default()).await.map_err(text)?;
    let labels = NetworkServiceLabels { labels: [("p2p".to_owned(), "true".to_owned())].into() };
    let endpoint = NetworkServiceEndpoint {
        name: NAME.into(),
        network_service_names: vec![NAME.into()],
        network_service_labels: [(NAME.to_owned(), labels)].into(),
        url: settings.listen_on.to_string(),
        ..Default::default()
    };
    let _registered = Keeper::start(registry, Vec::new(), endpoint);
    let routes = service.add_to(tonic::service::Routes::default());
    server.serve(member.identity, routes, CancellationToken::new()).await.map_err(text)
}

/// Takes the client's first mechanism, offers the next hop a kernel interface, and makes neither.
struct AgreeOnly;

/// What was agreed with the next hop.
struct Onward(Mechanism);

#[async_trait]
impl Element for AgreeOnly {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let connection = request.connection.get_or_insert_default();
        let agreed = connection.mechanism.take().or_else(|| request.mechanism_preferences.first().cloned());
        connection.mechanism = call.state.get::<Onward>().map(|onward| onward.0.clone());
        let offer = Mechanism { cls: LOCAL.into(), r#type: KERNEL.into(), ..Default::default() };
        request.mechanism_preferences = vec![offer];
        let mut answer = next.request(call, request).await?;
        let onward = std::mem::replace(&mut answer.mechanism, agreed);
        call.state.insert(Onward(onward.unwrap_or_default()));
        Ok(answer)
    }

    async fn close(&self, call: &mut Call, mut connection: Connection, next: Next<'_>) -> Result<(), Status> {
        connection.mechanism = call.state.remove::<Onward>().map(|onward| onward.0);
        next.close(call, connection).await
    }
}
