//! memif 2.0: packets between two processes of one machine through shared memory.
//!
//! **Roles.** The *server* listens on a control socket and offers interfaces, each under an id; a *client*
//! connects to one of them. (The protocol's authors say master and slave.) Once both agree, packets flow
//! without the kernel; the socket only tells when the other side has gone.
//!
//! **Regions** are shared memory files. The client makes them all and announces them; the server maps them.
//! Descriptors address a byte by region and offset.
//!
//! **Rings** lie in regions, each for one direction, each an array of descriptors with two indices:
//!
//! | field | written by | read by |
//! |---|---|---|
//! | cookie, ring sizes, locations | client, before CONNECT | server, once |
//! | head | client, always | server |
//! | tail | server, always | client |
//! | flags (bit 0: do not interrupt me) | whoever receives the ring's packets | whoever sends them |
//! | descriptors from tail up to head | server | client |
//! | the other descriptors | client | server |
//! | a packet's bytes | whoever sends it | whoever receives it |
//! | eventfd of a ring | whoever sends its packets, if not asked to let it be | whoever sleeps |
//!
//! The table says who *should*: a peer may write anywhere in shared memory at any time, so nothing read from
//! there is trusted (see [`queue`]), and packets are copied before they are looked at (see [`bytes`]).
//!
//! # Use
//!
//! A [`Listener`] or a [`Dialer`] is a descriptor to poll and a `process()` that never waits. It yields a
//! [`Link`] with the queues of a connection; whoever owns those moves packets in any thread it likes.
//!
//! ```
//! use std::os::fd::AsFd;
//! use memif::{Address, Dialer, DialerConfig, Event, InterfaceConfig, Lent, Listener, ListenerConfig, Mode};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let place = tempfile::tempdir()?;
//! let address = Address::path(place.path().join("memif.sock"))?;
//! let mut listener = Listener::bind(&address, ListenerConfig::default())?;
//! listener.add_interface(0, InterfaceConfig::new(Mode::Ethernet, "server0".parse()?));
//! let mut dialer = Dialer::new(address, DialerConfig::new(0, Mode::Ethernet, "client0".parse()?))?;
//!
//! // One thread plays both sides here; a real one polls `listener.as_fd()`.
//! let (mut server, mut client) = (None, None);
//! while server.is_none() || client.is_none() {
//!     for event in dialer.process() {
//!         if let Event::Connected { link, .. } = event { client = Some(link) }
//!     }
//!     for event in listener.process() {
//!         if let Event::Connected { link, .. } = event { server = Some(link) }
//!     }
//! }
//! let (mut server, mut client) = (server.unwrap(), client.unwrap());
//!
//! client.tx[0].push(Lent::from(&[0xab; 60][..]))?;
//! client.tx[0].publish();
//! assert_eq!(server.rx[0].backlog(), 1);
//! # Ok(()) }
//! ```
//!
//! # Modules
//!
//! [`message`] is the bytes of the control protocol, [`handshake`] its state machines without I/O; [`region`]
//! maps memory, [`ring`] finds its way in it, [`queue`] moves packets. `unsafe` is in [`bytes`], [`region`],
//! [`ring`], [`queue`], [`sigbus`] and, for one system call, in the socket's file.

pub mod address;
pub mod bytes;
mod dialer;
pub mod handshake;
mod link;
mod listener;
pub mod message;
mod poller;
pub mod queue;
pub mod region;
mod relay;
pub mod ring;
pub mod sigbus;
mod socket;

pub use address::{Address, AddressError};
pub use bytes::{Lent, Slot};
pub use dialer::{Dialer, DialerConfig};
pub use handshake::{HandshakeError, Mode, PeerLimits, RingCounts};
pub use link::{DisconnectReason, Event, Link};
pub use listener::{InterfaceConfig, Listener, ListenerConfig};
pub use message::{Name, Secret};
pub use relay::{Dial, Relay, RelayEvent, connect};
pub use socket::{PeerCredentials, SocketError};
