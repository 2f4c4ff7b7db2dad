//! What the roles of a process put at the admin port's disposal.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use async_trait::async_trait;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use serde_json::{Map, Value};

use super::{ConnectionView, Metrics, Status};
use crate::config::Effective;
use crate::identity::Identity;

/// What a role reports when it is asked.
#[async_trait]
pub trait Reporter: Send + Sync + 'static {
    /// The connections that it holds.
    async fn connections(&self) -> Vec<ConnectionView> {
        Vec::new()
    }

    /// Does what an operator asks for at `/do/VERB`; none if the role knows no such verb. What takes long goes on behind.
    async fn act(&self, _verb: &str) -> Option<Result<String, String>> {
        None
    }

    /// Figures for `vwire status`: `services`, `endpoints`, `watches`, `ports`, …
    async fn report(&self) -> Map<String, Value> {
        Map::new()
    }
}

/// One role's place at its process's admin port. Clones are the same place.
#[derive(Clone)]
pub struct Admin {
    process: Arc<Shared>,
    role: Arc<Role>,
}

/// What is of the process.
struct Shared {
    role: String,
    name: String,
    started: Instant,
    roles: RwLock<Vec<Arc<Role>>>,
    effective: RwLock<Effective>,
    identity: RwLock<Option<Identity>>,
    registry: Mutex<Registry>,
}

/// What is of one role.
struct Role {
    role: String,
    metrics: Arc<Metrics>,
    reporter: RwLock<Option<Arc<dyn Reporter>>>,
    waits_for: Mutex<BTreeSet<&'static str>>,
}

/// A lock whose holder panicked still guards values that were assigned whole.
macro_rules! whole {
    ($lock:expr) => {
        $lock.unwrap_or_else(PoisonError::into_inner)
    };
}

impl Admin {
    /// A place for the only, or first, role of a process.
    pub fn new(role: &str, name: &str) -> Self {
        let process = Arc::new(Shared {
            role: role.to_owned(),
            name: name.to_owned(),
            started: Instant::now(),
            roles: RwLock::default(),
            effective: RwLock::default(),
            identity: RwLock::default(),
            registry: Mutex::new(Registry::with_prefix("vwire")),
        });
        Self::place(&process, role, name)
    }

    /// A place for another role of the same process: `vwire node` has a manager and a forwarder.
    #[must_use]
    pub fn for_role(&self, role: &str, name: &str) -> Self {
        Self::place(&self.process, role, name)
    }

    fn place(process: &Arc<Shared>, role: &str, name: &str) -> Self {
        let mut registry = whole!(process.registry.lock());
        let labelled = registry.sub_registry_with_labels(
            [("role", role), ("name", name)].map(|(k, v)| (k.into(), v.to_owned().into())).into_iter(),
        );
        let metrics = Arc::new(Metrics::new(labelled));
        drop(registry);
        let role = Arc::new(Role {
            role: role.to_owned(),
            metrics,
            reporter: RwLock::default(),
            waits_for: Mutex::default(),
        });
        whole!(process.roles.write()).push(Arc::clone(&role));
        Self { process: Arc::clone(process), role }
    }

