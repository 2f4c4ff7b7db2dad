//! `clientinfo`: where a client or an endpoint runs.

use async_trait::async_trait;
use tonic::Status;

use crate::api::connection::Connection;
use crate::api::labels::Labels;
use crate::api::networkservice::NetworkServiceRequest;
use crate::api::registry::NetworkServiceEndpoint;
use crate::chain::{Call, Element, Next};

/// The environment's variables and the labels that they become.
const VARIABLES: [(&str, &str); 3] =
    [("NODE_NAME", "nodeName"), ("POD_NAME", "podName"), ("CLUSTER_NAME", "clusterName")];

/// Adds the labels `nodeName`, `podName` and `clusterName` where they are absent.
#[derive(Debug, Clone, Default)]
pub struct ClientInfo {
    labels: Labels,
}

impl ClientInfo {
    /// From `NODE_NAME`, `POD_NAME` and `CLUSTER_NAME`; those that are not set add nothing.
    pub fn from_env() -> Self {
        Self::from(|variable| std::env::var(variable).ok())
    }

    /// As [`from_env`](Self::from_env), from elsewhere.
    pub fn from(value: impl Fn(&str) -> Option<String>) -> Self {
        let set = VARIABLES.iter().filter_map(|(variable, label)| {
            let value = value(variable).filter(|value| !value.is_empty())?;
            Some(((*label).to_owned(), value))
        });
        Self { labels: set.collect() }
    }

    /// Adds them to these.
    pub fn add_to(&self, labels: &mut Labels) {
        for (label, value) in &self.labels {
            labels.entry(label.clone()).or_insert_with(|| value.clone());
        }
    }

    /// Adds them to each service for which an endpoint registers labels; others stay without.
    pub fn add_to_endpoint(&self, endpoint: &mut NetworkServiceEndpoint) {
        endpoint
            .network_service_labels
            .values_mut()
            .for_each(|of_service| self.add_to(&mut of_service.labels));
    }
}

#[async_trait]
impl Element for ClientInfo {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        self.add_to(&mut request.connection.get_or_insert_default().labels);
        next.request(call, request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::registry::NetworkServiceLabels;

    fn info() -> ClientInfo {
        ClientInfo::from(|variable| match variable {
            "NODE_NAME" => Some("node-1".to_owned()),
            "CLUSTER_NAME" => Some(String::new()),
            _ => None,
        })
    }

    #[test]
    fn labels_are_added_where_absent_and_empty_variables_add_none() {
        let mut labels = Labels::new();
        info().add_to(&mut labels);
        assert_eq!(labels, Labels::from([("nodeName".to_owned(), "node-1".to_owned())]));
        let mut given = Labels::from([("nodeName".to_owned(), "mine".to_owned())]);
        info().add_to(&mut given);
        assert_eq!(given["nodeName"], "mine");
    }

    #[test]
    fn endpoints_get_them_for_services_with_labels() {
        let mut endpoint = NetworkServiceEndpoint {
            network_service_names: vec!["a".into(), "b".into()],
            ..Default::default()
        };
        endpoint.network_service_labels.insert("a".into(), NetworkServiceLabels::default());
        info().add_to_endpoint(&mut endpoint);
        assert_eq!(endpoint.network_service_labels["a"].labels["nodeName"], "node-1");
        assert!(!endpoint.network_service_labels.contains_key("b"));
    }
}
