//! The control sockets of memif ports: one listener per socket, shared by its interfaces, and one dialer per
//! client port.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use memif::{
    Address, Dialer, DialerConfig, InterfaceConfig, Listener, ListenerConfig, Name, PeerLimits, Relay,
    RelayEvent, RingCounts,
};

use super::open_error::{Cause, OpenError};
use super::{SentFds, sent};
use crate::model::{ControlSocket, MemifSpec, Mode, Netns, PortName, RelaySpec, Role};
use crate::netns::in_netns;

/// What this engine calls itself to its peers.
const PROGRAM: &str = "vwire-dataplane";

/// What happened to a port's connection.
pub enum MemifEvent {
    /// A peer is there.
    Up(PortName, Box<memif::Link>),
    /// It is gone.
    Down(PortName, String),
    /// One that came was refused, or a dialer found no server. If the port has a connection, that one is not
    /// touched.
    Refused(Option<PortName>, String),
    /// A relay's two ends are connected; the text says who they are.
    Joined(PortName, String),
    /// Nobody can connect to these ports for now: the process has no descriptor left for it.
    Closed(Vec<PortName>, String),
}

/// Who is behind a descriptor that became readable.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// A listener, by its socket.
    Listener(ControlSocket),
    /// The dialer of a port.
    Dialer(PortName),
    /// A relay.
    Relay(PortName),
    /// The kernel, about the interface of a port.
    #[cfg_attr(not(feature = "af_xdp"), expect(dead_code, reason = "only AF_XDP ports listen to it"))]
    Nic(PortName),
    /// What is to be done at a certain time.
    Clock,
    /// The kernel's routes and neighbours, for an underlay.
    Kernel(PortName),
}

struct Served {
    listener: Listener,
    ports: BTreeMap<u32, PortName>,
}

/// All of them.
#[derive(Default)]
pub struct MemifSockets {
    listeners: HashMap<ControlSocket, Served>,
    dialers: HashMap<PortName, Dialer>,
    relays: HashMap<PortName, Relay>,
}

impl MemifSockets {
    /// Begins to serve, or to dial, a port. Returns the descriptor's owner, if it is new and has to be
    /// watched.
    pub fn open(
        &mut self,
        port: &PortName,
        spec: &MemifSpec,
        fds: &SentFds,
    ) -> Result<Option<Source>, OpenError> {
        match spec.role {
            Role::Server => self.serve(port, spec, fds),
            Role::Client => {
                self.dialers.insert(port.clone(), dial(port, spec, fds)?);
                Ok(Some(Source::Dialer(port.clone())))
            }
        }
    }

    fn serve(
        &mut self,
        port: &PortName,
        spec: &MemifSpec,
        fds: &SentFds,
    ) -> Result<Option<Source>, OpenError> {
        let new = !self.listeners.contains_key(&spec.socket);
        if new {
            let listener = listen(&spec.socket, fds)?;
            self.listeners.insert(spec.socket.clone(), Served { listener, ports: BTreeMap::new() });
        }
        let config = interface(port, spec)?;
        if let Some(served) = self.listeners.get_mut(&spec.socket) {
            served.listener.add_interface(spec.id, config);
            served.ports.insert(spec.id, port.clone());
        }
        Ok(new.then(|| Source::Listener(spec.socket.clone())))
    }

