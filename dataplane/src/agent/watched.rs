//! Waiting for many descriptors by one.

use std::collections::{BTreeSet, HashMap};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{Timespec, epoll};

use super::memif_sockets::Source;
use super::open_error::OpenError;

/// The workers' events among the descriptors that are watched; sources count from the next.
const ENGINE: u64 = 0;

/// The descriptors that say when something is to be done, behind one.
pub(super) struct Watched {
    epoll: OwnedFd,
    sources: HashMap<u64, Source>,
    tokens: HashMap<Source, u64>,
    next: u64,
}

impl Watched {
    pub(super) fn new(engine: BorrowedFd<'_>) -> std::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, engine, epoll::EventData::new_u64(ENGINE), epoll::EventFlags::IN)?;
        Ok(Self { epoll, sources: HashMap::new(), tokens: HashMap::new(), next: ENGINE + 1 })
    }

    pub(super) fn add(&mut self, fd: BorrowedFd<'_>, source: Source) -> Result<(), OpenError> {
        let data = epoll::EventData::new_u64(self.next);
        epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN).map_err(OpenError::system)?;
        self.tokens.insert(source.clone(), self.next);
        self.sources.insert(self.next, source);
        self.next += 1;
        Ok(())
    }

    /// Its descriptor has been closed, which took it out of the set.
    pub(super) fn forget(&mut self, source: &Source) {
        if let Some(token) = self.tokens.remove(source) {
            self.sources.remove(&token);
        }
    }

    /// Whose descriptors are readable: `None` for the engine's, which comes first. What a worker said before
    /// a connection ended has to be heard before that connection's successor is given to it.
    pub(super) fn ready(&self) -> BTreeSet<Option<Source>> {
        let mut space = [MaybeUninit::uninit(); 64];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let (events, _) = epoll::wait(&self.epoll, &mut space[..], Some(&now)).unwrap_or_default();
        events.iter().map(|event| self.sources.get(&event.data.u64()).cloned()).collect()
    }
}

/// Readable when one of them is.
impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
