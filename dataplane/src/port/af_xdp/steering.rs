//! Which frames of an interface are ours, and changing that while the program runs.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use aya::maps::{HashMap, MapData, MapError};

/// Which of an interface's frames come to the port. All others go on to the kernel untouched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Steering {
    /// Every frame: the interface is the port's alone.
    All,
    /// UDP datagrams to these addresses and ports: the rest of the interface stays the kernel's. More can be added, and these taken
    /// away, by the port's [`Steerer`].
    Datagrams(Vec<SocketAddr>),
}

/// A destination as the XDP program looks it up: address (IPv4 as ::ffff:a.b.c.d) and port in network order, and two zero bytes.
pub type Key = [u8; 20];

/// Most destinations of one port.
pub const STEERING_MAX: u32 = 4096;

/// The key of a destination.
pub fn key(to: SocketAddr) -> Key {
    let address = match to.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let mut key = [0; 20];
    key[..16].copy_from_slice(&address.octets());
    key[16..18].copy_from_slice(&to.port().to_be_bytes());
    key
}

/// Says which datagrams come to a port that was opened with [`Steering::Datagrams`]. Copies speak of the same port; in force at once,
/// for as long as the port lives.
#[derive(Clone)]
pub struct Steerer(Arc<Mutex<Destinations>>);

struct Destinations {
    map: HashMap<MapData, Key, u8>,
    known: BTreeSet<SocketAddr>,
}

/// The kernel did not take a change of steering.
#[derive(Debug, thiserror::Error)]
#[error(
    "AF_XDP: steering datagrams to {to}: {error}; at most {STEERING_MAX} destinations of one interface are possible"
)]
pub struct SteeringError {
    to: SocketAddr,
    error: MapError,
}

impl Steerer {
    pub(super) fn new(map: HashMap<MapData, Key, u8>) -> Self {
        Self(Arc::new(Mutex::new(Destinations { map, known: BTreeSet::new() })))
    }

    /// From now on datagrams to this address and port come to the port. No matter if they already did.
    ///
    /// # Errors
    /// [`SteeringError`] if there are too many.
    pub fn add(&self, to: SocketAddr) -> Result<(), SteeringError> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.map.insert(key(to), 1, 0).map_err(|error| SteeringError { to, error })?;
        all.known.insert(to);
        Ok(())
    }

    /// From now on they go to the kernel. No matter if they already did.
    ///
    /// # Errors
    /// [`SteeringError`], the kernel's.
    pub fn remove(&self, to: SocketAddr) -> Result<(), SteeringError> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.known.remove(&to);
        match all.map.remove(&key(to)) {
            Ok(()) | Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
            Err(MapError::SyscallError(refused)) if refused.io_error.raw_os_error() == Some(libc::ENOENT) => {
                Ok(())
            }
            Err(error) => Err(SteeringError { to, error }),
        }
    }
}

impl Steerer {
    /// Where the datagrams go that come to the port.
    pub fn destinations(&self) -> Vec<SocketAddr> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.known.iter().copied().collect()
    }
}

impl std::fmt::Debug for Steerer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Steerer")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_address_and_port_as_they_are_on_the_wire() {
        let v4 = key("192.0.2.1:4789".parse().unwrap());
        assert_eq!(v4[..10], [0; 10]);
        assert_eq!(v4[10..], [0xff, 0xff, 192, 0, 2, 1, 0x12, 0xb5, 0, 0]);
        let v6 = key("[2001:db8::1]:4790".parse().unwrap());
        assert_eq!((v6[0], v6[15], &v6[16..]), (0x20, 1, &[0x12, 0xb6, 0, 0][..]));
    }
}
