//! The packet engine: pinned workers that move bursts of frames between ports.
//!
//! | module | what lives there |
//! |---|---|
//! | [`burst`] | frames lent by an ingress port, on their way to one copy |
//! | [`port`] | the traits of a port, and a file for each kind |
//! | [`tables`] | where each port's frames go; immutable, swapped whole |
//! | [`engine`] | all workers, and what an agent asks of them |
//! | [`worker`] | the loop that ties them together |
//! | [`netlink`] | questions to the kernel by rtnetlink |
//! | [`netns`] | doing something inside another network namespace |
//! | [`underlay`] | what carries VXLAN datagrams: kernel UDP sockets, or an Ethernet port of any kind |
//! | [`wire`] | headers: bytes to values and back |
//! | [`offload`] | checksums and segments that a frame still owes; joining segments again |
//! | [`route`] | routing domains: longest prefix match, headers, ARP, neighbour discovery and ICMP |
//! | [`ring`] | single-producer byte rings: between workers, in pipes, to captures |
//! | [`model`] | what the engine is asked to be: ports and cross-connects, valid by construction |
//! | [`config`] | the file that says so at the start |
//! | [`agent`] | from what is wanted to what is: plan and apply, links, the API, metrics |
//! | [`fdpass`] | file descriptors beside a byte stream |
//! | [`footprint`] | what a program was needed for at its start only, given back |
//! | [`stats`] | the shared-memory segment of counters |

#[cfg(not(loom))]
pub mod agent;
pub mod burst;
#[cfg(not(loom))]
pub mod config;
pub mod doorbell;
pub mod engine;
#[cfg(not(loom))]
pub mod fdpass;
#[cfg(not(loom))]
pub mod footprint;
#[cfg(not(loom))]
pub mod model;
pub mod netlink;
pub mod netns;
pub mod offload;
pub mod port;
pub mod ring;
pub mod route;
pub mod stats;
mod sync;
pub mod tables;
pub mod underlay;
pub mod wire;
pub mod worker;

pub use vwire_proto::stats::DropReason;
