//! The engine: all workers, their tables, and the few things an agent asks of them.
//!
//! Everything here runs on the agent's thread and may block for as long as a worker takes to come round (microseconds, or the
//! bound of its sleep).

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, bounded};

use crate::port::{PortIndex, PortParts};
use crate::stats::Counters;
use crate::tables::swap::Publisher;
use crate::tables::{Owners, Tables, WorkerId};
use crate::underlay::l2;
use crate::worker::capture::{CaptureReader, capture};
use crate::worker::command::{Attachment, Command, Commands, Event, Events};
use crate::worker::handoff::Handoff;
use crate::worker::{Mode, Worker, WorkerSpec};

mod error;

pub use error::EngineError;

/// How long the agent waits for a worker before it says so. A worker that is not stuck answers within its longest sleep.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many workers, where, and how they idle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineSpec {
    /// One worker per core named. `None` leaves a worker to the scheduler.
    pub cores: Vec<Option<usize>>,
    /// What idle workers do.
    pub mode: Mode,
    /// Bytes of the ring between each ordered pair of workers.
    pub handoff_bytes: usize,
}

impl Default for EngineSpec {
    /// One adaptive worker, wherever the scheduler puts it.
    fn default() -> Self {
        Self { cores: vec![None], mode: Mode::default(), handoff_bytes: 1 << 20 }
    }
}

/// How long it waits before it looks whether the worker is still alive.
const ANSWER: Duration = Duration::from_millis(50);

struct Handle {
    commands: Commands,
    thread: Option<JoinHandle<()>>,
}

/// The running engine. Dropping it stops the workers and closes their ports.
pub struct Engine {
    workers: Vec<Handle>,
    publisher: Publisher<Tables>,
    counters: Counters,
    owners: HashMap<PortIndex, (Owners, Attachment)>,
    /// Ports that carry tunnels.
    underlays: HashSet<PortIndex>,
    attachments: u64,
    /// Tables put in force so far.
    publications: u64,
    events: Events,
    reported: Receiver<Event>,
}

impl Engine {
    /// Starts the workers, with empty tables.
    ///
    /// # Errors
    /// [`EngineError`] if a core can't be had or the kernel refuses a thread; nothing keeps running then.
    pub fn start(spec: &EngineSpec, counters: Counters) -> Result<Self, EngineError> {
        check_cores(&spec.cores)?;
        let at_start = |error| EngineError::Start { worker: 0, error };
        let (events, reported) = Events::new().map_err(at_start)?;
        let publisher = Publisher::new(Tables::default());
        let mut engine = Self {
            workers: Vec::new(),
            publisher,
            counters,
            owners: HashMap::new(),
            underlays: HashSet::new(),
            attachments: 0,
            publications: 0,
            events,
            reported,
        };
        let commands =
            spec.cores.iter().map(|_| Commands::new()).collect::<Result<Vec<_>, _>>().map_err(at_start)?;
        let handoffs = Handoff::mesh(&commands, spec.handoff_bytes);
        for (number, (commands, handoff)) in commands.into_iter().zip(handoffs).enumerate() {
            let id = WorkerId(number as u16);
            let thread = engine
                .spawn(id, spec, commands.clone(), handoff)
                .map_err(|error| EngineError::Start { worker: id.0, error })?;
            engine.workers.push(Handle { commands, thread: Some(thread) });
        }
        Ok(engine)
    }

    fn spawn(
        &self,
        id: WorkerId,
        spec: &EngineSpec,
        commands: Commands,
        handoff: Handoff,
    ) -> std::io::Result<JoinHandle<()>> {
        let events = self.events.clone();
        let mut worker = Worker::new(WorkerSpec {
            id,
            mode: spec.mode,
            commands,
            events: events.clone(),
            tables: self.publisher.reader(),
            counters: self.counters.of(id),
            handoff,
        })?;
        let core = spec.cores.get(usize::from(id.0)).copied().flatten();
        std::thread::Builder::new().name(format!("worker-{}", id.0)).spawn(move || {
            if let Some(id) = core {
                core_affinity::set_for_current(core_affinity::CoreId { id });
            }
            // The worker is not looked at again after a panic, so what it left half done can't mislead anybody.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| worker.run())) {
                events.send(Event::Died { worker: id, message: panic_text(&*panic) });
            }
        })
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// The counters of all ports.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The workers that have `port`.
    pub fn owner(&self, port: PortIndex) -> Option<Owners> {
        self.owners.get(&port).map(|(owners, _)| *owners)
    }