    /// What every role counts.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.role.metrics
    }

    /// Adds metrics of the role's own; their names get the prefix `vwire_`.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut whole!(self.process.registry.lock()));
    }

    /// Says who answers for this role's connections and figures.
    pub fn report(&self, reporter: Arc<dyn Reporter>) {
        *whole!(self.role.reporter.write()) = Some(reporter);
    }

    /// The process is not ready while `what` is waited for: "its SVID", "the engine".
    pub fn wait(&self, what: &'static str) {
        whole!(self.role.waits_for.lock()).insert(what);
    }

    /// `what` is there.
    pub fn ready(&self, what: &'static str) {
        whole!(self.role.waits_for.lock()).remove(what);
    }

    /// What is waited for.
    pub fn not_ready(&self) -> Vec<String> {
        let mut all = Vec::new();
        for role in self.roles() {
            let waits_for = whole!(role.waits_for.lock());
            all.extend(waits_for.iter().map(|what| format!("{} waits for {what}", role.role)));
        }
        all
    }

    /// What `/config` shows.
    pub fn settings(&self, effective: Effective) {
        *whole!(self.process.effective.write()) = effective;
    }

    /// What `/config` shows.
    pub fn effective(&self) -> Effective {
        whole!(self.process.effective.read()).clone()
    }

    /// Whose SVID `/status` shows.
    pub fn identity(&self, identity: Identity) {
        *whole!(self.process.identity.write()) = Some(identity);
    }

    fn roles(&self) -> Vec<Arc<Role>> {
        whole!(self.process.roles.read()).clone()
    }

    fn reporters(&self) -> Vec<(String, Arc<dyn Reporter>)> {
        let reporter = |role: Arc<Role>| Some((role.role.clone(), whole!(role.reporter.read()).clone()?));
        self.roles().into_iter().filter_map(reporter).collect()
    }

    /// Does what an operator asks of whichever role knows the verb; none if none does.
    pub async fn act(&self, verb: &str) -> Option<Result<String, String>> {
        for (_, reporter) in self.reporters() {
            if let Some(done) = reporter.act(verb).await {
                return Some(done);
            }
        }
        None
    }

    /// The connections of all roles of this process.
    pub async fn connections(&self) -> Vec<ConnectionView> {
        let mut all = Vec::new();
        for (role, reporter) in self.reporters() {
            let connections = reporter.connections().await.into_iter();
            all.extend(connections.map(|view| ConnectionView { role: role.clone(), ..view }));
        }
        all
    }

    /// How the process is.
    pub async fn status(&self) -> Status {
        let connections = self.connections().await;
        let mut reports = Map::new();
        for (_, reporter) in self.reporters() {
            reports.extend(reporter.report().await);
        }
        let identity = whole!(self.process.identity.read()).clone();
        let svid = identity.as_ref().and_then(Identity::current);
        let up = connections.iter().filter(|connection| connection.state == "UP").count();
        Status {
            role: self.process.role.clone(),
            name: self.process.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.process.started.elapsed().as_secs(),
            not_ready: self.not_ready(),
            insecure: identity.is_some() && svid.is_none(),
            spiffe_id: svid.as_ref().map(|svid| svid.id.to_string()),
            svid_expires: svid.map(|svid| super::view::seconds(svid.not_after)),
            up,
            down: connections.len() - up,
            reports,
        }
    }

    /// All metrics in Prometheus' text format.
    pub fn metrics_text(&self) -> String {
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = text::encode(&mut text, &whole!(self.process.registry.lock()));
        text
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic::Code;

    use super::*;
    use crate::obs::Operation;

    struct Two(&'static str);

    #[async_trait]
    impl Reporter for Two {
        async fn connections(&self) -> Vec<ConnectionView> {
            ["UP", "DOWN"]
                .map(|state| ConnectionView { state: state.to_owned(), ..Default::default() })
                .into()
        }

        async fn report(&self) -> Map<String, Value> {
            Map::from_iter([(self.0.to_owned(), Value::from(3))])
        }
    }

    #[tokio::test]
    async fn two_roles_of_a_process_share_the_port_and_keep_apart() {
        let manager = Admin::new("node", "node-1");
        let forwarder = manager.for_role("forwarder", "fwd-1");
        manager.report(Arc::new(Two("endpoints")));
        forwarder.report(Arc::new(Two("ports")));
        forwarder.wait("the engine");
        let status = manager.status().await;
        assert_eq!((status.up, status.down), (2, 2));
        assert_eq!(status.reports.keys().collect::<Vec<_>>(), ["endpoints", "ports"]);
        assert_eq!(status.not_ready, ["forwarder waits for the engine"]);
        assert_eq!((status.role.as_str(), status.name.as_str()), ("node", "node-1"));
        forwarder.ready("the engine");
        assert!(manager.not_ready().is_empty());
        let roles: Vec<String> = manager.connections().await.into_iter().map(|view| view.role).collect();
        assert_eq!(roles, ["node", "node", "forwarder", "forwarder"]);

        forwarder.metrics().answered(Operation::Request, Code::Ok, Duration::from_millis(2));
        manager.metrics().answered(Operation::Request, Code::NotFound, Duration::from_millis(2));
        let text = manager.metrics_text();
        for line in [
            r#"vwire_calls_total{operation="request",outcome="ok",role="forwarder",name="fwd-1"} 1"#,
            r#"vwire_calls_total{operation="request",outcome="not_found",role="node",name="node-1"} 1"#,
        ] {
            assert!(text.contains(line) || has(&text, line), "{line} in\n{text}");
        }
    }

    /// Whether there is a line with the same labels in another order.
    fn has(text: &str, line: &str) -> bool {
        let sorted = |line: &str| {
            let mut parts: Vec<String> =
                line.split(['{', '}', ',']).map(|part| part.trim().to_owned()).collect();
            parts.sort();
            parts
        };
        text.lines().any(|other| sorted(other) == sorted(line))
    }
}
