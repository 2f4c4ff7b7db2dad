//! Where a control socket is: a path in the file system, or a name in the abstract namespace.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::net::SocketAddrUnix;

/// Bytes of `sun_path`, of which a path leaves one for its terminating NUL, and an abstract name one for its
/// leading NUL.
const SUN_PATH: usize = 108;

/// The address of a control socket. As a string, `@name` is abstract and all else a path.
///
/// An abstract socket lives in the network namespace of the process that bound it, and is open to every
/// process there. Its name has no terminating NUL on the wire, as in VPP, libmemif and DPDK since 21.11.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A socket file.
    Path(PathBuf),
    /// A name without its leading NUL or `@`.
    Abstract(Vec<u8>),
}

/// Why a string is no address of a control socket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Nothing there.
    #[error("the memif socket address \"{0}\" is empty; give a path, or @name for an abstract socket")]
    Empty(String),
    /// Longer than the kernel takes.
    #[error("the memif socket address \"{address}\" has {len} bytes; Linux takes {max}")]
    TooLong {
        /// What was offered.
        address: String,
        /// Its bytes.
        len: usize,
        /// The kernel's limit.
        max: usize,
    },
    /// A path ends at its first NUL.
    #[error("the memif socket path \"{0}\" contains a NUL")]
    Nul(String),
}

impl Address {
    /// A socket file.
    ///
    /// # Errors
    /// If the path is empty, has more than 107 bytes, or holds a NUL.
    pub fn path(path: impl AsRef<Path>) -> Result<Self, AddressError> {
        use std::os::unix::ffi::OsStrExt;
        let path = path.as_ref();
        let bytes = path.as_os_str().as_bytes();
        let shown = path.display().to_string();
        check_length(bytes, &shown)?;
        if bytes.contains(&0) {
            return Err(AddressError::Nul(shown));
        }
        Ok(Self::Path(path.to_owned()))
    }

    /// An abstract socket, named without `@`.
    ///
    /// # Errors
    /// If the name is empty or has more than 107 bytes.
    pub fn abstract_name(name: impl AsRef<[u8]>) -> Result<Self, AddressError> {
        let name = name.as_ref();
        check_length(name, &format!("@{}", name.escape_ascii()))?;
        Ok(Self::Abstract(name.to_owned()))
    }

    pub(crate) fn to_socket(&self) -> rustix::io::Result<SocketAddrUnix> {
        match self {
            Address::Path(path) => SocketAddrUnix::new(path.as_path()),
            Address::Abstract(name) => SocketAddrUnix::new_abstract_name(name),
        }
    }
}

fn check_length(bytes: &[u8], shown: &str) -> Result<(), AddressError> {
    match bytes.len() {
        0 => Err(AddressError::Empty(shown.to_owned())),
        len if len > SUN_PATH - 1 => {
            Err(AddressError::TooLong { address: shown.to_owned(), len, max: SUN_PATH - 1 })
        }
        _ => Ok(()),
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(address: &str) -> Result<Self, AddressError> {
        match address.strip_prefix('@') {
            Some(name) => Self::abstract_name(name),
            None => Self::path(address),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Path(path) => path.display().fmt(f),
            Address::Abstract(name) => write!(f, "@{}", name.escape_ascii()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_sign_means_abstract() {
        assert_eq!("@vpp".parse(), Ok(Address::Abstract(b"vpp".to_vec())));
        assert_eq!("/run/m.sock".parse(), Ok(Address::Path("/run/m.sock".into())));
        for address in ["@vpp", "/run/m.sock", "m.sock"] {
            assert_eq!(address.parse::<Address>().expect("valid").to_string(), address);
        }
    }

    #[test]
    fn addresses_hold_107_bytes() {
        let (path, name) = (format!("/{}", "p".repeat(106)), format!("@{}", "n".repeat(107)));
        for address in [&path, &name] {
            address.parse::<Address>().expect("107 bytes").to_socket().expect("the kernel takes them");
            let error = format!("{address}x").parse::<Address>().expect_err("108 bytes");
            assert_eq!(
                error.to_string(),
                format!("the memif socket address \"{address}x\" has 108 bytes; Linux takes 107")
            );
        }
    }

    #[test]
    fn empty_addresses_and_nuls_are_refused() {
        for address in ["", "@"] {
            let error = address.parse::<Address>().expect_err("empty");
            assert!(error.to_string().contains(&format!("\"{address}\" is empty")));
        }
        assert!(matches!("/run/\0".parse::<Address>(), Err(AddressError::Nul(_))));
    }
}
