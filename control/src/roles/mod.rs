//! The roles: each a list of elements, and what keeps them running.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::identity::{Identity, TokenSource};
use crate::obs::Admin;
use crate::transport::Pool;

/// What each role of a process is given.
#[derive(Clone)]
pub struct Process {
    /// Who we are.
    pub identity: Identity,
    /// Our tokens.
    pub tokens: TokenSource,
    /// Our connections.
    pub pool: Arc<Pool>,
    /// Our place at the admin port: metrics to count, and who answers for our connections (`admin.report`).
    pub admin: Admin,
    /// Cancelled when the process shall end; a role then has 5 s.
    pub shutdown: CancellationToken,
}
