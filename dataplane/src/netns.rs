//! Working inside another network namespace.
//!
//! A socket, tap or netlink handle belongs for good to the namespace of the thread that made it. So a thread of its own enters
//! the namespace, makes the thing, hands it back and ends: no thread of the engine ever changes its namespace, and a failure
//! half-way can't leave one in the wrong place.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Why a namespace could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// No such file, or no right to open it.
    #[error(
        "network namespace {path}: {error}; give the path of a namespace file such as /run/netns/NAME or /proc/PID/ns/net"
    )]
    Open {
        /// The path as given.
        path: String,
        /// The kernel's answer.
        error: io::Error,
    },
    /// The descriptor is something else: another kind of namespace, or an ordinary file.
    #[error("descriptor {fd} is not a network namespace")]
    NotNetwork {
        /// The descriptor's number.
        fd: i32,
    },
    /// The kernel refused: entering needs CAP_SYS_ADMIN here and in the user namespace that owns the network namespace.
    #[error("entering network namespace (descriptor {fd}): {error}; the process needs CAP_SYS_ADMIN over it")]
    Enter {
        /// The descriptor's number.
        fd: i32,
        /// The kernel's answer.
        error: io::Error,
    },
    /// No thread could be started to do the work.
    #[error("starting a thread to enter a network namespace: {0}")]
    Thread(io::Error),
    /// The work itself panicked.
    #[error("the work inside the network namespace panicked")]
    Panicked,
}

/// Opens a namespace by its path, for [`in_netns`].
///
/// # Errors
/// [`NetnsError::Open`]. That the file is a network namespace is checked when it is entered.
pub fn open(path: &Path) -> Result<File, NetnsError> {
    File::open(path).map_err(|error| NetnsError::Open { path: path.display().to_string(), error })
}

/// Runs `work` inside `netns` and returns what it made; with `None` it runs here, in the caller's own namespace.
///
/// # Errors
/// [`NetnsError`] if the namespace could not be entered; `work` has not run then, or it panicked.
pub fn in_netns<T: Send>(
    netns: Option<BorrowedFd<'_>>,
    work: impl FnOnce() -> T + Send,
) -> Result<T, NetnsError> {
    let Some(netns) = netns else { return Ok(work()) };
    std::thread::scope(|scope| {
        let helper = std::thread::Builder::new().name("vwire-netns".into()).spawn_scoped(scope, move || {
            enter(netns)?;
            Ok(work())
        });
        helper.map_err(NetnsError::Thread)?.join().unwrap_or(Err(NetnsError::Panicked))
    })
}

/// Moves the calling thread. The kernel compares the descriptor's kind with the one asked for, so it can't be another's.
fn enter(netns: BorrowedFd<'_>) -> Result<(), NetnsError> {
    use std::os::fd::AsRawFd;
    let fd = netns.as_raw_fd();
    move_into_link_name_space(netns, Some(LinkNameSpaceType::Network)).map_err(|error| match error {
        Errno::INVAL | Errno::BADF => NetnsError::NotNetwork { fd },
        error => NetnsError::Enter { fd, error: error.into() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn inode(path: &str) -> std::path::PathBuf {
        std::fs::read_link(path).unwrap()
    }

    #[test]
    fn work_runs_in_the_namespace_and_the_caller_stays_outside() {
        let mine = inode("/proc/thread-self/ns/net");
        let (handed, other) = std::thread::spawn(|| {
            // SAFETY: unshare takes no memory; only this thread, which ends at once, changes its namespace.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "this test needs root");
            (open(Path::new("/proc/thread-self/ns/net")).unwrap(), inode("/proc/thread-self/ns/net"))
        })
        .join()
        .unwrap();
        let seen = in_netns(Some(handed.as_fd()), || inode("/proc/thread-self/ns/net")).unwrap();
        assert_eq!(seen, other);
        assert_ne!(seen, mine);
        assert_eq!(inode("/proc/thread-self/ns/net"), mine);
    }

    #[test]
    fn other_namespaces_and_files_are_refused_by_name() {
        for path in ["/proc/self/ns/uts", "/dev/null"] {
            let file = open(Path::new(path)).unwrap();
            let refused = in_netns(Some(file.as_fd()), || panic!("must not run"));
            assert!(matches!(refused, Err(NetnsError::NotNetwork { .. })), "{path}: {refused:?}");
        }
        let missing = open(Path::new("/run/netns/no-such-namespace")).unwrap_err();
        assert!(missing.to_string().contains("/run/netns/no-such-namespace"));
    }

    #[test]
    fn a_panic_inside_is_an_error_outside() {
        let own = open(Path::new("/proc/self/ns/net")).unwrap();
        let result: Result<(), _> = in_netns(Some(own.as_fd()), || panic!("boom"));
        assert!(matches!(result, Err(NetnsError::Panicked)));
        assert_eq!(in_netns(None, || 7).unwrap(), 7);
    }
}
