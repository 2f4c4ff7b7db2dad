//! `swapip`: tunnels' addresses as other domains reach them, with the originals kept for the way back.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use tonic::Status;

use crate::api::connection::{Connection, Mechanism};
use crate::api::mechanism::{DST_IP, ORIG_DST_IP, ORIG_SRC_IP, SRC_IP};
use crate::api::networkservice::NetworkServiceRequest;
use crate::chain::{Call, Element, Next};
use crate::domain::AddressMap;

/// On the client's side the source is translated, on the endpoint's side the destination: the first proxy of a path sees a source
/// without an original. What carries no `src_ip` passes as it is.
pub struct SwapIp {
    addresses: Arc<AddressMap>,
}

impl SwapIp {
    /// By this map.
    pub fn new(addresses: Arc<AddressMap>) -> Self {
        Self { addresses }
    }

    /// Returns the sources as they were, by what others see of them, if this is the client's side.
    fn outward<'a>(&self, mechanisms: impl Iterator<Item = &'a mut Mechanism>) -> HashMap<String, String> {
        let mut originals = HashMap::new();
        for mechanism in mechanisms {
            let parameters = &mut mechanism.parameters;
            let Some(source) = parameters.get(SRC_IP).cloned() else { continue };
            if parameters.get(ORIG_SRC_IP).is_none_or(String::is_empty) {
                let seen = self.addresses.outward(&source);
                parameters.insert(SRC_IP.into(), seen.clone());
                parameters.insert(ORIG_SRC_IP.into(), source.clone());
                originals.insert(seen, source);
            } else {
                // The endpoint's forwarder says anew where it is.
                parameters.insert(DST_IP.into(), String::new());
                parameters.insert(ORIG_DST_IP.into(), String::new());
            }
        }
        originals
    }

    /// The answer's mechanism as the client's forwarder knows it: with its own address as it gave it.
    fn restore(mechanism: &mut Mechanism, originals: &HashMap<String, String>) {
        let parameters = &mut mechanism.parameters;
        let Some(source) = parameters.get(SRC_IP) else { return };
        // By what we sent ourselves: the other domain has no say in it.
        if let Some(original) = originals.get(source).cloned() {
            parameters.insert(SRC_IP.into(), original);
        }
        parameters.insert(ORIG_SRC_IP.into(), String::new());
    }

    /// The answer's mechanism as other domains see it.
    fn answer(&self, mechanism: &mut Mechanism) {
        let parameters = &mut mechanism.parameters;
        let Some(destination) = parameters.get(DST_IP).cloned().filter(|ip| !ip.is_empty()) else { return };
        let mapped = self.addresses.mapped(&destination);
        // A proxy between two others has nothing to add, and leaves the endpoint's own address to be seen.
        if mapped.is_none() && parameters.get(ORIG_DST_IP).is_some_and(|original| !original.is_empty()) {
            return;
        }
        parameters.insert(DST_IP.into(), mapped.unwrap_or_else(|| destination.clone()));
        parameters.insert(ORIG_DST_IP.into(), destination);
    }
}

#[async_trait]
impl Element for SwapIp {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let connection = request.connection.get_or_insert_default();
        let all = request.mechanism_preferences.iter_mut().chain(connection.mechanism.as_mut());
        let originals = self.outward(all);
        let mut made = next.request(call, request).await?;
        if let Some(mechanism) = &mut made.mechanism {
            if originals.is_empty() {
                if mechanism.parameters.contains_key(SRC_IP) {
                    self.answer(mechanism);
                }
            } else {
                Self::restore(mechanism, &originals);
            }
        }
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::mechanism::{REMOTE, VXLAN};
    use crate::chain::Chain;
    use crate::chain::testing::{call_by, connection, request};

