//! What a lab has made, on disk, so that another process can take it down: also after a crash in the middle of `up`.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{LabError, Layout, Spec};

/// The variable by which a lab's processes, and what they start, are known.
pub const MARK: &str = "VWIRE_LAB";

/// What no process but the lab's own has in its environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mark(String);

impl Mark {
    /// A new one.
    fn new(lab: &str) -> Self {
        Self(format!("{lab}-{}", Uuid::new_v4()))
    }

    /// The variable's value.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A process that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// What it is called in the lab: `nsmgr-node-1`.
    pub name: String,
    /// Waves are started one after the other, and ended in the reverse order.
    pub wave: u8,
    /// Its id, then.
    pub pid: i32,
    /// When it was started, in the kernel's ticks: another process under the same id has another.
    pub started: u64,
}

/// What `up` has done, or was about to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// As it was read.
    pub spec: Spec,
    /// In the environment of all its processes.
    pub mark: Mark,
    /// Namespaces that were made, or were to be.
    pub namespaces: Vec<String>,
    /// In the order of their start.
    pub processes: Vec<Place>,
    /// True once `up` has come to its end.
    pub complete: bool,
}

impl Record {
    /// Of a lab that has nothing yet.
    pub fn new(spec: &Spec) -> Self {
        Self {
            mark: Mark::new(&spec.name),
            spec: spec.clone(),
            namespaces: Vec::new(),
            processes: Vec::new(),
            complete: false,
        }
    }

    fn file(layout: &Layout) -> PathBuf {
        layout.directory().join("lab.json")
    }

    /// Writes it whole, or leaves what was there.
    ///
    /// # Errors
    /// [`LabError::Failed`].
    pub fn write(&self, layout: &Layout) -> Result<(), LabError> {
        let file = Self::file(layout);
        let new = file.with_extension("new");
        let failed = |reason: &dyn std::fmt::Display| LabError::failed(file.display().to_string(), reason);
        let text = serde_json::to_vec_pretty(self).map_err(|error| failed(&error))?;
        fs::write(&new, text).and_then(|()| fs::rename(&new, &file)).map_err(|error| failed(&error))
    }

    /// Reads it; None if there is no such lab.
    ///
    /// # Errors
    /// [`LabError::Failed`] if it can't be read.
    pub fn read(layout: &Layout) -> Result<Option<Self>, LabError> {
        let file = Self::file(layout);
        let failed = |reason: &dyn std::fmt::Display| LabError::failed(file.display().to_string(), reason);
        match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| failed(&error)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(&error)),
        }
    }

    /// The names of all labs in `run`.
    pub fn all(run: &Path) -> Vec<String> {
        let Ok(entries) = fs::read_dir(run) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}
