//! Frames for a port that another worker owns: copied once into that worker's ring, which lends them on from there. Placement
//! keeps both ends of a vWire on one worker whenever it can, so this is the exception.

use crate::burst::Frames;
use crate::doorbell::Doorbell;
use crate::port::PortIndex;
use crate::port::pipe::push_frame;
use crate::ring::{Consumer, Producer, ring};
use crate::tables::WorkerId;
use crate::worker::command::Commands;

/// A ring to another worker, and the doorbell to wake it with.
pub(crate) struct Outgoing {
    ring: Producer,
    bell: Doorbell,
}

/// Rings to all other workers, by their id; `None` for the worker itself.
pub(crate) struct OutgoingRings(Vec<Option<Outgoing>>);

/// One worker's rings, both ways.
pub struct Handoff {
    pub(crate) out: OutgoingRings,
    pub(crate) incoming: Vec<Consumer>,
}

impl Handoff {
    /// The rings of a worker that is alone.
    pub fn none() -> Self {
        Self { out: OutgoingRings(Vec::new()), incoming: Vec::new() }
    }

    /// A ring of `bytes` for each ordered pair of the workers that listen to `commands`.
    pub fn mesh(commands: &[Commands], bytes: usize) -> Vec<Self> {
        let mut all: Vec<Self> = commands.iter().map(|_| Self::none()).collect();
        for from in 0..commands.len() {
            for (to, receiver) in commands.iter().enumerate() {
                if from == to {
                    all[from].out.0.push(None);
                    continue;
                }
                let (producer, consumer) = ring(bytes);
                all[from].out.0.push(Some(Outgoing { ring: producer, bell: receiver.bell() }));
                all[to].incoming.push(consumer);
            }
        }
        all
    }
}

impl OutgoingRings {
    /// Hands `frames` to `worker`, to be sent by `egress`. Returns how many its ring took, from the first on.
    pub fn send(&mut self, worker: WorkerId, egress: PortIndex, frames: &Frames<'_, '_>) -> usize {
        let Some(Some(out)) = self.0.get_mut(usize::from(worker.0)) else { return 0 };
        let taken = frames
            .as_slice()
            .iter()
            .take_while(|frame| push_frame(&mut out.ring, egress, frames, frame))
            .count();
        out.ring.publish();
        out.bell.ring();
        taken
    }
}
