//! The client's side: owner of all memory, so what it must check is only what the server may ask of it.

use std::collections::VecDeque;

use super::{Attached, HandshakeError, Mode};
use crate::message::{AddRegion, AddRing, Disconnect, Hello, Init, Message, Name, Secret, VERSION};

/// How many rings go each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingCounts {
    /// Client to server.
    pub c2s: u16,
    /// Server to client.
    pub s2c: u16,
}

/// What a client tells the server about itself.
#[derive(Debug, Clone)]
pub struct Introduction {
    /// The interface wanted.
    pub id: u32,
    /// Its mode.
    pub mode: Mode,
    /// The secret, or none.
    pub secret: Secret,
    /// This program.
    pub program: Name,
    /// This side's name for the interface.
    pub interface: Name,
    /// Rings wanted; fewer if the server allows fewer.
    pub rings: RingCounts,
    /// Slots of each ring wanted, as log2; fewer if the server allows fewer.
    pub log2_ring: u8,
}

/// What client and server agreed on, to be built by the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// Rings each way.
    pub rings: RingCounts,
    /// Slots of each ring, as log2.
    pub log2_ring: u8,
}

/// What to do after a message.
#[derive(Debug)]
pub enum ClientStep<F> {
    /// Make regions, rings and eventfds, hand them to [`ClientHandshake::announce`], and send what it
    /// returns.
    Build(Agreed),
    /// Send this.
    Send(Message, Option<F>),
    /// The link is up; the server's program and its name for the interface.
    Connected {
        /// From HELLO.
        program: Name,
        /// From CONNECTED.
        interface: Name,
    },
    /// The server left.
    Left(Disconnect),
}

/// One client's handshake.
#[derive(Debug)]
pub struct ClientHandshake<F> {
    introduction: Introduction,
    server: Name,
    state: State<F>,
}

#[derive(Debug)]
enum State<F> {
    AwaitHello,
    Building,
    Announcing(VecDeque<(Message, Option<F>)>),
    AwaitConnected,
    Finished,
}

impl<F> ClientHandshake<F> {
    /// A handshake that waits for HELLO.
    pub fn new(introduction: Introduction) -> Self {
        Self { introduction, server: Name::default(), state: State::AwaitHello }
    }

    /// Takes a message from the server, which never comes with a descriptor.
    ///
    /// # Errors
    /// With the reason that the server is to be sent before the connection is closed.
    pub fn receive<G>(
        &mut self,
        message: Message,
        attached: Attached<G>,
    ) -> Result<ClientStep<F>, HandshakeError> {
        let kind = message.kind();
        if !kind.carries_fd() {
            attached.expect_for(kind)?;
        }
        match (&mut self.state, message) {
            (_, Message::Disconnect(end)) => Ok(ClientStep::Left(end)),
            (State::AwaitHello, Message::Hello(hello)) => self.agree(hello),
            (State::Announcing(queue), Message::Ack) => match queue.pop_front() {
                Some((message, fd)) => {
                    if queue.is_empty() {
                        self.state = State::AwaitConnected;
                    }
                    Ok(ClientStep::Send(message, fd))
                }
                None => Err(HandshakeError::Unexpected { got: kind, when: "with nothing to acknowledge" }),
            },
            (State::AwaitConnected, Message::Connected(interface)) => {
                self.state = State::Finished;
                Ok(ClientStep::Connected { program: self.server.clone(), interface })
            }
            (state, _) => Err(HandshakeError::Unexpected { got: kind, when: state.moment() }),
        }
    }

    /// Takes what was built, to be announced one message per ACK, and returns INIT, to be sent now.
    pub fn announce(&mut self, regions: Vec<(u64, F)>, rings: Vec<(AddRing, F)>) -> Message {
        let regions = (0u16..)
            .zip(regions)
            .map(|(index, (size, file))| (Message::AddRegion(AddRegion { index, size }), Some(file)));
        let rings = rings.into_iter().map(|(ring, event)| (Message::AddRing(ring), Some(event)));
        let connect = (Message::Connect(self.introduction.interface.clone()), None);
        self.state = State::Announcing(regions.chain(rings).chain([connect]).collect());
        Message::Init(Init {
            version: VERSION,
            id: self.introduction.id,
            mode: self.introduction.mode.to_wire(),
            secret: self.introduction.secret.clone(),
            name: self.introduction.program.clone(),
        })
    }

    fn agree(&mut self, hello: Hello) -> Result<ClientStep<F>, HandshakeError> {
        if !(hello.min_version..=hello.max_version).contains(&VERSION) {
            return Err(HandshakeError::ServerVersion { min: hello.min_version, max: hello.max_version });
        }
        if hello.max_log2_ring == 0 {
            return Err(HandshakeError::ServerRingSize);
        }
        self.server = hello.name;
        self.state = State::Building;
        let wanted = self.introduction.rings;
        // HELLO carries highest indices, so one more ring than that is allowed.
        let rings = RingCounts {
            c2s: wanted.c2s.min(hello.max_c2s_ring.saturating_add(1)),
            s2c: wanted.s2c.min(hello.max_s2c_ring.saturating_add(1)),
        };
        Ok(ClientStep::Build(Agreed {
            rings,
            log2_ring: self.introduction.log2_ring.min(hello.max_log2_ring),
        }))
    }
}

impl<F> State<F> {
    fn moment(&self) -> &'static str {
        match self {
            State::AwaitHello => "before HELLO",
            State::Building => "before INIT",
            State::Announcing(_) => "while announcing",
            State::AwaitConnected => "before CONNECTED",
            State::Finished => "after CONNECTED",
        }
    }
}
