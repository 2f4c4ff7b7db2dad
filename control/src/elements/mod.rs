//! One step of a Request each, by NSM's names. A role (`roles/`) is a list of them.

pub mod authorize;
pub mod begin;
pub mod connect;
pub mod monitor;
pub mod timeout;
pub mod trim_path;
pub mod update_path;
pub mod update_token;

pub use authorize::Authorize;
pub use begin::{Begin, Binding};
pub use connect::Connect;
pub use monitor::{Hub, Monitor};
pub use timeout::Timeout;
pub use trim_path::TrimPath;
pub use update_path::UpdatePath;
pub use update_token::UpdateToken;
