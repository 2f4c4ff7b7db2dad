//! A worker: one thread on one core that owns some ports and moves their frames.
//!
//! | file | its part |
//! |---|---|
//! | here | the loop |
//! | [`forward`](self) | from an ingress port's burst to the egress port, the hand-off ring, or a drop reason |
//! | [`route`](self) | the same through a routing domain: a way out for each packet |
//! | [`outbox`](self) | the sending halves and what is to be flushed |
//! | [`handoff`](self) | rings to and from the other workers |
//! | [`schedule`](self) | which receivers are polled this turn |
//! | [`sleep`](self) | adaptive mode: when to stop spinning, and how to wake |
//! | [`command`] | what the agent may ask of a worker |
//! | [`capture`] | copies of a port's frames for somebody who watches |

use std::collections::HashMap;
use std::time::Instant;

use crate::DropReason;
use crate::burst::{BURST, Burst};
use crate::port::{PortFault, PortIndex, PortParts, RxContext};
use crate::stats::Counters;
use crate::tables::{Tables, WorkerId, swap::Reader};

pub mod capture;
pub mod command;
mod forward;
pub mod handoff;
mod outbox;
mod route;
mod schedule;
mod sleep;

use capture::Taps;
use command::{Attachment, Command, Commands, Event, Events};
use forward::Forwarder;
use handoff::Handoff;
use outbox::Outbox;
use route::Router;
use schedule::Schedule;
use sleep::Sleeper;

/// Commands that a worker takes in one turn, so that a long list of them does not hold up frames.
const COMMANDS_PER_TURN: usize = 4;

/// What a worker does when there is nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Never sleeps: lowest latency, a whole core.
    Poll,
    /// Spins while there is work, then sleeps until a port has some, at most 10 ms.
    #[default]
    Adaptive,
}

/// One worker's whole state. Lives on its thread; tests may also turn it by hand.
pub struct Worker {
    id: WorkerId,
    mode: Mode,
    commands: Commands,
    events: Events,
    tables: Reader<Tables>,
    counters: Counters,
    schedule: Schedule,
    outbox: Outbox,
    handoff: Handoff,
    taps: Taps,
    router: Router,
    sleeper: Sleeper,
    faults: Vec<(PortIndex, PortFault)>,
    /// Which attachment of each port is the one that is here.
    attachments: HashMap<PortIndex, Attachment>,
    stopped: bool,
}

/// What a worker is made of.
pub struct WorkerSpec {
    /// Its place among the workers.
    pub id: WorkerId,
    /// What it does when idle.
    pub mode: Mode,
    /// Where commands come from.
    pub commands: Commands,
    /// Where faults are reported.
    pub events: Events,
    /// The forwarding tables.
    pub tables: Reader<Tables>,
    /// The counters of all ports.
    pub counters: Counters,
    /// Its rings to and from the others.
    pub handoff: Handoff,
}

impl Worker {
    /// Makes a worker without ports.
    ///
    /// # Errors
    /// The kernel's, if it has no descriptor left to sleep on.
    pub fn new(spec: WorkerSpec) -> std::io::Result<Self> {
        let sleeper = Sleeper::new(spec.commands.bell())?;
        let router = Router::new(spec.events.clone());
        Ok(Self {
            id: spec.id,
            mode: spec.mode,
            commands: spec.commands,
            events: spec.events,
            tables: spec.tables,
            counters: spec.counters,
            schedule: Schedule::default(),
            outbox: Outbox::default(),
            handoff: spec.handoff,
            taps: Taps::default(),
            router,
            sleeper,
            faults: Vec::new(),
            attachments: HashMap::new(),
            stopped: false,
        })
    }

    /// Turns until it is told to stop.
    pub fn run(&mut self) {
        while !self.stopped {
            let moved = self.poll();
            match self.mode {
                Mode::Poll if moved == 0 => std::hint::spin_loop(),
                Mode::Poll => {}
                Mode::Adaptive => self.rest_if_idle(moved),
            }
        }
    }

