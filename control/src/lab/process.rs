//! Starting a lab's processes, and ending exactly those.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures::future::join_all;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, kill_process_group, pidfd_open, pidfd_send_signal, waitpid,
};
use vwire_dataplane::netns;

use super::state::{MARK, Mark, Place};
use super::{LabError, Layout};

/// How long a process has after SIGTERM: all of ours end within 5 s.
const PATIENCE: Duration = Duration::from_secs(6);
/// How often it is looked whether processes are left.
const ROUNDS: usize = 5;
/// What of our environment a lab's processes see.
const INHERITED: [&str; 3] = ["PATH", "HOME", "RUST_BACKTRACE"];

/// A process to be started.
#[derive(Debug, Clone)]
pub struct Start {
    /// What it is called in the lab; its log has this name.
    pub name: String,
    /// Waves are started one after the other, and ended in the reverse order.
    pub wave: u8,
    /// The domain that it has its identity from.
    pub domain: Option<String>,
    /// What its SPIFFE ID ends with: its name, or that of the process that it stands in for.
    pub identity: String,
    /// What it has in place of /etc/hosts.
    pub hosts: Option<PathBuf>,
    /// The part of the lab in whose namespace it runs.
    pub part: String,
    /// What is run.
    pub program: PathBuf,
    /// With which words.
    pub args: Vec<String>,
    /// And variables.
    pub env: Vec<(String, String)>,
}

/// Starts a process inside its namespace, with its output in its log.
pub fn spawn(layout: &Layout, mark: &Mark, start: &Start) -> Result<Place, LabError> {
    let failed =
        |reason: &dyn std::fmt::Display| LabError::failed(format!("starting {}", start.name), reason);
    let log = layout.log(&start.name);
    let out = fs::File::options().create(true).append(true).open(&log).map_err(|error| failed(&error))?;
    let err = out.try_clone().map_err(|error| failed(&error))?;
    let mut command = match &start.hosts {
        None => Command::new(&start.program),
        Some(hosts) => with_hosts(hosts, &start.program),
    };
    command.args(&start.args).env_clear().stdin(Stdio::null()).stdout(out).stderr(err);
    command.envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command.envs(start.env.iter().map(|(name, value)| (name, value))).env(MARK, mark.as_str());
    // A group of its own: Ctrl-C while `lab up` runs is for `lab up`.
    command.process_group(0);
    let namespace = netns::open(&layout.namespace_file(&start.part)).map_err(|error| failed(&error))?;
    let spawned = netns::in_netns(Some(namespace.as_fd()), || command.spawn());
    let child = spawned
        .map_err(|error| failed(&error))?
        .map_err(|error| failed(&format!("{}: {error}", start.program.display())))?;
    let pid = i32::try_from(child.id()).map_err(|error| failed(&error))?;
    let started = started(pid).ok_or_else(|| failed(&format!("it ended at once; see {}", log.display())))?;
    Ok(Place { name: start.name.clone(), wave: start.wave, pid, started })
}

/// Runs a program, in the same process, with another /etc/hosts than everybody's.
fn with_hosts(hosts: &Path, program: &Path) -> Command {
    let mut command = Command::new("unshare");
    let script = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(hosts).arg(program);
    command
}

/// When a process was started, if it is there and has not ended.
fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold anything, also brackets and spaces.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    // state is the third field, the start time the twenty-second.
    let started = fields.nth(18)?.parse().ok()?;
    (state != "Z" && state != "X").then_some(started)
}

/// True while the process that was started there runs.
pub fn is_alive(place: &Place) -> bool {
    reap(place.pid);
    started(place.pid) == Some(place.started)
}

/// Ends what `lab up` in this very process has left of a child of its own.
fn reap(pid: i32) {
    // It is no child of ours if another process ran `lab up`: nothing to do then.
    let _ = waitpid(Pid::from_raw(pid), WaitOptions::NOHANG);
}

/// A process by descriptor: signals can't reach another one that got its id.
struct Held {
    pid: i32,
    fd: OwnedFd,
}

impl Held {
    /// Holds the process if `is_it` is true of it.
    fn new(pid: i32, is_it: impl Fn() -> bool) -> Option<Self> {
        let fd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        is_it().then_some(Self { pid, fd })
    }

    fn signal(&self, signal: Signal) {
        // It fails if the process has ended, which is what is wanted.
        let _ = pidfd_send_signal(&self.fd, signal);
    }

    /// Waits until it has ended; false if it has not within [`PATIENCE`].
    async fn ended(&self) -> bool {
        let Ok(fd) = self.fd.try_clone() else { return false };
        let time = Timespec::try_from(PATIENCE).ok();
        let wait = move || {
            let mut ended = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
            poll(&mut ended, time.as_ref()).is_ok_and(|count| count > 0)
        };
        let ended = tokio::task::spawn_blocking(wait).await.unwrap_or(false);
        reap(self.pid);
        ended
    }
}

/// Ends the processes of `places` that still run: by SIGTERM, and SIGKILL after a time. Returns the names of those that needed it.
pub async fn end(places: &[&Place]) -> Vec<String> {
    let hold = |place: &&Place| {
        let held = Held::new(place.pid, || is_alive(place))?;
        Some((place.name.clone(), held))
    };
    end_held(places.iter().filter_map(hold).collect()).await
}

