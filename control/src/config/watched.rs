//! Small YAML files of `key: value` that change while we run: configuration maps become such files.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Largest file that is read, bytes.
const MAX_SIZE: u64 = 1 << 20;

/// A map that is read again when its file has changed. No file is an empty map, and one that can't be read changes nothing.
pub struct WatchedMap {
    file: PathBuf,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Device, inode, size, and the time of change in nanoseconds: what tells one content from another.
    version: Option<(u64, u64, u64, i128)>,
    map: Arc<HashMap<String, String>>,
}

impl WatchedMap {
    /// Of this file.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into(), known: Mutex::default() }
    }

    /// As the file has it now.
    pub fn current(&self) -> Arc<HashMap<String, String>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let version = version(&self.file);
        if version != known.version {
            match version.map_or_else(|| Ok(HashMap::new()), |_| read(&self.file)) {
                Ok(map) => {
                    tracing::debug!(file = %self.file.display(), entries = map.len(), "read");
                    known.map = Arc::new(map);
                }
                Err(reason) => tracing::warn!(file = %self.file.display(), reason, "stays as it was"),
            }
            known.version = version;
        }
        Arc::clone(&known.map)
    }
}

fn version(file: &Path) -> Option<(u64, u64, u64, i128)> {
    let data = std::fs::metadata(file).ok()?;
    let changed = i128::from(data.mtime()) * 1_000_000_000 + i128::from(data.mtime_nsec());
    Some((data.dev(), data.ino(), data.size(), changed))
}

fn read(file: &Path) -> Result<HashMap<String, String>, String> {
    let size = std::fs::metadata(file).map_err(|error| error.to_string())?.size();
    if size > MAX_SIZE {
        return Err(format!("{size} bytes; at most {MAX_SIZE} are read"));
    }
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    if text.trim().is_empty() {
        return Ok(HashMap::new());
    }
    serde_yaml_ng::from_str(&text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_followed_and_a_bad_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("map-ip.yaml");
        let map = WatchedMap::new(&file);
        assert!(map.current().is_empty());
        let put = |text: &str| {
            let other = dir.path().join("new");
            std::fs::write(&other, text).unwrap();
            std::fs::rename(other, &file).unwrap();
        };
        put("10.0.0.1: 192.0.2.1\nfd00::1: 2001:db8::1\n");
        assert_eq!(map.current()["10.0.0.1"], "192.0.2.1");
        assert_eq!(map.current()["fd00::1"], "2001:db8::1");
        put("- no map");
        assert_eq!(map.current().len(), 2);
        put("");
        assert!(map.current().is_empty());
        put("a: b");
        assert_eq!(map.current()["a"], "b");
        std::fs::remove_file(&file).unwrap();
        assert!(map.current().is_empty());
    }
}
