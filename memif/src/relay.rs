//! A client and a server that can't reach each other's sockets, in two network namespaces say: their control messages are
//! passed on, with the descriptors beside them, and they share memory as if they had met. Packets never come by here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::address::Address;
use crate::handshake::Attached;
use crate::message::MESSAGE_SIZE;
use crate::poller::Poller;
use crate::socket::{ControlSocket, ListeningSocket, PeerCredentials, RawReceived, SocketError, failed};

const LISTENER: u64 = 0;
const CLIENT: u64 = 1;
const SERVER: u64 = 2;
/// Messages passed on for one side in one round.
const MESSAGES_PER_ROUND: usize = 16;
/// Least time from one client to the next: what somebody who connects all the time can make us do.
const BETWEEN_CLIENTS: Duration = Duration::from_millis(100);

/// Connects to the server, wherever it is. The text says why not.
pub type Dial = Box<dyn FnMut() -> Result<OwnedFd, String> + Send>;

/// Connects to the control socket at `address`, as seen from the calling thread's network namespace, without waiting.
///
/// # Errors
/// [`SocketError`], naming the address.
pub fn connect(address: &Address) -> Result<OwnedFd, SocketError> {
    ControlSocket::connect(address).map(ControlSocket::into_fd)
}

/// Passes on what one client and the server say to each other; the next client waits until they are done. Poll its
/// descriptor for readability, then call [`process`](Self::process).
///
/// It holds no message: one that a side makes no room for ends the connection. The protocol never has that many outstanding.
pub struct Relay {
    poller: Poller,
    listening: ListeningSocket,
    dial: Dial,
    pair: Option<Pair>,
    /// While the next client is not heard.
    paused_until: Option<Instant>,
}

struct Pair {
    client: ControlSocket,
    server: ControlSocket,
    since: Instant,
}

/// What happened at a [`Relay`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayEvent {
    /// Both sides are connected.
    Up {
        /// Who connected.
        client: PeerCredentials,
        /// Who accepted.
        server: PeerCredentials,
    },
    /// They no longer are.
    Down(String),
    /// A client came in vain; it was sent away.
    Refused(String),
}

/// The two sides, as reasons name them.
#[derive(Clone, Copy)]
struct Way {
    from: &'static str,
    to: &'static str,
}

impl Relay {
    /// Accepts at `listening`, a listening SOCK_SEQPACKET unix socket from anywhere, and connects each client by `dial`.
    ///
    /// # Errors
    /// [`SocketError::Unsuitable`] if it is no such socket, [`SocketError::System`] if there are no descriptors left.
    pub fn new(listening: OwnedFd, dial: Dial) -> Result<Self, SocketError> {
        let listening = ListeningSocket::adopt(listening)?;
        let poller = Poller::new().map_err(failed("(relay)", "epoll_create1"))?;
        poller.watch(&listening, LISTENER).map_err(failed("(relay)", "epoll_ctl"))?;
        Ok(Self { poller, listening, dial, pair: None, paused_until: None })
    }

    /// Does whatever is to be done now, without waiting, and says what happened.
    pub fn process(&mut self) -> Vec<RelayEvent> {
        let now = Instant::now();
        let mut events = Vec::new();
        let ready = self.poller.ready();
        // What the server said last is passed on before its client is let go, and the other way round.
        for token in [SERVER, CLIENT] {
            if ready.contains(&token) {
                events.extend(self.pass(token, now));
            }
        }
        if ready.contains(&LISTENER) && self.pair.is_none() && self.paused_until.is_none() {
            events.extend(self.accept(now));
        }
        self.resume(now);
        self.poller.arm(self.paused_until, now);
        events
    }

    fn pass(&mut self, token: u64, now: Instant) -> Option<RelayEvent> {
        let pair = self.pair.as_ref()?;
        let client_to_server = Way { from: "client", to: "server" };
        let ended = match token {
            CLIENT => pass(&pair.client, &pair.server, client_to_server),
            _ => pass(&pair.server, &pair.client, Way { from: "server", to: "client" }),
        };
        ended.err().map(|reason| self.end(reason, now))
    }