/// Ends a process at once, as a crash would, and those that it has forked; returns when all are gone.
pub async fn kill(place: &Place) -> Result<(), LabError> {
    let held = Held::new(place.pid, || is_alive(place));
    let held = held.ok_or_else(|| LabError::failed(format!("killing {}", place.name), "it does not run"))?;
    // Each process of a lab leads a group. A name server's child would keep its port.
    let group = Pid::from_raw(place.pid);
    let _ = group.map(|group| kill_process_group(group, Signal::KILL));
    held.signal(Signal::KILL);
    held.ended().await;
    let deadline = Instant::now() + PATIENCE;
    while has_members(place.pid) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// True while a process of this group runs; one that has ended and that nobody has waited for does not.
fn has_members(group: i32) -> bool {
    let Ok(entries) = fs::read_dir("/proc") else { return false };
    let stats = entries.flatten().filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let mut groups = stats.filter_map(|stat| {
        // The name before may hold anything. After it: state, parent, group.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let runs = !["Z", "X"].contains(&fields.next()?);
        runs.then(|| fields.nth(1)?.parse::<i32>().ok())?
    });
    groups.any(|one| one == group)
}

/// Ends every process that carries `mark`: those that the lab's processes have started in turn.
pub async fn end_marked(mark: &Mark) -> Vec<String> {
    let mut killed = Vec::new();
    // Again, because one that ends may just have started another.
    for _ in 0..ROUNDS {
        let held = marked(mark);
        if held.is_empty() {
            break;
        }
        killed.extend(end_held(held).await);
    }
    killed
}

async fn end_held(held: Vec<(String, Held)>) -> Vec<String> {
    for (_, process) in &held {
        process.signal(Signal::TERM);
    }
    let end = |(name, process): (String, Held)| async move {
        if process.ended().await {
            return None;
        }
        process.signal(Signal::KILL);
        process.ended().await;
        Some(name)
    };
    join_all(held.into_iter().map(end)).await.into_iter().flatten().collect()
}

/// The processes that carry `mark` in their environment.
fn marked(mark: &Mark) -> Vec<(String, Held)> {
    let line = format!("{MARK}={}", mark.as_str());
    let carries = |pid: i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        started(pid).is_some() && environment.split(|byte| *byte == 0).any(|entry| entry == line.as_bytes())
    };
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let held = pids.filter(|pid| *pid != own && carries(*pid)).filter_map(|pid| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Some((format!("{} ({pid})", name.trim()), Held::new(pid, || carries(pid))?))
    });
    held.collect()
}

/// The last lines of a log.
pub fn tail(log: &Path, lines: usize) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Runs a program to its end inside a part's namespace, and returns what it said on both outputs.
pub async fn run(
    layout: &Layout,
    part: &str,
    program: &str,
    args: &[String],
) -> Result<(bool, String), LabError> {
    let what = format!("{program} {} in {}", args.join(" "), layout.namespace(part));
    let namespace =
        netns::open(&layout.namespace_file(part)).map_err(|error| LabError::failed(&what, error))?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    let run = move || netns::in_netns(Some(namespace.as_fd()), || command.output());
    let output = tokio::task::spawn_blocking(run).await.map_err(|error| LabError::failed(&what, error))?;
    let output = output.map_err(|error| LabError::failed(&what, error))?;
    let output = output.map_err(|error| LabError::failed(&what, error))?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(mark: Option<&str>) -> std::process::Child {
        let mut command = Command::new("sleep");
        command.arg("300");
        if let Some(mark) = mark {
            command.env(MARK, mark);
        }
        command.spawn().unwrap()
    }

    fn place(child: &std::process::Child) -> Place {
        let pid = i32::try_from(child.id()).unwrap();
        Place { name: "sleeper".into(), wave: 0, pid, started: started(pid).unwrap() }
    }

    #[tokio::test]
    async fn a_process_is_ended_and_another_with_its_id_is_not() {
        let mut child = sleeper(None);
        let ours = place(&child);
        let another = Place { started: ours.started + 1, ..ours.clone() };
        assert!(!is_alive(&another));
        assert_eq!(end(&[&another]).await, Vec::<String>::new());
        assert!(is_alive(&ours), "its start time is not the one written down, so it was left alone");
        assert_eq!(end(&[&ours]).await, Vec::<String>::new());
        assert!(!is_alive(&ours));
        let _ = child.wait();
    }

    #[tokio::test]
    async fn processes_are_found_by_the_mark_and_others_left_alone() {
        let mark: Mark = serde_json::from_str(&format!("\"m-{}\"", std::process::id())).unwrap();
        let longer = format!("{}0", mark.as_str());
        let (mut marked, mut other) = (sleeper(Some(mark.as_str())), sleeper(Some(&longer)));
        let (ours, theirs) = (place(&marked), place(&other));
        assert_eq!(end_marked(&mark).await, Vec::<String>::new());
        assert!(!is_alive(&ours) && is_alive(&theirs));
        end(&[&theirs]).await;
        let _ = (marked.wait(), other.wait());
    }

    #[tokio::test]
    async fn what_is_killed_takes_what_it_has_forked_with_it() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 300 & wait"]).process_group(0);
        let mut leader = command.spawn().unwrap();
        let ours = place(&leader);
        // The shell and what it started.
        let members = || {
            let stats = fs::read_dir("/proc").unwrap().flatten();
            let stats = stats.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
            stats.filter(|stat| stat.split_whitespace().nth(4) == Some(&ours.pid.to_string())).count()
        };
        while members() < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        kill(&ours).await.unwrap();
        assert!(!has_members(ours.pid));
        let _ = leader.wait();
    }

    #[test]
    fn the_last_lines_of_a_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("x.log");
        fs::write(&log, "a\nb\nc\n").unwrap();
        assert_eq!(tail(&log, 2), "b\nc");
        assert_eq!(tail(&log, 9), "a\nb\nc");
        assert_eq!(tail(&dir.path().join("none"), 9), "");
    }
}
