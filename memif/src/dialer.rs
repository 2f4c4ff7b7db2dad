//! The client role: one interface, connected again whenever the server comes back.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::address::Address;
use crate::handshake::{
    Agreed, Attached, ClientHandshake, ClientStep, HandshakeError, Introduction, Mode, RingCounts,
};
use crate::link::{DisconnectReason, Event, Link};
use crate::listener::{send_failed, take_live};
use crate::message::{AddRing, Message, MessageError, Name, Secret};
use crate::poller::Poller;
use crate::queue::{ClientMemory, ClientMemoryError, ClientShape};
use crate::region::HugePages;
use crate::ring::{Direction, RingHeader};
use crate::socket::{ControlSocket, PeerCredentials, Received, SocketError, failed};

/// The control socket's token.
const SOCKET: u64 = 0;
/// Messages taken in one round.
const MESSAGES_PER_ROUND: usize = 16;

/// What a dialer connects to, and as what.
#[derive(Debug, Clone)]
pub struct DialerConfig {
    /// The interface's id on the server's socket.
    pub id: u32,
    /// What its frames are; the server must have the same.
    pub mode: Mode,
    /// What the server wants to hear, or [`Secret::none`].
    pub secret: Secret,
    /// What this program calls itself.
    pub program: Name,
    /// What this side calls the interface.
    pub interface: Name,
    /// Rings each way; fewer if the server allows fewer. More than 1 only where the server is known to have
    /// as many: HELLO tells what its program can do, not what it is configured for.
    pub rings: RingCounts,
    /// Slots of each ring as log2, 1 to 15; fewer if the server allows fewer.
    pub log2_ring: u8,
    /// Bytes of each slot's buffer, a multiple of 64. Longer frames are chained.
    pub buffer_size: u32,
    /// Pages of the shared memory.
    pub huge_pages: HugePages,
    /// Header of the rings; the server must be built for the same.
    pub header: RingHeader,
    /// The only user who may be the server; any if `None`.
    pub expected_uid: Option<u32>,
    /// Time from connecting to CONNECTED.
    pub handshake_timeout: Duration,
    /// Wait before the second attempt; doubled after each that fails.
    pub first_retry: Duration,
    /// Longest wait between two attempts.
    pub last_retry: Duration,
}

impl DialerConfig {
    /// One ring each way with 1024 slots of 2048 bytes, no secret, retries after 100 ms to 2 s.
    pub fn new(id: u32, mode: Mode, interface: Name) -> Self {
        let shape = ClientShape::default();
        Self {
            id,
            mode,
            secret: Secret::none(),
            program: Name::cut("vwire memif"),
            interface,
            rings: RingCounts { c2s: 1, s2c: 1 },
            log2_ring: shape.log2_size,
            buffer_size: shape.buffer_size,
            huge_pages: shape.huge_pages,
            header: shape.header,
            expected_uid: None,
            handshake_timeout: Duration::from_secs(2),
            first_retry: Duration::from_millis(100),
            last_retry: Duration::from_secs(2),
        }
    }

    /// Whether memory for this configuration can be made, so that a bad value is found before a server is.
    ///
    /// # Errors
    /// What is wrong with ring or buffer sizes, and what is possible.
    pub fn check(&self) -> Result<(), ClientMemoryError> {
        shape(self, Agreed { rings: self.rings, log2_ring: self.log2_ring }).check()
    }

    fn introduction(&self) -> Introduction {
        Introduction {
            id: self.id,
            mode: self.mode,
            secret: self.secret.clone(),
            program: self.program.clone(),
            interface: self.interface.clone(),
            rings: self.rings,
            log2_ring: self.log2_ring,
        }
    }
}

/// The client of one interface. Poll its descriptor for readability, then call [`process`](Self::process).
#[derive(Debug)]
pub struct Dialer {
    config: DialerConfig,
    poller: Poller,
    /// Where to connect again; `None` if the connection was handed over.
    address: Option<Address>,
    state: State,
    wait: Duration,
}

#[derive(Debug)]
enum State {
    /// No connection, and the time for the next attempt if there is to be one.
    Idle(Option<Instant>),
    Pending(Box<Pending>),
    Live(ControlSocket),
}

#[derive(Debug)]
struct Pending {
    socket: ControlSocket,
    handshake: ClientHandshake<OurFd>,
    memory: Option<ClientMemory>,
    deadline: Instant,
}

/// Which descriptor of our memory goes with a message.
#[derive(Debug, Clone, Copy)]
enum OurFd {
    Region(usize),
    Ring(usize),
}

impl Dialer {
    /// A client that connects to `address`, now (on the first [`process`](Self::process)) and whenever the
    /// connection is lost.
    ///
    /// # Errors
    /// If the system has no descriptors left.
    pub fn new(address: Address, config: DialerConfig) -> Result<Self, SocketError> {
        let now = Instant::now();
        let mut dialer = Self::with(Some(address), config, State::Idle(Some(now)))?;
        dialer.arm(now);
        Ok(dialer)
    }

