//! A client: a Go one, or `vwire nsc`.

use serde_json::Value;

use super::Kind;
use super::mesh::{Mesh, Setting, set};
use super::netns::Netns;
use super::observer::{Event, endpoint_of, segments};
use super::process::Process;
use super::until;

/// A running client with one service.
pub struct Client {
    /// The process.
    pub process: Process,
    /// Its workload's namespace.
    pub space: Netns,
    /// Its name: its connection's id is `<name>-0`.
    pub name: String,
    /// Who plays it.
    pub kind: Kind,
    /// The nsmgr it talks to.
    pub nsmgr: String,
    told: bool,
}

impl Client {
    pub(super) fn start(
        mesh: &mut Mesh,
        kind: Kind,
        node: usize,
        name: &str,
        service: &str,
        space: Netns,
        settings: &[Setting],
    ) -> Self {
        let mut all = vec![
            set("NSM_NAME", name),
            set("NSM_CONNECT_TO", mesh.nsmgr_url(node)),
            set("NSM_NETWORK_SERVICES", service),
            set("NSM_LOCAL_DNS_SERVER_ENABLED", "false"),
        ];
        all.extend_from_slice(settings);
        let process = mesh.role(kind, "nsc", name, &space, &[], all);
        Self {
            process,
            space,
            name: name.to_owned(),
            kind,
            nsmgr: format!("nsmgr-{}", node + 1),
            told: false,
        }
    }

    /// Waits until its connection is up, as the nsmgr sees it; gives the connection.
    #[track_caller]
    pub fn connected(&mut self, mesh: &mut Mesh, mark: usize) -> Value {
        let event = mesh.observer.wait("a connection that is up", mark, &self.nsmgr, &self.name, is_up);
        // The client knows a moment after its nsmgr. Before that it can't be told to refresh, and if the nsmgr died meanwhile it
        // would have no connection.
        if !std::mem::replace(&mut self.told, true) {
            match self.kind {
                Kind::Go => drop(self.process.told("connected", 0)),
                Kind::Vwire => until("the client has its connection", || {
                    (mesh.admin(&self.name, "/status")?["up"] != 0).then_some(())
                }),
            }
        }
        event.connections[0].clone()
    }

    /// Waits until its connection to this endpoint is up.
    #[track_caller]
    pub fn connected_to(&mut self, mesh: &mut Mesh, mark: usize, endpoint: &str) -> Value {
        let there = |event: &Event| {
            is_up(event) && event.connections.iter().all(|each| endpoint_of(each) == endpoint)
        };
        let what = format!("a connection to {endpoint}");
        let event = mesh.observer.wait(&what, mark, &self.nsmgr, &self.name, there);
        event.connections[0].clone()
    }

    /// Makes it refresh its connection, and waits until the nsmgr has seen it. The Go client is told to; `vwire nsc` refreshes
    /// by itself, in time with its tokens (NSM_MAX_TOKEN_LIFETIME).
    #[track_caller]
    pub fn refresh(&mut self, mesh: &mut Mesh) -> Value {
        let mark = mesh.observer.mark();
        if self.kind == Kind::Go {
            let answer = self.process.ask("refresh 0", &["connected", "request-failed"]);
            assert_eq!(answer["event"], "connected", "{answer}");
        }
        let event = mesh.observer.wait("a refresh", mark, &self.nsmgr, &self.name, is_up);
        event.connections[0].clone()
    }

    /// Closes its connection and ends it.
    #[track_caller]
    pub fn close(mut self) -> Netns {
        if self.kind == Kind::Go {
            let answer = self.process.ask("close 0", &["closed", "close-failed"]);
            assert_eq!(answer["event"], "closed", "{answer}");
        }
        self.process.stop();
        self.space
    }
}

impl Client {
    /// Kills it (SIGKILL); its namespace stays.
    pub fn kill(self) -> Netns {
        self.process.kill();
        self.space
    }

    /// Ends it (SIGTERM); it closes its connection as well as it can.
    #[track_caller]
    pub fn end(self) -> Netns {
        self.process.stop();
        self.space
    }
}

/// The connection is up at the client's nsmgr, whose place in the path is the second; in a chain of endpoints it may have more.
fn is_up(event: &Event) -> bool {
    let up = |connection: &Value| {
        let here = connection["path"]["index"] == 1;
        here && connection.get("state").is_none() && segments(connection).len() > 2
    };
    event.kind == "UPDATE" && event.connections.iter().all(up)
}
