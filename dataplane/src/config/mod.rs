//! The configuration file. A refusal names the file, the line, the key and the reason; nothing starts
//! half-configured.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

mod domain;
mod underlay;

pub use crate::port::dpdk::Settings as Dpdk;

use crate::model::{Invalid, Op, PortName, PortSpec, State, StateError, UnderlaySpec, Xconnect, shown};

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

/// Most workers; their number goes into a byte of a hand-off ring's name and no machine of today has more
/// cores for it.
const MAX_WORKERS: usize = 64;

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

/// What is neither port nor cross-connect.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    workers: Workers,
    stats: Stats,
    admin: Admin,
    api: Api,
    log: Log,
    dpdk: Dpdk,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawXconnect {
    ports: [PortName; 2],
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

/// What is wrong and where, before it is known what the place is called.
struct Refusal {
    span: Option<Range<usize>>,
    reason: String,
}

impl From<toml::de::Error> for Refusal {
    fn from(error: toml::de::Error) -> Self {
        Self { span: error.span(), reason: error.message().lines().collect::<Vec<_>>().join("; ") }
    }
}

impl Refusal {
    fn at(span: Range<usize>, reason: impl ToString) -> Self {
        Self { span: Some(span), reason: reason.to_string() }
    }

    fn locate(self, file: &Path, text: &str) -> ConfigError {
        let line = self.span.as_ref().map(|span| line_of(text, span.start));
        let key = self.span.as_ref().and_then(|span| key_at(text, span));
        ConfigError { file: file.to_owned(), line, key, reason: self.reason }
    }
}

/// The line, from 1, of the byte at `offset`.
fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    1 + before.iter().filter(|b| **b == b'\n').count()
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
    let state = state(ports, xconnects, underlays, domains)?;
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

fn state(
    ports: Vec<Spanned<DeValue<'_>>>,
    xconnects: Vec<Spanned<DeValue<'_>>>,
    underlays: Vec<Spanned<DeValue<'_>>>,
    domains: Vec<Spanned<DeValue<'_>>>,
) -> Result<State, Refusal> {
    let mut places = Vec::new();
    let (mut known_ports, mut known_xconnects) = (Vec::new(), Vec::new());
    for entry in ports {
        let span = entry.span();
        let (name, spec) = port(entry)?;
        places.push((name.to_string(), span));
        known_ports.push((name, spec));
    }
    for entry in xconnects {
        let span = entry.span();
        let RawXconnect { ports: [a, b] } = value(entry)?;
        let xconnect = Xconnect::new(a, b).map_err(|error| Refusal::at(span.clone(), error))?;
        places.push((xconnect.to_string(), span));
        known_xconnects.push(xconnect);
    }
    let mut known_underlays: Vec<(PortName, UnderlaySpec)> = Vec::new();
    for entry in underlays {
        let span = entry.span();
        let underlay: underlay::Underlay = value(entry)?;
        let (port, spec, exception) =
            underlay.into_parts().map_err(|error| Refusal::at(span.clone(), error))?;
        if known_underlays.iter().any(|(other, _)| *other == port) {
            let twice = format!("port: {port} has two underlays; give one of them all addresses");
            return Err(Refusal::at(span, twice));
        }
        places.push((format!("underlay {port}"), span.clone()));
        if let Some(xconnect) = exception {
            places.push((xconnect.to_string(), span));
            known_xconnects.push(xconnect);
        }
        known_underlays.push((port, spec));
    }
    let mut routing = Vec::new();
    for entry in domains {
        let span = entry.span();
        let domain: domain::Domain = value(entry)?;
        let (ops, subjects) = domain.into_ops().map_err(|error| Refusal::at(span.clone(), error))?;
        places.extend(subjects.into_iter().map(|subject| (subject, span.clone())));
        routing.extend::<Vec<Op>>(ops);
    }
    let ports_and_xconnects = State::with_underlays(known_ports, known_underlays, known_xconnects);
    ports_and_xconnects.and_then(|state| state.after(routing)).map_err(|error| {
        let subject = subject(&error);
        // The last entry of this name: of two ports of one name, the second is the one too many.
        let place = places.iter().rev().find(|(name, _)| Some(name) == subject.as_ref());
        Refusal { span: place.map(|(_, span)| span.clone()), reason: error.to_string() }
    })
}

/// The entry that an error is about.
fn subject(error: &StateError) -> Option<String> {
    match error {
        StateError::Twice(port) | StateError::Contested { second: port, .. } => Some(port.to_string()),
        StateError::NoSuchPort { xconnect, .. } | StateError::Joined { second: xconnect, .. } => {
            Some(xconnect.to_string())
        }
        StateError::Routing { subject, .. } | StateError::Underlay { subject, .. } => Some(subject.clone()),
        StateError::Modes(xconnect) | StateError::Relay(xconnect, _) => Some(xconnect.to_string()),
        StateError::TooMany(_)
        | StateError::Notes(_)
        | StateError::TooManyRoutes(_)
        | StateError::NotFound(_) => None,
    }
}

/// One `[[port]]`: its name and kind, and the rest as the kind wants it.
fn port(entry: Spanned<DeValue<'_>>) -> Result<(PortName, PortSpec), Refusal> {
    let span = entry.span();
    let DeValue::Table(mut table) = entry.into_inner() else {
        return Err(Refusal::at(span, "a port is a table"));
    };
    let needed = |key: &str| Refusal::at(span.clone(), format!("missing field `{key}`"));
    let name: PortName = value(take(&mut table, "name").ok_or_else(|| needed("name"))?)?;
    let kind = take(&mut table, "kind").ok_or_else(|| needed("kind"))?;
    let (kind_span, kind): (_, String) = (kind.span(), value(kind)?);
    let rest = Spanned::new(span.clone(), DeValue::Table(table));
    let spec = match kind.as_str() {
        "memif" => PortSpec::Memif(value(rest)?),
        "kernel" => PortSpec::Kernel(value(rest)?),
        "af_xdp" => PortSpec::AfXdp(value(rest)?),
        "vxlan" => PortSpec::Vxlan(value(rest)?),
        "pipe" => PortSpec::Pipe(value(rest)?),
        "dpdk" => PortSpec::Dpdk(value(rest)?),
        other => {
            let said = shown(other);
            return Err(Refusal::at(
                kind_span,
                format!("kind is memif, kernel, af_xdp, vxlan, pipe or dpdk, not {said}"),
            ));
        }
    };
    if spec.needs().next().is_some() {
        return Err(Refusal::at(
            span,
            "inode:// names a descriptor sent over the API; a file can't send one",
        ));
    }
    Ok((name, spec))
}

/// The dotted key of the innermost entry that `span` lies in.
fn key_at(text: &str, span: &Range<usize>) -> Option<String> {
    let root = DeTable::parse(text).ok()?;
    let mut path = String::new();
    descend(root.get_ref(), span, &mut path);
    (!path.is_empty()).then_some(path)
}

fn descend(table: &DeTable<'_>, span: &Range<usize>, path: &mut String) {
    for (key, value) in table {
        if covers(&key.span(), span) || holds(value, span) {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(key.get_ref());
            return descend_value(value, span, path);
        }
    }
}

fn descend_value(value: &Spanned<DeValue<'_>>, span: &Range<usize>, path: &mut String) {
    match value.get_ref() {
        DeValue::Table(table) => descend(table, span, path),
        DeValue::Array(items) => {
            if let Some(i) = items.iter().position(|item| holds(item, span)) {
                path.push_str(&format!("[{i}]"));
                descend_value(&items[i], span, path);
            }
        }
        _ => {}
    }
}

/// True if `span` is in the value or in something inside it. (A `[[list]]` has no span of its own that covers
/// its entries, and a `[table]`'s covers only its header.)
fn holds(value: &Spanned<DeValue<'_>>, span: &Range<usize>) -> bool {
    covers(&value.span(), span)
        || match value.get_ref() {
            DeValue::Table(table) => {
                table.iter().any(|(key, value)| covers(&key.span(), span) || holds(value, span))
            }
            DeValue::Array(items) => items.iter().any(|item| holds(item, span)),
            _ => false,
        }
}

fn covers(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

#[cfg(test)]
mod tests;
