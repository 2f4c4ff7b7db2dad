//! The server's side: believes nothing until it is checked, and maps nothing until all is announced.

use super::error::ModeName;
use super::{Attached, HandshakeError, Mode, Offer, OfferedRegion, OfferedRing, PeerLimits, RingCounts};
use crate::message::{AddRegion, AddRing, Disconnect, Hello, Init, Kind, Message, Name, Secret, VERSION};
use crate::ring::{Direction, RingError, RingHeader, RingLocation};

/// The ring size in HELLO. Always 14, whatever is accepted: a VPP client that is told less lays its rings out
/// by the smaller size and announces the larger.
const HELLO_LOG2_RING: u8 = 14;

/// What a server knows of an interface that a client asks for.
#[derive(Debug, Clone, Copy)]
pub struct Admission<'a> {
    /// The mode a client must ask for.
    pub mode: Mode,
    /// The secret it must know; empty if none.
    pub secret: &'a Secret,
    /// The server's name for the interface, sent in CONNECTED.
    pub name: &'a Name,
    /// What it may announce.
    pub limits: &'a PeerLimits,
    /// True if the interface has a peer, or one in the middle of a handshake.
    pub busy: bool,
}

/// The interfaces of a socket.
pub trait Directory {
    /// The interface with this id, if there is one.
    fn find(&self, id: u32) -> Option<Admission<'_>>;
}

/// What to do after a message.
#[derive(Debug)]
pub enum ServerStep<F> {
    /// Send this.
    Reply(Message),
    /// Map the regions and make the queues; then send CONNECTED with the name.
    Complete(Offer<F>, Name),
    /// The client left.
    Left(Disconnect),
}

/// One client's handshake.
#[derive(Debug)]
pub struct ServerHandshake<F> {
    state: State<F>,
}

#[derive(Debug)]
enum State<F> {
    AwaitInit,
    Adding { offer: Offer<F>, limits: PeerLimits, name: Name },
    Finished,
}

impl<F> Default for ServerHandshake<F> {
    fn default() -> Self {
        Self { state: State::AwaitInit }
    }
}

impl<F> ServerHandshake<F> {
    /// What a server says before anything else. `limits` are the widest of its interfaces: which of them is
    /// wanted is not known yet.
    pub fn hello(program: &Name, limits: &PeerLimits) -> Message {
        Message::Hello(Hello {
            name: program.clone(),
            min_version: VERSION,
            max_version: VERSION,
            max_region: limits.regions.max_regions.saturating_sub(1),
            max_s2c_ring: limits.rings.saturating_sub(1),
            max_c2s_ring: limits.rings.saturating_sub(1),
            max_log2_ring: HELLO_LOG2_RING,
        })
    }

    /// The interface this handshake is for, once INIT was accepted.
    pub fn interface(&self) -> Option<u32> {
        match &self.state {
            State::Adding { offer, .. } => Some(offer.id),
            State::AwaitInit | State::Finished => None,
        }
    }

    /// Takes a message from the client.
    ///
    /// # Errors
    /// With the reason that the client is to be sent before the connection is closed.
    pub fn receive(
        &mut self,
        message: Message,
        attached: Attached<F>,
        directory: &impl Directory,
    ) -> Result<ServerStep<F>, HandshakeError> {
        let kind = message.kind();
        let fd = attached.expect_for(kind)?;
        match (&mut self.state, message, fd) {
            (_, Message::Disconnect(end), _) => Ok(ServerStep::Left(end)),
            (State::AwaitInit, Message::Init(init), _) => self.admit(init, directory),
            (State::Adding { offer, limits, .. }, Message::AddRegion(region), Some(file)) => {
                add_region(offer, limits, region, file)
            }
            (State::Adding { offer, limits, .. }, Message::AddRing(ring), Some(event)) => {
                add_ring(offer, limits, ring, event)
            }
            (State::Adding { .. }, Message::Connect(name), _) => self.connect(name),
            (state, ..) => Err(HandshakeError::Unexpected { got: kind, when: state.moment() }),
        }
    }

    fn admit(&mut self, init: Init, directory: &impl Directory) -> Result<ServerStep<F>, HandshakeError> {
        if init.version != VERSION {
            return Err(HandshakeError::ClientVersion { offered: init.version });
        }
        let interface = directory.find(init.id).ok_or(HandshakeError::UnknownId(init.id))?;
        check_secret(interface.secret, &init.secret)?;
        if interface.busy {
            return Err(HandshakeError::AlreadyConnected(init.id));
        }
        if init.mode != interface.mode.to_wire() {
            return Err(HandshakeError::ModeMismatch { ours: interface.mode, theirs: ModeName(init.mode) });
        }
        let offer = Offer {
            id: init.id,
            mode: interface.mode,
            program: init.name,
            interface: Name::default(),
            regions: Vec::new(),
            header: RingHeader::NATIVE,
            c2s: Vec::new(),
            s2c: Vec::new(),
        };
        self.state = State::Adding { offer, limits: *interface.limits, name: interface.name.clone() };
        Ok(ServerStep::Reply(Message::Ack))
    }

