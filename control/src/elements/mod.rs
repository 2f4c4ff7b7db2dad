//! One step of a Request each, by NSM's names. A role (`roles/`) is a list of them.

pub mod authorize;
pub mod begin;
pub mod commit;
pub mod connect;
pub mod forget_fds;
pub mod mechanisms;
pub mod monitor;
pub mod stats;
pub mod timeout;
pub mod trim_path;
pub mod update_path;
pub mod update_token;

pub use authorize::Authorize;
pub use begin::{Begin, Binding};
pub use commit::Commit;
pub use connect::Connect;
pub use forget_fds::ForgetFds;
pub use mechanisms::Mechanisms;
pub use monitor::{Hub, Monitor};
pub use stats::Stats;
pub use timeout::Timeout;
pub use trim_path::TrimPath;
pub use update_path::UpdatePath;
pub use update_token::UpdateToken;
