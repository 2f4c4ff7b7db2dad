//! `run`: what is measured, in which order.

use std::path::PathBuf;

use crate::figures::Figures;
use crate::mesh::{Load, Mesh, Programs, Side};
use crate::plane::Plane;
use crate::table::{Better, Tables};
use crate::{heal, text};

const ROLES: [&str; 4] = ["nsmgr", "forwarder", "nse", "registry"];
const MANAGER: &str = "nsmgr.io";

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Group {
    Setup,
    Memory,
    Registry,
    Heal,
    /// As Heal, with a client in one domain and its endpoint in another.
    Domains,
}

/// The run's settings.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    /// What is measured; all unless named.
    #[arg(value_enum)]
    groups: Vec<Group>,
    /// Whose roles; both unless one is named.
    #[arg(long, value_enum)]
    side: Option<Side>,
    /// The Go peers' program.
    #[arg(long, default_value = "target/go-peers/gopeers")]
    peers: PathBuf,
    /// `vwire`; `vwire-dataplane` is beside it.
    #[arg(long, default_value = "target/release/vwire")]
    vwire: PathBuf,
    /// How many clients at the same time.
    #[arg(long, value_delimiter = ',', default_value = "1,10,16,64,100")]
    clients: Vec<usize>,
    /// Seconds for which Requests are made, with each number of clients.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// What connections are made of, one after the other. Of Go's there are the first two.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "none,kernel,kernel-memif,memif,memif-direct"
    )]
    data_plane: Vec<Plane>,
    /// Connections at which memory is read.
    #[arg(long, value_delimiter = ',', default_value = "100,1000")]
    held: Vec<usize>,
    /// Seconds of rest before memory is read. Ours give back every thirty what they no longer use, as Go's
    /// garbage collector does.
    #[arg(long, default_value_t = 45.0)]
    rest: f64,
    /// Endpoints in a registry.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000")]
    endpoints: Vec<usize>,
    /// How often each component is killed.
    #[arg(long, default_value_t = 20)]
    kills: usize,
}

/// Measures, and prints the tables.
pub async fn run(settings: Settings) -> Result<(), String> {
    let absolute = |path: &PathBuf| std::fs::canonicalize(path).map_err(|error| format!("{path:?}: {error}"));
    let own = std::env::current_exe().map_err(text)?;
    let programs = Programs { peers: absolute(&settings.peers)?, vwire: absolute(&settings.vwire)?, own };
    let all = [Group::Setup, Group::Memory, Group::Registry, Group::Heal, Group::Domains];
    let groups = if settings.groups.is_empty() { &all[..] } else { &settings.groups };
    let (mut table, mut failed) = (Tables::default(), Vec::new());
    for group in groups {
        for side in [Side::Go, Side::Vwire] {
            if settings.side.is_some_and(|only| only != side) {
                continue;
            }
            eprintln!("== {group:?}: {side:?}");
            let mut run = Run { settings: &settings, programs: &programs, side, table: &mut table };
            let done = match group {
                Group::Setup => run.setup(),
                Group::Memory => run.memory(),
                Group::Registry => run.registry(),
                Group::Heal | Group::Domains if side == Side::Go => Ok(()),
                Group::Heal => heal::run(&programs, &heal::NODE, settings.kills, &mut table).await,
                Group::Domains => heal::run(&programs, &heal::DOMAINS, settings.kills, &mut table).await,
            };
            // The rest is measured all the same: a run takes long.
            if let Err(reason) = done {
                eprintln!("   {group:?} of {side:?} FAILED: {reason}");
                failed.push(format!("{group:?} of {side:?}: {reason}"));
            }
        }
    }
    table.print();
    if failed.is_empty() { Ok(()) } else { Err(format!("not measured: {}", failed.join("; "))) }
}

struct Run<'a> {
    settings: &'a Settings,
    programs: &'a Programs,
    side: Side,
    table: &'a mut Tables,
}

