//! Where an endpoint listens that was told no more than a name, or nothing.

use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use crate::transport::Target;

/// A role's socket, in a folder that goes with it if it was made for it.
pub(super) struct Place {
    pub(super) target: Target,
    folder: Option<PathBuf>,
}

impl Place {
    /// Where `listen_on` says; below the temporary folder, in a new one whose name begins with `role`, if that is empty or a plain name.
    pub(super) fn choose(role: &str, listen_on: &str) -> Result<Self, String> {
        let plain = !listen_on.contains(['/', ':']);
        if !plain {
            let target = Target::parse(listen_on).map_err(|error| error.to_string())?;
            return Ok(Self { target, folder: None });
        }
        let folder = std::env::temp_dir().join(format!("{role}-{}", uuid::Uuid::new_v4()));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .map_err(|error| format!("folder {}: {error}", folder.display()))?;
        let name = if listen_on.is_empty() { "listen.on" } else { listen_on };
        Ok(Self { target: Target::Unix(folder.join(name)), folder: Some(folder) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}
