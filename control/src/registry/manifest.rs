//! Network services from a file (`VWIRE_REGISTRY_SERVICES`): NSM's Kubernetes resources, for a registry that has no Kubernetes.
//!
//! ```yaml
//! apiVersion: networkservicemesh.io/v1
//! kind: NetworkService
//! metadata:
//!   name: icmp-responder
//! spec:
//!   payload: ETHERNET          # IP if left out
//!   matches:
//!     - source_selector: {app: web}
//!       routes:
//!         - destination_selector: {zone: "{{.zone}}"}
//!           weight: 2
//!       fallthrough: true
//! ```
//!
//! The file's services are the operator's: nobody else registers or removes one of their names. They follow the file; one that can't be
//! read changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tonic::Status;
use vwire_proto::nsm::registry::{Destination, Match, Metadata, NetworkService};

use super::memory::Store;
use super::{Owner, Registry, RegistryCall, find};
use crate::api::mechanism;

/// How often it is looked whether the file has changed.
const LOOK: Duration = Duration::from_secs(1);
/// A store in memory answers at once.
const TIME: Duration = Duration::from_secs(5);
/// Largest file that is read, bytes.
const MAX_SIZE: u64 = 16 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Resource {
    api_version: String,
    kind: String,
    metadata: Named,
    #[serde(default)]
    spec: Spec,
}

