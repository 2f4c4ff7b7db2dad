//! A device: probed, configured, started; and all of that undone when its last half is dropped.
//!
//! Unsafe: calls of DPDK's with a port number that is ours from probing to closing. Control calls are made under a lock, since few
//! of DPDK's are made for two threads at a time; the packet calls of a queue are its worker's alone.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam::utils::CachePadded;
use dpdk_sys as sys;

use super::error::DpdkError;
use super::plug::{self, Plugged};
use super::pool::{Pool, Promise};
use super::setup::{self, About};
use super::spec::DeviceSpec;
use super::{eal, watch};
use crate::port::PortFault;

/// What is known of a device's link.
const DOWN: u32 = 0;
const UP: u32 = 1;
const GONE: u32 = 2;

/// A started device.
pub(super) struct Device {
    // Dropped in this order: the device gives its buffers back before they count as free, and before their pool goes.
    plugged: Plugged,
    _promise: Promise,
    pool: Arc<Pool>,
    about: About,
    link: AtomicU32,
    mbps: AtomicU32,
    /// Held for control calls.
    control: Mutex<()>,
    /// How frames left by each transmit queue.
    sent: Box<[CachePadded<Sent>]>,
}

/// How frames left, for whoever wants to know whether they are copied. Written by the queue's worker only.
#[derive(Default)]
struct Sent {
    taken: AtomicU64,
    copied: AtomicU64,
}

impl Device {
    /// Probes, configures and starts what `spec` names.
    pub fn open(spec: &DeviceSpec) -> Result<Arc<Self>, DpdkError> {
        eal::start()?;
        let pool = match spec.buffers {
            Some(buffers) => Pool::own(buffers)?,
            None => Pool::shared()?,
        };
        let plugged = Plugged::find(spec)?;
        let promise = pool.promise(setup::buffers(spec), &plugged.name)?;
        let about = setup::start(&plugged, spec, &pool)?;
        if about.driver == plug::NET_MEMIF {
            // It unmaps its rings on another thread than the one that polls them.
            tracing::warn!(
                device = plugged.name,
                "if this device's peer goes while frames pass, net_memif may end the process; kind = \"memif\" does not"
            );
        }
        let (link, mbps) = (AtomicU32::new(DOWN), AtomicU32::new(u32::MAX));
        let control = Mutex::new(());
        let sent = (0..spec.workers).map(|_| CachePadded::default()).collect();
        let device = Arc::new(Self { plugged, _promise: promise, pool, about, link, mbps, control, sent });
        device.look();
        watch::add(&device)?;
        Ok(device)
    }

    /// DPDK's number of it.
    #[inline]
    pub fn id(&self) -> u16 {
        self.plugged.id
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.plugged.name
    }

    /// What was found out when it was started.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Where its buffers are from.
    #[inline]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The longest frame it sends.
    #[inline]
    pub fn max_frame(&self) -> usize {
        self.about.max_frame
    }

    /// Whether it sends frames of several buffers.
    #[inline]
    pub fn sends_chains(&self) -> bool {
        self.about.offloads & sys::VWIRE_TX_MULTI_SEGS != 0
    }

    /// What it can do with frames it sends, in DPDK's bits.
    pub fn offloads(&self) -> u64 {
        self.about.offloads
    }

    /// Whether it has a link.
    #[inline]
    pub fn is_up(&self) -> bool {
        self.link.load(Ordering::Relaxed) == UP
    }

    /// The link's speed in Mb/s, if the driver says.
    pub fn mbps(&self) -> Option<u32> {
        Some(self.mbps.load(Ordering::Relaxed)).filter(|mbps| !matches!(*mbps, 0 | u32::MAX))
    }

    /// Whether it is still there.
    #[inline]
    pub fn check(&self) -> Result<(), PortFault> {
        match self.link.load(Ordering::Relaxed) {
            GONE => Err(PortFault::Device { what: "DPDK", error: "the device was removed".into() }),
            _ => Ok(()),
        }
    }

