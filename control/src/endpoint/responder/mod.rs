//! Hosts on memif interfaces: they answer ARP, neighbour solicitations and pings, and can ping themselves. Many interfaces are
//! served by few threads.

mod host;
mod worker;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

pub use host::{Heard, Host, Mac};
pub use worker::Port;
use worker::{Interface, Links, Order, Worker};

/// The threads.
pub struct Responder {
    workers: Vec<Worker>,
    next: AtomicUsize,
    ids: AtomicU64,
}

impl Responder {
    /// Starts this many threads, at least one.
    ///
    /// # Errors
    /// The kernel's, if no thread or descriptor is left.
    pub fn start(threads: usize) -> std::io::Result<Arc<Self>> {
        let workers = (0..threads.max(1)).map(Worker::start).collect::<Result<_, _>>()?;
        Ok(Arc::new(Self { workers, next: AtomicUsize::new(0), ids: AtomicU64::new(0) }))
    }

    /// Serves an interface until what is returned is dropped. `name` is for logs.
    pub fn attach(self: &Arc<Self>, name: impl Into<String>, port: Port, host: Host) -> Attachment {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let worker = self.next.fetch_add(1, Ordering::Relaxed) % self.workers.len();
        let (up, is_up) = watch::channel(false);
        let interface = Interface { port, host, up, name: name.into(), state: Links::default() };
        self.workers[worker].tell(Order::Add(id, Box::new(interface)));
        Attachment { responder: Arc::clone(self), worker, id, up: is_up }
    }
}

/// An interface that is being served.
pub struct Attachment {
    responder: Arc<Responder>,
    worker: usize,
    id: u64,
    up: watch::Receiver<bool>,
}

impl Attachment {
    /// True while there is a peer; and to wait for changes.
    pub fn up(&self) -> watch::Receiver<bool> {
        self.up.clone()
    }

    /// Answers for these addresses from now on.
    pub fn readdress(&self, addresses: Vec<IpAddr>) {
        self.tell(Order::Readdress(self.id, addresses));
    }

    /// Pings an address with `size` bytes of data, and returns the round trip's time. Waits for a peer if there is none, and for ever
    /// if nobody answers: end it with a timeout. None if the interface is gone, or too many pings wait.
    pub async fn ping(&self, to: IpAddr, size: usize) -> Option<Duration> {
        let (done, answer) = oneshot::channel();
        self.tell(Order::Ping(self.id, to, size, done));
        answer.await.ok()
    }

    fn tell(&self, order: Order) {
        self.responder.workers[self.worker].tell(order);
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.tell(Order::Remove(self.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memif::{Address, Dialer, DialerConfig, InterfaceConfig, Listener, ListenerConfig, Mode};

    const PATIENCE: Duration = Duration::from_secs(30);

    fn server(name: &str, mode: Mode) -> Port {
        let address = Address::abstract_name(name).unwrap();
        let mut listener = Listener::bind(&address, ListenerConfig::default()).unwrap();
        listener.add_interface(0, InterfaceConfig::new(mode, "server".parse().unwrap()));
        Port::Server(Box::new(listener))
    }

    fn client(name: &str, mode: Mode) -> Port {
        let config = DialerConfig { log2_ring: 5, ..DialerConfig::new(0, mode, "client".parse().unwrap()) };
        Port::Client(Box::new(Dialer::new(Address::abstract_name(name).unwrap(), config).unwrap()))
    }

    fn host(mode: Mode, last: u8, addresses: &[&str]) -> Host {
        Host::new(mode, [2, 0, 0, 0, 0, last], addresses.iter().map(|a| a.parse().unwrap()).collect())
    }

    #[tokio::test]
    async fn interfaces_in_both_modes_are_pinged_change_their_address_and_come_back() {
        let responder = Responder::start(1).unwrap();
        for mode in [Mode::Ethernet, Mode::Ip] {
            let name = format!("vw-responder-{}-{mode}", std::process::id());
            let end = responder.attach("end", server(&name, mode), host(mode, 1, &["10.0.0.0", "fd00::"]));
            let near = responder.attach("near", client(&name, mode), host(mode, 2, &["10.0.0.1", "fd00::1"]));
            for (to, size) in [("10.0.0.0", 56), ("fd00::", 1400), ("10.0.0.0", 8000)] {
                let answered = tokio::time::timeout(PATIENCE, near.ping(to.parse().unwrap(), size)).await;
                assert!(answered.unwrap().is_some(), "{mode} {to}");
            }
            assert!(*near.up().borrow() && *end.up().borrow());
            end.readdress(vec!["10.0.0.7".parse().unwrap()]);
            tokio::time::timeout(PATIENCE, near.ping("10.0.0.7".parse().unwrap(), 1)).await.unwrap().unwrap();
            drop(end);
            tokio::time::timeout(PATIENCE, near.up().wait_for(|up| !up)).await.unwrap().unwrap();
            let again = responder.attach("again", server(&name, mode), host(mode, 1, &["10.0.0.0"]));
            let answered = tokio::time::timeout(PATIENCE, near.ping("10.0.0.0".parse().unwrap(), 1)).await;
            assert!(answered.unwrap().is_some(), "{mode}: the dialer has come back");
            drop((near, again));
        }
    }

    #[tokio::test]
    async fn a_thousand_interfaces_are_served_by_two_threads() {
        let responder = Responder::start(2).unwrap();
        let clients = Responder::start(1).unwrap();
        let mut ends = Vec::new();
        for i in 0..1000 {
            let name = format!("vw-many-{}-{i}", std::process::id());
            let end = responder.attach("end", server(&name, Mode::Ip), host(Mode::Ip, 1, &["10.0.0.0"]));
            let near = clients.attach("near", client(&name, Mode::Ip), host(Mode::Ip, 2, &["10.0.0.1"]));
            ends.push((end, near));
        }
        let to = "10.0.0.0".parse().unwrap();
        let pings = ends.iter().map(|(_, near)| tokio::time::timeout(PATIENCE, near.ping(to, 56)));
        let answered = futures::future::join_all(pings).await;
        assert_eq!(answered.iter().filter(|ping| matches!(ping, Ok(Some(_)))).count(), 1000);
    }
}
