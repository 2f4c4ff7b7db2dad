//! The packet engine of a role: one that runs, or one that is started and outlives it.

use std::path::Path;

use crate::config::Maybe;
use crate::dataplane::Client;
use crate::dataplane::client::Events;
use crate::dataplane::launch::Launcher;
use crate::transport::Target;

/// Why there is none.
pub(super) enum NoEngine {
    /// `VWIRE_DATAPLANE` will not do.
    Setting(String),
    /// The program is missing.
    Program(String),
}

/// That at the socket `dataplane`; without one, that of the role called `name`, in a folder of its name below `run`.
pub(super) fn find(dataplane: &Maybe<Target>, run: &Path, name: &str) -> Result<(Client, Events), NoEngine> {
    match &dataplane.0 {
        Some(Target::Unix(socket)) => Ok(Client::new(socket, None)),
        Some(other) => Err(NoEngine::Setting(format!(
            "{other} is not a unix socket; write unix:///run/vwire/dataplane.sock"
        ))),
        None => {
            let launcher = Launcher::new(run, name).map_err(NoEngine::Program)?;
            Ok(Client::new(&launcher.socket(), Some(launcher)))
        }
    }
}