    /// Closes both sides. The next client is heard when it is time.
    fn end(&mut self, reason: String, now: Instant) -> RelayEvent {
        if let Some(pair) = self.pair.take() {
            self.poller.forget(&pair.client);
            self.poller.forget(&pair.server);
            self.paused_until = Some(pair.since + BETWEEN_CLIENTS);
        } else {
            self.paused_until = Some(now + BETWEEN_CLIENTS);
        }
        RelayEvent::Down(reason)
    }

    fn accept(&mut self, now: Instant) -> Option<RelayEvent> {
        let client = match self.listening.accept() {
            Ok(None) => return None,
            Ok(Some(client)) => client,
            Err(error) => return Some(self.refuse(format!("accept: {error}"), now)),
        };
        let joined =
            (self.dial)().and_then(|server| self.join(client, server, now).map_err(|e| e.to_string()));
        match joined {
            Ok(up) => Some(up),
            Err(reason) => Some(self.refuse(reason, now)),
        }
    }

    fn join(
        &mut self,
        client: ControlSocket,
        server: OwnedFd,
        now: Instant,
    ) -> Result<RelayEvent, SocketError> {
        let server = ControlSocket::adopt(server)?;
        self.poller.watch(&client, CLIENT).map_err(failed("(relay)", "epoll_ctl"))?;
        if let Err(error) = self.poller.watch(&server, SERVER) {
            self.poller.forget(&client);
            return Err(failed("(relay)", "epoll_ctl")(error));
        }
        // Others wait in the socket's own queue, without waking anybody.
        self.poller.forget(&self.listening);
        let up = RelayEvent::Up { client: client.peer, server: server.peer };
        self.pair = Some(Pair { client, server, since: now });
        Ok(up)
    }

    fn refuse(&mut self, reason: String, now: Instant) -> RelayEvent {
        self.poller.forget(&self.listening);
        self.paused_until = Some(now + BETWEEN_CLIENTS);
        RelayEvent::Refused(reason)
    }

    /// Hears the next client, if it is time.
    fn resume(&mut self, now: Instant) {
        let due = self.paused_until.is_some_and(|until| until <= now);
        if due && self.pair.is_none() {
            match self.poller.watch(&self.listening, LISTENER) {
                Ok(()) => self.paused_until = None,
                Err(_) => self.paused_until = Some(now + BETWEEN_CLIENTS),
            }
        }
    }
}

/// Passes on what has come, up to a few messages. The error is why the two can't go on.
fn pass(from: &ControlSocket, to: &ControlSocket, way: Way) -> Result<(), String> {
    for _ in 0..MESSAGES_PER_ROUND {
        // One byte more than a message, so that a longer one shows.
        let mut bytes = [0; MESSAGE_SIZE + 1];
        let Way { from: sender, to: receiver } = way;
        match from.receive_raw(&mut bytes) {
            Ok(RawReceived::Nothing) => return Ok(()),
            Ok(RawReceived::Closed) => return Err(format!("the {sender} closed the connection")),
            Ok(RawReceived::Bytes(message, _)) if message.len() > MESSAGE_SIZE => {
                return Err(format!("the {sender} sent a message of more than {MESSAGE_SIZE} bytes"));
            }
            Ok(RawReceived::Bytes(_, Attached::TooMany)) => {
                return Err(format!("the {sender} sent more than one descriptor with a message"));
            }
            Ok(RawReceived::Bytes(message, attached)) => {
                let fd = if let Attached::One(fd) = &attached { Some(fd.as_fd()) } else { None };
                to.send_raw(message, fd).map_err(|error| match error {
                    Errno::AGAIN => format!("the {receiver} does not read"),
                    Errno::PIPE | Errno::CONNRESET => format!("the {receiver} closed the connection"),
                    other => format!("sending to the {receiver}: {other}"),
                })?;
            }
            Err(error) => return Err(format!("receiving from the {sender}: {error}")),
        }
    }
    Ok(())
}

impl AsFd for Relay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("connected", &self.pair.is_some()).finish_non_exhaustive()
    }
}
