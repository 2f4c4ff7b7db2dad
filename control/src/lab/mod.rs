//! Topologies on one machine, from a YAML file: domains with an issuer and a registry each, nodes as network namespaces on a common
//! underlay, endpoints and clients in namespaces of their own.
//!
//! | file | what it does |
//! |---|---|
//! | `spec` | what a file may say |
//! | `layout` | names, addresses and paths that follow from it |
//! | `state` | what was made, written down before it is made |
//! | `net` | namespaces and the underlay |
//! | `dns` | how domains find each other |
//! | `guard` | what their namespaces let through |
//! | `roles` | which processes there are, and what each is told |
//! | `process` | starting processes, and ending exactly those |
//! | `up`, `check`, `down` | the verbs |
//! | `facts` | checks that only read |
//! | `reach` | checks of virtual networks: who is linked, and who reaches whom |
//! | `pings` | pings of which none may be lost |
//!
//! Everything has the lab's name in it: namespaces are called `vw-LAB-…`, files are in `/run/vwire/lab/LAB`, and each process has the
//! lab's mark in its environment. `down` takes away what carries them, and nothing else.

mod check;
mod dns;
mod down;
mod facts;
mod guard;
mod layout;
mod net;
pub mod pings;
mod process;
mod reach;
mod roles;
mod spec;
mod state;
mod up;

pub use check::{Outcome, check};
pub use dns::{Dns, Records};
pub use down::down;
pub use layout::{Layout, RUN};
pub use spec::{BadSpec, Check, Client, Domain, Endpoint, Node, Spec, Stack, Vl3};
pub use state::{Mark, Place, Record};
pub use up::{Lab, Programs};

/// Why a lab could not be made, checked or taken down.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The file.
    #[error(transparent)]
    Spec(#[from] BadSpec),
    /// Something that has to be done failed.
    #[error("{what}: {reason}")]
    Failed {
        /// What was being done.
        what: String,
        /// Why it failed.
        reason: String,
    },
}

impl LabError {
    /// What failed, and why.
    pub fn failed(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Failed { what: what.into(), reason: reason.to_string() }
    }
}

/// Hears what a lab is doing, as it does it.
pub trait Progress: Send + Sync {
    /// A step begins.
    fn begin(&self, step: &str);
    /// It is done.
    fn done(&self, took: std::time::Duration);
}

/// Nobody listens: for tests.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str) {}
    fn done(&self, _: std::time::Duration) {}
}

/// Does a step, and tells `progress`.
async fn step<T>(
    progress: &dyn Progress,
    name: &str,
    work: impl Future<Output = Result<T, LabError>>,
) -> Result<T, LabError> {
    let started = std::time::Instant::now();
    progress.begin(name);
    let done = work.await?;
    progress.done(started.elapsed());
    Ok(done)
}
