//! The packet engine: pinned workers that move bursts of frames between ports.
//!
//! | module | what lives there |
//! |---|---|
//! | [`burst`] | frames lent by an ingress port, on their way to one copy |
//! | [`port`] | the traits of a port, and a file for each kind |
//! | [`tables`] | where each port's frames go; immutable, swapped whole |
//! | [`engine`] | all workers, and what an agent asks of them |
//! | [`worker`] | the loop that ties them together |
//! | [`netns`] | doing something inside another network namespace |
//! | [`offload`] | checksums and segments that a frame still owes; joining segments again |
//! | [`underlay`] | what carries VXLAN datagrams: kernel UDP sockets |
//! | [`wire`] | headers: bytes to values and back |
//! | [`ring`] | single-producer byte rings: between workers, in pipes, to captures |
//! | [`stats`] | the shared-memory segment of counters |

pub mod burst;
pub mod doorbell;
pub mod engine;
pub mod netns;
pub mod offload;
pub mod port;
pub mod ring;
pub mod stats;
mod sync;
pub mod tables;
pub mod underlay;
pub mod wire;
pub mod worker;

pub use vwire_proto::stats::DropReason;
