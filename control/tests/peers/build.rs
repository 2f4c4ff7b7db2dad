//! The programs: the Go peers are built once, vwire's are there.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// What to say where Go is missing or too old.
const INSTALL: &str = "the tests against Go peers need Go 1.25 or newer; install it with:\n  \
    curl -sSfL https://go.dev/dl/go1.26.0.linux-amd64.tar.gz | tar -C /usr/local -xz && export PATH=/usr/local/go/bin:$PATH";

/// The directory of the built programs (`target/debug` as a rule).
fn binaries() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_vwire")).parent().expect("a program lies in a directory")
}

/// `vwire`.
pub fn vwire() -> PathBuf {
    env!("CARGO_BIN_EXE_vwire").into()
}

/// The packet engine. Cargo builds it for the tests of its own crate; a run of this crate's tests alone builds it here.
pub fn dataplane() -> PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let path = binaries().join("vwire-dataplane");
        let _one = lock("vwire-dataplane");
        if !path.exists() {
            let mut cargo = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
            cargo.args(["build", "--locked", "-p", "vwire-dataplane", "--bin", "vwire-dataplane"]);
            if !cfg!(debug_assertions) {
                cargo.arg("--release");
            }
            super::must(cargo.current_dir(env!("CARGO_MANIFEST_DIR")));
        }
        path
    })
    .clone()
}

/// The Go peers, as one program.
pub fn gopeers() -> PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| built("gopeers", "tests/go")).clone()
}

/// A client of the registry calls before v1. A program of its own: both APIs have messages of the same names.
pub fn go02() -> PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| built("go02", "tests/go02")).clone()
}

/// Builds a Go program from its folder in this crate.
fn built(name: &str, folder: &str) -> PathBuf {
    let directory = binaries().parent().expect("target/debug has a parent").join("go-peers");
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join(name);
    let _one = lock(name);
    let built = go()
        .args(["build", "-buildvcs=false", "-o"])
        .arg(&path)
        .arg(".")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder))
        .output();
    match built {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            panic!("the Go peers can't be built:\n{why}\n{INSTALL}")
        }
        Err(error) => panic!("go: {error}; {INSTALL}"),
    }
    path
}

/// `go`, which installers put where no shell looks by itself.
fn go() -> Command {
    let usual = Path::new("/usr/local/go/bin/go");
    let found = Command::new("go").arg("version").output().is_ok();
    Command::new(if !found && usual.exists() { usual } else { Path::new("go") })
}

/// Test programs run at the same time; one of them builds.
fn lock(name: &str) -> File {
    let file = File::create(binaries().join(format!(".build-{name}.lock"))).unwrap();
    file.lock().unwrap();
    file
}
