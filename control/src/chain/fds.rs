//! The descriptors that a connection's mechanisms name.

use std::collections::BTreeMap;

use crate::transport::{Inode, SharedFd};

/// Descriptors by identity. Mechanisms keep their `inode://dev/ino` URL unchanged through all of a chain; this is where the open
/// file behind it is found. `recv_fd` puts in what callers sent, `connect` what the next hop sent; each element that passes a
/// mechanism on to a unix peer sends the descriptor with it.
#[derive(Default, Clone)]
pub struct Fds(BTreeMap<Inode, SharedFd>);

impl Fds {
    /// Keeps a descriptor.
    pub fn insert(&mut self, inode: Inode, fd: SharedFd) {
        self.0.insert(inode, fd);
    }

    /// The descriptor of this file.
    pub fn get(&self, inode: &Inode) -> Option<&SharedFd> {
        self.0.get(inode)
    }

    /// Closes those that `keep` says no to.
    pub fn retain(&mut self, mut keep: impl FnMut(&Inode) -> bool) {
        self.0.retain(|inode, _| keep(inode));
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&Inode, &SharedFd)> {
        self.0.iter()
    }
}
