//! The network namespace that a client's or an endpoint's interfaces belong to.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use vwire_dataplane::fdpass::identify;
use vwire_dataplane::netns::{NetnsError, in_netns};

use crate::transport::{Inode, SharedFd};

/// A network namespace that is held open, so that it can't go and its inode can't be another's.
#[derive(Debug, Clone)]
pub struct Namespace {
    fd: SharedFd,
    inode: Inode,
    own: bool,
}

impl Namespace {
    /// This process's own.
    ///
    /// # Errors
    /// The kernel's, if `/proc` can't be read or no descriptor is left.
    pub fn own() -> io::Result<Self> {
        Ok(Self { own: true, ..Self::from_fd(std::fs::File::open("/proc/thread-self/ns/net")?.into())? })
    }

    /// Another one by its file, such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// The kernel's, naming the file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("network namespace {}: {error}", path.display()))
        };
        Self::from_fd(std::fs::File::open(path).map_err(named)?.into()).map_err(named)
    }

    /// Another one by its descriptor. That it is a network namespace is seen when it is entered.
    ///
    /// # Errors
    /// The kernel's, if the descriptor can't be examined.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let inode = identify(&fd)?;
        let own = identify(std::fs::File::open("/proc/thread-self/ns/net")?)? == inode;
        Ok(Self { fd: Arc::new(fd), inode, own })
    }

    /// What peers call it.
    pub fn inode(&self) -> Inode {
        self.inode
    }

    /// To send to peers.
    pub fn fd(&self) -> &SharedFd {
        &self.fd
    }

    /// Runs `work` in this namespace: here if it is the process's own, else on a thread that enters it. Work that waits must run
    /// where waiting is allowed.
    ///
    /// # Errors
    /// [`NetnsError`] if it can't be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        in_netns((!self.own).then(|| self.fd.as_fd()), work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_is_recognized_by_whichever_way_it_is_opened() {
        let own = Namespace::own().unwrap();
        let other = Namespace::open(Path::new("/proc/self/ns/net")).unwrap();
        assert!(other.own && own.inode() == other.inode());
        let here = std::thread::current().id();
        assert_eq!(other.run(|| std::thread::current().id()).unwrap(), here);
        let missing = Namespace::open(Path::new("/run/netns/no-such")).unwrap_err();
        assert!(missing.to_string().contains("/run/netns/no-such"));
    }
}
