//! A lab of a test's own, which is gone with the test.
#![allow(dead_code, reason = "each test file uses a part")]

use std::path::{Path, PathBuf};
use std::process::Command;

use vwire_control::lab::{Lab, Programs, Silent, Spec};

/// Where a test's lab is. A lab that is still there when this is dropped, because the test failed, is taken down.
pub struct Run {
    folder: PathBuf,
    lab: String,
}

impl Run {
    /// For a lab of this topology, to which it gives a name that no other run has.
    pub fn of(spec: &mut Spec, name: &str) -> Self {
        spec.name = format!("{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(format!("vw-{}", spec.name));
        Self { folder, lab: spec.name.clone() }
    }

    /// Its directory; for files of the test, too.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Brings the lab up with the programs of this build.
    pub async fn up(&self, spec: &Spec) -> Lab {
        let programs = Programs::beside(Path::new(env!("CARGO_BIN_EXE_vwire"))).unwrap();
        Lab::up(spec, &self.folder, &programs, &Silent).await.unwrap_or_else(|error| panic!("{error}"))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let mut down = Command::new(env!("CARGO_BIN_EXE_vwire"));
        let down = down.args(["lab", "down", &self.lab, "--run"]).arg(&self.folder).output();
        assert!(std::thread::panicking() || down.is_ok_and(|output| output.status.success()));
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
