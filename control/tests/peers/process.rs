//! One process: what it tells, what it is told, and its end.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::Value;

use super::until;

/// A running program. Killed when dropped, by its id; the kernel kills it, too, should the test die without cleaning up.
pub struct Process {
    /// What the test calls it.
    pub name: String,
    child: Child,
    input: ChildStdin,
    events: Arc<Mutex<Vec<Value>>>,
    /// Reads what it tells, to the end.
    heard: JoinHandle<()>,
    log: PathBuf,
}

impl Process {
    /// Starts `program` inside a network namespace and a mount namespace of its own. There, /var/lib and each directory of
    /// `private` are its alone: its sockets can be reached by descriptor, or through /proc, but by nobody's path.
    pub fn start<V: AsRef<OsStr>>(
        name: &str,
        space: &str,
        directory: &Path,
        private: &[&Path],
        program: &Path,
        arguments: &[&str],
        settings: &[(String, V)],
    ) -> Self {
        let mut script = String::from("mount -t tmpfs none /var/lib");
        for each in private {
            std::fs::create_dir_all(each).unwrap();
            script += &format!(" && mount -t tmpfs none {}", each.display());
        }
        script += r#" && exec "$0" "$@""#;
        let log = directory.join(format!("{name}.log"));
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "SIGKILL", "ip", "netns", "exec", space, "sh", "-c", &script])
            .arg(program)
            .args(arguments)
            .current_dir(directory)
            .env("TMPDIR", directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::options().create(true).append(true).open(&log).unwrap());
        for (key, value) in settings {
            command.env(key, value);
        }
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        let events = Arc::new(Mutex::new(Vec::new()));
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut copy = File::options().create(true).append(true).open(&log).unwrap();
        let told = events.clone();
        let heard = std::thread::spawn(move || {
            let mut line = String::new();
            while matches!(out.read_line(&mut line), Ok(1..)) {
                let _ = copy.write_all(line.as_bytes());
                if let Ok(event) = serde_json::from_str(&line) {
                    told.lock().unwrap().push(event);
                }
                line.clear();
            }
        });
        let input = child.stdin.take().unwrap();
        Self { name: name.to_owned(), child, input, events, heard, log }
    }

    /// Its id; the namespaces are entered by exec, so it is the program's own.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A path as seen by this process, for others.
    pub fn path(&self, path: &Path) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{}", self.pid(), path.display()))
    }

    /// A mark in what it tells: events from here on are new.
    pub fn mark(&self) -> usize {
        self.events.lock().unwrap().len()
    }

    /// The events told since `mark` for which `wanted` holds.
    pub fn events(&self, mark: usize, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        self.events.lock().unwrap()[mark..].iter().filter(|event| wanted(event)).cloned().collect()
    }

    /// Waits for an event since `mark`. Fails at once if the process has ended.
    #[track_caller]
    pub fn event(&mut self, what: &str, mark: usize, wanted: impl Fn(&Value) -> bool) -> Value {
        let name = self.name.clone();
        until(&format!("{what}, from {name}"), || {
            // What it told last is read by another thread, until that sees the end.
            let ended = self.child.try_wait().unwrap().filter(|_| self.heard.is_finished());
            let found = self.events(mark, &wanted).into_iter().next();
            if found.is_none()
                && let Some(status) = ended
            {
                panic!("{name} ended with {status} before it told: {what}\n{}", self.tail());
            }
            found
        })
    }

    /// Waits for an event by its name.
    #[track_caller]
    pub fn told(&mut self, event: &str, mark: usize) -> Value {
        self.event(event, mark, |each| each["event"] == event)
    }

    /// Writes one line to its standard input.
    pub fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    /// Tells a command and waits for one of the events that answer it; says which came.
    #[track_caller]
    pub fn ask(&mut self, line: &str, answers: &[&str]) -> Value {
        let mark = self.mark();
        self.tell(line);
        self.event(&format!("an answer to {line:?}"), mark, |event| {
            answers.iter().any(|answer| event["event"] == *answer)
        })
    }

    /// Sends a signal (a name as `kill` knows it).
    pub fn signal(&self, signal: &str) {
        super::must(Command::new("kill").args(["-s", signal, &self.pid().to_string()]));
    }

    /// SIGKILL, and waits.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and waits for the end. Five seconds are what a role has; the test gives it more and asserts the way it ended.
    #[track_caller]
    pub fn stop(mut self) -> ExitStatus {
        self.signal("TERM");
        let name = self.name.clone();
        let status = until(&format!("the end of {name}"), || self.child.try_wait().unwrap());
        assert!(
            status.signal().is_none_or(|signal| signal == 15),
            "{name} ended with {status}\n{}",
            self.tail()
        );
        status
    }

    /// True while it has not ended.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The first and the last lines of what it wrote.
    pub fn tail(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        let short = |line: &&str| line.chars().take(600).collect::<String>();
        let mut shown: Vec<String> = lines[lines.len().saturating_sub(25)..].iter().map(short).collect();
        if lines.len() > 35 {
            let first = lines[..10].iter().map(short).chain(["…".to_owned()]);
            shown.splice(0..0, first);
        }
        format!(
            "---- {}: {} lines, the first and last of them:\n{}",
            self.name,
            lines.len(),
            shown.join("\n")
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.tail());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
