//! Settings: the Go components' environment variables, the same as flags, and the same as keys of a file.
//!
//! A flag beats the environment, which beats the file, which beats the default. clap is the one list of settings: what
//! it knows by a variable is also a key of the file (`NSM_LISTEN_ON` is `listen_on`, `VWIRE_ADMIN` is `admin`).
//!
//! A role's settings are a `clap::Args` with [`Common`] flattened into it:
//!
//! ```
//! use std::time::Duration;
//! use vwire_control::config::{self, Labels, List};
//! use vwire_control::transport::Target;
//!
//! #[derive(clap::Args)]
//! struct Settings {
//!     #[command(flatten)]
//!     common: config::Common,
//!     /// Our name in paths.
//!     #[arg(long, env = "NSM_NAME", default_value = "nsmgr")]
//!     name: String,
//!     /// Where we listen.
//!     #[arg(long, env = "NSM_LISTEN_ON", default_value = "unix:///listen.on.socket")]
//!     listen_on: List<Target>,
//!     /// The registry; empty for none.
//!     #[arg(long, env = "NSM_REGISTRY_URL", default_value = "")]
//!     registry_url: config::Maybe<Target>,
//!     /// What the endpoint is found by.
//!     #[arg(long, env = "NSM_LABELS", default_value = "")]
//!     labels: Labels,
//!     /// How long a peer has to answer.
//!     #[arg(long, env = "NSM_REQUEST_TIMEOUT", default_value = "15s", value_parser = config::duration)]
//!     request_timeout: Duration,
//!     /// Whether the service is registered, too.
//!     #[arg(long, env = "NSM_REGISTER_SERVICE", default_value = "true", value_parser = config::boolean,
//!           action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
//!     register_service: bool,
//! }
//! ```

mod common;
pub mod composite;
mod file;
mod load;
mod values;
mod watched;

pub use common::Common;
pub use load::{Effective, Origin, Setting, StartError, load};
pub use values::{Labels, List, Maybe, boolean, duration, seconds};
pub use watched::WatchedMap;
