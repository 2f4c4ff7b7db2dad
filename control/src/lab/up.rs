//! `lab up`: namespaces, underlay, engines and issuers, registries, managers and forwarders, endpoints, clients; each wave is started
//! when the one before is ready.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::process::{self, Start};
use super::roles;
use super::state::Place;
use super::{LabError, Layout, Progress, Record, Spec, dns, down, guard, layout, net, step};
use crate::cli::AdminClient;
use crate::obs::{ConnectionView, Status};

/// How long a process has until it is ready.
const READY: Duration = Duration::from_secs(20);
/// How long a client has until its connections are up.
const CONNECTED: Duration = Duration::from_secs(40);
/// Between looks.
const LOOK: Duration = Duration::from_millis(20);
/// Lines of a log that an error quotes.
const TAIL: usize = 6;

/// The programs of a lab.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `vwire`.
    pub vwire: PathBuf,
    /// `vwire-dataplane`.
    pub dataplane: PathBuf,
}

impl Programs {
    /// This program, and the engine beside it.
    ///
    /// # Errors
    /// [`LabError::Failed`] if there is none.
    pub fn installed() -> Result<Self, LabError> {
        let vwire = std::env::current_exe().map_err(|error| LabError::failed("finding vwire", error))?;
        Self::beside(&vwire)
    }

    /// `vwire` and the engine beside it, or in PATH.
    ///
    /// # Errors
    /// [`LabError::Failed`] if there is no engine.
    pub fn beside(vwire: &Path) -> Result<Self, LabError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut places = vwire.parent().map(Path::to_owned).into_iter().chain(std::env::split_paths(&path));
        let found =
            places.find_map(|place| Some(place.join("vwire-dataplane")).filter(|file| file.is_file()));
        let dataplane = found.ok_or_else(|| {
            LabError::failed(
                "finding vwire-dataplane",
                format!("not beside {} and not in PATH", vwire.display()),
            )
        })?;
        Ok(Self { vwire: vwire.to_owned(), dataplane })
    }
}

/// A lab that is up.
#[derive(Debug)]
pub struct Lab {
    layout: Layout,
    record: Record,
    programs: Programs,
    run: PathBuf,
}

impl Lab {
    /// Brings up what `spec` says, in `run`. What was made is taken down again if something fails.
    ///
    /// # Errors
    /// [`LabError::Failed`], with the step, and the end of the log that says more.
    pub async fn up(
        spec: &Spec,
        run: &Path,
        programs: &Programs,
        progress: &dyn Progress,
    ) -> Result<Self, LabError> {
        // If the name is taken, what is there is another's.
        make_directory(&Layout::new(run, &spec.name))?;
        let error = match Self::make_all(spec, run, programs, progress).await {
            Ok(lab) => return Ok(lab),
            Err(error) => error,
        };
        Err(match down(run, &spec.name, &super::Silent).await {
            Ok(_) => error,
            Err(left) => LabError::failed(error.to_string(), format!("and then, taking it down: {left}")),
        })
    }

    /// As [`up`](Self::up), but what was made stays if something fails: to look at it.
    ///
    /// # Errors
    /// As [`up`](Self::up).
    pub async fn up_and_keep(
        spec: &Spec,
        run: &Path,
        programs: &Programs,
        progress: &dyn Progress,
    ) -> Result<Self, LabError> {
        make_directory(&Layout::new(run, &spec.name))?;
        Self::make_all(spec, run, programs, progress).await
    }

    async fn make_all(
        spec: &Spec,
        run: &Path,
        programs: &Programs,
        progress: &dyn Progress,
    ) -> Result<Self, LabError> {
        let layout = Layout::new(run, &spec.name);
        let record = Record::new(spec);
        let mut lab = Self { layout, record, programs: programs.clone(), run: run.to_owned() };
        lab.make(progress).await?;
        Ok(lab)
    }

    /// A lab that another process brought up; None if there is none.
    ///
    /// # Errors
    /// [`LabError::Failed`] if its record can't be read.
    pub fn find(run: &Path, name: &str, programs: &Programs) -> Result<Option<Self>, LabError> {
        let layout = Layout::new(run, name);
        let record = Record::read(&layout)?;
        let lab = |record| Self { layout, record, programs: programs.clone(), run: run.to_owned() };
        Ok(record.map(lab))
    }

    /// Its names and paths.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What it was made of.
    pub fn spec(&self) -> &Spec {
        &self.record.spec
    }