    /// The endpoint's forwarder: takes the first preference and says where it is.
    struct Forwarder(&'static str);

    #[async_trait]
    impl Element for Forwarder {
        async fn request(
            &self,
            _: &mut Call,
            request: NetworkServiceRequest,
            _: Next<'_>,
        ) -> Result<Connection, Status> {
            let mut made = request.connection.unwrap();
            let mut mechanism = made.mechanism.take().unwrap_or(request.mechanism_preferences[0].clone());
            mechanism.parameters.insert(DST_IP.into(), self.0.into());
            made.mechanism = Some(mechanism);
            Ok(made)
        }
    }

    fn map(entries: &str) -> (tempfile::TempDir, Arc<AddressMap>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("map"), entries).unwrap();
        let map = Arc::new(AddressMap::new(dir.path().join("map")));
        (dir, map)
    }

    fn vxlan(source: &str) -> Mechanism {
        Mechanism {
            cls: REMOTE.into(),
            r#type: VXLAN.into(),
            parameters: [(SRC_IP.to_owned(), source.to_owned())].into_iter().collect(),
        }
    }

    fn parameters(connection: &Connection) -> Vec<(String, String)> {
        let all = &connection.mechanism.as_ref().unwrap().parameters;
        let mut all: Vec<_> = all.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        all.sort();
        all
    }

    fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[tokio::test]
    async fn each_side_translates_its_own_address_and_the_client_gets_its_own_back() {
        let (_a, near) = map("10.0.0.1: 192.0.2.1");
        let (_b, far) = map("10.0.0.1: 192.0.2.9");
        let (_c, middle) = map("");
        let again = Arc::clone(&far);
        let far = Chain::new("far", |_| vec![Arc::new(SwapIp::new(far)), Arc::new(Forwarder("10.0.0.1"))]);
        let swap = SwapIp::new(near.clone());
        let mut sent = vec![vxlan("10.0.0.1")];
        swap.outward(sent.iter_mut());
        let mut ask = request(connection(&["f/f-1", "p/p-1"]));
        ask.mechanism_preferences = sent;
        // As the other domain sees it.
        let made = far.request(&mut call_by("p"), ask.clone()).await.unwrap();
        let seen = [
            (DST_IP, "192.0.2.9"),
            (ORIG_DST_IP, "10.0.0.1"),
            (ORIG_SRC_IP, "10.0.0.1"),
            (SRC_IP, "192.0.2.1"),
        ];
        assert_eq!(parameters(&made), pairs(&seen));
        // As the client's forwarder sees it, by way of a third proxy.
        let whole = Chain::new("all", |_| {
            vec![
                Arc::new(SwapIp::new(near)),
                Arc::new(SwapIp::new(middle)),
                Arc::new(SwapIp::new(again)),
                Arc::new(Forwarder("10.0.0.1")),
            ]
        });
        ask.mechanism_preferences = vec![vxlan("10.0.0.1")];
        let made = whole.request(&mut call_by("f"), ask.clone()).await.unwrap();
        let back =
            [(DST_IP, "192.0.2.9"), (ORIG_DST_IP, "10.0.0.1"), (ORIG_SRC_IP, ""), (SRC_IP, "10.0.0.1")];
        assert_eq!(parameters(&made), pairs(&back));
        // A refresh has both in the connection's mechanism.
        ask.connection = Some(made);
        let again = whole.request(&mut call_by("f"), ask).await.unwrap();
        assert_eq!(parameters(&again), pairs(&back));
    }

    #[tokio::test]
    async fn an_address_that_no_map_names_stays_and_legs_without_one_pass() {
        let (_a, none) = map("");
        let chain = Chain::new("p", |_| vec![Arc::new(SwapIp::new(none)), Arc::new(Forwarder("10.0.0.2"))]);
        let mut ask = request(connection(&["f/f-1", "p/p-1"]));
        ask.mechanism_preferences = vec![vxlan("fd00::1")];
        let made = chain.request(&mut call_by("f"), ask.clone()).await.unwrap();
        assert_eq!(parameters(&made), pairs(&[(DST_IP, "10.0.0.2"), (ORIG_SRC_IP, ""), (SRC_IP, "fd00::1")]));
        ask.mechanism_preferences = vec![Mechanism { r#type: "VLAN".into(), ..Default::default() }];
        let made = chain.request(&mut call_by("f"), ask).await.unwrap();
        assert_eq!(parameters(&made), pairs(&[(DST_IP, "10.0.0.2")]));
    }
}
