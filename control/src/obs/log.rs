//! Logs: quiet by default, text or JSON, the level changed while the process runs, for all or for one connection.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::str::FromStr;
use std::sync::{Mutex, OnceLock};

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use super::Redacted;

/// Crates whose lines follow the level. Others are libraries, heard from WARN on: their traces quote what is on the wire.
const OURS: [&str; 4] = ["vwire", "vwire_control", "vwire_dataplane", "memif"];
/// Connections that may have a level of their own at one time.
const MAX_CONNECTIONS: usize = 64;

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// A level that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a level; write ERROR, WARN, INFO, DEBUG, TRACE, or a filter such as warn,vwire_control::chain=debug"
)]
pub struct BadLevel;

/// What is logged: a level for our crates, or a filter in tracing's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLevel(String);

impl LogLevel {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Everything that our crates say.
    pub fn trace() -> Self {
        Self("TRACE".to_owned())
    }

    /// In tracing's words.
    fn directives(&self) -> String {
        let Some(level) = level(&self.0) else { return self.0.clone() };
        let libraries = if level == "error" { "error" } else { "warn" };
        let ours: Vec<String> = OURS.iter().map(|name| format!("{name}={level}")).collect();
        format!("{libraries},{}", ours.join(","))
    }
}

/// A level's name in lower case. FATAL and PANIC are logrus' and mean no more than an error here.
fn level(text: &str) -> Option<&'static str> {
    let names = ["error", "warn", "info", "debug", "trace"];
    let alias = [("warning", "warn"), ("fatal", "error"), ("panic", "error")];
    let lower = text.trim().to_lowercase();
    let alias = alias.iter().find(|(name, _)| *name == lower).map(|(_, level)| *level);
    alias.or_else(|| names.into_iter().find(|name| *name == lower))
}

impl FromStr for LogLevel {
    type Err = BadLevel;

    fn from_str(text: &str) -> Result<Self, BadLevel> {
        let is_filter = text.contains(['=', ',']) && EnvFilter::builder().parse(text).is_ok();
        if level(text).is_some() || is_filter { Ok(Self(text.trim().to_owned())) } else { Err(BadLevel) }
    }
}

/// The logs of this process.
#[derive(Debug)]
pub struct Logs {
    handle: reload::Handle<EnvFilter, Registry>,
    levels: Mutex<Levels>,
}

#[derive(Debug)]
struct Levels {
    /// What the process was started with.
    started: LogLevel,
    now: LogLevel,
    connections: BTreeMap<String, LogLevel>,
}

impl Levels {
    fn filter(&self) -> Result<EnvFilter, BadLevel> {
        let mut directives = self.now.directives();
        for (connection, wanted) in &self.connections {
            let level = level(&wanted.0).ok_or(BadLevel)?;
            directives += &format!(",[{{connection={connection}}}]={level}");
        }
        EnvFilter::builder().parse(directives).map_err(|_| BadLevel)
    }
}

static LOGS: OnceLock<Logs> = OnceLock::new();

