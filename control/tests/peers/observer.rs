//! What an outsider sees of a mesh: health, and each connection event of each server.

use serde_json::Value;

use super::process::Process;

/// The Go peer that looks.
pub struct Observer(Option<Process>);

/// A connection event, at the server that told it.
#[derive(Debug, Clone)]
pub struct Event {
    /// UPDATE, DELETE or INITIAL_STATE_TRANSFER.
    pub kind: String,
    /// The connections it is about.
    pub connections: Vec<Value>,
}

impl Observer {
    pub(super) fn none() -> Self {
        Self(None)
    }

    pub(super) fn new(process: Process) -> Self {
        Self(Some(process))
    }

    fn process(&mut self) -> &mut Process {
        self.0.as_mut().expect("the observer runs")
    }

    /// Waits until a server says that it serves.
    #[track_caller]
    pub fn wait_healthy(&mut self, name: &str, url: &str) {
        let process = self.process();
        let mark = process.mark();
        process.tell(&format!("health {name} {url}"));
        process.event(&format!("{name} is healthy"), mark, |each| {
            each["event"] == "serving" && each["at"] == name
        });
    }

    /// Begins to watch a server's connections; goes on when it comes back.
    pub fn monitor(&mut self, name: &str, url: &str) {
        self.process().tell(&format!("monitor {name} {url}"));
    }

    /// Waits until the watch of a server has begun.
    #[track_caller]
    pub fn wait_monitored(&mut self, name: &str) {
        self.process().event(&format!("{name} is watched"), 0, |each| of(each, name));
    }

    /// Waits until the registry has an endpoint of this name, or has none.
    #[track_caller]
    pub fn wait_endpoint(&mut self, registry: &str, name: &str, present: bool) {
        let process = self.process();
        let mark = process.mark();
        let verb = if present { "found" } else { "gone" };
        process.tell(&format!("{verb} {name} {registry}"));
        process.event(&format!("{name} is {verb}"), mark, |each| each["event"] == verb && each["at"] == name);
    }

    /// A mark: events from here on are new.
    pub fn mark(&mut self) -> usize {
        self.process().mark()
    }

    /// Events of a server since `mark`, but initial ones, that are about connections of the client `nsc`.
    pub fn events(&mut self, mark: usize, server: &str, nsc: &str) -> Vec<Event> {
        let told =
            self.process().events(mark, |each| of(each, server) && each["type"] != "INITIAL_STATE_TRANSFER");
        told.iter().map(|each| event(each, nsc)).filter(|event| !event.connections.is_empty()).collect()
    }

    /// How many Requests and Closes of a client a server has seen since `mark`.
    pub fn counts(&mut self, mark: usize, server: &str, nsc: &str) -> (usize, usize) {
        let events = self.events(mark, server, nsc);
        let count = |kind| events.iter().filter(|event| event.kind == kind).count();
        (count("UPDATE"), count("DELETE"))
    }

    /// Waits for an event at a server about a connection of a client.
    #[track_caller]
    pub fn wait(
        &mut self,
        what: &str,
        mark: usize,
        server: &str,
        nsc: &str,
        wanted: impl Fn(&Event) -> bool,
    ) -> Event {
        let found = self.process().event(&format!("{what} at {server}"), mark, |each| {
            let seen = event(each, nsc);
            of(each, server) && !seen.connections.is_empty() && wanted(&seen)
        });
        event(&found, nsc)
    }
}

fn of(event: &Value, server: &str) -> bool {
    event["event"] == "monitored" && event["at"] == server
}

fn event(told: &Value, nsc: &str) -> Event {
    let all = told.pointer("/message/connections").and_then(Value::as_object);
    let connections = all.map(|all| all.values().cloned().collect::<Vec<_>>()).unwrap_or_default();
    Event {
        kind: told["type"].as_str().unwrap_or_default().to_owned(),
        connections: connections
            .into_iter()
            .filter(|each| segments(each).first().is_some_and(|(name, _)| name == nsc))
            .collect(),
    }
}

/// A connection's path: names and ids.
pub fn segments(connection: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = connection.pointer("/path/pathSegments").and_then(Value::as_array).cloned().unwrap_or_default();
    all.iter().map(|segment| (text(&segment["name"]), text(&segment["id"]))).collect()
}

/// The name of the endpoint that a connection leads to.
pub fn endpoint_of(connection: &Value) -> String {
    connection["networkServiceEndpointName"].as_str().unwrap_or_default().to_owned()
}
