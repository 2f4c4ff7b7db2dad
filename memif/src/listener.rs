//! The server role: one control socket, any number of interfaces on it, and whoever connects to them.

mod config;
mod interfaces;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;

pub use config::{InterfaceConfig, ListenerConfig};
use interfaces::Interfaces;

use crate::address::Address;
use crate::handshake::{Attached, HandshakeError, ServerHandshake, ServerStep};
use crate::link::{DisconnectReason, Event};
use crate::message::{Kind, Message, MessageError};
use crate::poller::Poller;
use crate::socket::{ControlSocket, ListeningSocket, PeerCredentials, Received, SocketError, failed};

/// The listening socket's token; connections count from the next.
const LISTENER: u64 = 0;
/// Connections accepted in one round. Fewer than may be pending, so that a newcomer is heard before a flood
/// displaces it.
const ACCEPTS_PER_ROUND: usize = 8;
/// Messages taken from one connection in one round.
const MESSAGES_PER_ROUND: usize = 16;
/// How long no connection is accepted after the system had no descriptor or no memory for one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The server of one control socket. Poll its descriptor for readability, then call
/// [`process`](Self::process).
#[derive(Debug)]
pub struct Listener {
    config: ListenerConfig,
    poller: Poller,
    socket: Option<ListeningSocket>,
    interfaces: Interfaces,
    connections: BTreeMap<u64, Connection>,
    next_token: u64,
    paused_until: Option<Instant>,
}

#[derive(Debug)]
struct Connection {
    socket: ControlSocket,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Pending { handshake: ServerHandshake<OwnedFd>, deadline: Instant },
    Live,
}

/// How a connection ends.
#[derive(Debug)]
enum End {
    Refused(HandshakeError),
    Down(DisconnectReason),
}

impl Listener {
    /// Listens at `address`. The file of a dead socket there is replaced; anything else in the way is an
    /// error and left alone.
    ///
    /// # Errors
    /// [`SocketError`], naming the address and the call that failed, or what is in the way.
    pub fn bind(address: &Address, config: ListenerConfig) -> Result<Self, SocketError> {
        Self::with_socket(Some(ListeningSocket::bind(address)?), config)
    }

    /// Listens on a socket that is bound and listening already; another process may have opened it in another
    /// network namespace.
    ///
    /// # Errors
    /// [`SocketError::Unsuitable`] if it is no listening SOCK_SEQPACKET unix socket.
    pub fn from_fd(socket: OwnedFd, config: ListenerConfig) -> Result<Self, SocketError> {
        Self::with_socket(Some(ListeningSocket::adopt(socket)?), config)
    }

    /// A server without a socket of its own: it serves the connections handed to [`adopt`](Self::adopt).
    ///
    /// # Errors
    /// If the system has no descriptors left.
    pub fn detached(config: ListenerConfig) -> Result<Self, SocketError> {
        Self::with_socket(None, config)
    }

    fn with_socket(socket: Option<ListeningSocket>, config: ListenerConfig) -> Result<Self, SocketError> {
        let poller = Poller::new().map_err(failed("(new)", "epoll_create1"))?;
        if let Some(socket) = &socket {
            poller.watch(socket, LISTENER).map_err(failed("(new)", "epoll_ctl"))?;
        }
        Ok(Self {
            config,
            poller,
            socket,
            interfaces: Interfaces::default(),
            connections: BTreeMap::new(),
            next_token: LISTENER + 1,
            paused_until: None,
        })
    }

    /// Offers an interface. `false`, and nothing is changed, if the id is taken.
    pub fn add_interface(&mut self, id: u32, config: InterfaceConfig) -> bool {
        self.interfaces.add(id, config)
    }

    /// Withdraws an interface and tells its peer, if it has one. No event follows. `false` if there is none
    /// with this id.
    pub fn remove_interface(&mut self, id: u32) -> bool {
        let Some(holder) = self.interfaces.remove(id) else { return false };
        if let Some(token) = holder {
            self.drop_connection(token, &HandshakeError::Removed.to_string());
        }
        true
    }

    /// Ends the connection of an interface, telling the peer `reason` (cut to 95 bytes). No event follows;
    /// the interface is free for the next peer. `false` if it has none.
    pub fn disconnect(&mut self, id: u32, reason: &str) -> bool {
        match self.interfaces.holder(id) {
            Some(token) => self.drop_connection(token, reason),
            None => false,
        }
    }

    /// Serves a connected socket that somebody else accepted.
    ///
    /// # Errors
    /// [`SocketError::Unsuitable`] if it is no connected SOCK_SEQPACKET unix socket.
    pub fn adopt(&mut self, connected: OwnedFd) -> Result<(), SocketError> {
        let socket = ControlSocket::adopt(connected)?;
        let now = Instant::now();
        let refused = self.greet(socket, now);
        self.arm(now);
        match refused {
            Some(Event::Refused { reason: HandshakeError::Socket(error), .. }) => Err(error),
            _ => Ok(()),
        }
    }