    fn connect(&mut self, interface: Name) -> Result<ServerStep<F>, HandshakeError> {
        let State::Adding { mut offer, name, .. } = core::mem::replace(&mut self.state, State::Finished)
        else {
            return Err(HandshakeError::Unexpected { got: Kind::Connect, when: self.state.moment() });
        };
        let rings = RingCounts { c2s: offer.c2s.len() as u16, s2c: offer.s2c.len() as u16 };
        if rings.c2s == 0 || rings.s2c == 0 {
            return Err(HandshakeError::NoRings(rings));
        }
        settle_places(&mut offer)?;
        offer.interface = interface;
        Ok(ServerStep::Complete(offer, name))
    }
}

impl<F> State<F> {
    fn moment(&self) -> &'static str {
        match self {
            State::AwaitInit => "before INIT",
            State::Adding { .. } => "after INIT",
            State::Finished => "after CONNECT",
        }
    }
}

/// Before anything else about the interface is told: who does not know the secret learns nothing of its
/// state.
fn check_secret(wanted: &Secret, offered: &Secret) -> Result<(), HandshakeError> {
    match (wanted.is_empty(), offered.is_empty()) {
        (true, _) => Ok(()),
        (false, true) => Err(HandshakeError::SecretRequired),
        (false, false) if wanted.matches(offered) => Ok(()),
        (false, false) => Err(HandshakeError::SecretIncorrect),
    }
}

fn add_region<F>(
    offer: &mut Offer<F>,
    limits: &PeerLimits,
    region: AddRegion,
    file: F,
) -> Result<ServerStep<F>, HandshakeError> {
    let AddRegion { index, size } = region;
    let expected = offer.regions.len();
    if usize::from(index) != expected {
        return Err(HandshakeError::RegionIndex { got: index, expected });
    }
    let total = offer.regions.iter().map(|region| region.size).sum();
    limits.regions.admit(expected, total, size)?;
    offer.regions.push(OfferedRegion { size, file });
    Ok(ServerStep::Reply(Message::Ack))
}

fn add_ring<F>(
    offer: &mut Offer<F>,
    limits: &PeerLimits,
    ring: AddRing,
    event: F,
) -> Result<ServerStep<F>, HandshakeError> {
    if ring.index >= limits.rings {
        return Err(HandshakeError::RingCount { index: ring.index, max: limits.rings });
    }
    if !(1..=limits.log2_ring).contains(&ring.log2_size) {
        return Err(HandshakeError::RingSize { asked: ring.log2_size, max: limits.log2_ring });
    }
    if ring.private_header != 0 {
        return Err(HandshakeError::PrivateHeader(ring.private_header));
    }
    let location = RingLocation { region: ring.region, offset: ring.offset, log2_size: ring.log2_size };
    // Which header the client's rings have is known once all are announced; none is smaller than this one.
    check_place(offer, RingHeader::Lines64, location)?;
    let rings = match ring.direction {
        Direction::ClientToServer => &mut offer.c2s,
        Direction::ServerToClient => &mut offer.s2c,
    };
    if usize::from(ring.index) != rings.len() {
        let (direction, got) = (ring.direction, ring.index);
        return Err(HandshakeError::RingIndex { direction, got, expected: rings.len() });
    }
    rings.push(OfferedRing { location, event });
    Ok(ServerStep::Reply(Message::Ack))
}

fn check_place<F>(offer: &Offer<F>, header: RingHeader, ring: RingLocation) -> Result<(), RingError> {
    let size = offer.regions.get(usize::from(ring.region)).map(|region| region.size);
    ring.check(header, size, offer.regions.len())
}

/// Settles the header, and with it whether all rings lie inside their regions and apart from each other.
fn settle_places<F>(offer: &mut Offer<F>) -> Result<(), RingError> {
    let rings: Vec<_> = offer.c2s.iter().chain(&offer.s2c).map(|ring| ring.location).collect();
    offer.header = infer_header(&rings);
    rings.iter().try_for_each(|&ring| check_place(offer, offer.header, ring))?;
    RingLocation::check_disjoint(&rings, offer.header)
}

/// The header's size is not negotiated, and differs between builds for arm64. Clients lay rings out back to
/// back, so the room between two tells; where it does not, the client is taken to be built like us.
fn infer_header(rings: &[RingLocation]) -> RingHeader {
    let mut sorted = rings.to_vec();
    sorted.sort_by_key(|ring| (ring.region, ring.offset));
    let fits = |header: RingHeader| {
        let follows = |pair: &[RingLocation]| {
            pair[0].region == pair[1].region
                && u64::from(pair[0].offset) + u64::from(pair[0].bytes(header)) == u64::from(pair[1].offset)
        };
        sorted.len() > 1 && sorted.windows(2).all(follows)
    };
    [RingHeader::Lines64, RingHeader::Lines128].into_iter().find(|&h| fits(h)).unwrap_or(RingHeader::NATIVE)
}