/// Kubernetes' metadata has more, which means nothing here.
#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Spec {
    /// As in metadata, where a tool has written it twice.
    #[serde(default)]
    name: String,
    #[serde(default)]
    payload: String,
    #[serde(default)]
    matches: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    #[serde(default, alias = "sourceSelector")]
    source_selector: BTreeMap<String, String>,
    #[serde(default)]
    routes: Vec<Route>,
    #[serde(default)]
    fallthrough: bool,
    metadata: Option<Labels>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Route {
    #[serde(default, alias = "destinationSelector")]
    destination_selector: BTreeMap<String, String>,
    #[serde(default)]
    weight: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Labels {
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

impl Resource {
    fn service(self) -> Result<NetworkService, String> {
        let bad =
            |field: &str, is: &str, wanted: &str| Err(format!("{field}: {is:?}; only {wanted} is read here"));
        if self.api_version != "networkservicemesh.io/v1" {
            return bad("apiVersion", &self.api_version, "networkservicemesh.io/v1");
        }
        if self.kind != "NetworkService" {
            return bad("kind", &self.kind, "NetworkService");
        }
        let name = self.metadata.name;
        if name.is_empty() || !self.spec.name.is_empty() && self.spec.name != name {
            return Err(format!(
                "metadata.name: {name:?}, spec.name: {:?}; write one name, in metadata",
                self.spec.name
            ));
        }
        let route = |route: Route| Destination {
            destination_selector: route.destination_selector,
            weight: route.weight,
        };
        let rule = |rule: Rule| Match {
            source_selector: rule.source_selector,
            routes: rule.routes.into_iter().map(route).collect(),
            fallthrough: rule.fallthrough,
            metadata: rule.metadata.map(|metadata| Metadata { labels: metadata.labels }),
        };
        Ok(NetworkService {
            name,
            payload: self.spec.payload,
            matches: self.spec.matches.into_iter().map(rule).collect(),
            path_ids: Vec::new(),
        })
    }
}

/// The services of a text: YAML documents, or JSON.
fn parse(text: &str) -> Result<Vec<NetworkService>, String> {
    let mut services = Vec::<NetworkService>::new();
    for (number, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let at = |reason: String| format!("document {}: {reason}", number + 1);
        // Nothing between two separators is a document, too.
        let resource = Option::<Resource>::deserialize(document).map_err(|error| at(error.to_string()))?;
        let Some(resource) = resource else { continue };
        let service = resource.service().map_err(at)?;
        if services.iter().any(|other| other.name == service.name) {
            return Err(at(format!("metadata.name: {:?} is there twice", service.name)));
        }
        services.push(service);
    }
    Ok(services)
}

fn read(file: &Path) -> Result<String, String> {
    let size = std::fs::metadata(file).map_err(|error| error.to_string())?.len();
    if size > MAX_SIZE {
        return Err(format!("{size} bytes; at most {MAX_SIZE} are read"));
    }
    std::fs::read_to_string(file).map_err(|error| error.to_string())
}

/// Services that a file names, in a store.
pub struct Manifest {
    file: PathBuf,
    text: String,
    store: Arc<Store>,
    owner: Arc<str>,
}

impl Manifest {
    /// Registers what the file names for `owner`, the registry's own SPIFFE ID, and takes away what it has named before: the store may
    /// be kept in a file of its own.
    ///
    /// # Errors
    /// Why the file can't be read, which field of which document is wrong, or which service is too much for the store's limits.
    pub async fn load(file: &Path, store: Arc<Store>, owner: &str) -> Result<Self, String> {
        let shown = |reason: String| format!("{}: {reason}", file.display());
        let text = read(file).map_err(shown)?;
        let manifest = Self { file: file.to_owned(), text, store, owner: owner.into() };
        let services = parse(&manifest.text).map_err(shown)?;
        manifest.put(services).await.map_err(|status| shown(status.message().to_owned()))?;
        Ok(manifest)
    }

    /// Follows the file for ever.
    pub async fn follow(mut self) {
        let mut complaint = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let file = self.file.clone();
            let text = tokio::task::spawn_blocking(move || read(&file)).await;
            let text = text.unwrap_or_else(|error| Err(error.to_string()));
            if text.as_ref() == Ok(&self.text) {
                complaint = None;
                continue;
            }
            let changed = self.change(text).await;
            if let Err(reason) = &changed
                && changed != complaint.clone().map_or(Ok(()), Err)
            {
                tracing::warn!(file = %self.file.display(), reason, "services stay as they were");
            }
            complaint = changed.err();
        }
    }

    async fn change(&mut self, text: Result<String, String>) -> Result<(), String> {
        let text = text?;
        let services = parse(&text)?;
        let count = services.len();
        self.put(services).await.map_err(|status| status.message().to_owned())?;
        self.text = text;
        tracing::info!(file = %self.file.display(), services = count, "services of the file");
        Ok(())
    }

    /// Makes the store's services of the file these.
    async fn put(&self, services: Vec<NetworkService>) -> Result<(), Status> {
        let names: BTreeSet<String> = services.iter().map(|service| service.name.clone()).collect();
        let all = find::services(&*self.store, &mut self.call(), NetworkService::default()).await?;
        let ours = |service: &NetworkService| service.path_ids.iter().eq([&*self.owner]);
        for mut service in services {
            service.path_ids = vec![self.owner.to_string()];
            if service.payload.is_empty() {
                service.payload = mechanism::PAYLOAD_IP.to_owned();
            }
            if !all.iter().any(|there| **there == service) {
                self.store.register_service(&mut self.call(), service).await?;
            }
        }
        for gone in all.iter().filter(|service| ours(service) && !names.contains(&service.name)) {
            self.store.unregister_service(&mut self.call(), (**gone).clone()).await?;
        }
        Ok(())
    }

    fn call(&self) -> RegistryCall {
        let owner = Owner { identity: Arc::clone(&self.owner), asserter: Arc::clone(&self.owner) };
        RegistryCall { owner: Some(owner), ..RegistryCall::internal("services of a file", TIME) }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::registry::memory::Settings;

    const TWO: &str = r#"
apiVersion: networkservicemesh.io/v1
kind: NetworkService
metadata: {name: one, namespace: nsm-system}
spec:
  payload: ETHERNET
  name: one
  matches:
    - source_selector: {app: web}
      routes: [{destination_selector: {zone: "{{.zone}}"}, weight: 2}]
      fallthrough: true
    - metadata: {labels: {p2mp: "true"}}
      routes: [{}]
---
---
{"apiVersion": "networkservicemesh.io/v1", "kind": "NetworkService", "metadata": {"name": "two"}}
"#;

    #[test]
    fn resources_are_read_and_what_is_wrong_is_named() {
        let services = parse(TWO).unwrap();
        let names: Vec<&str> = services.iter().map(|service| service.name.as_str()).collect();
        assert_eq!(names, ["one", "two"]);
        let [web, rest] = &services[0].matches[..] else { panic!("{services:?}") };
        assert!(web.fallthrough && web.source_selector["app"] == "web" && web.routes[0].weight == 2);
        assert_eq!(web.routes[0].destination_selector["zone"], "{{.zone}}");
        assert_eq!(rest.metadata.as_ref().unwrap().labels["p2mp"], "true");
        assert!(parse("").unwrap().is_empty() && parse("# nothing\n").unwrap().is_empty());
        for (text, complaint) in [
            (TWO.replace("kind: NetworkService\n", "kind: Pod\n"), r#"document 1: kind: "Pod""#),
            (TWO.replace("mesh.io/v1\nkind", "mesh.io/v2\nkind"), "document 1: apiVersion"),
            (
                TWO.replace("name\": \"two", "name\": \"one"),
                r#"document 3: metadata.name: "one" is there twice"#,
            ),
            (TWO.replace("name: one\n", "name: other\n"), r#"spec.name: "other""#),
            (TWO.replace("fallthrough", "falthrough"), "falthrough"),
            (TWO.replace("weight: 2", "weight: -2"), "weight"),
            ("a: [".to_owned(), "document 1"),
        ] {
            let refused = parse(&text).unwrap_err();
            assert!(refused.contains(complaint), "{complaint}: {refused}");
        }
    }

    const OURS: &str = "spiffe://a/registry";

    fn call() -> RegistryCall {
        RegistryCall::internal("test", TIME)
    }

    async fn names(store: &Store) -> Vec<String> {
        let all = find::services(store, &mut call(), NetworkService::default()).await.unwrap();
        all.iter().map(|service| service.name.clone()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    #[tokio::test]
    async fn the_files_services_are_the_operators_and_follow_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("services.yaml");
        let nothing = Arc::new(Store::new(Settings::default()));
        assert!(Manifest::load(&file, nothing, OURS).await.is_err(), "no file");
        std::fs::write(&file, TWO).unwrap();
        let store = Arc::new(Store::new(Settings::default()));
        let mut manifest = Manifest::load(&file, Arc::clone(&store), OURS).await.unwrap();
        assert_eq!(names(&store).await, ["one", "two"]);
        let two = find::service(&*store, &mut call(), "two").await.unwrap();
        assert_eq!(two.payload, "IP", "what is left out");

        let somebody = Owner { identity: "spiffe://a/b".into(), asserter: "spiffe://a/b".into() };
        let theirs = || RegistryCall { owner: Some(somebody.clone()), ..call() };
        let one = NetworkService { name: "one".into(), ..Default::default() };
        let refused = store.register_service(&mut theirs(), one.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert_eq!(
            store.unregister_service(&mut theirs(), one).await.unwrap_err().code(),
            Code::PermissionDenied
        );
        let own = NetworkService { name: "own".into(), ..Default::default() };
        store.register_service(&mut theirs(), own).await.unwrap();

        let only_two = TWO.rsplit("---").next().unwrap();
        for (text, there) in
            [("a: [", &["one", "own", "two"][..]), (only_two, &["own", "two"]), ("", &["own"])]
        {
            let changed = manifest.change(Ok(text.to_owned())).await;
            assert_eq!(changed.is_err(), text == "a: [", "{changed:?}");
            assert_eq!(names(&store).await, there);
        }
    }
}
