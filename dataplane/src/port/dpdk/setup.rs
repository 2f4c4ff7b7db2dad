//! Configuring a device, and asking it about itself.
//!
//! Unsafe: DPDK's calls with a port number that is ours and structs that are filled here.

use std::ffi::{CStr, c_int};

use dpdk_sys as sys;

use super::error::DpdkError;
use super::plug::Plugged;
use super::pool::Pool;
use super::spec::DeviceSpec;
use super::{cut, eal};
use crate::burst::BURST;

/// An Ethernet header with one VLAN tag.
const HEADERS: usize = 18;
/// Buffers that lie in the cache of a thread.
const CACHED: u32 = 32;

/// What was found out about a device when it was started.
#[derive(Debug, Clone)]
pub(super) struct About {
    /// Its driver's name.
    pub driver: String,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Bytes of the longest frame it sends.
    pub max_frame: usize,
    /// Bytes of the longest frame that it makes of a longer one.
    pub max_segment: usize,
    /// Bytes from which on a frame it gives may be a part of one.
    pub cut_from: Option<u32>,
    /// What it does with frames it sends, in DPDK's bits.
    pub offloads: u64,
    /// The kernel interface it stands on, if any.
    pub interface: Option<u32>,
    /// Whether it was started with interrupts for received frames.
    pub interrupts: bool,
}

/// Buffers that a port's queues and halves can hold.
pub(super) fn buffers(spec: &DeviceSpec) -> u32 {
    let (queues, workers, burst) = (u32::from(spec.queues), u32::from(spec.workers), BURST as u32);
    // Our own thread has a cache, too.
    queues * (u32::from(spec.rx_descriptors) + burst)
        + workers * (u32::from(spec.tx_descriptors) + 2 * burst + CACHED)
        + CACHED
}

fn ask(id: u16) -> Result<sys::rte_eth_dev_info, c_int> {
    // SAFETY: plain data, for which zeros are a value.
    let mut info: sys::rte_eth_dev_info = unsafe { std::mem::zeroed() };
    // SAFETY: a struct to write.
    let error = unsafe { sys::rte_eth_dev_info_get(id, &raw mut info) };
    if error == 0 { Ok(info) } else { Err(error) }
}

fn driver(info: &sys::rte_eth_dev_info) -> String {
    if info.driver_name.is_null() {
        return String::new();
    }
    // SAFETY: a driver's name is a static string.
    unsafe { CStr::from_ptr(info.driver_name) }.to_string_lossy().into_owned()
}

/// What the queues and frames are to be.
struct Plan<'s> {
    device: &'s Plugged,
    spec: &'s DeviceSpec,
    info: sys::rte_eth_dev_info,
    driver: String,
    room: usize,
}

/// Configures and starts the device, with `pool` for what it receives.
pub(super) fn start(device: &Plugged, spec: &DeviceSpec, pool: &Pool) -> Result<About, DpdkError> {
    let failed = |error| DpdkError::Device {
        device: device.name.clone(),
        what: "asking what it can",
        reason: eal::text_of(error),
    };
    let info = ask(device.id).map_err(failed)?;
    let plan = Plan { device, spec, driver: driver(&info), info, room: pool.room() };
    plan.check()?;
    // Not every driver has interrupts, and some refuse to be asked for them.
    let interrupts = match plan.start(pool, true) {
        Ok(()) => true,
        Err(_) => plan.start(pool, false).map(|()| false)?,
    };
    plan.receive_all();
    let mut mac = [0; 6];
    // SAFETY: six bytes to write.
    let error = unsafe { sys::vwire_mac(device.id, mac.as_mut_ptr()) };
    plan.done("reading its hardware address", 0, error)?;
    Ok(About {
        mac,
        max_frame: usize::from(spec.mtu) + HEADERS,
        // net_tap holds the whole frame against the MTU, its Ethernet header included (22.11 to 24.11), and refuses it as if it
        // had no room.
        max_segment: usize::from(spec.mtu) + if plan.driver == "net_tap" { 0 } else { HEADERS },
        cut_from: cut::from(&plan.driver, &spec.device),
        offloads: plan.tx_offloads(),
        interface: Some(plan.info.if_index).filter(|index| *index > 0),
        driver: plan.driver,
        interrupts,
    })
}

