//! Underlays: what carries the datagrams of VXLAN tunnels between nodes.
//!
//! | file | its part |
//! |---|---|
//! | [`decap`] | received datagrams → frames lent to a burst, or a drop reason; for underlays of any kind |
//! | [`encap`] | frames of a tunnel → groups; for underlays of any kind |
//! | [`group`] | datagrams → runs of equal datagrams in one buffer, each flow in order; for underlays of any kind |
//! | `spread` | over how many source ports a tunnel's flows go |
//! | [`udp`] | the kernel-UDP underlay: opening, errors, path MTU |
//! | `udp_rx`, `udp_tx` | its two halves |
//! | `udp_sys` | its system calls: the only unsafe part |
//! | [`l2`] | the underlay on an Ethernet port of any kind: its own headers, neighbours and checks |

pub mod decap;
pub mod encap;
pub mod group;
pub mod l2;
mod spread;
pub mod udp;
mod udp_rx;
mod udp_sys;
mod udp_tx;

pub use udp::{MtuProbe, UdpError, UdpSpec, UdpUnderlay};
