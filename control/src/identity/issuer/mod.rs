//! The built-in issuer: an authority of one trust domain and a SPIFFE Workload API, for labs, single hosts and tests, where there is
//! no SPIRE. It believes the kernel about who calls: by which socket, with which uid and program.

mod api;
mod authority;
pub mod bundle;
mod federation;
mod names;
mod store;

pub use api::{Issuer, serve};
pub use authority::{Authority, IssuerError};
pub use federation::{Folder, Links};
pub use names::{Caller, Name, Rule};
pub use store::read_bundle;
