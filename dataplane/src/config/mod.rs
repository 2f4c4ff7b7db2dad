//! The configuration file. A refusal names the file, the line, the key and the reason; nothing starts
//! half-configured.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

mod domain;
mod refusal;
mod settings;
mod state;
mod underlay;

use refusal::{Refusal, line_of};
use settings::Settings;
pub use settings::{Admin, Api, Dpdk, Log, LogFormat, SocketPath, Stats, WorkerMode, Workers};

use crate::model::{PortName, State};

/// A configuration file that will not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", self.place())]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1, if the reason has one.
    pub line: Option<usize>,
    /// The key, like `port[2].vni`, if the reason has one.
    pub key: Option<String>,
    /// What is wrong.
    pub reason: String,
}

impl ConfigError {
    fn place(&self) -> String {
        let line = self.line.map(|line| format!(":{line}")).unwrap_or_default();
        let key = self.key.as_ref().map(|key| format!(": {key}")).unwrap_or_default();
        format!("{}{line}{key}", self.file.display())
    }
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// The workers.
    pub workers: Workers,
    /// The counters.
    pub stats: Stats,
    /// The admin port.
    pub admin: Admin,
    /// The API.
    pub api: Api,
    /// The log.
    pub log: Log,
    /// How DPDK is started, for the ports that need it.
    pub dpdk: Dpdk,
    /// The ports and cross-connects to start with.
    pub state: State,
    /// Where each port is in the file: its line and its key.
    places: BTreeMap<PortName, (usize, String)>,
}

impl Config {
    /// Longest file that is read, in bytes: room for some thousands of ports.
    pub const MAX_BYTES: u64 = 4 << 20;

    /// Reads and checks the file.
    ///
    /// # Errors
    /// [`ConfigError`] if it can't be read or won't do.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let error = |reason: String| ConfigError { file: file.to_owned(), line: None, key: None, reason };
        let text = read(file).map_err(error)?;
        Self::parse(file, &text)
    }

    /// Checks a file's text; `file` is for errors.
    ///
    /// # Errors
    /// [`ConfigError`] if it won't do.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        parse(text).map_err(|refusal| refusal.locate(file, text))
    }

    /// The error that `file` names `port`, which can't be made for this reason.
    pub fn blame(&self, file: &Path, port: &PortName, reason: String) -> ConfigError {
        let (line, key) = self.places.get(port).cloned().unzip();
        ConfigError { file: file.to_owned(), line, key, reason }
    }
}

/// The file's text. Opened without waiting and only if it is a plain file: a FIFO would hold the start up
/// forever.
fn read(file: &Path) -> Result<String, String> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let opened = std::fs::File::options().read(true).custom_flags(flags).open(file);
    let opened = opened.map_err(|error| error.to_string())?;
    let about = opened.metadata().map_err(|error| error.to_string())?;
    let limit = Config::MAX_BYTES;
    match about.len() {
        _ if !about.is_file() => return Err("is not a plain file".into()),
        len if len > limit => return Err(format!("has {len} bytes; at most {limit} are read")),
        _ => {}
    }
    let mut bytes = Vec::new();
    opened.take(limit).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    String::from_utf8(bytes).map_err(|error| {
        let line =
            1 + error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
        format!("is not UTF-8 (line {line})")
    })
}

fn parse(text: &str) -> Result<Config, Refusal> {
    let root = DeTable::parse(text)?;
    let whole = root.span();
    let mut root = root.into_inner();
    let ports = list(take(&mut root, "port"), "port")?;
    let xconnects = list(take(&mut root, "xconnect"), "xconnect")?;
    let underlays = list(take(&mut root, "underlay"), "underlay")?;
    let domains = list(take(&mut root, "domain"), "domain")?;
    let settings: Settings = value(Spanned::new(whole, DeValue::Table(root)))?;
    let known = ports.iter().enumerate().filter_map(|(i, entry)| {
        let name: PortName = entry.get_ref().get("name")?.get_ref().as_str()?.parse().ok()?;
        Some((name, (line_of(text, entry.span().start), format!("port[{i}]"))))
    });
    let places = known.collect();
    let state = state::state(ports, xconnects, underlays, domains)?;
    let Settings { workers, stats, admin, api, log, dpdk } = settings;
    Ok(Config { workers, stats, admin, api, log, dpdk, state, places })
}

fn value<T: DeserializeOwned>(value: Spanned<DeValue<'_>>) -> Result<T, Refusal> {
    let span = value.span();
    T::deserialize(ValueDeserializer::from(value)).map_err(|error| {
        let refusal = Refusal::from(error);
        Refusal { span: refusal.span.or(Some(span)), ..refusal }
    })
}

fn take<'i>(table: &mut DeTable<'i>, key: &str) -> Option<Spanned<DeValue<'i>>> {
    let key = table.keys().find(|k| k.get_ref() == key).cloned()?;
    table.remove(&key)
}

/// The entries of `[[name]]`.
fn list<'i>(entries: Option<Spanned<DeValue<'i>>>, name: &str) -> Result<Vec<Spanned<DeValue<'i>>>, Refusal> {
    let Some(entries) = entries else { return Ok(Vec::new()) };
    let span = entries.span();
    match entries.into_inner() {
        DeValue::Array(entries) => Ok(entries.into_iter().collect()),
        other => {
            Err(Refusal::at(span, format!("write [[{name}]]: it is a list, not one {}", other.type_str())))
        }
    }
}

#[cfg(test)]
mod tests;
