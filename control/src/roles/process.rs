//! What each role of a process is given, and how a process starts and ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use vwire_dataplane::footprint;

use crate::config::{Common, Effective};
use crate::identity::policy::{BadPolicies, Policies};
use crate::identity::{Identity, TokenSource};
use crate::obs::{Admin, AdminSocket, LogLevel, Logs, default_socket, serve};
use crate::registry::authorize::TokenRules;
use crate::transport::{Dialling, Health, Pool, ServeError, Server};

/// A process that was asked to end has 5 s. This leaves the kernel a little of them.
const TIME_TO_END: Duration = Duration::from_millis(4_800);

/// When what only the start needed is given back to the kernel, and how often what was seldom used since.
const FIRST_GIVEN_BACK: Duration = Duration::from_secs(10);
const GIVEN_BACK_EVERY: Duration = Duration::from_secs(30);

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

/// Why a process did not start.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Nobody says who we are.
    #[error(
        "SPIFFE_ENDPOINT_SOCKET: \"\": no Workload API to say who we are; set it to SPIRE's socket or to that of `vwire ca`, or run \
         with --insecure where everybody on the machine and the network is trusted"
    )]
    NoIdentity,
    /// The Workload API can't be asked.
    #[error(transparent)]
    Workload(#[from] crate::identity::WorkloadError),
    /// The admin port can't be had where it was wanted.
    #[error("VWIRE_ADMIN: {0}")]
    Admin(#[from] crate::obs::AdminError),
    /// Signals can't be watched.
    #[error("watching signals: {0}")]
    Signals(std::io::Error),
    /// The process was told to end before it had started.
    #[error("told to end before it had started")]
    Ended,
}

impl Process {
    /// Starts what all roles need: logs, signals, the admin port, an identity and connections. Waits for the first SVID.
    ///
    /// # Errors
    /// [`ProcessError`].
    pub async fn start(
        common: &Common,
        role: &str,
        name: &str,
        settings: Effective,
    ) -> Result<Self, ProcessError> {
        let (admin, shutdown) = begin(common, role, name, settings).await?;
        admin.wait("its SVID");
        let identity = tokio::select! {
            identity = identity(common) => identity?,
            () = shutdown.cancelled() => return Err(ProcessError::Ended),
        };
        admin.identity(identity.clone());
        admin.ready("its SVID");
        let tokens = TokenSource::new(identity.clone(), common.max_token_lifetime);
        let dialling = Dialling {
            timeout: common.dial_timeout,
            trust_domains: common.server_trust_domains.0.clone(),
            metrics: Some(Arc::clone(admin.metrics())),
            ..Dialling::default()
        };
        let pool = Arc::new(Pool::new(identity.clone(), tokens.clone(), dialling));
        Ok(Self { identity, tokens, pool, admin, shutdown })
    }

    /// What the tokens of registrations must satisfy; nothing where there are none.
    ///
    /// # Errors
    /// [`BadPolicies`] if the settings name one that nobody knows, also where they are of no use: a slip shows at once.
    pub(super) fn token_rules(&self, common: &Common) -> Result<Option<Arc<dyn TokenRules>>, BadPolicies> {
        let policies =
            Policies::of_masks(&common.registry_server_policies, &common.registry_client_policies)?;
        let policies = policies.with_transit(&common.transit).counted_by(self.admin.metrics());
        Ok(self.identity.current().map(|_| Arc::new(policies) as _))
    }

    /// Serves until the process shall end; from then on health says that nothing is served any more.
    ///
    /// # Errors
    /// [`ServeError`].
    pub(super) async fn serve(
        &self,
        server: Server,
        (routes, health): (Routes, Health),
    ) -> Result<(), ServeError> {
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            shutdown.cancelled().await;
            health.set(false).await;
        });
        server.serve(self.identity.clone(), routes, self.shutdown.clone()).await
    }

    /// The same process for another of its roles, which has a place of its own at the admin port.
    #[must_use]
    pub fn for_role(&self, role: &str, name: &str) -> Self {
        Self { admin: self.admin.for_role(role, name), ..self.clone() }
    }
}