    fn control(&self) -> MutexGuard<'_, ()> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the link. True if it is another than before.
    pub fn look(&self) -> bool {
        let _one_at_a_time = self.control();
        let mut mbps = u32::MAX;
        // SAFETY: a number to write.
        let state = match unsafe { sys::vwire_link(self.id(), &raw mut mbps) } {
            _ if self.is_removed() => GONE,
            1 => UP,
            _ => DOWN,
        };
        self.mbps.store(mbps, Ordering::Relaxed);
        // What is gone does not come back under this number.
        let before = self.link.fetch_max(if state == GONE { GONE } else { 0 }, Ordering::Relaxed);
        if before != GONE && state != GONE {
            self.link.store(state, Ordering::Relaxed);
        }
        before != GONE && before != state
    }

    /// Some drivers say so, and some stand on a kernel interface that may be deleted.
    fn is_removed(&self) -> bool {
        // SAFETY: it only asks.
        let said = unsafe { sys::rte_eth_dev_is_removed(self.id()) };
        let interface_gone = || {
            let name = self.about.interface.and_then(std::num::NonZeroU32::new).map(interface_name);
            matches!(name, Some(Err(rustix::io::Errno::NXIO | rustix::io::Errno::NODEV)))
        };
        said == 1 || watch::was_removed(self.id()) || interface_gone()
    }

    /// The driver's descriptor for a queue's interrupts.
    pub fn wake_fd(&self, queue: u16) -> Option<RawFd> {
        let _one_at_a_time = self.control();
        if !self.about.interrupts {
            return None;
        }
        // SAFETY: it only asks.
        let fd = unsafe { sys::rte_eth_dev_rx_intr_ctl_q_get_fd(self.id(), queue) };
        // SAFETY: turns them on, to see whether the driver can.
        let works = fd >= 0 && unsafe { sys::rte_eth_dev_rx_intr_enable(self.id(), queue) } == 0;
        works.then_some(fd)
    }

    /// Turns a queue's interrupts on or off.
    pub fn interrupts(&self, queue: u16, on: bool) {
        // SAFETY: these are made for the queue's own thread, which is the only one that calls this.
        unsafe {
            match on {
                true => sys::rte_eth_dev_rx_intr_enable(self.id(), queue),
                false => sys::rte_eth_dev_rx_intr_disable(self.id(), queue),
            };
        }
    }

    /// Counts frames that were sent on as they lay by a transmit queue, and bytes that were copied.
    #[inline]
    pub fn sent(&self, queue: u16, taken: u64, copied: u64) {
        let Some(sent) = self.sent.get(usize::from(queue)) else { return };
        for (counter, more) in [(&sent.taken, taken), (&sent.copied, copied)] {
            counter.store(counter.load(Ordering::Relaxed) + more, Ordering::Relaxed);
        }
    }

    /// The driver's own counters, by its names for them, and what [`Device::sent`] counted.
    pub fn statistics(&self) -> Vec<(String, u64)> {
        let mut all = {
            let _one_at_a_time = self.control();
            setup::statistics(self.id())
        };
        let sum = |counter: fn(&Sent) -> &AtomicU64| {
            self.sent.iter().map(|sent| counter(sent).load(Ordering::Relaxed)).sum()
        };
        all.push(("vwire_tx_taken_packets".into(), sum(|sent| &sent.taken)));
        all.push(("vwire_tx_copied_bytes".into(), sum(|sent| &sent.copied)));
        all
    }
}

/// The name of the kernel interface with this number, or that there is none.
fn interface_name(index: std::num::NonZeroU32) -> Result<(), rustix::io::Errno> {
    let mut name = [0u8; libc::IF_NAMESIZE];
    // SAFETY: the buffer is as long as the kernel's names can be.
    let found = unsafe { libc::if_indextoname(index.get(), name.as_mut_ptr().cast()) };
    if found.is_null() {
        return Err(rustix::io::Errno::from_io_error(&std::io::Error::last_os_error())
            .unwrap_or(rustix::io::Errno::IO));
    }
    Ok(())
}
