//! Mechanisms: how one leg of a vWire is carried (reference/nsm-protocol.md §3).

/// `cls` of a leg on one machine.
pub const LOCAL: &str = "LOCAL";
/// `cls` of a leg between machines.
pub const REMOTE: &str = "REMOTE";

/// A network interface of the kernel.
pub const KERNEL: &str = "KERNEL";
/// Shared memory.
pub const MEMIF: &str = "MEMIF";
/// A VXLAN tunnel.
pub const VXLAN: &str = "VXLAN";

/// Parameter: the namespace's URL, `inode://dev/ino` on the wire.
pub const INODE_URL: &str = "inodeURL";
/// KERNEL: the interface's name, at most 15 bytes.
pub const NAME: &str = "name";
/// MEMIF: the socket's abstract name, with a leading `@`.
pub const SOCKET_FILE: &str = "socketfile";
/// Tunnels: the client side's address.
pub const SRC_IP: &str = "src_ip";
/// Tunnels: the server side's address.
pub const DST_IP: &str = "dst_ip";
/// Tunnels: the client side's address before an nsmgr-proxy translated it.
pub const ORIG_SRC_IP: &str = "orig_src_ip";
/// Tunnels: the server side's, likewise.
pub const ORIG_DST_IP: &str = "orig_dst_ip";
/// Tunnels: the client side's UDP port.
pub const SRC_PORT: &str = "src_port";
/// Tunnels: the server side's UDP port.
pub const DST_PORT: &str = "dst_port";
/// VXLAN: the network identifier, 24 bits in decimal.
pub const VNI: &str = "vni";
/// Tunnels: the longest inner packet, bytes.
pub const MTU: &str = "MTU";

/// Payload of Ethernet frames.
pub const PAYLOAD_ETHERNET: &str = "ETHERNET";
/// Payload of IP packets; what a service has that says nothing.
pub const PAYLOAD_IP: &str = "IP";
