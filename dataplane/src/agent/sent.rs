//! Descriptors from outside: those sent beside a request, and those this process was started with. What they
//! are is checked before anything is done with them.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::SentFds;
use super::open_error::{Cause, OpenError};
use crate::fdpass::identify;
use crate::model::Inode;

/// Magic of the file system that namespaces live in (`NSFS_MAGIC`).
const NSFS: u64 = 0x6e73_6673;

/// The error of a descriptor that has not come.
pub fn missing(inode: Inode) -> OpenError {
    let reason = format!(
        "no file descriptor for {inode} came with this request; send it on the same connection first"
    );
    OpenError::new(Cause::FdMissing, reason)
}

/// A copy of the descriptor that came for `inode`.
pub fn copy(fds: &SentFds, inode: Inode) -> Result<OwnedFd, OpenError> {
    fds.get(&inode).ok_or_else(|| missing(inode))?.try_clone().map_err(OpenError::system)
}

/// The network namespace that came for `inode`. It may have come as an `O_PATH` descriptor, as the Go
/// components send them. The engine's own is refused: a client that hands that over would get an interface on
/// the host.
pub fn netns(fds: &SentFds, inode: Inode) -> Result<File, OpenError> {
    let opened = any_netns(fds, inode)?;
    let own = File::open("/proc/self/ns/net").and_then(identify).map_err(OpenError::system)?;
    if own == identify(&opened).map_err(OpenError::system)? {
        let reason = format!("netns {inode} is the engine's own; leave netns out to mean that one");
        return Err(OpenError::new(Cause::Request, reason));
    }
    Ok(opened)
}

/// The network namespace that came for `inode`, also if it is the engine's own: for what leaves nothing in it.
pub fn any_netns(fds: &SentFds, inode: Inode) -> Result<File, OpenError> {
    let sent = copy(fds, inode)?;
    let refused = |what: &str| OpenError::new(Cause::Request, format!("netns {inode} {what}"));
    // Asked first: opening a file of another kind may block or have effects.
    let kind = rustix::fs::fstatfs(&sent).map_err(OpenError::system)?.f_type as u64;
    if kind != NSFS {
        return Err(refused("is not a namespace"));
    }
    let opened = File::open(format!("/proc/self/fd/{}", sent.as_raw_fd())).map_err(OpenError::system)?;
    if namespace_type(&opened).map_err(OpenError::system)? != libc::CLONE_NEWNET {
        return Err(refused("is a namespace, but not a network namespace"));
    }
    Ok(opened)
}

/// `NS_GET_NSTYPE`: the `CLONE_NEW…` flag of a namespace.
fn namespace_type(namespace: &File) -> std::io::Result<i32> {
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: the request takes no argument and touches no memory of ours; the descriptor is open.
    match unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_NSTYPE) } {
        -1 => Err(std::io::Error::last_os_error()),
        kind => Ok(kind),
    }
}

/// The network namespace that a tap is in.
pub fn namespace_of(tap: BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    const TUNGETDEVNETNS: libc::Ioctl = 0x54e3;
    // SAFETY: the request takes no argument and touches no memory of ours; the descriptor is open.
    match unsafe { libc::ioctl(tap.as_raw_fd(), TUNGETDEVNETNS) } {
        -1 => Err(std::io::Error::last_os_error()),
        // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

/// A copy of a descriptor that this process was started with.
pub fn inherited(number: i32) -> Result<OwnedFd, OpenError> {
    // By way of a descriptor for the process itself: safe whatever the number is, unlike taking it for an
    // open one.
    let me = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty());
    let copied = me.and_then(|me| {
        rustix::process::pidfd_getfd(me.as_fd(), number, rustix::process::PidfdGetfdFlags::empty())
    });
    copied.map_err(|errno| match errno {
        rustix::io::Errno::BADF => {
            let reason = format!("fd:{number} is not open; start the engine with that descriptor");
            OpenError::new(Cause::Request, reason)
        }
        other => OpenError::system(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(file: File) -> (SentFds, Inode) {
        let inode = identify(&file).unwrap();
        (SentFds::from([(inode, file.into())]), inode)
    }

    #[test]
    fn only_another_network_namespace_will_do() {
        let cases = [
            ("/dev/null", "is not a namespace"),
            ("/proc/self/ns/uts", "is a namespace, but not a network namespace"),
            ("/proc/self/ns/net", "is the engine's own; leave netns out to mean that one"),
        ];
        for (path, what) in cases {
            let (fds, inode) = sent(File::open(path).unwrap());
            let error = netns(&fds, inode).unwrap_err();
            assert_eq!(error, OpenError::new(Cause::Request, format!("netns {inode} {what}")));
        }
        let absent = Inode { dev: 1, ino: 2 };
        assert_eq!(netns(&SentFds::new(), absent).unwrap_err().cause, Cause::FdMissing);
    }

    #[test]
    fn an_inherited_descriptor_is_copied_and_a_closed_one_refused() {
        let file = tempfile::tempfile().unwrap();
        let copy = inherited(file.as_raw_fd()).unwrap();
        assert_eq!(identify(copy).unwrap(), identify(&file).unwrap());
        assert_eq!(inherited(999_999).unwrap_err().cause, Cause::Request);
    }
}