    /// The descriptor to watch for `source`.
    pub fn fd(&self, source: &Source) -> Option<BorrowedFd<'_>> {
        match source {
            Source::Listener(socket) => self.listeners.get(socket).map(|served| served.listener.as_fd()),
            Source::Dialer(port) => self.dialers.get(port).map(AsFd::as_fd),
            Source::Relay(relay) => self.relays.get(relay).map(AsFd::as_fd),
            Source::Nic(_) | Source::Clock | Source::Kernel(_) => None,
        }
    }

    /// Ends a port; its peer is told. Returns the owner of a descriptor that is no longer watched.
    pub fn close(&mut self, port: &PortName, spec: &MemifSpec) -> Option<Source> {
        if spec.role == Role::Client {
            if let Some(mut dialer) = self.dialers.remove(port) {
                dialer.disconnect("the port was removed");
            }
            return Some(Source::Dialer(port.clone()));
        }
        let served = self.listeners.get_mut(&spec.socket)?;
        served.listener.remove_interface(spec.id);
        served.ports.remove(&spec.id);
        if served.ports.is_empty() {
            self.listeners.remove(&spec.socket);
            return Some(Source::Listener(spec.socket.clone()));
        }
        None
    }

    /// Begins to pass on what a relay's ends say.
    pub fn open_relay(
        &mut self,
        name: &PortName,
        spec: &RelaySpec,
        fds: &SentFds,
    ) -> Result<Source, OpenError> {
        let listening = sent::copy(fds, spec.listen)?;
        let netns = match &spec.netns {
            None => None,
            Some(Netns::Sent(inode)) => Some(sent::any_netns(fds, *inode)?),
            Some(Netns::Path(path)) => Some(crate::netns::open(path.as_ref()).map_err(OpenError::system)?),
        };
        let to =
            Address::abstract_name(&spec.socket).map_err(|error| OpenError::new(Cause::Request, error))?;
        let dial = move || {
            let connected = in_netns(netns.as_ref().map(AsFd::as_fd), || memif::connect(&to));
            connected.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
        };
        let relay = Relay::new(listening, Box::new(dial)).map_err(unsuitable)?;
        self.relays.insert(name.clone(), relay);
        Ok(Source::Relay(name.clone()))
    }

    /// Ends a relay and its connection. Returns the owner of a descriptor that is no longer watched.
    pub fn close_relay(&mut self, name: &PortName) -> Source {
        self.relays.remove(name);
        Source::Relay(name.clone())
    }

    /// Ends a port's connection, telling the peer why. It may connect again.
    pub fn disconnect(&mut self, port: &PortName, spec: &MemifSpec, reason: &str) {
        match spec.role {
            Role::Client => self.dialers.get_mut(port).map(|dialer| dialer.disconnect(reason)),
            Role::Server => {
                self.listeners.get_mut(&spec.socket).map(|served| served.listener.disconnect(spec.id, reason))
            }
        };
    }

    /// Does what is to be done for `source`.
    pub fn process(&mut self, source: &Source) -> Vec<MemifEvent> {
        match source {
            Source::Nic(_) | Source::Clock | Source::Kernel(_) => Vec::new(),
            Source::Listener(socket) => {
                let Some(served) = self.listeners.get_mut(socket) else { return Vec::new() };
                let events = served.listener.process();
                let port = |id| served.ports.get(&id).cloned();
                let ports = || served.ports.values().cloned().collect();
                events
                    .into_iter()
                    .map(|event| match event {
                        // No peer came, and there was no other end to be refused by: accepting itself failed.
                        memif::Event::Refused { id: None, peer: None, reason } => {
                            MemifEvent::Closed(ports(), reason.to_string())
                        }
                        other => named(other, port),
                    })
                    .collect()
            }
            Source::Dialer(port) => {
                let Some(dialer) = self.dialers.get_mut(port) else { return Vec::new() };
                dialer.process().into_iter().map(|event| named(event, |_| Some(port.clone()))).collect()
            }
            Source::Relay(name) => {
                let Some(relay) = self.relays.get_mut(name) else { return Vec::new() };
                relay.process().into_iter().map(|event| relayed(name, event)).collect()
            } // Not a memif's.
        }
    }
}

/// The event with its port's name in place of the interface's id.
fn named(event: memif::Event, port: impl Fn(u32) -> Option<PortName>) -> MemifEvent {
    match event {
        memif::Event::Connected { id, link } => match port(id) {
            Some(port) => MemifEvent::Up(port, Box::new(link)),
            None => MemifEvent::Refused(None, format!("id {id} is no port's")),
        },
        memif::Event::Disconnected { id, reason } => match port(id) {
            Some(port) => MemifEvent::Down(port, reason.to_string()),
            None => MemifEvent::Refused(None, reason.to_string()),
        },
        memif::Event::Refused { id, peer, reason } => {
            let who = peer.map(|peer| format!("process {}: ", peer.pid)).unwrap_or_default();
            MemifEvent::Refused(id.and_then(port), format!("{who}{reason}"))
        }
    }
}