    /// Does whatever is to be done now, without waiting, and says what happened.
    pub fn process(&mut self) -> Vec<Event> {
        let now = Instant::now();
        let mut events = Vec::new();
        let mut ready = self.poller.ready();
        // Live connections first: one that has just ended makes room for the handshake that follows it.
        ready.sort_by_key(|token| (*token == LISTENER, !self.is_live(*token)));
        for token in ready {
            match token {
                LISTENER => self.accept(now, &mut events),
                token => self.serve(token, &mut events),
            }
        }
        self.expire(now, &mut events);
        self.resume(now);
        self.arm(now);
        events
    }

    fn is_live(&self, token: u64) -> bool {
        matches!(self.connections.get(&token), Some(Connection { phase: Phase::Live, .. }))
    }

    fn accept(&mut self, now: Instant, events: &mut Vec<Event>) {
        for _ in 0..ACCEPTS_PER_ROUND {
            let Some(listening) = &self.socket else { return };
            match listening.accept() {
                Ok(Some(socket)) => {
                    events.extend(self.make_room());
                    events.extend(self.greet(socket, now));
                }
                Ok(None) => return,
                Err(error) => {
                    // No descriptors, no memory: the connection stays in the backlog, and would wake us all
                    // the time.
                    self.poller.forget(listening);
                    self.paused_until = Some(now + ACCEPT_PAUSE);
                    let reason = failed("(listening)", "accept")(error).into();
                    return events.push(Event::Refused { id: None, peer: None, reason });
                }
            }
        }
    }

    fn resume(&mut self, now: Instant) {
        if self.paused_until.is_some_and(|until| until <= now)
            && let Some(socket) = &self.socket
            && self.poller.watch(socket, LISTENER).is_ok()
        {
            self.paused_until = None;
        }
    }

    /// Says HELLO to a new connection, or why it is unwelcome.
    fn greet(&mut self, socket: ControlSocket, now: Instant) -> Option<Event> {
        let peer = socket.peer;
        match self.admit(&socket) {
            Ok(()) => {
                let deadline = now + self.config.handshake_timeout;
                let phase = Phase::Pending { handshake: ServerHandshake::default(), deadline };
                self.connections.insert(self.next_token, Connection { socket, phase });
                self.next_token += 1;
                None
            }
            Err(reason) => {
                socket.leave(&reason.to_string());
                Some(Event::Refused { id: None, peer: Some(peer), reason })
            }
        }
    }

    fn admit(&self, socket: &ControlSocket) -> Result<(), HandshakeError> {
        let got = socket.peer.uid;
        if let Some(expected) = self.config.expected_uid.filter(|&expected| expected != got) {
            return Err(HandshakeError::Uid { got, expected });
        }
        if self.pending().count() >= self.config.max_pending {
            return Err(HandshakeError::Crowded(self.config.max_pending));
        }
        let hello = ServerHandshake::<OwnedFd>::hello(&self.config.program, &self.interfaces.widest_limits());
        socket.send(&hello, None).map_err(|error| send_failed(error, &hello))?;
        self.poller.watch(socket, self.next_token).map_err(failed("(accepted)", "epoll_ctl"))?;
        Ok(())
    }

    /// Connections in handshake, oldest first: token, peer, and the interface if it is known.
    fn pending(&self) -> impl Iterator<Item = (u64, PeerCredentials, Option<u32>)> {
        self.connections.iter().filter_map(|(&token, connection)| match &connection.phase {
            Phase::Pending { handshake, .. } => Some((token, connection.socket.peer, handshake.interface())),
            Phase::Live => None,
        })
    }

    /// Displaces a handshake if there are as many as there may be, so that silent connections cannot keep
    /// others out.
    fn make_room(&mut self) -> Option<Event> {
        if self.pending().count() < self.config.max_pending {
            return None;
        }
        let unnamed: Vec<_> = self.pending().filter(|(_, _, id)| id.is_none()).collect();
        let crowd = |peer| unnamed.iter().filter(|(_, other, _)| *other == peer).count();
        // The first of the maxima, hence the reversal: max_by_key would take the last, the youngest.
        let &(token, ..) = unnamed.iter().rev().max_by_key(|(_, peer, _)| crowd(*peer))?;
        self.end(token, End::Refused(HandshakeError::Crowded(self.config.max_pending)))
    }

    fn serve(&mut self, token: u64, events: &mut Vec<Event>) {
        for _ in 0..MESSAGES_PER_ROUND {
            let Some(connection) = self.connections.get(&token) else { return };
            match connection.socket.receive() {
                Ok(Received::Nothing) => return,
                Ok(Received::Closed) => return events.extend(self.end(token, self.closed(token))),
                Ok(Received::Message(message, attached)) => {
                    events.extend(self.take(token, message, attached))
                }
                Err(error) => {
                    let end = HandshakeError::Socket(failed("(connected)", "recvmsg")(error));
                    return events.extend(self.end(token, self.broken(token, end)));
                }
            }
        }
    }