impl Plan<'_> {
    fn check(&self) -> Result<(), DpdkError> {
        let (info, spec) = (&self.info, self.spec);
        let limits = [
            ("queues", spec.queues, 1, u32::from(info.max_rx_queues)),
            ("workers", spec.workers, 1, u32::from(info.max_tx_queues)),
            ("mtu", spec.mtu, info.min_mtu.into(), most(info.max_mtu)),
            (
                "rx_descriptors",
                spec.rx_descriptors,
                info.rx_desc_lim.nb_min.into(),
                most(info.rx_desc_lim.nb_max),
            ),
            (
                "tx_descriptors",
                spec.tx_descriptors,
                info.tx_desc_lim.nb_min.into(),
                most(info.tx_desc_lim.nb_max),
            ),
        ];
        for (what, asked, low, high) in limits {
            let asked = u32::from(asked);
            if !(low..=high).contains(&asked) {
                let (device, driver) = (self.device.name.clone(), self.driver.clone());
                return Err(DpdkError::Limit { device, what, asked, driver, low, high });
            }
        }
        let needed = usize::from(spec.mtu) + HEADERS;
        if needed > self.room && (self.rx_offloads() & sys::VWIRE_RX_SCATTER == 0 || !self.sends_chains()) {
            return Err(DpdkError::Buffer {
                device: self.device.name.clone(),
                mtu: spec.mtu,
                room: self.room,
                needed,
                driver: self.driver.clone(),
            });
        }
        Ok(())
    }

    fn sends_chains(&self) -> bool {
        self.tx_offloads() & sys::VWIRE_TX_MULTI_SEGS != 0
    }

    fn tx_offloads(&self) -> u64 {
        let wanted = sys::VWIRE_TX_MULTI_SEGS
            | sys::VWIRE_TX_UDP_CKSUM
            | sys::VWIRE_TX_TCP_CKSUM
            | sys::VWIRE_TX_IPV4_CKSUM
            | sys::VWIRE_TX_TCP_TSO;
        wanted & self.info.tx_offload_capa
    }

    fn rx_offloads(&self) -> u64 {
        let needed = usize::from(self.spec.mtu) + HEADERS > self.room;
        if needed { sys::VWIRE_RX_SCATTER & self.info.rx_offload_capa } else { 0 }
    }

    /// An error of a step, if it was one.
    fn done(&self, what: &'static str, mark: u64, error: c_int) -> Result<(), DpdkError> {
        if error == 0 {
            return Ok(());
        }
        let reason = if mark == 0 { eal::text_of(error) } else { eal::why(mark, error) };
        Err(DpdkError::Device { device: self.device.name.clone(), what, reason })
    }

    fn start(&self, pool: &Pool, interrupts: bool) -> Result<(), DpdkError> {
        let (id, spec) = (self.device.id, self.spec);
        let config = self.config(interrupts);
        let mark = eal::mark();
        // SAFETY: a struct to read.
        let error =
            unsafe { sys::rte_eth_dev_configure(id, spec.queues, self.tx_queues(), &raw const config) };
        self.done("configuring it", mark, error)?;
        let (mut received, mut sent) = (spec.rx_descriptors, spec.tx_descriptors);
        // Only rounds to the driver's multiples: the limits were checked. SAFETY: two numbers to read and write.
        let error = unsafe { sys::rte_eth_dev_adjust_nb_rx_tx_desc(id, &raw mut received, &raw mut sent) };
        self.done("adjusting its descriptors", mark, error)?;
        // SAFETY: it only asks.
        let node = u32::try_from(unsafe { sys::rte_eth_dev_socket_id(id) }).unwrap_or(u32::MAX);
        let rx = sys::rte_eth_rxconf { offloads: config.rxmode.offloads, ..self.info.default_rxconf };
        for queue in 0..spec.queues {
            // SAFETY: a struct to read, and the pool, which the device's owner keeps until the device is closed.
            let error =
                unsafe { sys::rte_eth_rx_queue_setup(id, queue, received, node, &raw const rx, pool.raw()) };
            self.done("setting up a receive queue", mark, error)?;
        }
        let tx = sys::rte_eth_txconf { offloads: config.txmode.offloads, ..self.info.default_txconf };
        for queue in 0..self.tx_queues() {
            // SAFETY: a struct to read.
            let error = unsafe { sys::rte_eth_tx_queue_setup(id, queue, sent, node, &raw const tx) };
            self.done("setting up a transmit queue", mark, error)?;
        }
        // SAFETY: it is configured.
        let error = unsafe { sys::rte_eth_dev_start(id) };
        self.done("starting it", mark, error)
    }

    /// One for each worker. net_tap has as many as receive queues, or none.
    fn tx_queues(&self) -> u16 {
        if self.driver == "net_tap" { self.spec.queues } else { self.spec.workers }
    }

    fn config(&self, interrupts: bool) -> sys::rte_eth_conf {
        // SAFETY: plain data, for which zeros are the defaults.
        let mut config: sys::rte_eth_conf = unsafe { std::mem::zeroed() };
        config.rxmode.mtu = self.spec.mtu.into();
        config.rxmode.offloads = self.rx_offloads();
        config.txmode.offloads = self.tx_offloads();
        let rss = sys::VWIRE_RSS_IP & self.info.flow_type_rss_offloads;
        if self.spec.queues > 1 && rss != 0 {
            config.rxmode.mq_mode = sys::VWIRE_MQ_RSS;
            config.rx_adv_conf.rss_conf.rss_hf = rss;
        }
        let flags = if self.info.dev_flags.is_null() {
            0
        } else {
            // SAFETY: the driver's flags live as long as the device.
            unsafe { *self.info.dev_flags }
        };
        let link = flags & sys::VWIRE_DEV_INTR_LSC != 0;
        // SAFETY: a struct to write.
        unsafe { sys::vwire_ask_interrupts(&raw mut config, c_int::from(link), c_int::from(interrupts)) }
        config
    }

    /// A port carries others' frames, so it receives them all, unless it was told not to.
    fn receive_all(&self) {
        let id = self.device.id;
        // SAFETY: the device is started.
        let error = unsafe {
            match self.spec.promiscuous {
                true => sys::rte_eth_promiscuous_enable(id),
                false => sys::rte_eth_promiscuous_disable(id),
            }
        };
        let device = &self.device.name;
        // ENOTSUP: most virtual devices have no filter that could be turned off.
        if error != 0 && error != -libc::ENOTSUP {
            tracing::warn!(device, "receiving frames for all stations: {}", eal::text_of(error));
        }
        // Multicast is needed in any case. SAFETY: as above.
        let error = unsafe { sys::rte_eth_allmulticast_enable(id) };
        if error != 0 && error != -libc::ENOTSUP {
            tracing::warn!(device, "receiving all multicast frames: {}", eal::text_of(error));
        }
    }
}

