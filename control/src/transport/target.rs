//! Where to dial.

use std::fmt;
use std::path::PathBuf;

use super::{Inode, SharedFd};

/// Where a peer listens.
#[derive(Clone)]
pub enum Target {
    /// `host:port`; names are resolved at each dial.
    Tcp(String),
    /// A unix socket's path.
    Unix(PathBuf),
    /// A unix socket's file that was sent to us: it may lie in a mount namespace where we can't go by path.
    File {
        /// Its identity, which names it.
        inode: Inode,
        /// The file, opened with `O_PATH`.
        file: SharedFd,
    },
}

/// A URL that no peer can be dialled by.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url:?}: {reason}; write tcp://host:port, host:port, unix:///path or /path")]
pub struct BadTarget {
    url: String,
    reason: &'static str,
}

impl Target {
    /// Reads NSM's URLs: `tcp://host:port`, `unix:///path`, `unix:path`, a bare absolute path, and `host:port` without a scheme, which shipped manifests
    /// rely on (reference/nsm-protocol.md §1.7). `inode://` needs its descriptor and is not read here.
    ///
    /// # Errors
    /// [`BadTarget`] if it is none of these.
    pub fn parse(url: &str) -> Result<Self, BadTarget> {
        let bad = |reason| BadTarget { url: url.to_owned(), reason };
        if let Some(path) = url.strip_prefix("unix://").or_else(|| url.strip_prefix("unix:")) {
            return if path.is_empty() { Err(bad("no path")) } else { Ok(Self::Unix(path.into())) };
        }
        if url.starts_with('/') {
            return Ok(Self::Unix(url.into()));
        }
        let address = url.strip_prefix("tcp://").unwrap_or(url).trim_end_matches('/');
        if address.contains("://") {
            return Err(bad("a scheme that can't be dialled"));
        }
        let (host, port) = address.rsplit_once(':').ok_or_else(|| bad("no port"))?;
        if port.parse::<u16>().is_err() {
            return Err(bad("the port is not a number from 0 to 65535"));
        }
        if host.contains(['/', ' ']) {
            return Err(bad("not a host"));
        }
        Ok(Self::Tcp(address.to_owned()))
    }

    /// True if the peer is on this machine by the kind of its socket, so that descriptors can be passed.
    pub fn is_local(&self) -> bool {
        !matches!(self, Self::Tcp(_))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::File { inode, .. } => write!(f, "inode://{}/{}", inode.dev, inode.ino),
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Targets are the same if they lead to the same socket; used as the key of connections kept open.
impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tcp(a), Self::Tcp(b)) => a == b,
            (Self::Unix(a), Self::Unix(b)) => a == b,
            (Self::File { inode: a, .. }, Self::File { inode: b, .. }) => a == b,
            _ => false,
        }
    }
}

impl Eq for Target {}

impl std::hash::Hash for Target {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        match self {
            Self::Tcp(address) => (0, address).hash(state),
            Self::Unix(path) => (1, path).hash(state),
            Self::File { inode, .. } => (2, inode.dev, inode.ino).hash(state),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_manifests_are_read() {
        let cases = [
            ("tcp://10.0.0.1:5001", "tcp://10.0.0.1:5001"),
            ("registry:5002", "tcp://registry:5002"),
            ("tcp://[::1]:5001", "tcp://[::1]:5001"),
            (
                "unix:///var/lib/networkservicemesh/nsm.io.sock",
                "unix:///var/lib/networkservicemesh/nsm.io.sock",
            ),
            ("unix:rel.sock", "unix://rel.sock"),
            ("/run/vwire/dataplane.sock", "unix:///run/vwire/dataplane.sock"),
        ];
        for (url, shown) in cases {
            assert_eq!(Target::parse(url).unwrap().to_string(), shown, "{url}");
        }
    }

    #[test]
    fn others_are_refused_with_the_url_and_the_way_out() {
        for url in ["", "tcp://nohost", "http://a:1", "unix://", "a b:1", "host:99999", "inode://4/5"] {
            let error = Target::parse(url).unwrap_err().to_string();
            assert!(error.contains(url) && error.contains("tcp://host:port"), "{error}");
        }
    }
}
