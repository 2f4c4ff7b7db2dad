//! `/etc/resolv.conf`: ours in place of what was there, which stays in it as comments (sdk,
//! `pkg/networkservice/connectioncontext/dnscontext`). A client that was killed leaves it so; the next one, Go's too, finds the
//! original in the comments. The file is written in place: in a pod it is a mount of its own, which can't be replaced.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// A file in which we are the name server, until this is dropped.
pub(super) struct Covered {
    path: PathBuf,
    server: IpAddr,
}

/// What a file said before us.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Original {
    pub servers: Vec<IpAddr>,
    pub search: Vec<String>,
}

impl Covered {
    /// Makes `server` the only name server of the file.
    pub fn put(path: &Path, server: IpAddr) -> io::Result<(Self, Original)> {
        let text = std::fs::read_to_string(path)?;
        let text = uncovered(&text, server).unwrap_or(text);
        let original = read(&text, server);
        std::fs::write(path, cover(&text, server))?;
        Ok((Self { path: path.to_owned(), server }, original))
    }
}

impl Drop for Covered {
    fn drop(&mut self) {
        let restored =
            std::fs::read_to_string(&self.path).and_then(|text| match uncovered(&text, self.server) {
                Some(original) => std::fs::write(&self.path, original),
                // Someone else has written it since; it is theirs.
                None => Ok(()),
            });
        if let Err(error) = restored {
            tracing::warn!(file = %self.path.display(), %error, "not restored; the original lines are in its comments");
        }
    }
}

/// A line's words, if it is a property: not a comment, not empty.
fn property(line: &str) -> Option<(&str, Vec<&str>)> {
    let mut words = line.split_whitespace();
    let name = words.next().filter(|name| !name.starts_with(['#', ';']))?;
    Some((name, words.collect()))
}

fn read(text: &str, ours: IpAddr) -> Original {
    let mut original = Original::default();
    for (name, values) in text.lines().filter_map(property) {
        match name {
            "nameserver" => {
                original.servers.extend(values.iter().filter_map(|value| value.parse::<IpAddr>().ok()))
            }
            // The last one counts.
            "search" | "domain" => original.search = values.iter().map(|value| (*value).to_owned()).collect(),
            _ => {}
        }
    }
    original.servers.retain(|server| *server != ours);
    original
}

/// The original as comments, then us; other properties stay, but for search domains, which are our business now.
fn cover(text: &str, server: IpAddr) -> String {
    let comments: String = text.lines().map(|line| format!("#{line}\n")).collect();
    let kept = |line: &&str| {
        property(line).is_some_and(|(name, _)| !["nameserver", "search", "domain"].contains(&name))
    };
    let others: String = text.lines().filter(kept).map(|line| format!("{line}\n")).collect();
    format!("{comments}\nnameserver {server}\n{others}")
}

/// The original, if the file is one that we, or a Go client, have covered.
fn uncovered(text: &str, server: IpAddr) -> Option<String> {
    let servers: Vec<Vec<&str>> = text
        .lines()
        .filter_map(property)
        .filter(|(name, _)| *name == "nameserver")
        .map(|(_, values)| values)
        .collect();
    let ours = servers == [[server.to_string().as_str()]];
    let original: String =
        text.lines().filter_map(|line| line.strip_prefix('#')).map(|line| format!("{line}\n")).collect();
    let had_any = original.lines().filter_map(property).any(|(name, _)| name == "nameserver");
    (ours && had_any).then_some(original)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "# by the kubelet\nsearch ns.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n";
    const US: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn a_file_is_covered_and_comes_back_also_after_a_kill() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("resolv.conf");
        std::fs::write(&file, POD).unwrap();
        let (covered, original) = Covered::put(&file, US).unwrap();
        assert_eq!(original.servers, ["10.96.0.10".parse::<IpAddr>().unwrap()]);
        assert_eq!(original.search, ["ns.svc.cluster.local", "svc.cluster.local"]);
        let text = std::fs::read_to_string(&file).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| property(line).is_some()).collect();
        assert_eq!(lines, ["nameserver 127.0.0.1", "options ndots:5"], "{text}");
        // As if it had been killed.
        std::mem::forget(covered);
        let (covered, again) = Covered::put(&file, US).unwrap();
        assert_eq!((again, std::fs::read_to_string(&file).unwrap()), (original, text));
        drop(covered);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), POD);
    }

    #[test]
    fn what_a_go_client_has_left_is_understood_and_what_others_wrote_is_left() {
        let by_go = "#nameserver 10.96.0.10\n#search a.test\n\nnameserver 127.0.0.1";
        assert_eq!(uncovered(by_go, US).unwrap(), "nameserver 10.96.0.10\nsearch a.test\n");
        for theirs in [POD, "#nameserver 1.1.1.1\nnameserver 9.9.9.9\n", "nameserver 127.0.0.1\n", ""] {
            assert_eq!(uncovered(theirs, US), None, "{theirs}");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("resolv.conf");
        std::fs::write(&file, POD).unwrap();
        let (covered, _) = Covered::put(&file, US).unwrap();
        std::fs::write(&file, "nameserver 9.9.9.9\n").unwrap();
        drop(covered);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "nameserver 9.9.9.9\n");
    }
}
