//! Opening the ends of pipes.

use super::super::Link;
use super::super::open_error::OpenError;
use super::{Backing, Ports, up};
use crate::model::{PipeSpec, PortSpec};
use crate::port::PortIndex;
use crate::port::pipe::pipe;
use crate::tables::WorkerId;

/// Bytes that a pipe port holds each way.
const PIPE_BYTES: usize = 1 << 18;

impl Ports {
    pub(super) fn open_pipe(
        &mut self,
        spec: &PipeSpec,
        index: PortIndex,
        worker: WorkerId,
    ) -> Result<(Backing, Link), OpenError> {
        let end = match self.loose_ends.remove(&spec.pipe) {
            Some(end) => end,
            None => {
                let (ours, other) = pipe(PIPE_BYTES).map_err(OpenError::system)?;
                self.loose_ends.insert(spec.pipe.clone(), other);
                ours
            }
        };
        self.engine.attach(index, worker, end.into_parts())?;
        Ok((Backing::Pipe, up(spec.pipe.as_str())))
    }

    /// A pipe's end that was left for a second port is useless without the first.
    pub(super) fn drop_loose_end(&mut self, spec: &PortSpec) {
        if let PortSpec::Pipe(spec) = spec {
            self.loose_ends.remove(&spec.pipe);
        }
    }
}
