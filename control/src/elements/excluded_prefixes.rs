//! `excludedprefixes`: addresses that no endpoint may give to a client of this node.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use ipnet::IpNet;
use serde::Deserialize;
use tonic::Status;

use crate::api::connection::Connection;
use crate::api::networkservice::NetworkServiceRequest;
use crate::chain::{Call, Element, Next};

/// Where the file is by default; a configuration map becomes it.
pub const FILE: &str = "/var/lib/networkservicemesh/config/excluded_prefixes.yaml";
/// Largest file that is read, bytes.
const MAX_SIZE: u64 = 1 << 20;

/// Adds the prefixes of a YAML file, `prefixes: [10.0.0.0/8, …]`, to those that a Request excludes. The file is read again when it
/// has changed; no file excludes nothing, and one that can't be read changes nothing.
pub struct ExcludedPrefixes {
    file: PathBuf,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Device, inode, size, and the time of change in nanoseconds: what tells one content from another.
    version: Option<(u64, u64, u64, i128)>,
    prefixes: Arc<[String]>,
}

#[derive(Deserialize)]
struct Content {
    #[serde(default, alias = "Prefixes")]
    prefixes: Option<Vec<IpNet>>,
}

impl ExcludedPrefixes {
    /// Those of this file.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into(), known: Mutex::default() }
    }

    /// The prefixes as the file has them now.
    pub fn current(&self) -> Arc<[String]> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let version = version(&self.file);
        if version != known.version {
            match version.map_or(Ok(Vec::new()), |_| read(&self.file)) {
                Ok(prefixes) => known.prefixes = prefixes.into(),
                Err(reason) => {
                    tracing::warn!(file = %self.file.display(), reason, "excluded prefixes stay as they were");
                }
            }
            known.version = version;
        }
        Arc::clone(&known.prefixes)
    }
}

fn version(file: &Path) -> Option<(u64, u64, u64, i128)> {
    let data = std::fs::metadata(file).ok()?;
    let changed = i128::from(data.mtime()) * 1_000_000_000 + i128::from(data.mtime_nsec());
    Some((data.dev(), data.ino(), data.size(), changed))
}

fn read(file: &Path) -> Result<Vec<String>, String> {
    let size = std::fs::metadata(file).map_err(|error| error.to_string())?.size();
    if size > MAX_SIZE {
        return Err(format!("{size} bytes; at most {MAX_SIZE} are read"));
    }
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let content: Content = serde_yaml_ng::from_str(&text).map_err(|error| error.to_string())?;
    Ok(content.prefixes.unwrap_or_default().iter().map(ToString::to_string).collect())
}

#[async_trait]
impl Element for ExcludedPrefixes {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let prefixes = self.current();
        let connection = request.connection.get_or_insert_default();
        let context = connection.context.get_or_insert_default().ip_context.get_or_insert_default();
        if !prefixes.is_empty() {
            let known: BTreeSet<&String> = context.excluded_prefixes.iter().collect();
            let new: Vec<String> =
                prefixes.iter().filter(|prefix| !known.contains(prefix)).cloned().collect();
            context.excluded_prefixes.extend(new);
        }
        next.request(call, request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::Chain;
    use crate::chain::testing::{call_by, connection, request};

    async fn excluded(chain: &Chain, given: &[&str]) -> Vec<String> {
        let mut one = connection(&["nsc/nsc-0", "nsmgr/m"]);
        let context = one.context.get_or_insert_default().ip_context.get_or_insert_default();
        context.excluded_prefixes = given.iter().map(|prefix| (*prefix).to_owned()).collect();
        let answer = chain.request(&mut call_by("nsc"), request(one)).await.unwrap();
        answer.context.unwrap().ip_context.unwrap().excluded_prefixes
    }

    #[tokio::test]
    async fn the_file_is_followed_and_a_bad_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("excluded_prefixes.yaml");
        let chain = Chain::new("nsmgr", |_| vec![Arc::new(ExcludedPrefixes::new(&file))]);
        assert_eq!(excluded(&chain, &["1.0.0.0/8"]).await, ["1.0.0.0/8"]);
        let put = |text: &str| {
            // As a configuration map changes: another file takes the name.
            let other = dir.path().join("new");
            std::fs::write(&other, text).unwrap();
            std::fs::rename(other, &file).unwrap();
        };
        put("prefixes:\n- 10.0.0.0/8\n- fd00::/8\n");
        assert_eq!(
            excluded(&chain, &["10.0.0.0/8", "1.0.0.0/8"]).await,
            ["10.0.0.0/8", "1.0.0.0/8", "fd00::/8"]
        );
        put("prefixes: [nonsense]");
        assert_eq!(excluded(&chain, &[]).await, ["10.0.0.0/8", "fd00::/8"]);
        put("Prefixes: [192.168.0.0/16]");
        assert_eq!(excluded(&chain, &[]).await, ["192.168.0.0/16"]);
        put("");
        assert!(excluded(&chain, &[]).await.is_empty());
        std::fs::remove_file(&file).unwrap();
        assert!(excluded(&chain, &[]).await.is_empty());
    }
}
