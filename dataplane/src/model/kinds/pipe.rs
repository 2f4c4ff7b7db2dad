//! What is said about a pipe's end.

use serde::Deserialize;

use crate::model::value::PortName;

/// One end of an in-process pipe.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipeSpec {
    /// Two ports that name the same pipe are its two ends.
    pub pipe: PortName,
}
