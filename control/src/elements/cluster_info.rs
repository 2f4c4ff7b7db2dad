//! `clusterinfo`: which cluster a client is of.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::Status;

use crate::api::connection::Connection;
use crate::api::networkservice::NetworkServiceRequest;
use crate::chain::{Call, Element, Next};
use crate::config::WatchedMap;

/// Where the file is by default; a configuration map becomes it.
pub const FILE: &str = "/etc/clusterinfo/config.yaml";

/// Puts each `key: value` of a file among a connection's labels, in place of what the client says there.
pub struct ClusterInfo(pub Arc<WatchedMap>);

#[async_trait]
impl Element for ClusterInfo {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let labels = &mut request.connection.get_or_insert_default().labels;
        labels.extend(self.0.current().iter().map(|(key, value)| (key.clone(), value.clone())));
        next.request(call, request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::Chain;
    use crate::chain::testing::{call_by, connection, request};

    #[tokio::test]
    async fn the_clusters_labels_are_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.yaml");
        std::fs::write(&file, "clusterName: cluster-1\n").unwrap();
        let chain = Chain::new("p", |_| vec![Arc::new(ClusterInfo(Arc::new(WatchedMap::new(&file))))]);
        let mut one = connection(&["f/f-1", "p/p-1"]);
        one.labels.insert("clusterName".into(), "another".into());
        one.labels.insert("app".into(), "web".into());
        let made = chain.request(&mut call_by("f"), request(one)).await.unwrap();
        assert_eq!((&*made.labels["clusterName"], &*made.labels["app"]), ("cluster-1", "web"));
    }
}
