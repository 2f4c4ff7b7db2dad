//! Switches of every role that holds connections: what others may do with them, and see of them.

use std::sync::Arc;

use crate::config;
use crate::elements::monitor::Strictness;
use crate::elements::{Begin, Binding, Hub};

/// The switches. Their defaults are stricter than the Go components are.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Guards {
    /// Who may go on with a connection that another began: `off` as in Go, `healing` or `exact`.
    #[arg(long, env = "VWIRE_BINDING", value_enum, default_value_t = Binding::Healing)]
    pub binding: Binding,

    /// Shows watchers only the connections that they are a hop of, without tokens. With false everyone sees all, as in Go.
    #[arg(long, env = "VWIRE_MONITOR_STRICT", value_name = "BOOL", default_value = "true", value_parser = config::boolean,
          action = clap::ArgAction::Set)]
    pub monitor_strict: bool,
}

impl Guards {
    /// Where connections are kept.
    pub fn begin(self) -> Begin {
        Begin::new(self.binding)
    }

    /// Where they are watched.
    pub fn hub(self) -> Arc<Hub> {
        Hub::new(if self.monitor_strict { Strictness::Strict } else { Strictness::Open })
    }
}
