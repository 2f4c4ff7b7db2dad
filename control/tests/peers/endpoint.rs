//! An endpoint: a Go one, or `vwire nse`.

use std::path::PathBuf;

use super::Kind;
use super::mesh::{Mesh, Setting, set};
use super::netns::Netns;
use super::process::Process;

/// A running endpoint.
pub struct Endpoint {
    /// The process.
    pub process: Process,
    /// Its workload's namespace.
    pub space: Netns,
    /// Its name.
    pub name: String,
    /// Who plays it.
    pub kind: Kind,
    socket: PathBuf,
}

impl Endpoint {
    pub(super) fn start(mesh: &mut Mesh, kind: Kind, node: usize, name: &str, settings: &[Setting]) -> Self {
        let space = mesh.workload_space(name);
        let own = mesh.directory().join(format!("p-{name}"));
        let socket = own.join("s");
        let mut all = vec![
            set("NSM_NAME", name),
            set("NSM_CONNECT_TO", mesh.nsmgr_url(node)),
            set("NSM_LISTEN_ON", format!("unix://{}", socket.display())),
            set("NSM_SERVICE_NAMES", "icmp-responder"),
            set("NSM_CIDR_PREFIX", "172.16.0.0/16"),
        ];
        let service = settings
            .iter()
            .find(|(key, _)| key == "NSM_SERVICE_NAMES")
            .map_or("icmp-responder", |(_, to)| to);
        all.push(set("NSM_REGISTER_SERVICE", mesh.owns_service(service).to_string()));
        all.extend_from_slice(settings);
        let process = mesh.role(kind, "nse", name, &space, &[&own], all);
        Self { process, space, name: name.to_owned(), kind, socket }
    }

    /// Where others reach it: its socket lies in its own mount namespace.
    pub fn url(&self) -> String {
        format!("unix://{}", self.process.path(&self.socket).display())
    }

    /// Kills it (SIGKILL); its namespace stays until this is dropped.
    pub fn kill(self) -> Netns {
        self.process.kill();
        self.space
    }
}
