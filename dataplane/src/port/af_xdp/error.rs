//! Why an AF_XDP port could not be had, and what to do about it.

use std::io;

use crate::netns::NetnsError;

/// Why an AF_XDP port could not be had.
#[derive(Debug, thiserror::Error)]
pub enum AfXdpError {
    /// A setting that can't be.
    #[error("AF_XDP: {0}")]
    Setting(String),
    /// The namespace could not be entered.
    #[error("AF_XDP on {ifname}: {error}")]
    Netns {
        /// The interface.
        ifname: String,
        /// What went wrong.
        error: NetnsError,
    },
    /// No interface of this name.
    #[error(
        "AF_XDP: there is no interface {ifname} in this network namespace; make it first, or name another"
    )]
    NoInterface {
        /// The name.
        ifname: String,
    },
    /// The interface carries no frames of others.
    #[error("AF_XDP on {ifname}: {why}; use kind = \"kernel\" to exchange frames with this host's own stack")]
    Unsuitable {
        /// The interface.
        ifname: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The interface has no such queue.
    #[error(
        "AF_XDP on {ifname}: there is no receive queue {queue}; it has {queues}, counted from 0 (ethtool -l {ifname})"
    )]
    NoQueue {
        /// The interface.
        ifname: String,
        /// The number asked for.
        queue: u32,
        /// How many it has.
        queues: u32,
    },
    /// A worker would have no queue.
    #[error(
        "AF_XDP on {ifname}: workers is {workers}, but there are {queues} queues for them to share; ask for fewer, or give the interface more queues (ethtool -L {ifname})"
    )]
    TooFewQueues {
        /// The interface.
        ifname: String,
        /// How many workers were asked for.
        workers: u16,
        /// How many queues there are.
        queues: usize,
    },
    /// Another socket has the queue.
    #[error(
        "AF_XDP on {ifname}: queue {queue} is taken by another AF_XDP socket; end that program, or give this port other queues"
    )]
    QueueTaken {
        /// The interface.
        ifname: String,
        /// The queue.
        queue: u32,
    },
    /// Another XDP program is there.
    #[error(
        "AF_XDP on {ifname}: another XDP program is attached (ip -d link show {ifname}); detach that, or use kind = \"kernel\" and the kernel-UDP underlay, which leave it alone"
    )]
    ProgramAttached {
        /// The interface.
        ifname: String,
    },
    /// The kernel does not let this process.
    #[error(
        "AF_XDP on {ifname}: {doing}: {error}; the process needs CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF (CAP_SYS_ADMIN before Linux 5.8); kind = \"kernel\" and the kernel-UDP underlay need less"
    )]
    NotPermitted {
        /// The interface.
        ifname: String,
        /// What was being done.
        doing: &'static str,
        /// The kernel's answer.
        error: io::Error,
    },
    /// The kernel does not know what is needed.
    #[error(
        "AF_XDP on {ifname}: this kernel has no {what}; Linux 5.9 with CONFIG_XDP_SOCKETS is the oldest that will do; use kind = \"kernel\" and the kernel-UDP underlay instead"
    )]
    TooOld {
        /// The interface.
        ifname: String,
        /// What is missing.
        what: &'static str,
    },
    /// No zero copy, and nothing else was wanted.
    #[error(
        "AF_XDP on {ifname}: its driver can't do without copies ({error}); set mode = \"auto\" or \"copy\""
    )]
    NoZeroCopy {
        /// The interface.
        ifname: String,
        /// The kernel's answer.
        error: io::Error,
    },
    /// Frames that do not fit, on a kernel or driver that can't spread them.
    #[error(
        "AF_XDP on {ifname}: frames of its MTU {mtu} do not fit into buffers of {frame_size} bytes (256 are the kernel's), and they can't be spread over several ({error}); lower the MTU to {fits}, or use kind = \"kernel\""
    )]
    Mtu {
        /// The interface.
        ifname: String,
        /// Its MTU.
        mtu: u32,
        /// Bytes of a frame of the UMEM.
        frame_size: u32,
        /// The largest MTU that would do.
        fits: u32,
        /// The kernel's answer.
        error: io::Error,
    },
    /// No memory for the frames, or too little of it may be locked.
    #[error(
        "AF_XDP on {ifname}: {bytes} bytes for the frames of queue {queue}: {error}; lower ring_size, or raise the limit of locked memory (LimitMEMLOCK=)"
    )]
    Memory {
        /// The interface.
        ifname: String,
        /// The queue.
        queue: u32,
        /// How many bytes.
        bytes: u64,
        /// The kernel's answer.
        error: io::Error,
    },
    /// The program was not attached.
    #[error(
        "AF_XDP on {ifname}: attaching the XDP program: {error}; use kind = \"kernel\" and the kernel-UDP underlay instead"
    )]
    Attach {
        /// The interface.
        ifname: String,
        /// The kernel's answer, in each mode that was tried.
        error: String,
    },
    /// Anything else that the kernel refused.
    #[error("AF_XDP on {ifname}: {doing}: {error}")]
    Kernel {
        /// The interface.
        ifname: String,
        /// What was being done.
        doing: String,
        /// The answer.
        error: String,
    },
}

/// Adds the interface and what was being done to an answer of the kernel.
pub fn refused<'s>(ifname: &'s str, doing: &'static str) -> impl Fn(io::Error) -> AfXdpError + 's {
    move |error| {
        let ifname = ifname.to_owned();
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => AfXdpError::NotPermitted { ifname, doing, error },
            _ => AfXdpError::Kernel { ifname, doing: doing.to_owned(), error: error.to_string() },
        }
    }
}
