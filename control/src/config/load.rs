//! Flags, environment and file into one set of settings, and an error that names what was wrong and where it was said.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory, FromArgMatches};
use serde::Serialize;

use super::file::{self, BadFile};

/// Prefixes that a key of the file leaves out of the variable's name.
const PREFIXES: [&str; 2] = ["NSM_", "VWIRE_"];
/// The Go registries have prefixes of their own: used where the variable itself is not set.
const ALIASES: [(&str, [&str; 2]); 1] = [("registry", ["REGISTRY_MEMORY_", "REGISTRY_K8S_"])];
/// Variables of NSM before v1, in the words of a role's variables of today: used where these are not set.
const OLD: [(&str, &str, &str); 13] = [
    ("registry", "PROXY_NSMD_K8S_ADDRESS", "NSM_PROXY_REGISTRY_URL"),
    ("nsmgr-proxy", "PROXY_NSMD_K8S_ADDRESS", "NSM_REGISTRY_PROXY_URL"),
    ("nsmgr-proxy", "PROXY_NSMD_API_ADDRESS", "NSM_LISTEN_ON"),
    ("nsmgr-proxy", "PROXY_NSMD_ADDRESS", "VWIRE_PROXY_URL"),
    ("proxy", "PROXY_NSMD_ADDRESS", "VWIRE_PROXY_URL"),
    ("nse", "ENDPOINT_NETWORK_SERVICE", "NSM_SERVICE_NAMES"),
    ("nse", "ENDPOINT_LABELS", "NSM_LABELS"),
    ("vl3", "ENDPOINT_NETWORK_SERVICE", "NSM_SERVICE_NAMES"),
    ("vl3", "ENDPOINT_LABELS", "NSM_LABELS"),
    ("vl3", "ADVERTISE_NSE_NAME", "NSM_SERVICE_NAMES"),
    ("vl3", "ADVERTISE_NSE_LABELS", "NSM_LABELS"),
    ("vl3", "REMOTE_IP", "NSM_REMOTE_NS_IP_LIST"),
    ("vl3", "REMOTE_CLUSTERIP", "NSM_REMOTE_NS_IP_LIST"),
];
/// The setting that says where the file is.
const FILE: &str = "config";

/// Why a process does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A wrong value.
    #[error("{origin}: {value:?}: {reason}")]
    Value {
        /// Where it was said.
        origin: Origin,
        /// What was said.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that can't be read, or has a key that nobody knows.
    #[error(transparent)]
    File(#[from] BadFile),
    /// Help was asked for, or the command line is wrong.
    #[error(transparent)]
    Usage(#[from] clap::Error),
}

impl StartError {
    /// Prints it and ends the process, with status 2 unless help was asked for.
    pub fn exit(&self) -> ! {
        if let Self::Usage(error) = self {
            error.exit()
        }
        eprintln!("{self}");
        std::process::exit(2)
    }
}

/// Where a setting's value was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// On the command line: `--listen-on`.
    Flag(String),
    /// In the environment: `NSM_LISTEN_ON`.
    Variable(String),
    /// In a file.
    File {
        /// The file.
        path: PathBuf,
        /// Its key: `listen_on`.
        key: String,
    },
    /// Nowhere.
    Default(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => f.write_str(flag),
            Self::Variable(variable) => f.write_str(variable),
            Self::File { path, key } => write!(f, "{}: {key}", path.display()),
            Self::Default(variable) => write!(f, "default of {variable}"),
        }
    }
}

/// A setting as it is in effect.
#[derive(Debug, Clone, Serialize)]
pub struct Setting {
    /// Its variable.
    pub name: String,
    /// Its value, as it was written; secrets are left out.
    pub value: String,
    /// Where it was said.
    pub origin: String,
}

/// All settings of a role, as they are in effect.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub struct Effective(pub Vec<Setting>);

/// A value below flags and variables: of the file, or of an alias of a variable.
struct Low {
    id: String,
    value: String,
    origin: Origin,
}

