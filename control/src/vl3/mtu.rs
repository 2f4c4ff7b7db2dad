//! The MTU of the whole network: that of its smallest link (sdk, connectioncontext/mtu/vl3mtu).
//!
//! A link's MTU is what its hops left of it when it was made; whoever asks later is told at most what the network has. When a link is
//! made that takes less, everybody else is asked to refresh. The MTU rises again only when those who had less are gone: nobody can say
//! what a link would take that was told to take less.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::{Notify, watch};
use tonic::Status;
use vwire_proto::nsm::connection::Connection;
use vwire_proto::nsm::networkservice::NetworkServiceRequest;

use crate::chain::{Call, Element, Next};

/// What a network without links has.
pub const JUMBO: u32 = 9000;

/// The least that a link may have, so that nobody can make the network useless for the others: that of IPv6 (RFC 8200 §5).
pub const LEAST: u32 = 1280;

/// The network's MTU, shared by clients' links and those to other endpoints.
pub struct NetworkMtu {
    links: Mutex<HashMap<String, u32>>,
    least: watch::Sender<u32>,
    /// Some link has more than the network.
    more: Notify,
}

impl Default for NetworkMtu {
    fn default() -> Self {
        Self { links: Mutex::default(), least: watch::Sender::new(JUMBO), more: Notify::new() }
    }
}

impl NetworkMtu {
    /// Bytes of the longest packet, with its IP header.
    pub fn get(&self) -> u32 {
        *self.least.borrow()
    }

    /// The MTU, and each that takes its place.
    pub fn watch(&self) -> watch::Receiver<u32> {
        self.least.subscribe()
    }

    /// What a Request is to say that says `mtu`; 0 is nothing.
    pub fn limit(&self, mtu: u32) -> u32 {
        if mtu == 0 { self.get() } else { mtu.min(self.get()) }
    }

    /// A link that was made, or refreshed, and what was left for it. `id` is anything that is the link's own.
    pub fn put(&self, id: &str, mtu: u32) {
        self.change(|links| _ = links.insert(id.to_owned(), if mtu == 0 { JUMBO } else { mtu }));
    }

    /// A link that is gone.
    pub fn remove(&self, id: &str) {
        self.change(|links| _ = links.remove(id));
    }

    fn change(&self, change: impl FnOnce(&mut HashMap<String, u32>)) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut links);
        let now = links.values().copied().min().unwrap_or(JUMBO).min(JUMBO);
        self.least.send_if_modified(|least| std::mem::replace(least, now) != now);
        if links.values().any(|mtu| *mtu > now) {
            self.more.notify_one();
        }
    }

    /// The links that were told more than the network has.
    pub fn too_large(&self) -> Vec<String> {
        let (links, now) = (self.links.lock().unwrap_or_else(PoisonError::into_inner), self.get());
        links.iter().filter(|(_, mtu)| **mtu > now).map(|(id, _)| id.clone()).collect()
    }

    /// Waits until there are some. For one who waits.
    pub async fn some_too_large(&self) {
        self.more.notified().await;
    }
}

/// The network's MTU as a step of the chain.
pub struct KeepMtu(Arc<NetworkMtu>);

impl KeepMtu {
    /// Of this network.
    pub fn new(mtu: Arc<NetworkMtu>) -> Self {
        Self(mtu)
    }
}

#[async_trait]
impl Element for KeepMtu {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let context = request.connection.get_or_insert_default().context.get_or_insert_default();
        if (1..LEAST).contains(&context.mtu) {
            return Err(Status::invalid_argument(format!(
                "context.mtu: {} bytes; every link of this network has to take {LEAST}",
                context.mtu
            )));
        }
        context.mtu = self.0.limit(context.mtu);
        let answer = next.request(call, request).await?;
        self.0.put(&answer.id, answer.context.as_ref().map_or(0, |context| context.mtu));
        Ok(answer)
    }

    async fn close(&self, call: &mut Call, connection: Connection, next: Next<'_>) -> Result<(), Status> {
        self.0.remove(&connection.id);
        next.close(call, connection).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_link_decides() {
        let mtu = NetworkMtu::default();
        let mut seen = mtu.watch();
        assert_eq!((mtu.limit(0), mtu.limit(1500), mtu.limit(65_000)), (JUMBO, 1500, JUMBO));
        mtu.put("a", mtu.limit(0));
        assert!(!seen.has_changed().unwrap(), "nobody has to be told");
        mtu.put("b", 1400);
        assert!(seen.has_changed().unwrap());
        assert_eq!((*seen.borrow_and_update(), mtu.limit(0), mtu.limit(1300)), (1400, 1400, 1300));
        assert_eq!(mtu.too_large(), ["a"]);
        mtu.put("a", mtu.limit(9000));
        assert_eq!(mtu.too_large(), [""; 0]);
        mtu.remove("b");
        assert_eq!(mtu.get(), 1400, "what `a` would take is not known");
        mtu.remove("a");
        assert_eq!(mtu.get(), JUMBO);
    }
}