    /// A client on a socket that somebody else connected. When that connection ends, it is
    /// [`finished`](Self::is_finished).
    ///
    /// # Errors
    /// [`SocketError::Unsuitable`] if it is no connected SOCK_SEQPACKET unix socket.
    pub fn from_connected(connected: OwnedFd, config: DialerConfig) -> Result<Self, SocketError> {
        let socket = ControlSocket::adopt(connected)?;
        let now = Instant::now();
        let mut dialer = Self::with(None, config, State::Idle(None))?;
        dialer.begin(socket, now)?;
        dialer.arm(now);
        Ok(dialer)
    }

    fn with(address: Option<Address>, config: DialerConfig, state: State) -> Result<Self, SocketError> {
        let poller = Poller::new().map_err(failed("(new)", "epoll_create1"))?;
        let wait = config.first_retry;
        Ok(Self { config, poller, address, state, wait })
    }

    /// True if there is no connection and there will be none.
    pub fn is_finished(&self) -> bool {
        matches!(self.state, State::Idle(None))
    }

    /// Ends the connection, telling the server `reason` (cut to 95 bytes). No event follows. A dialer with an
    /// address connects again after the first wait; drop it to stop. `false` if there was no connection.
    pub fn disconnect(&mut self, reason: &str) -> bool {
        let connected = match &self.state {
            State::Idle(_) => return false,
            State::Pending(pending) => &pending.socket,
            State::Live(socket) => socket,
        };
        connected.leave(reason);
        let now = Instant::now();
        self.idle(now);
        self.arm(now);
        true
    }

    /// Does whatever is to be done now, without waiting, and says what happened.
    pub fn process(&mut self) -> Vec<Event> {
        let now = Instant::now();
        let mut events = Vec::new();
        if self.poller.ready().contains(&SOCKET) {
            self.serve(now, &mut events);
        }
        self.expire(now, &mut events);
        self.dial(now, &mut events);
        self.arm(now);
        events
    }

    fn dial(&mut self, now: Instant, events: &mut Vec<Event>) {
        let (State::Idle(Some(due)), Some(address)) = (&self.state, &self.address) else { return };
        if *due > now {
            return;
        }
        let result = ControlSocket::connect(address).and_then(|socket| self.begin(socket, now));
        if let Err(error) = result {
            events.push(Event::Refused { id: Some(self.config.id), peer: None, reason: error.into() });
            self.idle(now);
        }
    }

    fn begin(&mut self, socket: ControlSocket, now: Instant) -> Result<(), SocketError> {
        self.poller.watch(&socket, SOCKET).map_err(failed("(connected)", "epoll_ctl"))?;
        let handshake = ClientHandshake::new(self.config.introduction());
        let deadline = now + self.config.handshake_timeout;
        self.state = State::Pending(Box::new(Pending { socket, handshake, memory: None, deadline }));
        Ok(())
    }

    fn serve(&mut self, now: Instant, events: &mut Vec<Event>) {
        for _ in 0..MESSAGES_PER_ROUND {
            let socket = match &self.state {
                State::Idle(_) => return,
                State::Pending(pending) => &pending.socket,
                State::Live(socket) => socket,
            };
            match socket.receive() {
                Ok(Received::Nothing) => return,
                Ok(Received::Closed) => events.push(match &self.state {
                    State::Live(_) => self.down(DisconnectReason::Closed, now),
                    _ => self.refuse(HandshakeError::PeerClosed, now),
                }),
                Ok(Received::Message(message, attached)) => events.extend(self.take(message, attached, now)),
                Err(error) => {
                    let error = failed("(connected)", "recvmsg")(error).into();
                    events.push(self.broken(error, now));
                }
            }
        }
    }

    fn take(
        &mut self,
        message: Result<Message, MessageError>,
        attached: Attached<OwnedFd>,
        now: Instant,
    ) -> Option<Event> {
        let message = match message {
            Ok(message) => message,
            Err(error) => return Some(self.broken(error.into(), now)),
        };
        if let State::Live(_) = self.state {
            return Some(match take_live(message) {
                Ok(reason) => self.down(reason, now),
                Err(error) => self.broken(error, now),
            });
        }
        self.advance(message, attached).unwrap_or_else(|error| Some(self.broken(error, now)))
    }

    /// One step of the handshake.
    fn advance(
        &mut self,
        message: Message,
        attached: Attached<OwnedFd>,
    ) -> Result<Option<Event>, HandshakeError> {
        let State::Pending(pending) = &mut self.state else { return Ok(None) };
        check_uid(self.config.expected_uid, pending.socket.peer)?;
        match pending.handshake.receive(message, attached)? {
            ClientStep::Build(agreed) => {
                let shape = shape(&self.config, agreed);
                let memory = pending.memory.insert(ClientMemory::create(shape)?);
                let (regions, rings) = announcement(memory);
                let init = pending.handshake.announce(regions, rings);
                pending.socket.send(&init, None).map_err(|error| send_failed(error, &init))?;
                Ok(None)
            }
            ClientStep::Send(message, fd) => {
                let fd = pending.memory.as_ref().zip(fd).and_then(|(memory, fd)| fd.of(memory));
                pending.socket.send(&message, fd).map_err(|error| send_failed(error, &message))?;
                Ok(None)
            }
            ClientStep::Connected { program, interface } => self.up(program, interface).map(Some),
            ClientStep::Left(end) => Err(HandshakeError::PeerRefused(end.reason.to_string())),
        }
    }