/// Reads a command line of `C`, whose sub-commands are roles and verbs.
///
/// # Errors
/// [`StartError`].
pub fn load<C: CommandFactory + FromArgMatches>(args: &[OsString]) -> Result<(C, Effective), StartError> {
    let mut command = C::command();
    command.build();
    let low = match role(&command, args)? {
        Some((role, path)) => low(find(&command, &role), path)?,
        None => Vec::new(),
    };
    let mut command = with_defaults(C::command(), args, &low);
    let matches =
        command.try_get_matches_from_mut(args).map_err(|error| named(error, &command, args, &low))?;
    let settings = effective(&command, &matches, &low);
    let parsed =
        C::from_arg_matches(&matches).map_err(|error| StartError::Usage(error.format(&mut command)))?;
    Ok((parsed, settings))
}

/// The sub-command that `args` name if it has settings, and the file that it shall read.
fn role(command: &Command, args: &[OsString]) -> Result<Option<(String, Option<PathBuf>)>, StartError> {
    let matches = command.clone().ignore_errors(true).try_get_matches_from(args)?;
    let Some((name, matches)) = matches.subcommand() else { return Ok(None) };
    let settings = find(command, name).get_arguments().any(|arg| arg.get_id() == FILE);
    let path = || matches.try_get_one::<PathBuf>(FILE).ok().flatten().cloned();
    Ok(settings.then(|| (name.to_owned(), path())))
}

/// A sub-command, or the command itself.
fn find<'a>(command: &'a Command, name: &str) -> &'a Command {
    command.find_subcommand(name).unwrap_or(command)
}

/// The file's key of a setting that has a variable.
fn key(arg: &Arg) -> Option<String> {
    let variable = arg.get_env()?.to_str()?;
    let short = PREFIXES.iter().find_map(|prefix| variable.strip_prefix(prefix)).unwrap_or(variable);
    (arg.get_id() != FILE).then(|| short.to_lowercase())
}

/// What the file and aliases of variables say; an alias beats the file.
fn low(role: &Command, path: Option<PathBuf>) -> Result<Vec<Low>, StartError> {
    let id_of = |wanted: &str| {
        let arg = role.get_arguments().find(|arg| key(arg).as_deref() == Some(wanted));
        arg.map(|arg| arg.get_id().to_string())
    };
    let mut all = Vec::new();
    if let Some(path) = path {
        for (key, value) in file::read(&path, role.get_name())? {
            let Some(id) = id_of(&key) else {
                let reason = format!(
                    "{key}: not a setting of `vwire {0}`; `vwire {0} --help` lists the variables, of which the keys are the \
                     names in lower case without NSM_",
                    role.get_name()
                );
                return Err(BadFile { path, reason }.into());
            };
            all.push(Low { id, value, origin: Origin::File { path: path.clone(), key } });
        }
    }
    for (variable, id) in aliases(role) {
        if let Ok(value) = std::env::var(&variable) {
            all.retain(|low| low.id != id);
            all.push(Low { id, value, origin: Origin::Variable(variable) });
        }
    }
    Ok(all)
}

/// Other variables for a role's settings, each with the setting's id.
fn aliases(role: &Command) -> Vec<(String, String)> {
    let prefixes = ALIASES.iter().filter(|(name, _)| *name == role.get_name());
    let prefixes: Vec<&str> = prefixes.flat_map(|(_, prefixes)| prefixes).copied().collect();
    let old: Vec<_> = OLD.iter().filter(|(name, ..)| *name == role.get_name()).collect();
    let of = |arg: &Arg| {
        let id = arg.get_id().to_string();
        let other =
            prefixes.iter().filter_map(|prefix| Some(format!("{prefix}{}", key(arg)?.to_uppercase())));
        let old = old.iter().filter(|(.., today)| arg.get_env().is_some_and(|variable| variable == *today));
        let all = other.chain(old.map(|(_, old, _)| (*old).to_owned()));
        all.map(|variable| (variable, id.clone())).collect::<Vec<_>>()
    };
    role.get_arguments().flat_map(of).collect()
}

/// The command with `low` in place of its own defaults.
fn with_defaults(command: Command, args: &[OsString], low: &[Low]) -> Command {
    if low.is_empty() {
        return command;
    }
    let Ok(Some((role, _))) = role(&command, args) else { return command };
    command.mut_subcommand(role, |mut role| {
        for Low { id, value, .. } in low {
            // clap keeps defaults for the life of the process, and so do we: there is one start.
            let value: &'static str = Box::leak(value.clone().into_boxed_str());
            role = role.mut_arg(id, |arg| arg.default_value(value).required(false));
        }
        role
    })
}

