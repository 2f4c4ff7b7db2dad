//! VXLAN network identifiers: which are taken, between us and each peer.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Identifiers have 24 bits.
const LIMIT: u32 = 1 << 24;
/// Random draws before the table is looked through.
const DRAWS: usize = 64;

/// Who has which identifier. Two tunnels to one peer with one identifier would be one.
#[derive(Default)]
pub struct Vnis(Mutex<HashMap<(IpAddr, u32), String>>);

/// The half that a server draws from, so that it can't draw what its peer draws at the same time for a tunnel the other way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// The client's address is the lower one, or both are the same.
    Even,
    /// The server's is.
    Odd,
}

impl Half {
    /// By the addresses of client and server, each as 16 bytes (as `vni/server.go` of networkservicemesh/sdk compares them). An address
    /// that is none makes the numbers even if it is the client's, odd if it is the server's.
    pub fn of(client: &str, server: &str) -> Self {
        let bytes = |text: &str| {
            text.parse::<IpAddr>().ok().map(|address| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            })
        };
        match (bytes(client), bytes(server)) {
            (None, _) => Self::Even,
            (Some(client), Some(server)) if client <= server => Self::Even,
            _ => Self::Odd,
        }
    }
}

impl Vnis {
    fn lock(&self) -> MutexGuard<'_, HashMap<(IpAddr, u32), String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an identifier for a connection; false if another has it.
    pub fn take(&self, peer: IpAddr, vni: u32, connection: &str) -> bool {
        let mut taken = self.lock();
        taken.entry((peer, vni)).or_insert_with(|| connection.to_owned()) == connection
    }

    /// Takes a free identifier for a connection, a random one; none if all are taken.
    pub fn draw(&self, peer: IpAddr, half: Half, connection: &str) -> Option<u32> {
        let odd = u32::from(half == Half::Odd);
        let random = std::iter::repeat_with(|| rand::random_range(0..LIMIT / 2) * 2 + odd).take(DRAWS);
        let mut taken = self.lock();
        let vni = random.chain((odd..LIMIT).step_by(2)).find(|vni| !taken.contains_key(&(peer, *vni)))?;
        taken.insert((peer, vni), connection.to_owned());
        Some(vni)
    }

    /// Frees what a connection has, but for `keep`.
    pub fn release(&self, connection: &str, keep: &[(IpAddr, u32)]) {
        self.lock().retain(|tunnel, owner| owner != connection || keep.contains(tunnel));
    }

    /// How many are taken.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// True if none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_client_gets_even_numbers() {
        assert_eq!(Half::of("10.0.0.1", "10.0.0.2"), Half::Even);
        assert_eq!(Half::of("10.0.0.2", "10.0.0.1"), Half::Odd);
        assert_eq!(Half::of("10.0.0.1", "10.0.0.1"), Half::Even);
        assert_eq!(Half::of("fd00::1", "10.0.0.1"), Half::Odd);
        assert_eq!(Half::of("", "10.0.0.1"), Half::Even);
        assert_eq!(Half::of("10.0.0.1", "x"), Half::Odd);
    }

    #[test]
    fn an_identifier_belongs_to_one_connection_until_it_is_released() {
        let vnis = Vnis::default();
        let peer: IpAddr = "10.0.0.1".parse().unwrap();
        let drawn = vnis.draw(peer, Half::Odd, "a").unwrap();
        assert_eq!(drawn % 2, 1);
        assert!(vnis.take(peer, drawn, "a") && !vnis.take(peer, drawn, "b"));
        assert!(
            vnis.take("10.0.0.2".parse().unwrap(), drawn, "b"),
            "another peer's number is another number"
        );
        vnis.release("a", &[]);
        assert!(vnis.take(peer, drawn, "b"));
        vnis.release("b", &[(peer, drawn)]);
        assert_eq!(vnis.len(), 1);
    }
}