    fn up(&mut self, program: Name, interface: Name) -> Result<Event, HandshakeError> {
        match core::mem::replace(&mut self.state, State::Idle(None)) {
            State::Pending(pending) => {
                let Pending { socket, memory, .. } = *pending;
                let queues = memory.ok_or(HandshakeError::PeerClosed)?.connect()?;
                let link = Link::new(self.config.mode, (program, interface), socket.peer, queues);
                self.wait = self.config.first_retry;
                self.state = State::Live(socket);
                Ok(Event::Connected { id: self.config.id, link })
            }
            other => {
                self.state = other;
                Err(HandshakeError::PeerClosed)
            }
        }
    }

    fn broken(&mut self, error: HandshakeError, now: Instant) -> Event {
        match &self.state {
            State::Live(_) => self.down(DisconnectReason::Protocol(error), now),
            _ => self.refuse(error, now),
        }
    }

    fn refuse(&mut self, reason: HandshakeError, now: Instant) -> Event {
        let mut peer = None;
        if let State::Pending(pending) = &self.state {
            pending.socket.leave(&reason.to_string());
            peer = Some(pending.socket.peer);
        }
        self.idle(now);
        Event::Refused { id: Some(self.config.id), peer, reason }
    }

    fn down(&mut self, reason: DisconnectReason, now: Instant) -> Event {
        if let (State::Live(socket), DisconnectReason::Protocol(error)) = (&self.state, &reason) {
            socket.leave(&error.to_string());
        }
        self.idle(now);
        Event::Disconnected { id: self.config.id, reason }
    }

    /// Lets go of the connection and sets the time of the next attempt.
    fn idle(&mut self, now: Instant) {
        match &self.state {
            State::Idle(_) => {}
            State::Pending(pending) => self.poller.forget(&pending.socket),
            State::Live(socket) => self.poller.forget(socket),
        }
        self.state = State::Idle(self.address.as_ref().map(|_| now + self.wait));
        self.wait = (self.wait * 2).min(self.config.last_retry);
    }

    fn expire(&mut self, now: Instant, events: &mut Vec<Event>) {
        if let State::Pending(pending) = &self.state
            && pending.deadline <= now
        {
            let error = HandshakeError::Timeout(self.config.handshake_timeout.as_millis());
            events.push(self.refuse(error, now));
        }
    }

    fn arm(&mut self, now: Instant) {
        let deadline = match &self.state {
            State::Idle(due) => *due,
            State::Pending(pending) => Some(pending.deadline),
            State::Live(_) => None,
        };
        self.poller.arm(deadline, now);
    }
}

impl AsFd for Dialer {
    /// Readable when [`process`](Self::process) has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }
}

impl Drop for Dialer {
    fn drop(&mut self) {
        self.disconnect("client closed");
    }
}

impl OurFd {
    fn of(self, memory: &ClientMemory) -> Option<BorrowedFd<'_>> {
        match self {
            OurFd::Region(index) => memory.regions().nth(index).map(|(_, file)| file),
            OurFd::Ring(index) => memory.rings().get(index).map(|ring| ring.event.as_fd()),
        }
    }
}

type Announcement = (Vec<(u64, OurFd)>, Vec<(AddRing, OurFd)>);

fn announcement(memory: &ClientMemory) -> Announcement {
    let regions = memory.regions().enumerate().map(|(index, (size, _))| (size, OurFd::Region(index)));
    let mut next = [0u16; 2];
    let rings = memory.rings().iter().enumerate().map(|(number, spec)| {
        let count = &mut next[usize::from(spec.direction == Direction::ServerToClient)];
        let ring = AddRing {
            direction: spec.direction,
            index: *count,
            region: spec.location.region,
            offset: spec.location.offset,
            log2_size: spec.location.log2_size,
            private_header: 0,
        };
        *count += 1;
        (ring, OurFd::Ring(number))
    });
    (regions.collect(), rings.collect())
}

fn shape(config: &DialerConfig, agreed: Agreed) -> ClientShape {
    ClientShape {
        to_server: agreed.rings.c2s,
        to_client: agreed.rings.s2c,
        log2_size: agreed.log2_ring,
        buffer_size: config.buffer_size,
        huge_pages: config.huge_pages,
        header: config.header,
        ..ClientShape::default()
    }
}

fn check_uid(expected: Option<u32>, peer: PeerCredentials) -> Result<(), HandshakeError> {
    match expected {
        Some(expected) if expected != peer.uid => Err(HandshakeError::Uid { got: peer.uid, expected }),
        _ => Ok(()),
    }
}