/// Where the value of a setting was said.
fn origin(arg: &Arg, source: Option<ValueSource>, low: &[Low]) -> Origin {
    let variable = || arg.get_env().unwrap_or_default().to_string_lossy().into_owned();
    match source {
        Some(ValueSource::CommandLine) => Origin::Flag(format!("--{}", arg.get_long().unwrap_or_default())),
        Some(ValueSource::EnvVariable) => Origin::Variable(variable()),
        _ => {
            let said = low.iter().find(|low| arg.get_id() == low.id.as_str());
            said.map_or_else(|| Origin::Default(variable()), |low| low.origin.clone())
        }
    }
}

/// An error of clap's about a value, as ours, which says where the value was said.
fn named(error: clap::Error, command: &Command, args: &[OsString], low: &[Low]) -> StartError {
    use std::error::Error as _;
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let (Some(shown), Some(value)) = (text(ContextKind::InvalidArg), text(ContextKind::InvalidValue)) else {
        return error.into();
    };
    let flag = shown.split([' ', '[', '=']).next().unwrap_or_default().to_owned();
    let Ok(Some((role, _))) = role(command, args) else { return error.into() };
    let role = find(command, &role);
    let Some(arg) = role.get_arguments().find(|arg| Some(flag.as_str()) == long(arg).as_deref()) else {
        return error.into();
    };
    let reason = match (error.kind(), error.source(), error.get(ContextKind::ValidValue)) {
        (ErrorKind::InvalidValue, _, Some(ContextValue::Strings(valid))) => {
            format!("one of {}", valid.join(", "))
        }
        (ErrorKind::ValueValidation, Some(reason), _) => reason.to_string(),
        _ => return error.into(),
    };
    let on_line = args.iter().filter_map(|arg| arg.to_str());
    let on_line = on_line.map(|arg| arg.split('=').next().unwrap_or(arg)).any(|arg| arg == flag);
    let in_environment = arg.get_env().is_some_and(|variable| std::env::var_os(variable).is_some());
    let source = if on_line {
        ValueSource::CommandLine
    } else if in_environment {
        ValueSource::EnvVariable
    } else {
        ValueSource::DefaultValue
    };
    StartError::Value { origin: origin(arg, Some(source), low), value, reason }
}

fn long(arg: &Arg) -> Option<String> {
    arg.get_long().map(|long| format!("--{long}"))
}