    /// Its processes, and whether each runs.
    pub fn processes(&self) -> Vec<(&Place, bool)> {
        self.record.processes.iter().map(|place| (place, process::is_alive(place))).collect()
    }

    /// False while it is being brought up, and if that was broken off.
    pub fn is_complete(&self) -> bool {
        self.record.complete
    }

    /// Takes it down.
    ///
    /// # Errors
    /// As [`down`].
    pub async fn down(self, progress: &dyn Progress) -> Result<(), LabError> {
        down(&self.run, &self.record.spec.name, progress).await.map(drop)
    }

    /// Ends a process at once, as a crash would (SIGKILL).
    ///
    /// # Errors
    /// [`LabError::Failed`] if the lab has no such process, or it does not run.
    pub async fn kill(&self, name: &str) -> Result<(), LabError> {
        process::kill(self.place(name)?).await
    }

    /// Starts a process of the lab again, after it ended, and waits until it is ready.
    ///
    /// # Errors
    /// [`LabError::Failed`] if the lab has no such process, it still runs, or does not become ready.
    pub async fn restart(&mut self, name: &str) -> Result<(), LabError> {
        self.start_again(name)?;
        self.ready(name).await
    }

    /// As [`restart`](Self::restart), and does not wait.
    ///
    /// # Errors
    /// [`LabError::Failed`] if the lab has no such process, or it still runs.
    pub fn start_again(&mut self, name: &str) -> Result<(), LabError> {
        if process::is_alive(self.place(name)?) {
            return Err(LabError::failed(format!("restarting {name}"), "it runs"));
        }
        let all = self.starts().into_iter().flat_map(|(_, starts)| starts);
        let start = all.into_iter().find(|start| start.name == name);
        let start = start.ok_or_else(|| LabError::failed(format!("restarting {name}"), "no such process"))?;
        self.record.processes.retain(|place| place.name != name);
        self.start(&start)
    }

    fn place(&self, name: &str) -> Result<&Place, LabError> {
        let place = self.record.processes.iter().find(|place| place.name == name);
        place.ok_or_else(|| {
            let names: Vec<&str> = self.record.processes.iter().map(|place| place.name.as_str()).collect();
            LabError::failed(name, format!("no such process; there are {}", names.join(", ")))
        })
    }

    async fn make(&mut self, progress: &dyn Progress) -> Result<(), LabError> {
        self.record.write(&self.layout)?;
        step(progress, "namespaces", async { self.make_namespaces() }).await?;
        step(progress, "underlay", async { net::make_underlay(&self.layout, &self.record.spec) }).await?;
        guard::put(&self.layout, &self.record.spec)?;
        guard::write_maps(&self.layout, &self.record.spec)?;
        roles::write_engine_configs(&self.layout, &self.record.spec)?;
        roles::write_services(&self.layout, &self.record.spec)?;
        dns::write(&self.layout, &self.record.spec)?;
        self.write_hosts()?;
        for (what, starts) in self.starts() {
            if starts.is_empty() {
                continue;
            }
            step(progress, &format!("{what}: {}", names(&starts)), async {
                for start in &starts {
                    self.start(start)?;
                }
                for start in &starts {
                    self.ready(&start.name).await?;
                }
                Ok(())
            })
            .await?;
        }
        let clients: Vec<_> = self.record.spec.clients().map(|(_, client)| client.clone()).collect();
        for client in &clients {
            let services = client.services.len();
            step(
                progress,
                &format!("{} connects", client.name),
                self.connected(&roles::client(&client.name), services),
            )
            .await?;
        }
        self.join_interfaces()?;
        self.record.complete = true;
        self.record.write(&self.layout)
    }

    fn write_hosts(&self) -> Result<(), LabError> {
        for domain in self.record.spec.domains.iter().filter(|domain| domain.replicas > 1) {
            let file = self.layout.hosts(domain);
            let written = fs::write(&file, layout::hosts(&self.record.spec, domain));
            written.map_err(|error| LabError::failed(file.display().to_string(), error))?;
        }
        Ok(())
    }

    /// Endpoints in the middle of chains: what joins their interfaces is the owner's matter, not vwire's.
    fn join_interfaces(&self) -> Result<(), LabError> {
        let endpoints = self.record.spec.endpoints();
        let mut middle = endpoints.filter(|(_, endpoint)| endpoint.passes_to.is_some());
        middle.try_for_each(|(_, endpoint)| net::join(&self.layout.namespace(&endpoint.name)))
    }