    /// One turn: commands, frames that other workers handed over, then each receiver that is due. Returns the frames moved.
    pub fn poll(&mut self) -> usize {
        self.take_commands();
        let tables = self.tables.load(); // quiescent point: nothing below outlives this turn
        let mut forwarder = Forwarder {
            me: self.id,
            tables,
            counters: &self.counters,
            outbox: &mut self.outbox,
            handoff: &mut self.handoff.out,
            taps: &mut self.taps,
            router: &mut self.router,
        };
        forwarder.route_waiting();
        forwarder.post_said();
        let mut moved = forwarder.drain_handoff(&mut self.handoff.incoming);
        let mut more = false;
        let context = RxContext { tables, counters: &self.counters };
        self.schedule.turn(|slot| {
            let mut burst = Burst::new(slot.port);
            if let Err(fault) = slot.rx.receive(&mut burst, &context) {
                self.faults.push((slot.port, fault));
            }
            let received = burst.len();
            forwarder.forward(&mut burst);
            let taken = burst.finish();
            slot.rx.release(taken);
            more |= received == BURST;
            moved += received;
            received
        });
        forwarder.flush(more);
        self.outbox.take_faults(&mut self.faults);
        if !self.faults.is_empty() {
            self.detach_faulted();
        }
        moved
    }

    /// How many packets wait here for their next hop's hardware address.
    pub const fn waiting(&self) -> usize {
        self.router.waiting.len()
    }

    fn take_commands(&mut self) {
        for _ in 0..COMMANDS_PER_TURN {
            match self.commands.take() {
                None => return,
                Some(Command::Attach { port, attachment, parts }) => {
                    self.attachments.insert(port, attachment);
                    self.attach(port, parts);
                }
                Some(Command::Detach { port, reply }) => {
                    // The agent may have given up waiting; the halves are then dropped here.
                    let _ = reply.send(self.detach(port));
                }
                Some(Command::Capture { port, tap }) => self.taps.set(port, tap),
                Some(Command::Send { port, frame }) => self.router.say(port, frame),
                Some(Command::Stop) => self.stopped = true,
            }
        }
    }

    fn attach(&mut self, port: PortIndex, parts: PortParts) {
        for rx in parts.rx {
            self.sleeper.watch(&*rx);
            self.schedule.add(port, rx);
        }
        self.outbox.add(port, parts.tx, parts.underlay);
    }

    fn detach(&mut self, port: PortIndex) -> PortParts {
        // Its captures end with it: the slot may be another's next.
        self.taps.set(port, None);
        self.attachments.remove(&port);
        let waited = self.router.waiting.forget(port);
        self.counters.port(port).dropped(DropReason::NoNeighbour, waited);
        // What it, or a tunnel of it, holds back to fill a system call goes out, and is counted, before it is gone.
        self.outbox.flush(false, self.tables.load(), &self.counters);
        let rx = self.schedule.remove(port);
        for rx in &rx {
            self.sleeper.forget(&**rx);
        }
        PortParts { rx, ..self.outbox.remove(port) }
    }

    fn detach_faulted(&mut self) {
        for (port, fault) in std::mem::take(&mut self.faults) {
            // A port may report from each of its queues; the first report carries the halves.
            let Some(&attachment) = self.attachments.get(&port) else { continue };
            let parts = self.detach(port);
            self.events.send(Event::Faulted { port, attachment, fault, parts });
        }
    }

    fn rest_if_idle(&mut self, moved: usize) {
        if !self.sleeper.should_sleep(moved, Instant::now) {
            self.sleeper.disarm_if_busy(&mut self.schedule);
            return;
        }
        self.sleeper.lie_down(&mut self.schedule);
        // Once more after asking for wake-ups, with every receiver: what came before the request made no wake-up.
        self.schedule.all_next_turn();
        if self.poll() == 0 && !self.stopped {
            self.sleeper.wait();
            self.schedule.all_next_turn();
        }
        self.sleeper.get_up();
    }
}