fn relayed(name: &PortName, event: RelayEvent) -> MemifEvent {
    match event {
        RelayEvent::Up { client, server } => {
            MemifEvent::Joined(name.clone(), format!("process {} - process {}", client.pid, server.pid))
        }
        RelayEvent::Down(reason) => MemifEvent::Down(name.clone(), reason),
        RelayEvent::Refused(reason) => MemifEvent::Refused(Some(name.clone()), reason),
    }
}

/// The socket as an address, or as a descriptor that somebody made.
enum Place {
    Address(Address),
    Fd(OwnedFd),
}

fn place(socket: &ControlSocket, fds: &SentFds) -> Result<Place, OpenError> {
    let address = match socket {
        ControlSocket::Path(path) => Address::path(path),
        ControlSocket::Abstract(name) => Address::abstract_name(name),
        ControlSocket::Sent(inode) => return sent::copy(fds, *inode).map(Place::Fd),
        ControlSocket::Inherited(number) => return sent::inherited(*number).map(Place::Fd),
    };
    address.map(Place::Address).map_err(|error| OpenError::new(Cause::Request, error))
}

fn listen(socket: &ControlSocket, fds: &SentFds) -> Result<Listener, OpenError> {
    let config = ListenerConfig { program: Name::cut(PROGRAM), ..ListenerConfig::default() };
    match place(socket, fds)? {
        Place::Fd(fd) => Listener::from_fd(fd, config).map_err(unsuitable),
        Place::Address(address) => {
            if let Address::Path(path) = &address
                && let Some(parent) = path.parent()
                && !parent.exists()
            {
                std::fs::create_dir_all(parent)
                    .map_err(|error| OpenError::system(format!("directory {}: {error}", parent.display())))?;
            }
            Listener::bind(&address, config).map_err(unsuitable)
        }
    }
}

fn dial(port: &PortName, spec: &MemifSpec, fds: &SentFds) -> Result<Dialer, OpenError> {
    let mut config = DialerConfig::new(spec.id, mode(spec.mode), Name::cut(port.as_str()));
    config.program = Name::cut(PROGRAM);
    config.secret = secret(spec)?;
    config.rings = RingCounts { c2s: spec.queues.get(), s2c: spec.queues.get() };
    config.log2_ring = spec.ring_size.get().trailing_zeros() as u8;
    config.buffer_size = spec.buffer_size.get();
    match place(&spec.socket, fds)? {
        Place::Fd(fd) => Dialer::from_connected(fd, config).map_err(unsuitable),
        Place::Address(address) => Dialer::new(address, config).map_err(unsuitable),
    }
}

fn unsuitable(error: memif::SocketError) -> OpenError {
    match error {
        memif::SocketError::Unsuitable { .. } => OpenError::new(Cause::Request, error),
        other => OpenError::system(other),
    }
}

fn interface(port: &PortName, spec: &MemifSpec) -> Result<InterfaceConfig, OpenError> {
    let mut config = InterfaceConfig::new(mode(spec.mode), Name::cut(port.as_str()));
    config.secret = secret(spec)?;
    config.limits = PeerLimits { rings: spec.queues.get(), ..PeerLimits::default() };
    Ok(config)
}

fn secret(spec: &MemifSpec) -> Result<memif::Secret, OpenError> {
    match spec.secret.reveal() {
        "" => Ok(memif::Secret::none()),
        secret => secret.parse().map_err(|error| OpenError::new(Cause::Request, error)),
    }
}

fn mode(mode: Mode) -> memif::Mode {
    match mode {
        Mode::Ethernet => memif::Mode::Ethernet,
        Mode::Ip => memif::Mode::Ip,
    }
}
