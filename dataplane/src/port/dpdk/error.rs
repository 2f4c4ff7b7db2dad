//! Why a DPDK port could not be had.

/// Why a DPDK port could not be had. Nothing is left of it then, and no other port is touched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DpdkError {
    /// The program was built without DPDK.
    #[error(
        "this vwire-dataplane was built without DPDK: build it with --features dpdk (Debian: libdpdk-dev, libclang-dev), or take kind = \"af_xdp\" or \"kernel\""
    )]
    NotBuilt,
    /// The EAL did not start. It is not tried again.
    #[error(
        "DPDK's EAL did not start: {0}; change [dpdk] (huge_pages, memory, eal_args) and start vwire-dataplane again"
    )]
    Eal(String),
    /// The device can't be probed.
    #[error("device {device:?} can't be probed: {reason}")]
    Probe {
        /// As it was named.
        device: String,
        /// What DPDK said.
        reason: String,
    },
    /// What was probed is no NIC, or DPDK is at its limit of ports.
    #[error("device {device:?} was probed, but there is no Ethernet port of this name")]
    NoPort {
        /// As it was named.
        device: String,
    },
    /// Another port has the device.
    #[error("device {device:?} is another port's already")]
    InUse {
        /// Its name.
        device: String,
    },
    /// Something asked for is beyond what the device can.
    #[error("device {device}: {what} is {asked}, but its driver {driver} allows {low} to {high}")]
    Limit {
        /// Its name.
        device: String,
        /// The setting.
        what: &'static str,
        /// What was asked for.
        asked: u32,
        /// The driver.
        driver: String,
        /// The least.
        low: u32,
        /// The most.
        high: u32,
    },
    /// The MTU needs frames of several buffers, which the device can't do.
    #[error(
        "device {device}: frames of mtu {mtu} do not fit into buffers of {room} bytes, and its driver {driver} can't chain them; raise [dpdk] buffer_size to {needed} or lower the mtu"
    )]
    Buffer {
        /// Its name.
        device: String,
        /// The MTU asked for.
        mtu: u16,
        /// Bytes of a buffer.
        room: usize,
        /// Bytes that it would need.
        needed: usize,
        /// The driver.
        driver: String,
    },
    /// The pool can't fill the queues.
    #[error(
        "device {device}: its queues need {needed} buffers, and of the {size} of {pool} only {free} are not promised to other ports; raise {key} or lower queues or descriptors"
    )]
    PoolTooSmall {
        /// Its name.
        device: String,
        /// Buffers that it needs.
        needed: u32,
        /// Those that are left.
        free: u32,
        /// All of the pool's.
        size: u32,
        /// Which pool.
        pool: &'static str,
        /// Its setting.
        key: &'static str,
    },
    /// There is no memory for the pool.
    #[error(
        "no memory for a pool of {buffers} buffers of {size} bytes: {reason}; raise [dpdk] memory, reserve more huge pages, or lower buffers"
    )]
    Memory {
        /// Buffers.
        buffers: u32,
        /// Bytes of each.
        size: usize,
        /// What DPDK said.
        reason: String,
    },
    /// The driver refused a step.
    #[error("device {device}: {what}: {reason}")]
    Device {
        /// Its name.
        device: String,
        /// The step.
        what: &'static str,
        /// What DPDK said.
        reason: String,
    },
    /// The kernel gave no thread.
    #[error("starting a thread for DPDK: {0}")]
    Thread(String),
}