/// Starts what also a process without an identity needs: logs, signals and the admin port.
///
/// # Errors
/// [`ProcessError`].
pub async fn begin(
    common: &Common,
    role: &str,
    name: &str,
    settings: Effective,
) -> Result<(Admin, CancellationToken), ProcessError> {
    let logs = Logs::start(&common.log_level, common.log_format);
    let shutdown = CancellationToken::new();
    tokio::spawn(Signals::new().map_err(ProcessError::Signals)?.watch(logs, shutdown.clone()));
    tokio::spawn(keep_small());
    let admin = Admin::new(role, name);
    admin.settings(settings);
    start_admin(common, role, name, &admin, &shutdown).await?;
    Ok((admin, shutdown))
}

/// Serves the admin port. Without one the process is of use all the same, unless it was asked for.
async fn start_admin(
    common: &Common,
    role: &str,
    name: &str,
    admin: &Admin,
    shutdown: &CancellationToken,
) -> Result<(), ProcessError> {
    let wanted = common.admin.0.clone();
    let target = wanted.clone().unwrap_or_else(|| default_socket(role, name));
    match AdminSocket::bind(&target).await {
        Ok(socket) => {
            tracing::info!("admin port at {target}");
            tokio::spawn(serve(socket, admin.clone(), shutdown.clone()));
            Ok(())
        }
        Err(error) if wanted.is_some() => Err(error.into()),
        Err(error) => {
            tracing::warn!("no admin port: {error}; VWIRE_ADMIN says where else it can be");
            Ok(())
        }
    }
}

/// Many roles share a host, and the text of all roles is in the one program: what a role does not run is not counted as its own.
async fn keep_small() {
    let mut when = tokio::time::interval_at(Instant::now() + FIRST_GIVEN_BACK, GIVEN_BACK_EVERY);
    loop {
        when.tick().await;
        match footprint::give_back_text() {
            Ok(bytes) => {
                tracing::trace!("{bytes} bytes of text are mapped anew as they are used")
            }
            Err(error) => return tracing::debug!("text that is not used stays mapped: {error}"),
        }
    }
}

async fn identity(common: &Common) -> Result<Identity, ProcessError> {
    if common.insecure {
        // An error's level, so that no choice of level hides it.
        tracing::error!(
            "INSECURE: no TLS, no identities, no tokens; whoever reaches a socket of this process may make and end \
             connections of others"
        );
        return Ok(Identity::insecure());
    }
    let endpoint = common.spiffe_endpoint_socket.0.as_ref().ok_or(ProcessError::NoIdentity)?;
    Ok(Identity::from_workload_api(endpoint).await?)
}

/// The signals that mean something to a role.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    trace: Signal,
    back: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            trace: signal(SignalKind::user_defined1())?,
            back: signal(SignalKind::user_defined2())?,
        })
    }

    /// The first SIGTERM or SIGINT asks the roles to end, the second does not ask.
    async fn watch(mut self, logs: &'static Logs, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => end(&shutdown, 143),
                _ = self.interrupt.recv() => end(&shutdown, 130),
                _ = self.trace.recv() => {
                    // TRACE is a level.
                    let _ = logs.set(LogLevel::trace());
                }
                _ = self.back.recv() => logs.reset(),
            }
        }
    }
}

fn end(shutdown: &CancellationToken, status: i32) {
    if shutdown.is_cancelled() {
        std::process::exit(status);
    }
    tracing::info!("ending");
    shutdown.cancel();
    // A thread, not a task: it ends the process also if the runtime hangs.
    std::thread::spawn(|| {
        std::thread::sleep(TIME_TO_END);
        tracing::error!("not done after {TIME_TO_END:?}; ending all the same");
        std::process::exit(1);
    });
}
