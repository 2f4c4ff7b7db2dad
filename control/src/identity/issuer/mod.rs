//! The built-in issuer: an authority of one trust domain and a SPIFFE Workload API, for labs, single hosts and tests, where there is
//! no SPIRE. It believes the kernel about who calls: by which socket, with which uid and program.

mod api;
mod authority;
pub mod bundle;
mod endpoint;
mod federation;
mod follow;
mod keys;
mod names;
mod store;

pub use api::{Issuer, serve};
pub use authority::{Authority, IssuerError};
pub use endpoint::{Endpoint, ISSUER, publish};
pub use federation::{Folder, Links};
pub use follow::{Following, WEB_ROOTS};
pub use keys::{Keys, Pace, Rotation};
pub use names::{Caller, Name, Rule};
pub use store::{export, read_bundle};
