//! The name server of an endpoint: at the endpoint's own address, once it is known.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::proto::op::ResponseCode;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::directory::{Directory, Step};
use super::fan_out::fan_out;
use crate::client::Namespace;
use crate::dns::ask::From;
use crate::dns::question::{Read, Reply, read};
use crate::dns::serve::{self, Answers, Listener};
use crate::obs::Metrics;

/// Between attempts to listen: an address is there a moment before the kernel lets us listen at it.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// What a server needs.
pub struct Setup {
    /// What it knows.
    pub directory: Arc<Directory>,
    /// Our address in the network; none as long as we have none. The server follows it.
    pub own: watch::Receiver<Option<IpAddr>>,
    /// The namespace that has this address.
    pub namespace: Namespace,
    /// 53, but in tests.
    pub port: u16,
    /// What counts questions.
    pub metrics: Arc<Metrics>,
}

/// A name server, until it is dropped.
pub struct Server {
    listening: watch::Receiver<Option<SocketAddr>>,
    _end: DropGuard,
}

impl Server {
    /// Listens by UDP and TCP as soon as there is an address, and again where it has moved to.
    pub fn start(setup: Setup) -> Self {
        let end = CancellationToken::new();
        let (tell, listening) = watch::channel(None);
        tokio::spawn(end.clone().run_until_cancelled_owned(follow(setup, tell)));
        Self { listening, _end: end.drop_guard() }
    }

    /// Where it listens.
    pub fn listening(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.listening.clone()
    }
}

async fn follow(mut setup: Setup, tell: watch::Sender<Option<SocketAddr>>) {
    loop {
        let own = *setup.own.borrow_and_update();
        let mut changes = setup.own.clone();
        tokio::select! {
            () = serve_at(own, &setup, &tell) => {}
            changed = changes.changed() => if changed.is_err() {
                // Whoever knew the address has gone; it stays as it was.
                serve_at(own, &setup, &tell).await;
            },
        }
        tell.send_replace(None);
    }
}

/// Serves at this address and never ends; does nothing if there is none.
async fn serve_at(own: Option<IpAddr>, setup: &Setup, tell: &watch::Sender<Option<SocketAddr>>) {
    let Some(own) = own else { return std::future::pending().await };
    let listener = listen(SocketAddr::new(own, setup.port), &setup.namespace).await;
    if let Ok(address) = listener.address() {
        tracing::info!(%address, "name server");
        tell.send_replace(Some(address));
    }
    let names = Names {
        directory: Arc::clone(&setup.directory),
        from: From { namespace: setup.namespace.clone(), address: Some(own) },
        port: setup.port,
        metrics: Arc::clone(&setup.metrics),
    };
    listener.serve(Arc::new(names)).await;
}

/// Tries until it can be done: the address may be on its way, or still be another's.
async fn listen(address: SocketAddr, namespace: &Namespace) -> Listener {
    let mut pause = PAUSES.0;
    loop {
        match serve::bind(address, namespace).await {
            Ok(listener) => return listener,
            // Not yet there is usual; anything else an operator should see, but not each second.
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable || pause > PAUSES.0 => {
                tracing::debug!(%address, %error, "name server: can't listen yet");
            }
            Err(error) => tracing::warn!(%address, %error, "name server: can't listen yet"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// What answers.
struct Names {
    directory: Arc<Directory>,
    from: From,
    port: u16,
    metrics: Arc<Metrics>,
}

impl Answers for Names {
    // These are strangers: none of them keeps the others from asking.
    const EACH: (usize, usize) = (128, 16);

    async fn answer(&self, bytes: &[u8], from: IpAddr) -> Option<Reply> {
        let reply = match read(bytes) {
            Read::Silence => {
                self.metrics.asked("no_question");
                return None;
            }
            Read::Refused(reply) => reply,
            Read::Question(query) => match self.directory.step(&query, from, self.from.address) {
                Step::Answer(reply) => reply,
                Step::Ask(unknown) => {
                    let mut peers = self.directory.peers();
                    peers.retain(|peer| Some(peer.ip()) != self.from.address || peer.port() != self.port);
                    fan_out(&self.from, &peers, &query, unknown).await
                }
            },
        };
        self.metrics.asked(outcome(&reply));
        Some(reply)
    }

    fn overloaded(&self) {
        self.metrics.asked("overload");
    }
}

/// As metrics have it.
fn outcome(reply: &Reply) -> &'static str {
    match reply.message.metadata.response_code {
        ResponseCode::NoError if reply.message.answers.is_empty() => "no_data",
        ResponseCode::NoError => "answered",
        ResponseCode::NXDomain => "no_name",
        ResponseCode::Refused => "refused",
        ResponseCode::FormErr => "malformed",
        ResponseCode::NotImp | ResponseCode::BADVERS => "not_implemented",
        _ => "failed",
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
