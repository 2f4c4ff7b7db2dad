//! Name servers and resolvers of workloads.

use std::path::{Path, PathBuf};

use super::mesh::{Mesh, Setting};
use super::netns::Netns;
use super::process::Process;
use super::until;

/// nsd (of the Debian package of that name), with one zone.
pub struct NameServer(pub Process);

impl NameServer {
    /// Serves `records` (names within the zone, IPv4 addresses) at port 53 of an address that the namespace has, or will have.
    pub fn start(
        mesh: &Mesh,
        space: &Netns,
        name: &str,
        address: &str,
        zone: &str,
        records: &[(&str, &str)],
    ) -> Self {
        let folder = mesh.directory().join(format!("nsd-{name}"));
        std::fs::create_dir(&folder).unwrap();
        let at = folder.display();
        let config = format!(
            "server:\n  username: \"\"\n  ip-address: {address}@53\n  ip-freebind: yes\n  zonesdir: \"{at}\"\n  zonelistfile: \"{at}/zone.list\"\n  \
             xfrdfile: \"{at}/xfrd.state\"\n  xfrdir: \"{at}\"\n  database: \"\"\n  pidfile: \"{at}/nsd.pid\"\n  \
             server-count: 1\nremote-control:\n  control-enable: no\nzone:\n  name: {zone}\n  zonefile: zone\n"
        );
        let records: String = records.iter().map(|(name, address)| format!("{name} A {address}\n")).collect();
        let text = format!(
            "$ORIGIN {zone}.\n$TTL 60\n@ SOA ns hostmaster 1 60 60 60 60\n@ NS ns\nns A {address}\n{records}"
        );
        let file = folder.join("nsd.conf");
        std::fs::write(&file, config).unwrap();
        std::fs::write(folder.join("zone"), text).unwrap();
        let arguments = ["-d", "-c", file.to_str().unwrap()];
        let none: [Setting; 0] = [];
        let process = Process::start(
            &format!("nsd-{name}"),
            &space.name,
            mesh.directory(),
            &[],
            Path::new("nsd"),
            &arguments,
            &none,
        );
        until(&format!("{address} serves"), || listens(space, address).then_some(()));
        Self(process)
    }
}

/// Whether something has the UDP port 53 of an address.
fn listens(space: &Netns, address: &str) -> bool {
    let listed = super::must(&mut space.command("ss -H -l -n -u"));
    listed.contains(&format!("{address}:53 "))
}

/// What `/etc/resolv.conf` is to everybody in a network namespace who came there by `ip netns exec`.
pub struct ResolvConf {
    space: String,
    folder: PathBuf,
}

impl ResolvConf {
    /// The file, for a namespace in which nothing runs yet.
    pub fn write(space: &Netns, text: &str) -> Self {
        let folder = Path::new("/etc/netns").join(&space.name);
        std::fs::create_dir_all(&folder).unwrap();
        let made = Self { space: space.name.clone(), folder };
        std::fs::write(made.file(), text).unwrap();
        made
    }

    fn file(&self) -> PathBuf {
        self.folder.join("resolv.conf")
    }

    /// What it says now.
    pub fn read(&self) -> String {
        std::fs::read_to_string(self.file()).unwrap()
    }

    /// The IPv4 addresses that the C library's resolver finds for a name.
    pub fn resolve(&self, name: &str) -> Vec<String> {
        let mut command = std::process::Command::new("ip");
        let output =
            command.args(["netns", "exec", &self.space, "getent", "ahostsv4", name]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let stream = text.lines().filter(|line| line.contains("STREAM"));
        stream.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    }
}

impl Drop for ResolvConf {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
        // Goes if nobody else has something there.
        let _ = std::fs::remove_dir("/etc/netns");
    }
}