    fn take(
        &mut self,
        token: u64,
        message: Result<Message, MessageError>,
        attached: Attached<OwnedFd>,
    ) -> Option<Event> {
        let outcome = match message {
            Ok(message) if self.is_live(token) => match take_live(message) {
                Ok(reason) => return self.end(token, End::Down(reason)),
                Err(error) => Err(error),
            },
            Ok(message) => self.advance(token, message, attached),
            Err(error) => Err(error.into()),
        };
        outcome.unwrap_or_else(|error| self.end(token, self.broken(token, error)))
    }

    /// One step of a handshake.
    fn advance(
        &mut self,
        token: u64,
        message: Message,
        attached: Attached<OwnedFd>,
    ) -> Result<Option<Event>, HandshakeError> {
        let Some(Connection { socket, phase }) = self.connections.get_mut(&token) else { return Ok(None) };
        let Phase::Pending { handshake, .. } = phase else { return Ok(None) };
        match handshake.receive(message, attached, &self.interfaces)? {
            ServerStep::Reply(reply) => {
                if let Some(id) = handshake.interface() {
                    self.interfaces.hold(id, token);
                }
                socket.send(&reply, None).map_err(|error| send_failed(error, &reply))?;
                Ok(None)
            }
            ServerStep::Complete(offer, name) => {
                let id = offer.id;
                let link = self.interfaces.build(offer, socket.peer)?;
                let connected = Message::Connected(name);
                socket.send(&connected, None).map_err(|error| send_failed(error, &connected))?;
                *phase = Phase::Live;
                Ok(Some(Event::Connected { id, link }))
            }
            ServerStep::Left(end) => Err(HandshakeError::PeerRefused(end.reason.to_string())),
        }
    }

    fn closed(&self, token: u64) -> End {
        match self.is_live(token) {
            true => End::Down(DisconnectReason::Closed),
            false => End::Refused(HandshakeError::PeerClosed),
        }
    }

    fn broken(&self, token: u64, error: HandshakeError) -> End {
        match self.is_live(token) {
            true => End::Down(DisconnectReason::Protocol(error)),
            false => End::Refused(error),
        }
    }

    /// Ends a connection: the peer is told, the interface is free again, the owner gets an event.
    fn end(&mut self, token: u64, end: End) -> Option<Event> {
        let connection = self.connections.remove(&token)?;
        self.poller.forget(&connection.socket);
        let held = self.interfaces.release(token);
        let peer = Some(connection.socket.peer);
        match end {
            End::Refused(reason) => {
                connection.socket.leave(&reason.to_string());
                Some(Event::Refused { id: held, peer, reason })
            }
            End::Down(reason) => {
                if let DisconnectReason::Protocol(error) = &reason {
                    connection.socket.leave(&error.to_string());
                }
                held.map(|id| Event::Disconnected { id, reason })
            }
        }
    }

    fn drop_connection(&mut self, token: u64, reason: &str) -> bool {
        let Some(connection) = self.connections.remove(&token) else { return false };
        self.poller.forget(&connection.socket);
        connection.socket.leave(reason);
        self.interfaces.release(token);
        true
    }

    fn expire(&mut self, now: Instant, events: &mut Vec<Event>) {
        let late = |connection: &Connection| match connection.phase {
            Phase::Pending { deadline, .. } => deadline <= now,
            Phase::Live => false,
        };
        let expired: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| late(connection))
            .map(|(&token, _)| token)
            .collect();
        for token in expired {
            let error = HandshakeError::Timeout(self.config.handshake_timeout.as_millis());
            events.extend(self.end(token, End::Refused(error)));
        }
    }

    fn arm(&mut self, now: Instant) {
        let deadlines = self.connections.values().filter_map(|connection| match connection.phase {
            Phase::Pending { deadline, .. } => Some(deadline),
            Phase::Live => None,
        });
        let first = deadlines.chain(self.paused_until).min();
        self.poller.arm(first, now);
    }
}

impl AsFd for Listener {
    /// Readable when [`process`](Self::process) has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        for connection in self.connections.values() {
            connection.socket.leave("server closed");
        }
    }
}

/// On a live connection there is nothing to say but good-bye.
pub(crate) fn take_live(message: Message) -> Result<DisconnectReason, HandshakeError> {
    match message {
        Message::Disconnect(end) => Ok(DisconnectReason::Peer(end.reason)),
        other => Err(HandshakeError::Unexpected { got: other.kind(), when: "on a live connection" }),
    }
}

/// A peer that cannot take one message when none is outstanding does not read.
pub(crate) fn send_failed(error: Errno, message: &Message) -> HandshakeError {
    match (error, message.kind()) {
        (Errno::PIPE | Errno::CONNRESET, _) => HandshakeError::PeerClosed,
        (other, Kind::Hello) => failed("(accepted)", "sendmsg")(other).into(),
        (other, _) => failed("(connected)", "sendmsg")(other).into(),
    }
}