/// A limit, where 0 says that there is none.
fn most(limit: u16) -> u32 {
    if limit == 0 { u32::from(u16::MAX) } else { limit.into() }
}

/// The driver's own counters, by its names for them.
pub(super) fn statistics(id: u16) -> Vec<(String, u64)> {
    // SAFETY: with no room they only say how much is needed; then both arrays have as much as is said.
    unsafe {
        let needed = sys::rte_eth_xstats_get_names(id, std::ptr::null_mut(), 0);
        let Ok(count) = usize::try_from(needed) else { return Vec::new() };
        let mut names: Vec<sys::rte_eth_xstat_name> = vec![std::mem::zeroed(); count];
        let mut values: Vec<sys::rte_eth_xstat> = vec![std::mem::zeroed(); count];
        let named = sys::rte_eth_xstats_get_names(id, names.as_mut_ptr(), count as u32);
        let valued = sys::rte_eth_xstats_get(id, values.as_mut_ptr(), count as u32);
        let (Ok(named), Ok(valued)) = (usize::try_from(named), usize::try_from(valued)) else {
            return Vec::new();
        };
        let name = |id: u64| {
            let name = names[..named.min(count)].get(usize::try_from(id).ok()?)?;
            let bytes: Vec<u8> =
                name.name.iter().map(|byte| *byte as u8).take_while(|byte| *byte != 0).collect();
            String::from_utf8(bytes).ok()
        };
        values[..valued.min(count)].iter().filter_map(|stat| Some((name(stat.id)?, stat.value))).collect()
    }
}
