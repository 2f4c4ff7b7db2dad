//! One step of a Request each, by NSM's names. A role (`roles/`) is a list of them.

pub mod authorize;
pub mod begin;
pub mod client_info;
pub mod connect;
pub mod discover;
pub mod discover_forwarder;
pub mod excluded_prefixes;
mod lookup;
pub mod monitor;
pub mod net_svc_monitor;
pub mod recv_fd;
pub mod round_robin;
pub mod send_fd;
pub mod timeout;
pub mod trim_path;
pub mod update_path;
pub mod update_token;

pub use authorize::Authorize;
pub use begin::{Begin, Binding};
pub use client_info::ClientInfo;
pub use connect::Connect;
pub use discover::Discover;
pub use discover_forwarder::DiscoverForwarder;
pub use excluded_prefixes::ExcludedPrefixes;
pub use monitor::{Follow, Hub, Monitor};
pub use net_svc_monitor::NetSvcMonitor;
pub use recv_fd::RecvFd;
pub use round_robin::RoundRobin;
pub use send_fd::SendFd;
pub use timeout::Timeout;
pub use trim_path::TrimPath;
pub use update_path::UpdatePath;
pub use update_token::UpdateToken;
