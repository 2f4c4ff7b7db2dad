//! Network namespaces of a test's own.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::must;

/// A network namespace, deleted when dropped.
pub struct Netns {
    /// Its name under /run/netns.
    pub name: String,
}

impl Netns {
    /// A new one, with its loopback up.
    pub fn new(tag: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vw-{tag}-{}-{number}", std::process::id());
        must(Command::new("ip").args(["netns", "add", &name]));
        let space = Self { name };
        space.ip("link set lo up");
        space
    }

    /// Runs `ip ARGUMENTS` inside; it must succeed.
    #[track_caller]
    pub fn ip(&self, arguments: &str) -> String {
        must(Command::new("ip").args(["-n", &self.name]).args(arguments.split_whitespace()))
    }

    /// A command to be run inside.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(line.split_whitespace());
        command
    }

    /// True if an address answers a ping within a second.
    pub fn pings(&self, address: &str) -> bool {
        self.command(&format!("ping -n -c 1 -W 1 {address}"))
            .output()
            .is_ok_and(|output| output.status.success())
    }

    /// The names of its interfaces but the loopback.
    pub fn interfaces(&self) -> Vec<String> {
        let listed: serde_json::Value = serde_json::from_str(&self.ip("-j link show")).unwrap();
        let name = |link: &serde_json::Value| link["ifname"].as_str().unwrap_or_default().to_owned();
        listed.as_array().unwrap().iter().map(name).filter(|name| name != "lo").collect()
    }

    /// The addresses of one interface, with their prefix length, without link-local ones; none if it is not there.
    pub fn addresses(&self, interface: &str) -> Vec<String> {
        let output =
            Command::new("ip").args(["-n", &self.name, "-j", "addr", "show", interface]).output().unwrap();
        let Ok(listed) = serde_json::from_slice::<serde_json::Value>(&output.stdout) else {
            return Vec::new();
        };
        let infos =
            listed.pointer("/0/addr_info").and_then(|infos| infos.as_array().cloned()).unwrap_or_default();
        infos
            .iter()
            .filter(|info| info["scope"] == "global")
            .map(|info| format!("{}/{}", info["local"].as_str().unwrap_or_default(), info["prefixlen"]))
            .collect()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}
