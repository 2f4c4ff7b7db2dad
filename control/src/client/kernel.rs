//! The client's end of a vWire that is a kernel interface: made by the forwarder, pinged from here.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use tokio::sync::Mutex;
use vwire_proto::nsm::connection::Connection;

use super::ping::Pinger;
use super::{Alive, DataPath, Namespace};
use crate::endpoint::hosts;

/// Echo requests for each pair of addresses in one check; one answer is enough.
const COUNT: u32 = 4;

/// Pings each of the endpoint's addresses from each of the client's of the same family.
pub struct KernelPath {
    namespace: Namespace,
    timeout: Duration,
    /// By source and destination; kept open from check to check.
    pingers: Mutex<HashMap<(IpAddr, IpAddr), Pinger>>,
    warned: AtomicBool,
}

impl KernelPath {
    /// Interfaces in `namespace`. A check takes a little less than `timeout`.
    pub fn new(namespace: Namespace, timeout: Duration) -> Self {
        Self { namespace, timeout, pingers: Mutex::default(), warned: AtomicBool::new(false) }
    }

    async fn ping(&self, pair: (IpAddr, IpAddr), kept: Option<Pinger>) -> (Alive, Option<Pinger>) {
        let mut pinger = match kept {
            Some(pinger) => pinger,
            None => match Pinger::open_in(&self.namespace, pair.0).await {
                Ok(pinger) => pinger,
                Err(error) => return (self.without_socket(&error), None),
            },
        };
        match pinger.ping(pair.1, COUNT, self.timeout.mul_f64(0.9)).await {
            Ok(true) => (Alive::Yes, Some(pinger)),
            // No route, no interface: nothing gets out.
            Ok(false) | Err(_) => (Alive::No, None),
        }
    }

    /// The address is gone: dead. No right to ping: nobody knows.
    fn without_socket(&self, error: &io::Error) -> Alive {
        if error.kind() == io::ErrorKind::PermissionDenied {
            if !self.warned.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "no right to ping, so a dead data plane goes unnoticed; widen net.ipv4.ping_group_range in the namespace or \
                     give CAP_NET_RAW"
                );
            }
            return Alive::Unknown;
        }
        tracing::debug!(%error, "no socket to ping from");
        Alive::No
    }
}

#[async_trait]
impl DataPath for KernelPath {
    async fn closed(&self) {
        self.pingers.lock().await.clear();
    }

    async fn alive(&self, connection: &Connection) -> Alive {
        let pairs = pairs(connection);
        if pairs.is_empty() {
            return Alive::Unknown;
        }
        let mut kept = std::mem::take(&mut *self.pingers.lock().await);
        let pings = pairs.iter().map(|pair| self.ping(*pair, kept.remove(pair)));
        let answers = join_all(pings).await;
        let mut alive = Alive::Yes;
        let mut pingers = self.pingers.lock().await;
        for (pair, (answer, pinger)) in pairs.into_iter().zip(answers) {
            if let Some(pinger) = pinger {
                pingers.insert(pair, pinger);
            }
            alive = worse(alive, answer);
        }
        alive
    }
}

/// Each of the client's addresses with each of the endpoint's, of one family.
pub(super) fn pairs(connection: &Connection) -> Vec<(IpAddr, IpAddr)> {
    let Some(ip) = connection.context.as_ref().and_then(|context| context.ip_context.as_ref()) else {
        return Vec::new();
    };
    let dst = hosts(&ip.dst_ip_addrs);
    let with = |src: IpAddr| {
        dst.iter().filter(move |dst| dst.is_ipv4() == src.is_ipv4()).map(move |dst| (src, *dst))
    };
    hosts(&ip.src_ip_addrs).into_iter().flat_map(with).collect()
}

/// Any pair without an answer makes the connection dead.
pub(super) fn worse(one: Alive, other: Alive) -> Alive {
    match (one, other) {
        (Alive::No, _) | (_, Alive::No) => Alive::No,
        (Alive::Unknown, _) | (_, Alive::Unknown) => Alive::Unknown,
        _ => Alive::Yes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vwire_proto::nsm::connectioncontext::{ConnectionContext, IpContext};

    fn connection(src: &[&str], dst: &[&str]) -> Connection {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        let ip_context =
            IpContext { src_ip_addrs: texts(src), dst_ip_addrs: texts(dst), ..Default::default() };
        let context = ConnectionContext { ip_context: Some(ip_context), ..Default::default() };
        Connection { context: Some(context), ..Default::default() }
    }

    #[tokio::test]
    async fn every_pair_must_answer() {
        let path = KernelPath::new(Namespace::own().unwrap(), Duration::from_secs(5));
        assert_eq!(path.alive(&connection(&[], &["127.0.0.1/32"])).await, Alive::Unknown);
        assert_eq!(
            path.alive(&connection(&["127.0.0.1/32"], &["127.0.0.1/32", "127.0.0.2/32"])).await,
            Alive::Yes
        );
        assert_eq!(path.pingers.lock().await.len(), 2, "kept for the next check");
        let gone = connection(&["127.0.0.1/32", "192.0.2.1/32"], &["127.0.0.1/32"]);
        assert_eq!(path.alive(&gone).await, Alive::No);
        path.closed().await;
        assert!(path.pingers.lock().await.is_empty());
    }

    #[test]
    fn pairs_are_of_one_family() {
        let both = connection(&["10.0.0.1/32", "fd00::1/128"], &["10.0.0.0/32", "fd00::/128", "bad"]);
        let text: Vec<String> = pairs(&both).iter().map(|(src, dst)| format!("{src}>{dst}")).collect();
        assert_eq!(text, ["10.0.0.1>10.0.0.0", "fd00::1>fd00::"]);
        assert!(pairs(&Connection::default()).is_empty());
    }
}