    /// Says whether `port` carries tunnels, from its next attachment on: see [`l2`].
    pub fn set_underlay(&mut self, port: PortIndex, carries: bool) {
        match carries {
            true => drop(self.underlays.insert(port)),
            false => drop(self.underlays.remove(&port)),
        }
    }

    /// Whether `port` carries tunnels.
    pub fn is_underlay(&self, port: PortIndex) -> bool {
        self.underlays.contains(&port)
    }

    /// Gives a port to a worker. Frames flow once the tables name it, too.
    ///
    /// # Errors
    /// [`EngineError::Attached`], [`EngineError::NoSuchWorker`] or [`EngineError::Stuck`]; the parts are dropped then.
    pub fn attach(&mut self, port: PortIndex, worker: WorkerId, parts: PortParts) -> Result<(), EngineError> {
        self.share(port, vec![(worker, parts)])
    }

    /// Gives several workers a share each of a port: receiving queues of their own, and a sending half. Workers that have none hand
    /// their frames for the port to the first.
    ///
    /// # Errors
    /// As [`Engine::attach`]; no worker has anything of the port then.
    pub fn share(&mut self, port: PortIndex, shares: Vec<(WorkerId, PortParts)>) -> Result<(), EngineError> {
        if self.owners.contains_key(&port) {
            return Err(EngineError::Attached(port));
        }
        let Some((home, _)) = shares.first() else { return Ok(()) };
        let owners = Owners::shared(*home, shares.iter().map(|(worker, _)| *worker));
        self.attachments += 1;
        let attachment = Attachment(self.attachments);
        if owners.is_shared() {
            self.counters.port(port).share();
        }
        self.owners.insert(port, (owners, attachment));
        for (worker, parts) in shares {
            let parts = match self.underlays.contains(&port) {
                true => l2::wrap(port, parts, &self.events),
                false => parts,
            };
            if let Err(error) = self.give(worker, Command::Attach { port, attachment, parts }) {
                // Who has been given a share gives it back.
                let _ = self.detach(port);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes a port from its workers. What it was made of, a share from each, is to be dropped off the packet path.
    ///
    /// # Errors
    /// [`EngineError::NotAttached`] or [`EngineError::Stuck`].
    pub fn detach(&mut self, port: PortIndex) -> Result<Vec<PortParts>, EngineError> {
        let (owners, _) = self.owners.remove(&port).ok_or(EngineError::NotAttached(port))?;
        let asked: Vec<_> = owners.iter().map(|worker| self.ask_back(port, worker)).collect();
        // All are waited for, whatever one of them answers.
        let shares: Vec<_> =
            asked.into_iter().map(|asked| asked.and_then(|asked| self.await_share(asked))).collect();
        shares.into_iter().collect()
    }

    fn ask_back(
        &self,
        port: PortIndex,
        worker: WorkerId,
    ) -> Result<(WorkerId, Receiver<PortParts>), EngineError> {
        let (reply, answer) = bounded(1);
        self.give(worker, Command::Detach { port, reply })?;
        Ok((worker, answer))
    }

    fn await_share(
        &self,
        (worker, answer): (WorkerId, Receiver<PortParts>),
    ) -> Result<PortParts, EngineError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match answer.recv_timeout(ANSWER) {
                Ok(parts) => return Ok(parts),
                Err(_) if self.is_dead(worker) || Instant::now() > deadline => {
                    return Err(EngineError::Stuck(worker.0));
                }
                Err(_) => {}
            }
        }
    }

    /// True if the worker's thread has ended, so that no answer will come.
    fn is_dead(&self, worker: WorkerId) -> bool {
        let thread = self.workers.get(usize::from(worker.0)).and_then(|handle| handle.thread.as_ref());
        thread.is_none_or(JoinHandle::is_finished)
    }

    /// Forgets a port that a worker gave up by itself ([`Event::Faulted`]); those that share it give up their shares. False, and
    /// nothing is done, if that was an earlier attachment of the port than the present one.
    pub fn forget(&mut self, port: PortIndex, attachment: Attachment) -> bool {
        let Some((owners, _)) = self.owners.get(&port).filter(|(_, present)| *present == attachment) else {
            return false;
        };
        if owners.is_shared() {
            // The one that gave up has nothing any more. A worker that is stuck keeps its share, which is told when it is found dead.
            let _ = self.detach(port);
        }
        self.owners.remove(&port);
        true
    }

    /// Moves every worker to new tables, and returns when none uses the old ones any more.
    ///
    /// # Errors
    /// [`EngineError::Stuck`] if a worker does not come round; the tables are in force all the same.
    pub fn publish(&mut self, tables: Tables) -> Result<(), EngineError> {
        let generation = tables.generation;
        self.publications += 1;
        self.publisher.publish(Tables { publication: self.publications, ..tables });
        self.counters.header().generation.store(generation, Ordering::Relaxed);
        let deadline = Instant::now() + PATIENCE;
        while !self.publisher.reclaim() {
            self.workers.iter().for_each(|worker| worker.commands.bell().ring());
            if Instant::now() > deadline {
                return Err(EngineError::Stuck(self.stuck_worker()));
            }
            std::thread::sleep(Duration::from_micros(20));
        }
        Ok(())
    }

    fn stuck_worker(&self) -> u16 {
        let finished = |worker: &Handle| worker.thread.as_ref().is_none_or(JoinHandle::is_finished);
        self.workers.iter().position(finished).unwrap_or(0) as u16
    }

    /// Starts copying a port's frames, up to `snap_len` bytes of each, to a ring of `ring_bytes` for each worker that has the port.
    /// Ends when the reader is dropped.
    ///
    /// # Errors
    /// [`EngineError::NotAttached`] or [`EngineError::Stuck`].
    pub fn capture(
        &mut self,
        port: PortIndex,
        snap_len: usize,
        ring_bytes: usize,
    ) -> Result<CaptureReader, EngineError> {
        let owners = self.owner(port).ok_or(EngineError::NotAttached(port))?;
        let (taps, reader) = capture(owners.iter().count(), snap_len, ring_bytes);
        for (worker, tap) in owners.iter().zip(taps) {
            self.give(worker, Command::Capture { port, tap: Some(tap) })?;
        }
        Ok(reader)
    }

    /// A way to report to the agent for those who watch links.
    pub fn reporter(&self) -> Events {
        self.events.clone()
    }

    /// Has a worker that has `port` send a frame by it.
    ///
    /// # Errors
    /// [`EngineError::NotAttached`] or [`EngineError::Stuck`].
    pub fn say(&self, port: PortIndex, frame: Vec<u8>) -> Result<(), EngineError> {
        let owners = self.owner(port).ok_or(EngineError::NotAttached(port))?;
        self.give(owners.home(), Command::Send { port, frame })
    }

    /// Where the workers report; take with `try_recv` when [`Engine::event_fd`] is readable.
    pub fn events(&self) -> &Receiver<Event> {
        &self.reported
    }

    /// Readable after each event; [`Engine::clear_events`] resets it.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.events.bell().as_fd()
    }

    /// Resets [`Engine::event_fd`]; call it before taking events.
    pub fn clear_events(&self) {
        self.events.bell().clear();
    }

    fn give(&self, worker: WorkerId, command: Command) -> Result<(), EngineError> {
        let handle = self.workers.get(usize::from(worker.0)).ok_or(EngineError::NoSuchWorker(worker.0))?;
        let deadline = Instant::now() + PATIENCE;
        let mut waiting = command;
        while let Err(command) = handle.commands.give(waiting) {
            if self.is_dead(worker) || Instant::now() > deadline {
                return Err(EngineError::Stuck(worker.0));
            }
            waiting = command;
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for worker in &self.workers {
            let _ = worker.commands.give(Command::Stop);
        }
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

fn check_cores(cores: &[Option<usize>]) -> Result<(), EngineError> {
    if cores.is_empty() {
        return Err(EngineError::NoWorkers);
    }
    let allowed: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    match cores.iter().flatten().find(|core| !allowed.contains(core)) {
        Some(core) => Err(EngineError::NoSuchCore { core: *core, allowed }),
        None => Ok(()),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