/// Every setting of the role that `matches` is about.
fn effective(command: &Command, matches: &ArgMatches, low: &[Low]) -> Effective {
    let Some((name, matches)) = matches.subcommand() else { return Effective::default() };
    let setting = |arg: &Arg| {
        let variable = arg.get_env()?.to_string_lossy().into_owned();
        let id = arg.get_id().as_str();
        let values = matches.get_raw(id).into_iter().flatten();
        let values: Vec<_> = values.map(|value| value.to_string_lossy().into_owned()).collect();
        let value = if arg.is_hide_env_values_set() { "(secret)".to_owned() } else { values.join(",") };
        let origin = origin(arg, matches.value_source(id), low).to_string();
        Some(Setting { name: variable, value, origin })
    };
    Effective(find(command, name).get_arguments().filter_map(setting).collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Common, Labels, List, duration};

    #[derive(clap::Parser)]
    struct Cli {
        #[command(subcommand)]
        command: Verb,
    }

    #[derive(clap::Subcommand)]
    enum Verb {
        Role(Box<Settings>),
        Other,
    }

    #[derive(clap::Args)]
    struct Settings {
        #[command(flatten)]
        common: Common,
        #[arg(long, env = "NSM_TEST_LABELS", default_value = "")]
        labels: Labels,
        #[arg(long, env = "NSM_TEST_NEEDED")]
        needed: List<String>,
        #[arg(long, env = "NSM_TEST_TIME", default_value = "1s", value_parser = duration)]
        time: Duration,
        #[arg(long, env = "NSM_TEST_SECRET", default_value = "hush", hide_env_values = true)]
        secret: String,
    }

    fn run(args: &[&str]) -> Result<(Settings, Effective), String> {
        let args: Vec<OsString> = ["vwire", "role"].iter().chain(args).map(OsString::from).collect();
        match load::<Cli>(&args) {
            Ok((Cli { command: Verb::Role(settings) }, effective)) => Ok((*settings, effective)),
            Ok(_) => unreachable!(),
            Err(error) => Err(error.to_string()),
        }
    }

    fn file(text: &str) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("settings.yaml");
        std::fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap().to_owned();
        (dir, path)
    }

    #[test]
    fn flag_beats_file_beats_default() {
        let (_dir, path) =
            file("test_labels: {a: b}\ntest_needed: [x, y]\ntest_time: 5s\nlog_level: DEBUG\n");
        let (settings, effective) = run(&["--config", &path, "--time=7s"]).unwrap();
        assert_eq!(settings.labels.to_string(), "a:b");
        assert_eq!(settings.needed.0, ["x", "y"]);
        assert_eq!(settings.time, Duration::from_secs(7));
        assert_eq!(settings.common.max_token_lifetime, Duration::from_secs(600));
        let shown = |name: &str| {
            let setting = effective.0.iter().find(|setting| setting.name == name).unwrap();
            (setting.value.clone(), setting.origin.clone())
        };
        assert_eq!(shown("NSM_TEST_TIME"), ("7s".into(), "--time".into()));
        assert_eq!(shown("NSM_LOG_LEVEL"), ("DEBUG".into(), format!("{path}: log_level")));
        assert_eq!(shown("NSM_MAX_TOKEN_LIFETIME").1, "default of NSM_MAX_TOKEN_LIFETIME");
        assert_eq!(shown("NSM_TEST_SECRET").0, "(secret)");
        assert_eq!(settings.secret, "hush");
    }

    #[test]
    fn a_wrong_value_is_named_by_where_it_was_said() {
        let (_dir, path) = file("test_time: 5\n");
        let error = run(&["--needed=x", "--config", &path]).err().unwrap();
        assert!(error.starts_with(&format!("{path}: test_time: \"5\": 5 has no unit; ")), "{error}");
        let error = run(&["--needed=x", "--time", "soon"]).err().unwrap();
        assert!(error.starts_with("--time: \"soon\": \"soon\" is no unit"), "{error}");
        let error = run(&["--needed=x", "--log-format=xml"]).err().unwrap();
        assert_eq!(error, "--log-format: \"xml\": one of text, json");
        let error = run(&["--needed=x", "--log-level=loud"]).err().unwrap();
        assert!(error.starts_with("--log-level: \"loud\": "), "{error}");
        let error = run(&["--needed=x", "--insecure=maybe"]).err().unwrap();
        assert!(error.starts_with("--insecure: \"maybe\": "), "{error}");
    }

    #[test]
    fn an_unknown_key_is_named_with_its_file() {
        let (_dir, path) = file("test_needed: x\nlisten: y\n");
        let error = run(&["--config", &path]).err().unwrap();
        assert!(error.starts_with(&format!("{path}: listen: not a setting of `vwire role`")), "{error}");
        assert!(run(&["--config", "/nonexistent.toml"]).err().unwrap().starts_with("/nonexistent.toml: "));
        // The file can't send us to another file.
        let (_dir, path) = file("config: z.yaml\n");
        assert!(run(&["--config", &path]).err().unwrap().contains("config: not a setting"));
    }

    #[test]
    fn switches_need_no_value() {
        let settings = run(&["--insecure", "--needed=x"]).unwrap().0;
        assert!(settings.common.insecure);
        assert!(!run(&["--insecure=false", "--needed=x"]).unwrap().0.common.insecure);
    }

    #[test]
    fn what_is_missing_and_what_is_no_flag_are_claps_to_say() {
        assert!(run(&[]).err().unwrap().contains("--needed"));
        assert!(run(&["--needed=x", "--nonsense"]).err().unwrap().contains("--nonsense"));
        let other = load::<Cli>(&["vwire".into(), "other".into()]).ok().unwrap();
        assert!(matches!(other.0.command, Verb::Other) && other.1.0.is_empty());
    }
}
