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
            Output::Table => print(&format!("{}{}", table(&all), peers(&all))),
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

/// The links between the endpoints of virtual networks (vL3), if there are such endpoints.
fn peers(all: &[(Target, Status)]) -> String {
    let mut table =
        Table::new(&["ENDPOINT", "PEER", "STATE", "DIALLED BY", "PREFIXES", "HEALS", "LAST ERROR"]);
    let mut some = false;
    for (_, status) in all {
        let peers = status.reports.get("peers").and_then(Value::as_array);
        for peer in peers.into_iter().flatten() {
            some = true;
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let prefixes = peer["prefixes"].as_array().into_iter().flatten().map(text);
            let error = Some(text(&peer["error"])).filter(|error| !error.is_empty());
            table.row([
                status.name.clone(),
                text(&peer["name"]),
                text(&peer["state"]),
                text(&peer["dialled_by"]),
                prefixes.collect::<Vec<_>>().join(" "),
                peer["heals"].to_string(),
                error.unwrap_or_else(|| text(&peer["last_error"]["text"])),
            ]);
        }
    }
    if some { format!("\n{}", table.text()) } else { String::new() }
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

    #[test]
    fn links_of_virtual_networks_have_a_table_of_their_own() {
        let linked = json!({"name": "vl3-b", "state": "linked", "dialled_by": "us", "prefixes": ["10.0.1.0/24"],
            "heals": 2, "error": null, "last_error": null});
        let refused = json!({"name": "vl3-c", "state": "requesting", "dialled_by": "us", "prefixes": [],
            "heals": 0, "error": "peer vl3-c: it announces 10.0.0.0/24", "last_error": {"at": 1, "text": "no"}});
        let with = |peers| Status {
            name: "vl3-a".into(),
            reports: Map::from_iter([("peers".to_owned(), peers)]),
            ..Status::default()
        };
        let text = peers(&[(Target::Unix("/x".into()), with(json!([linked, refused])))]);
        let lines: Vec<Vec<&str>> =
            text.lines().skip(2).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["vl3-a", "vl3-b", "linked", "us", "10.0.1.0/24", "2", "-"]);
        assert!(text.contains("it announces 10.0.0.0/24"), "{text}");
        assert_eq!(peers(&[(Target::Unix("/x".into()), with(json!(3)))]), "");
    }
}
