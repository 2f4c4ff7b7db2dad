//! Making an interface in a given namespace.
//!
//! A descriptor of /dev/net/tun holds on to the namespace that it was opened in for as long as it is open. Opened in the
//! workload's namespace it would keep that alive after the workload is gone, and nobody would ever hear that it is. So
//! interfaces are made in an empty namespace of the engine's own and then moved: when the workload's namespace goes, the
//! interface goes with it, and the next read says so.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use super::configure::Configurator;
use super::spec::configuring;
use super::{KernelDevice, KernelOpenError, KernelSpec, Kind, prepare_queue, sys};
use crate::netns::{NetnsError, in_netns};

/// The namespace that interfaces are made in; itself made with the first of them.
static WORKSHOP: Mutex<Option<OwnedFd>> = Mutex::new(None);

struct Queues {
    queues: Vec<Arc<OwnedFd>>,
    udp: bool,
}

/// Makes the interface where the spec says and sets it up.
pub fn create(spec: &KernelSpec) -> Result<KernelDevice, KernelOpenError> {
    let ifname = spec.ifname.as_str();
    let (Queues { queues, udp }, index) = match &spec.netns {
        None => {
            let queues = open_queues(spec, ifname)?;
            (queues, configure(spec)?)
        }
        Some(netns) => {
            inside(ifname, netns.as_fd(), || name_is_free(ifname))?;
            let queues = make_and_move(spec, netns.as_fd())?;
            (queues, inside(ifname, netns.as_fd(), || configure(spec))?)
        }
    };
    Ok(KernelDevice { ifname: ifname.to_owned(), index, kind: spec.kind, udp, queues })
}

fn inside<T: Send>(
    ifname: &str,
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T, KernelOpenError> + Send,
) -> Result<T, KernelOpenError> {
    let named = |error: NetnsError| KernelOpenError::Netns { ifname: ifname.to_owned(), error };
    in_netns(Some(netns), work).map_err(named)?
}

fn name_is_free(ifname: &str) -> Result<(), KernelOpenError> {
    match sys::interface_index(ifname) {
        Some(_) => Err(KernelOpenError::Exists { ifname: ifname.to_owned() }),
        None => Ok(()),
    }
}

fn new_workshop() -> io::Result<OwnedFd> {
    let maker = std::thread::Builder::new().name("vwire-netns".into()).spawn(sys::enter_new_netns)?;
    maker.join().map_err(|_| io::Error::other("the thread panicked"))?
}

/// One at a time is in the workshop, so an interface has its name from the start: giving it another as it moves has the kernel wait
/// for RCU once more. And while one moves the kernel holds a lock that all changes to interfaces need; several who wait for that would
/// keep others from it.
fn make_and_move(spec: &KernelSpec, netns: BorrowedFd<'_>) -> Result<Queues, KernelOpenError> {
    let ifname = spec.ifname.as_str();
    let mut workshop = WORKSHOP.lock().unwrap_or_else(PoisonError::into_inner);
    let workshop = match &mut *workshop {
        Some(workshop) => workshop,
        none => none.insert(new_workshop().map_err(|error| creation_error(ifname, error))?),
    };
    inside(ifname, workshop.as_fd(), || {
        let queues = open_queues(spec, ifname)?;
        let index = sys::interface_index(ifname).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV));
        index
            .and_then(Configurator::new)
            .and_then(|mut link| link.move_to(netns))
            .map_err(|error| creation_error(ifname, error))?;
        Ok(queues)
    })
}

fn open_queues(spec: &KernelSpec, name: &str) -> Result<Queues, KernelOpenError> {
    let kind = if spec.kind == Kind::Tap { libc::IFF_TAP } else { libc::IFF_TUN };
    let several = if spec.queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    let (mut queues, mut udp) = (Vec::new(), false);
    for queue in 0..spec.queues {
        // Without IFF_TUN_EXCL the kernel would attach to an existing interface that nobody has open.
        let exclusive = if queue == 0 { libc::IFF_TUN_EXCL } else { 0 };
        let queue = sys::open_queue(name, kind | several | exclusive)
            .map_err(|error| creation_error(&spec.ifname, error))?;
        udp = prepare_queue(&queue, &spec.ifname)?;
        queues.push(Arc::new(queue));
    }
    Ok(Queues { queues, udp })
}

fn creation_error(ifname: &str, error: io::Error) -> KernelOpenError {
    let ifname = ifname.to_owned();
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => KernelOpenError::Exists { ifname },
        _ => KernelOpenError::Create { ifname, error },
    }
}

/// Runs inside the namespace that the interface is in.
fn configure(spec: &KernelSpec) -> Result<u32, KernelOpenError> {
    let ifname = spec.ifname.as_str();
    let gone = || io::Error::from_raw_os_error(libc::ENODEV);
    let index = sys::interface_index(ifname)
        .ok_or_else(gone)
        .map_err(configuring(ifname, || "finding it after it was made".into()))?;
    let mut link =
        Configurator::new(index).map_err(configuring(ifname, || "opening a netlink socket".into()))?;
    if let Some(mac) = spec.mac {
        link.set_mac(mac).map_err(configuring(ifname, || format!("setting its address {mac:02x?}")))?;
    }
    link.set_mtu(spec.mtu).map_err(configuring(ifname, || format!("setting its MTU {}", spec.mtu)))?;
    for address in &spec.addresses {
        link.add_address(address).map_err(configuring(ifname, || format!("adding the address {address}")))?;
    }
    link.set_up().map_err(configuring(ifname, || "setting it up".into()))?;
    Ok(index)
}
