//! Labs from the shipped files, as `vwire lab` brings them up. Needs root.

use std::path::{Path, PathBuf};

use vwire_control::lab::{Lab, Layout, Programs, Silent, Spec, check, down};

/// The programs under test: `vwire` of this build, and the engine that was built beside it.
fn programs() -> Programs {
    Programs::beside(Path::new(env!("CARGO_BIN_EXE_vwire"))).unwrap()
}

/// A shipped topology, under a name that no other run has.
fn shipped(file: &str, name: &str) -> Spec {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/lab").join(file);
    let mut spec = Spec::load(&path).unwrap();
    spec.name = format!("{name}-{}", std::process::id());
    spec
}

/// Where a test's labs are; a lab that a test leaves is taken down.
struct Run(PathBuf, Vec<String>);

impl Run {
    fn new(labs: &[&Spec]) -> Self {
        let path = std::env::temp_dir().join(format!("vw-lab-{}", std::process::id()));
        Self(path, labs.iter().map(|spec| spec.name.clone()).collect())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        for lab in &self.1 {
            let program = env!("CARGO_BIN_EXE_vwire");
            let down =
                std::process::Command::new(program).args(["lab", "down", lab, "--run"]).arg(&self.0).status();
            assert!(std::thread::panicking() || down.is_ok_and(|status| status.success()));
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// What a lab must not leave: files, namespaces, processes.
fn assert_nothing_left(layout: &Layout) {
    assert!(!layout.directory().exists(), "{}", layout.directory().display());
    let prefix = layout.namespace("");
    let left: Vec<_> = std::fs::read_dir("/run/netns")
        .map(|entries| {
            entries.flatten().map(|entry| entry.file_name().into_string().unwrap_or_default()).collect()
        })
        .unwrap_or_default();
    let left: Vec<String> = left.into_iter().filter(|name: &String| name.starts_with(&prefix)).collect();
    assert_eq!(left, Vec::<String>::new());
    let directory = layout.directory().display().to_string();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let said = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(!said.contains(&directory), "process {:?} is left", entry.file_name());
    }
}

#[tokio::test]
async fn half_an_up_leaves_nothing_and_down_may_be_said_twice() {
    let mut spec = shipped("one-node.yaml", "half");
    // An address that this machine does not have: the manager ends, and what is up already is taken down again.
    spec.domains[0].nodes[0].env.insert("NSM_LISTEN_ON".to_owned(), "tcp://203.0.113.1:1".to_owned());
    let run = Run::new(&[&spec]);
    let layout = Layout::new(&run.0, &spec.name);
    let error = Lab::up(&spec, &run.0, &programs(), &Silent).await.unwrap_err().to_string();
    assert!(error.contains("node-1"), "{error}");
    assert_nothing_left(&layout);
    assert!(!down(&run.0, &spec.name, &Silent).await.unwrap());
}

#[tokio::test]
async fn the_checks_of_every_shipped_topology_pass() {
    let files = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/lab")).unwrap();
    for file in files.map(|entry| entry.unwrap().file_name().into_string().unwrap()) {
        let file = file.as_str();
        let spec = shipped(file, "all");
        let run = Run::new(&[&spec]);
        let lab = Lab::up(&spec, &run.0, &programs(), &Silent)
            .await
            .unwrap_or_else(|error| panic!("{file}: {error}"));
        for wanted in &spec.checks {
            for outcome in check(&lab, wanted).await.unwrap() {
                assert_eq!(outcome.failed, None, "{file}: {}", outcome.check);
            }
        }
        let layout = lab.layout().clone();
        lab.down(&Silent).await.unwrap();
        assert_nothing_left(&layout);
    }
}