impl Run<'_> {
    fn note(&mut self, name: String, better: Better, value: f64) {
        eprintln!("   {name}: {value:.2}");
        self.table.note(name, better, self.side, value);
    }

    fn setup(&mut self) -> Result<(), String> {
        let mut failed = Vec::new();
        let planes = self.settings.data_plane.iter().filter(|plane| plane.is_measured_of(self.side));
        for plane in planes.copied().collect::<Vec<_>>() {
            self.table.about(&format!("Connection setup: {}", plane.name()));
            for clients in self.settings.clients.clone() {
                let what = format!("{clients} clients");
                if let Err(reason) = self.setup_of(clients, plane, &what) {
                    eprintln!("   {what} FAILED: {reason}");
                    failed.push(format!("{what}: {reason}"));
                }
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
    }

    fn setup_of(&mut self, clients: usize, plane: Plane, what: &str) -> Result<(), String> {
        let mesh = Mesh::up(self.side, self.programs, plane)?;
        let mut args = vec![
            "--step".to_owned(),
            format!("--clients={clients}"),
            format!("--count={}", plane.most()),
            format!("--seconds={}", self.settings.seconds),
        ];
        if plane.is_memif_at_client() {
            args.push("--memif".to_owned());
        }
        let mut load = mesh.load("load", &format!("unix://{}", mesh.place(MANAGER)), &args)?;
        let mut before = mesh.times();
        while let Some(figures) = load.next()? {
            if figures.event.starts_with("before ") {
                before = mesh.times();
                load.proceed();
                continue;
            }
            self.note_figures(&format!("{what}: {}", figures.event), &figures);
            if figures.event != "request" {
                continue;
            }
            let after = mesh.times();
            for role in ROLES {
                let took = after[role].saturating_sub(before[role]).as_secs_f64() * 1e6;
                let each = took / figures.count.max(1) as f64;
                self.note(format!("{what}: request, CPU of {role} µs"), Better::Less, each);
            }
        }
        Ok(())
    }

    fn note_figures(&mut self, what: &str, figures: &Figures) {
        if let Some(error) = &figures.first_error {
            eprintln!("   {what}: {} of {} failed: {error}", figures.failed, figures.count);
            self.note(format!("{what} FAILED"), Better::Less, figures.failed as f64);
        }
        self.note(format!("{what} per second"), Better::More, figures.per_second);
        self.note(format!("{what} p50 ms"), Better::Less, figures.p50_ms);
        self.note(format!("{what} p99 ms"), Better::Less, figures.p99_ms);
    }

    /// Without a data plane: with one, interfaces and not roles are what costs.
    fn memory(&mut self) -> Result<(), String> {
        self.table.about("Memory of the roles, without a data plane");
        let mesh = Mesh::up(self.side, self.programs, Plane::None)?;
        let target = format!("unix://{}", mesh.place(MANAGER));
        let mut loads: Vec<Load> = Vec::new();
        let first: Load = self.hold(&mesh, &target, 0)?;
        drop(first);
        self.note_memory(&mesh, 0);
        let mut held = 0;
        for count in self.settings.held.clone() {
            loads.push(self.hold(&mesh, &target, count)?);
            // Those of the load before are refreshed nowhere: they are still there.
            held = held.max(count);
            self.note_memory(&mesh, held);
        }
        Ok(())
    }

    /// A load that has made its connections, of a name of its own, and waits.
    fn hold(&mut self, mesh: &Mesh, target: &str, count: usize) -> Result<Load, String> {
        let args = [
            "--step".to_owned(),
            "--clients=16".to_owned(),
            format!("--count={count}"),
            "--seconds=600".to_owned(),
        ];
        let mut load = mesh.load("load", target, &args)?;
        while let Some(figures) = load.next()? {
            match figures.event.as_str() {
                "before ready" => load.proceed(),
                "request" => {
                    if let Some(error) = &figures.first_error {
                        return Err(format!("{} of {count} Requests failed: {error}", figures.failed));
                    }
                    break;
                }
                _ => {}
            }
        }
        Ok(load)
    }

    fn note_memory(&mut self, mesh: &Mesh, held: usize) {
        std::thread::sleep(std::time::Duration::from_secs_f64(self.settings.rest));
        for role in ROLES {
            self.note_memory_of(mesh, role, &format!("{held} connections: {role}"));
        }
    }

    fn note_memory_of(&mut self, mesh: &Mesh, role: &str, what: &str) {
        if let Some(memory) = mesh.memory(role) {
            self.note(format!("{what} MB resident"), Better::Less, memory.resident);
            self.note(format!("{what} MB, shared pages in part"), Better::Less, memory.share);
            self.note(format!("{what} MB without the program"), Better::Less, memory.own);
        }
    }

    fn registry(&mut self) -> Result<(), String> {
        self.table.about("Registry");
        for endpoints in self.settings.endpoints.clone() {
            let mut settings = vec![];
            let what = format!("{endpoints} endpoints");
            if self.side == Side::Go && endpoints > 2_500 {
                // With its policies it does not get that far: each registration copies all names.
                settings = vec![("NSM_REGISTRY_SERVER_POLICIES", String::new())];
            }
            settings.push(("NSM_EXPIRE_PERIOD", "10m".to_owned()));
            let mesh = Mesh::registry(self.side, self.programs, &settings)?;
            let args = [format!("--endpoints={endpoints}")];
            let mut load = mesh.load("registry-load", "tcp://127.0.0.1:5002", &args)?;
            while let Some(figures) = load.next()? {
                self.note_figures(&format!("{what}: {}", figures.event), &figures);
            }
            self.note_memory_of(&mesh, "registry", &what);
        }
        Ok(())
    }
}
