//! What an operator sees of a running process: logs, metrics, and the admin port.

mod admin;
mod log;
mod metrics;
mod ration;
mod redact;
mod serve;
mod view;

pub use admin::{Admin, Reporter};
pub use log::{BadLevel, LogFormat, LogLevel, Logs};
pub use metrics::{Metrics, Operation};
pub use ration::Ration;
pub use redact::Redacted;
pub use serve::{AdminError, AdminSocket, default_socket, serve};
pub use view::{ConnectionView, DnsView, Heal, HopView, MechanismView, Status, seconds};