    fn starts(&self) -> Vec<(&'static str, Vec<Start>)> {
        roles::waves(&self.layout, &self.record.spec, &self.programs)
    }

    fn make_namespaces(&mut self) -> Result<(), LabError> {
        for part in net::parts(&self.layout, &self.record.spec) {
            let name = self.layout.namespace(&part);
            if self.layout.namespace_file(&part).exists() {
                return Err(LabError::failed(
                    format!("network namespace {name}"),
                    "is there already and not of this lab; remove it (ip netns del) or name the lab otherwise",
                ));
            }
            // First the record: what is in it and not there is easily removed.
            self.record.namespaces.push(name);
            self.record.write(&self.layout)?;
            net::add_namespace(&self.layout, &part)?;
        }
        Ok(())
    }

    fn start(&mut self, start: &Start) -> Result<(), LabError> {
        let place = process::spawn(&self.layout, &self.record.mark, start)?;
        self.record.processes.push(place);
        self.record.write(&self.layout)
    }

    /// Waits until a process says that it is ready.
    async fn ready(&self, name: &str) -> Result<(), LabError> {
        if roles::is_engine(name) {
            let socket = self.layout.directory().join(format!("{name}.sock"));
            return self
                .wait(name, READY, async || match tokio::net::UnixStream::connect(&socket).await {
                    Ok(_) => Ok(()),
                    Err(error) => Err(format!("{}: {error}", socket.display())),
                })
                .await;
        }
        if name == dns::PROCESS {
            let pid = self.place(name)?.pid;
            let is_ready = async || if dns::is_ready(pid) { Ok(()) } else { Err("no socket yet".to_owned()) };
            return self.wait(name, READY, is_ready).await;
        }
        let admin = AdminClient(self.layout.admin(name));
        self.wait(name, READY, async || match admin.get::<Status>("/status").await {
            Ok(status) if status.not_ready.is_empty() => Ok(()),
            Ok(status) => Err(status.not_ready.join("; ")),
            Err(error) => Err(error.to_string()),
        })
        .await
    }

    /// Waits until a client's process has as many connections as services, all of them up.
    ///
    /// # Errors
    /// [`LabError::Failed`] if it ends, or has not after a time.
    pub async fn connected(&self, name: &str, services: usize) -> Result<(), LabError> {
        let admin = AdminClient(self.layout.admin(name));
        self.wait(name, CONNECTED, async || {
            let all =
                admin.get::<Vec<ConnectionView>>("/connections").await.map_err(|error| error.to_string())?;
            let up = all.iter().filter(|view| view.state == "UP").count();
            if up == services { Ok(()) } else { Err(format!("{up} of {services} connections are up")) }
        })
        .await
    }

    async fn wait(
        &self,
        name: &str,
        time: Duration,
        is_so: impl AsyncFn() -> Result<(), String>,
    ) -> Result<(), LabError> {
        let deadline = Instant::now() + time;
        loop {
            // Looked at first, so that the answer of one that died meanwhile does not count.
            let alive = process::is_alive(self.place(name)?);
            let reason = match is_so().await {
                Ok(()) => return Ok(()),
                Err(reason) => reason,
            };
            let reason = match (alive, Instant::now() < deadline) {
                (true, true) => {
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
                (true, false) => format!("not ready within {time:?}: {reason}"),
                (false, _) => "it ended".to_owned(),
            };
            let log = self.layout.log(name);
            return Err(LabError::failed(
                name,
                format!("{reason}; its log says:\n{}", process::tail(&log, TAIL)),
            ));
        }
    }
}

fn names(starts: &[Start]) -> String {
    starts.iter().map(|start| start.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Makes the lab's directory, which is how two of one name are kept apart.
fn make_directory(layout: &Layout) -> Result<(), LabError> {
    let directory = layout.directory();
    let failed = |reason: &dyn std::fmt::Display| LabError::failed(directory.display().to_string(), reason);
    if directory.exists() {
        let hint = format!("a lab of this name is up, or half up; `vwire lab down {}` first", layout.lab());
        return Err(failed(&hint));
    }
    for sub in ["log", "admin", "spiffe", "tmp", "bundles"] {
        let made = fs::DirBuilder::new().mode(0o750).recursive(true).create(directory.join(sub));
        made.map_err(|error| failed(&error))?;
    }
    Ok(())
}
