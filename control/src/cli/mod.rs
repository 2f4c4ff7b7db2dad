//! The operator's verbs. Each prints a table, or JSON with `-o json`.

mod admin;
mod explain;
mod hello;
mod lab;
mod link;
mod path;
mod status;
mod table;

pub use admin::{AdminClient, AskError, Where};
pub use explain::ExplainArgs;
pub use hello::HelloArgs;
pub use lab::LabArgs;
pub use link::LinkArgs;
pub use path::PathArgs;
pub use status::StatusArgs;

/// How a verb shows what it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Why a verb has nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum VerbError {
    /// A process did not answer.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// A lab.
    #[error(transparent)]
    Lab(#[from] crate::lab::LabError),
    /// Nothing by that name, or more than one thing.
    #[error("{0}")]
    Which(String),
    /// An address can't be listened at.
    #[error("{address}: {error}")]
    Serve {
        /// The address.
        address: std::net::SocketAddr,
        /// The kernel's answer.
        error: std::io::Error,
    },
    /// Standard output is gone in a way that is no reader that has enough.
    #[error("writing: {0}")]
    Write(std::io::Error),
}

/// Prints; a reader that has enough is no error.
fn print(text: &str) -> Result<(), VerbError> {
    use std::io::Write;
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(VerbError::Write(error)),
        _ => Ok(()),
    }
}

/// Prints a value as JSON.
fn print_json(value: &impl serde::Serialize) -> Result<(), VerbError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| VerbError::Write(error.into()))?;
    print(&(text + "\n"))
}

/// A time ahead or past, as people read it: `in 4m10s`, `12s ago`.
fn from_now(seconds: i64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let away = seconds.saturating_sub(now);
    match u64::try_from(away) {
        Ok(ahead) => format!("in {}", span(ahead)),
        Err(_) => format!("{} ago", span(away.unsigned_abs())),
    }
}

/// A length of time in its two largest units: `3d4h`, `5m10s`, `7s`.
fn span(seconds: u64) -> String {
    let units = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];
    let first = units.iter().position(|(_, unit)| seconds >= *unit).unwrap_or(units.len() - 1);
    let (mut rest, mut text) = (seconds, String::new());
    for (name, unit) in units.iter().skip(first).take(2) {
        if rest >= *unit || text.is_empty() {
            text += &format!("{}{name}", rest / unit);
            rest %= unit;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units_at_most() {
        let cases = [
            (0, "0s"),
            (7, "7s"),
            (60, "1m"),
            (310, "5m10s"),
            (3_600, "1h"),
            (3_605, "1h"),
            (93_784, "1d2h"),
        ];
        for (seconds, text) in cases {
            assert_eq!(span(seconds), text);
        }
        assert_eq!(from_now(0).split(' ').next_back(), Some("ago"));
        assert!(from_now(i64::MAX).starts_with("in "));
    }
}
