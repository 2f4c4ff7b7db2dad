//! A workload's network namespace, as a descriptor that came beside a Request.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use tonic::Status;
use vwire_dataplane::fdpass::identify;
use vwire_dataplane::netns::in_netns;

use crate::transport::{Inode, SharedFd};

/// Magic of the file system that namespaces live in (`NSFS_MAGIC` of linux/magic.h).
const NSFS: u64 = 0x6e73_6673;

/// A network namespace that is neither ours nor the host's. It exists for at least as long as this.
#[derive(Clone)]
pub struct Namespace {
    fd: SharedFd,
    inode: Inode,
}

impl Namespace {
    /// The namespace behind a descriptor, which may have been opened with `O_PATH`.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if it is no namespace; PERMISSION_DENIED if it is our own or the host's: who hands that over would get
    /// interfaces on the host. That it is a *network* namespace is checked by the kernel when it is entered.
    pub fn new(inode: Inode, fd: &SharedFd) -> Result<Self, Status> {
        let shared = Self::even_ours(inode, fd)?;
        if [host("/proc/self/ns/net"), host("/proc/1/ns/net")].contains(&Some(inode)) {
            return Err(Status::permission_denied(format!(
                "inodeURL {inode}: is the forwarder's or the host's own network namespace; a workload needs one of its own"
            )));
        }
        Ok(shared)
    }

    /// As [`new`](Self::new), but ours and the host's will do. Only for memif's sockets: two processes without namespaces of their own
    /// may share memory, and no interface is made.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if it is no namespace.
    pub fn even_ours(inode: Inode, fd: &SharedFd) -> Result<Self, Status> {
        let refused = |why: &dyn std::fmt::Display| {
            Status::invalid_argument(format!(
                "inodeURL {inode}: {why}; send a descriptor of the workload's network namespace"
            ))
        };
        // Asked first: opening a file of another kind may block or have effects.
        let kind = rustix::fs::fstatfs(fd).map_err(|error| refused(&error))?.f_type as u64;
        if kind != NSFS {
            return Err(refused(&"is not a namespace"));
        }
        let file =
            File::open(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(|error| refused(&error))?;
        match identify(&file) {
            Ok(found) if found == inode => Ok(Self { fd: Arc::new(file.into()), inode }),
            _ => Err(refused(&"is not what the descriptor is of")),
        }
    }

    /// Its identity.
    pub fn inode(&self) -> Inode {
        self.inode
    }

    /// The open file, not `O_PATH`.
    pub fn fd(&self) -> &SharedFd {
        &self.fd
    }

    /// Runs blocking `work` on a thread that has entered the namespace and ends afterwards.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if it is a namespace of another kind; FAILED_PRECONDITION if it can't be entered; and what `work` says.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let (fd, inode) = (Arc::clone(&self.fd), self.inode);
        let entered = tokio::task::spawn_blocking(move || in_netns(Some(fd.as_fd()), work));
        let entered =
            entered.await.map_err(|error| Status::internal(format!("working in {inode}: {error}")))?;
        entered.map_err(|error| match error {
            vwire_dataplane::netns::NetnsError::NotNetwork { .. } => Status::invalid_argument(format!(
                "inodeURL {inode}: is a namespace, but not a network namespace"
            )),
            other => Status::failed_precondition(format!("inodeURL {inode}: {other}")),
        })?
    }
}

fn host(path: &str) -> Option<Inode> {
    // Not readable means that it is another's, in a pid namespace of our own.
    File::open(path).and_then(identify).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(path: &str) -> (Inode, SharedFd) {
        let file = File::open(path).unwrap();
        (identify(&file).unwrap(), Arc::new(file.into()))
    }

    #[tokio::test]
    async fn ours_and_what_is_no_network_namespace_are_refused() {
        let (inode, fd) = sent("/proc/self/ns/net");
        let refused = Namespace::new(inode, &fd).err().unwrap();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused}");
        assert!(Namespace::even_ours(inode, &fd).is_ok());
        let (inode, fd) = sent("/dev/null");
        let refused = Namespace::new(inode, &fd).err().unwrap();
        assert!(refused.message().contains("is not a namespace"), "{refused}");
        let (inode, fd) = sent("/proc/self/ns/uts");
        let uts = Namespace::new(inode, &fd).unwrap();
        let refused = uts.run(|| Ok(())).await.unwrap_err();
        assert!(refused.message().contains("not a network namespace"), "{refused}");
    }

    #[test]
    fn a_descriptor_of_something_else_than_the_url_says_is_refused() {
        let (mut inode, fd) = sent("/proc/self/ns/uts");
        inode.ino += 1;
        assert!(Namespace::new(inode, &fd).err().unwrap().message().contains("is not what"));
    }
}
