//! `vwire lab`: topologies on one machine.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::json;

use super::table::Table;
use super::{Output, VerbError, print, print_json};
use crate::lab::{self, Lab, LabError, Outcome, Programs, Progress, Record, Spec};

/// `vwire lab`
#[derive(Debug, Clone, clap::Args)]
pub struct LabArgs {
    /// Where labs keep their files.
    #[arg(long, global = true, value_name = "DIRECTORY", default_value = lab::RUN)]
    run: PathBuf,
    #[command(subcommand)]
    verb: LabVerb,
}

/// What to do with a lab.
#[derive(Debug, Clone, clap::Subcommand)]
enum LabVerb {
    /// Brings up what FILE says.
    Up {
        /// A topology; see config/lab/.
        file: PathBuf,
        /// What all roles log, in place of the file's log_level.
        #[arg(long, value_name = "LEVEL")]
        log_level: Option<String>,
        /// Leaves what was made if something fails, to look at it; `lab down` takes it away.
        #[arg(long)]
        keep: bool,
    },
    /// Runs the checks of a lab that is up. Fails if one of them does.
    Check {
        /// Its file, or its name.
        lab: String,
        /// table or json.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Takes a lab down, also one that is half up. Nothing is left.
    Down {
        /// Its file, or its name.
        lab: String,
    },
    /// Shows which labs there are, and whether their processes run.
    Status {
        /// table or json.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Ends a process of a lab at once, as a crash would.
    Kill {
        /// The lab's file, or its name.
        lab: String,
        /// Of the processes that `lab status` lists.
        processes: Vec<String>,
    },
    /// Starts processes of a lab again, after they have ended.
    Restart {
        /// The lab's file, or its name.
        lab: String,
        /// Of the processes that `lab status` lists.
        processes: Vec<String>,
    },
}

impl LabArgs {
    /// Does it.
    ///
    /// # Errors
    /// [`VerbError`].
    pub async fn run(&self) -> Result<(), VerbError> {
        match &self.verb {
            LabVerb::Up { file, log_level, keep } => self.up(file, log_level.as_deref(), *keep).await,
            LabVerb::Check { lab, output } => self.check(&self.find(lab)?, *output).await,
            LabVerb::Down { lab } => {
                let name = name(lab)?;
                let there = lab::down(&self.run, &name, &Steps::new()).await?;
                print(&if there {
                    format!("lab {name} is down\n")
                } else {
                    format!("there is no lab {name}\n")
                })
            }
            LabVerb::Status { output } => self.status(*output),
            LabVerb::Kill { lab, processes } => {
                let lab = self.find(lab)?;
                for process in processes {
                    lab.kill(process).await?;
                }
                Ok(())
            }
            LabVerb::Restart { lab, processes } => {
                let mut lab = self.find(lab)?;
                for process in processes {
                    lab.restart(process).await?;
                }
                Ok(())
            }
        }
    }

    async fn up(&self, file: &Path, log_level: Option<&str>, keep: bool) -> Result<(), VerbError> {
        let mut spec = Spec::load(file).map_err(LabError::from)?;
        if let Some(level) = log_level {
            spec.log_level = level.to_owned();
        }
        let programs = Programs::installed()?;
        let started = Instant::now();
        let steps = Steps::new();
        let name = spec.name.clone();
        let make = async {
            match keep {
                true => Lab::up_and_keep(&spec, &self.run, &programs, &steps).await,
                false => Lab::up(&spec, &self.run, &programs, &steps).await,
            }
        };
        let up = tokio::select! {
            up = make => up,
            _ = tokio::signal::ctrl_c() => {
                lab::down(&self.run, &name, &steps).await?;
                Err(LabError::failed(format!("lab {name}"), "interrupted; it is down again"))
            }
        };
        let lab = up?;
        print(&format!(
            "lab {name} is up after {:.1} s: {} processes, logs in {}\n",
            started.elapsed().as_secs_f64(),
            lab.processes().len(),
            lab.layout().directory().join("log").display()
        ))
    }

    fn find(&self, lab: &str) -> Result<Lab, VerbError> {
        let name = name(lab)?;
        let programs = Programs::installed()?;
        let found = Lab::find(&self.run, &name, &programs)?;
        found.ok_or_else(|| {
            let labs = Record::all(&self.run);
            let labs = if labs.is_empty() {
                "none is up".to_owned()
            } else {
                format!("there is {}", labs.join(", "))
            };
            VerbError::Which(format!("{name}: no such lab; {labs}"))
        })
    }

    async fn check(&self, lab: &Lab, output: Output) -> Result<(), VerbError> {
        let mut all: Vec<Outcome> = Vec::new();
        for wanted in &lab.spec().checks {
            let outcomes = match lab::check(lab, wanted).await {
                Ok(outcomes) => outcomes,
                Err(error) => {
                    let check = format!("{wanted:?}");
                    vec![Outcome { check, failed: Some(error.to_string()), seen: String::new() }]
                }
            };
            for outcome in outcomes {
                if output == Output::Table {
                    print(&line(&outcome))?;
                }
                all.push(outcome);
            }
        }
        let failed = all.iter().filter(|outcome| outcome.failed.is_some()).count();
        if output == Output::Json {
            print_json(&all)?;
        }
        if failed > 0 {
            return Err(VerbError::Which(format!("{failed} of {} checks failed", all.len())));
        }
        if output == Output::Table {
            print(&format!("all {} checks passed\n", all.len()))?;
        }
        Ok(())
    }

    fn status(&self, output: Output) -> Result<(), VerbError> {
        // Whether an engine is installed is of no interest here.
        let programs = Programs { vwire: PathBuf::new(), dataplane: PathBuf::new() };
        let mut table = Table::new(&["LAB", "STATE", "PROCESS", "PID", "RUNS"]);
        let mut values = Vec::new();
        for name in Record::all(&self.run) {
            let lab = Lab::find(&self.run, &name, &programs)?;
            let Some(lab) = lab else {
                table.row([name.clone(), "nothing made".into(), String::new(), String::new(), String::new()]);
                continue;
            };
            let state = if lab.is_complete() { "up" } else { "half up" };
            for (place, runs) in lab.processes() {
                let answer = if runs { "yes" } else { "no" };
                table.row([
                    name.clone(),
                    state.to_owned(),
                    place.name.clone(),
                    place.pid.to_string(),
                    answer.to_owned(),
                ]);
                values.push(json!({"lab": name, "state": state, "process": place.name, "pid": place.pid, "runs": runs}));
            }
        }
        match output {
            Output::Json => print_json(&values),
            Output::Table => print(&table.text()),
        }
    }
}

fn line(outcome: &Outcome) -> String {
    match &outcome.failed {
        None => format!("ok      {}  ({})\n", outcome.check, outcome.seen),
        Some(reason) => format!("FAILED  {}: {reason}\n", outcome.check),
    }
}

/// The name of the lab that a file describes, or that is meant.
fn name(lab: &str) -> Result<String, VerbError> {
    if Path::new(lab).extension().is_some() || lab.contains('/') {
        let spec = Spec::load(Path::new(lab)).map_err(LabError::from)?;
        return Ok(spec.name);
    }
    Ok(lab.to_owned())
}

/// One line a step: its name while it is done, then how long it took.
struct Steps {
    terminal: bool,
    step: Mutex<String>,
}

impl Steps {
    fn new() -> Self {
        Self { terminal: std::io::stdout().is_terminal(), step: Mutex::default() }
    }

    /// Progress that nobody can read is no reason to stop.
    fn say(text: &str) {
        let mut out = std::io::stdout();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

impl Progress for Steps {
    fn begin(&self, step: &str) {
        if self.terminal {
            Self::say(&format!("   {step} …\r"));
        }
        step.clone_into(&mut self.step.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    fn done(&self, took: Duration) {
        let step = self.step.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Self::say(&format!("ok {step:76} {:6.2} s\n", took.as_secs_f64()));
    }
}
