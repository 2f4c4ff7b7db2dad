//! The tables of the file that are there once: how the process runs.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use crate::port::dpdk::Settings as Dpdk;

use crate::model::{Invalid, shown};
use crate::tables::Owners;

/// How workers wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum WorkerMode {
    /// They never sleep.
    Poll,
    /// They sleep when there has been nothing to do for a while.
    #[default]
    Adaptive,
}

/// `[workers]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Workers {
    /// One worker for each core named, pinned to it.
    #[serde(deserialize_with = "cores")]
    pub cores: Vec<usize>,
    /// How they wait.
    pub mode: WorkerMode,
}

impl Default for Workers {
    fn default() -> Self {
        Self { cores: vec![0], mode: WorkerMode::default() }
    }
}

/// Most workers: as many as can share a port.
const MAX_WORKERS: usize = Owners::MOST as usize;

fn cores<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<usize>, D::Error> {
    use serde::de::Error;
    let cores = Vec::<usize>::deserialize(from)?;
    if cores.is_empty() || cores.len() > MAX_WORKERS {
        return Err(D::Error::custom(format!("name 1 to {MAX_WORKERS} cores, not {}", cores.len())));
    }
    for (i, core) in cores.iter().enumerate() {
        if cores[..i].contains(core) {
            return Err(D::Error::custom(format!("core {core} is there twice")));
        }
    }
    Ok(cores)
}

/// `[stats]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stats {
    /// The file of the shared counters.
    pub path: PathBuf,
}

impl Default for Stats {
    fn default() -> Self {
        Self { path: "/run/vwire/stats".into() }
    }
}

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Where metrics and health are served; nowhere if `None`.
    pub listen: Option<SocketAddr>,
}

/// `[api]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    /// The unix socket that gRPC is served on; none if `None`.
    pub socket: Option<SocketPath>,
}

/// An absolute path that fits into a socket's address.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct SocketPath(PathBuf);

impl SocketPath {
    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl TryFrom<String> for SocketPath {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        match text.len() {
            2..=107 if text.starts_with('/') && !text.contains('\0') => Ok(Self(text.into())),
            len => Err(Invalid(format!(
                "a socket is an absolute path of at most 107 bytes; {} has {len}",
                shown(&text)
            ))),
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, or a filter like
    /// `warn,vwire_dataplane::agent=debug`.
    pub filter: String,
    /// How it looks.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "warn".into(), format: LogFormat::Text }
    }
}

/// What is neither port nor cross-connect.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Settings {
    pub workers: Workers,
    pub stats: Stats,
    pub admin: Admin,
    pub api: Api,
    pub log: Log,
    pub dpdk: Dpdk,
}
