//! Network namespaces of a test's own, and looks into them.
#![allow(dead_code, reason = "each test file uses a part")]

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vwire_control::dataplane::netns::Namespace;
use vwire_control::transport::{Inode, SharedFd};
use vwire_dataplane::fdpass::identify;

/// A network namespace that is gone with this.
pub struct Netns(pub String);

impl Netns {
    pub fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("vw-{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name]);
        let netns = Self(name);
        netns.ip("link set lo up");
        netns
    }

    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    pub fn sent(&self) -> (Inode, SharedFd) {
        let fd: OwnedFd = File::open(self.path()).unwrap().into();
        (identify(&fd).unwrap(), Arc::new(fd))
    }

    pub fn namespace(&self) -> Namespace {
        let (inode, fd) = self.sent();
        Namespace::new(inode, &fd).unwrap()
    }

    /// `ip -n NAME …`
    pub fn ip(&self, args: &str) -> String {
        let mut all = vec!["-n", &self.0];
        all.extend(args.split_whitespace());
        ip(&all)
    }

    /// Everything that `ip` can tell about the namespace, without what changes by itself.
    pub fn state(&self) -> String {
        let mut state = String::new();
        let looks = [
            "-o link",
            "-o address",
            "route show table all",
            "-6 route show table all",
            "rule",
            "-6 rule",
            "neighbour",
        ];
        for look in looks {
            state += &format!("== {look}\n{}", self.ip(look));
        }
        state
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

pub fn ip(args: &[&str]) -> String {
    let output = Command::new("ip").args(args).output().unwrap();
    assert!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
