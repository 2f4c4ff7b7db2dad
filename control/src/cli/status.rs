//! `vwire status`: every role of this machine, and how it is.

use serde_json::{Map, Value, json};

use super::table::Table;
use super::{Output, VerbError, Where, from_now, print, print_json, span};
use crate::obs::Status;
use crate::transport::Target;

/// `vwire status`
#[derive(Debug, Clone, clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    place: Where,
    /// table or json.
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

impl StatusArgs {
    /// Asks all roles, and prints a line for each.
    ///
    /// # Errors
    /// [`VerbError`].
    pub async fn run(&self) -> Result<(), VerbError> {
        let mut all: Vec<(Target, Status)> = self.place.ask("/status").await?;
        all.sort_by(|(_, a), (_, b)| (&a.role, &a.name).cmp(&(&b.role, &b.name)));
        match self.output {
            Output::Json => {
                let with_admin = |(target, status): &(Target, Status)| {
                    let mut value = json!(status);
                    value["admin"] = target.to_string().into();
                    value
                };
                print_json(&all.iter().map(with_admin).collect::<Vec<_>>())
            }
            Output::Table if all.is_empty() => {
                print(&format!("no role of vwire answers in {}\n", self.place.place()))
            }
            Output::Table => print(&table(&all)),
        }
    }
}

fn table(all: &[(Target, Status)]) -> String {
    let mut table =
        Table::new(&["ROLE", "NAME", "VERSION", "PID", "UPTIME", "READY", "UP", "DOWN", "REPORTS", "SVID"]);
    for (_, status) in all {
        let svid = match status.svid_expires {
            Some(end) => format!("ends {}", from_now(end)),
            None if status.insecure => "INSECURE".to_owned(),
            None => String::new(),
        };
        table.row([
            status.role.clone(),
            status.name.clone(),
            status.version.clone(),
            status.pid.to_string(),
            span(status.uptime_seconds),
            if status.not_ready.is_empty() { "yes".to_owned() } else { status.not_ready.join("; ") },
            status.up.to_string(),
            status.down.to_string(),
            reports(&status.reports),
            svid,
        ]);
    }
    table.text()
}

/// Figures in one cell; what is nested is for JSON.
fn reports(reports: &Map<String, Value>) -> String {
    let figure = |(name, value): (&String, &Value)| match value {
        Value::Object(_) | Value::Null => None,
        Value::Array(items) => Some(format!("{name}={}", items.len())),
        Value::String(text) => Some(format!("{name}={text}")),
        other => Some(format!("{name}={other}")),
    };
    reports.iter().filter_map(figure).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_a_role_is_and_holds() {
        let status = Status {
            role: "registry".into(),
            name: "registry-1".into(),
            version: "0.1.0".into(),
            pid: 7,
            uptime_seconds: 61,
            up: 2,
            down: 1,
            insecure: true,
            reports: Map::from_iter([
                ("endpoints".to_owned(), json!(3)),
                ("listen".to_owned(), json!(["a", "b"])),
                ("nested".to_owned(), json!({"x": 1})),
            ]),
            ..Status::default()
        };
        let text = table(&[(Target::Unix("/x".into()), status)]);
        let words: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        let expected = [
            "registry",
            "registry-1",
            "0.1.0",
            "7",
            "1m1s",
            "yes",
            "2",
            "1",
            "endpoints=3",
            "listen=2",
            "INSECURE",
        ];
        assert_eq!(words, expected);
    }
}