impl Logs {
    /// Starts logging to standard error. Once a process: later calls return the same logs, at their present level.
    pub fn start(level: &LogLevel, format: LogFormat) -> &'static Self {
        LOGS.get_or_init(|| {
            let levels = Levels { started: level.clone(), now: level.clone(), connections: BTreeMap::new() };
            // A `LogLevel` parses: that is what makes one.
            let filter = levels.filter().unwrap_or_default();
            let (filter, handle) = reload::Layer::new(filter);
            let registry = tracing_subscriber::registry().with(filter);
            let writer = Redacted(std::io::stderr);
            let lines = fmt::layer().with_ansi(std::io::stderr().is_terminal()).with_writer(writer);
            // It fails where another library of this process (a test's) logs already, which may go on.
            let _ = match format {
                LogFormat::Text => registry.with(lines).try_init(),
                LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
            };
            Self { handle, levels: Mutex::new(levels) }
        })
    }

    /// The logs, if they were started.
    pub fn current() -> Option<&'static Self> {
        LOGS.get()
    }

    fn change(&self, change: impl FnOnce(&mut Levels) -> Result<(), BadLevel>) -> Result<(), BadLevel> {
        let mut levels = self.levels.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut wanted = Levels {
            started: levels.started.clone(),
            now: levels.now.clone(),
            connections: levels.connections.clone(),
        };
        change(&mut wanted)?;
        let filter = wanted.filter()?;
        // It fails if the subscriber is gone, which ends with the process.
        let _ = self.handle.reload(filter);
        *levels = wanted;
        Ok(())
    }

    /// Changes the level of everything.
    ///
    /// # Errors
    /// [`BadLevel`]; then nothing is changed.
    pub fn set(&self, level: LogLevel) -> Result<(), BadLevel> {
        self.change(|levels| {
            levels.now = level;
            Ok(())
        })
    }

    /// Goes back to the level of the start, for everything and each connection.
    pub fn reset(&self) {
        // What was right at the start still is.
        let _ = self.change(|levels| {
            levels.now = levels.started.clone();
            levels.connections.clear();
            Ok(())
        });
    }

    /// Changes the level for one connection, by its root id; None goes back to that of the rest.
    ///
    /// # Errors
    /// [`BadLevel`] if the id can't be one, or there are too many; then nothing is changed.
    pub fn set_connection(&self, root: &str, wanted: Option<LogLevel>) -> Result<(), BadLevel> {
        let is_id = |id: &str| {
            !id.is_empty()
                && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':'))
        };
        self.change(|levels| {
            match wanted {
                Some(wanted) if is_id(root) && level(&wanted.0).is_some() => {
                    levels.connections.insert(root.to_owned(), wanted);
                }
                Some(_) => return Err(BadLevel),
                None => {
                    levels.connections.remove(root);
                }
            }
            if levels.connections.len() > MAX_CONNECTIONS { Err(BadLevel) } else { Ok(()) }
        })
    }

    /// The level of now, and those of single connections.
    pub fn levels(&self) -> (LogLevel, BTreeMap<String, String>) {
        let levels = self.levels.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let connections = levels.connections.iter().map(|(id, level)| (id.clone(), level.0.clone()));
        (levels.now.clone(), connections.collect())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn levels_are_logrus_and_filters_are_tracings() {
        for text in ["INFO", "info", "Trace", "warning", "FATAL", "warn,vwire_control::chain=debug", "a=info"]
        {
            assert!(text.parse::<LogLevel>().is_ok(), "{text}");
        }
        for text in ["", "loud", "5", "vwire", "a=loud"] {
            assert_eq!(text.parse::<LogLevel>(), Err(BadLevel), "{text}");
        }
        let trace = LogLevel::trace().directives();
        assert!(trace.starts_with("warn,") && trace.contains("vwire_control=trace"), "{trace}");
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        fn take(&self) -> String {
            String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
        }
    }

    fn speak() {
        for connection in ["id-1", "id-2"] {
            let _span = tracing::info_span!("request", %connection).entered();
            tracing::debug!("detail of {connection}");
        }
        tracing::info!(token = "eyJhbGciOiJFUzI1NiJ9.x.y", "news");
        tracing::warn!(target: "h2", "a library warns");
        tracing::debug!(target: "h2", "a library chats");
    }

    #[test]
    fn the_level_changes_for_all_and_for_one_connection() {
        let level: LogLevel = "INFO".parse().unwrap();
        let levels = Levels { started: level.clone(), now: level, connections: BTreeMap::new() };
        let (filter, handle) = reload::Layer::new(levels.filter().unwrap());
        let logs = Logs { handle, levels: Mutex::new(levels) };
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = fmt::layer().with_ansi(false).with_writer(Redacted(move || writer.clone()));
        let _guard = tracing_subscriber::registry().with(filter).with(layer).set_default();

        speak();
        let said = lines.take();
        assert!(said.contains("news") && said.contains("warns") && said.contains("[token]"), "{said}");
        assert!(!said.contains("detail") && !said.contains("chats") && !said.contains("eyJ"), "{said}");

        logs.set_connection("id-2", Some(LogLevel::trace())).unwrap();
        speak();
        let said = lines.take();
        assert!(said.contains("detail of id-2") && !said.contains("detail of id-1"), "{said}");
        assert!(said.contains("connection=id-2"), "{said}");

        logs.set(LogLevel::trace()).unwrap();
        speak();
        let said = lines.take();
        assert!(said.contains("detail of id-1") && !said.contains("chats"), "{said}");

        logs.reset();
        assert_eq!(logs.levels(), ("INFO".parse().unwrap(), BTreeMap::new()));
        speak();
        assert!(!lines.take().contains("detail"));
        for id in ["", "a]b", "x y", "a\"b"] {
            assert_eq!(logs.set_connection(id, Some(LogLevel::trace())), Err(BadLevel));
        }
    }
}
