//! The process: starts the engine, serves until it is told to stop, closes what it opened.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use vwire_proto::dataplane::v1 as pb;
use vwire_proto::dataplane::v1::dataplane_server::DataplaneServer;

use super::server::{Service, Shared};
use super::unix::{ApiSocket, SocketError};
use super::{Agent, ChangeError, SentFds, admin, interfaces, ports::Ports};
use crate::config::{Config, ConfigError, WorkerMode};
use crate::engine::{Engine, EngineError, EngineSpec};
use crate::model::{Notes, State};
use crate::stats::{Counters, SegmentError};
use crate::worker::Mode;

/// Slots beyond the ports': underlays, and slots that rest before they are used again.
const SPARE_SLOTS: u16 = 96;
/// Largest message that the API takes: a whole state of thousands of ports, with all their notes.
const MAX_MESSAGE: usize = Notes::MAX_BYTES + (8 << 20);
/// Calls at one time on one connection, streams included.
const MAX_STREAMS: u32 = 64;
/// How often a silent API connection is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long calls under way may take after the signal to stop.
const GRACE: Duration = Duration::from_secs(1);

/// Why the engine could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration, or a port that it asks for.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A setting of the configuration can't be had.
    #[error("{}: {key}: {reason}", file.display())]
    Setting {
        /// The configuration.
        file: PathBuf,
        /// The key.
        key: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// A running dataplane.
pub struct Dataplane {
    agent: Shared,
    stop: watch::Sender<bool>,
    servers: Vec<JoinHandle<()>>,
    admin: Option<SocketAddr>,
}

impl Dataplane {
    /// Starts the engine and serves. `file` is for errors.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    pub async fn start(file: &Path, config: &Config) -> Result<Self, StartError> {
        let setting = |key| move |reason: String| StartError::Setting { file: file.to_owned(), key, reason };
        // First of all: who finds these in use must not touch the other engine's counters and ports.
        let api = config.api.socket.as_ref().map(|socket| ApiSocket::bind(socket.as_path()));
        let api = api.transpose().map_err(|error: SocketError| setting("api.socket")(error.to_string()))?;
        let admin = match config.admin.listen {
            Some(address) => {
                let bound = TcpListener::bind(address).await;
                Some(bound.map_err(|error| setting("admin.listen")(format!("{address}: {error}")))?)
            }
            None => None,
        };
        if !crate::port::dpdk::configure(&config.dpdk) {
            tracing::warn!("[dpdk] is another than DPDK was started with in this process, and has no effect");
        }
        let counters = make_counters(&config.stats.path, config.workers.cores.len())
            .map_err(|error| setting("stats.path")(error.to_string()))?;
        let engine =
            start_engine(config, counters).map_err(|error| setting("workers.cores")(error.to_string()))?;
        let ports = Ports::new(engine).map_err(|error| setting("workers")(error.to_string()))?;
        let mut agent = Agent::new(ports);
        open_ports(&mut agent, file, config)?;
        Self::serve(agent, api, admin).map_err(|error| setting("api.socket")(error.to_string()))
    }

    fn serve(agent: Agent, api: Option<ApiSocket>, admin: Option<TcpListener>) -> io::Result<Self> {
        // SAFETY: an owned descriptor is open for as long as it lives, and always the same.
        let events = unsafe { AsyncFd::register(agent.event_fd().try_clone_to_owned()?)? };
        let agent = Shared::new(agent);
        let (stop, stopping) = watch::channel(false);
        let address = admin.as_ref().and_then(|admin| admin.local_addr().ok());
        let mut servers = vec![tokio::spawn(look_after(agent.clone(), events))];
        servers.extend(api.map(|api| tokio::spawn(serve_api(agent.clone(), api, stopping.clone()))));
        servers.extend(admin.map(|admin| tokio::spawn(serve_admin(agent.clone(), admin, stopping))));
        Ok(Self { agent, stop, servers, admin: address })
    }

    /// The agent, for tests that play a peer.
    pub fn agent(&self) -> &Shared {
        &self.agent
    }

    /// Where the admin port listens, which matters if the configuration left the number to the kernel.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Ends all calls, closes all ports, removes all sockets.
    pub async fn stop(self) {
        // Nobody left to hear it is as good as stopped.
        let _ = self.stop.send(true);
        let mut servers = self.servers.into_iter();
        // The first looks after links and never ends by itself.
        if let Some(links) = servers.next() {
            links.abort();
        }
        for mut server in servers {
            if tokio::time::timeout(GRACE, &mut server).await.is_err() {
                // A stream that its reader keeps open, a capture say.
                server.abort();
                let _ = server.await;
            }
        }
        self.agent.lock().shut_down();
    }
}

/// Starts, runs until SIGTERM or SIGINT, stops.
///
/// # Errors
/// [`StartError`].
pub async fn run(file: &Path, config: &Config) -> Result<(), StartError> {
    let setting = |reason: io::Error| StartError::Setting {
        file: file.to_owned(),
        key: "(signals)",
        reason: reason.to_string(),
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(setting)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(setting)?;
    let dataplane = Dataplane::start(file, config).await?;
    tracing::info!(ports = config.state.ports().len(), "ready");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    dataplane.stop().await;
    Ok(())
}

/// Takes as many descriptors as this process may have. A memif link needs about a dozen.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!("raising the limit of file descriptors: {error}");
    }
}

fn make_counters(path: &Path, workers: usize) -> Result<Counters, SegmentError> {
    if let Some(parent) = path.parent().filter(|parent| !parent.exists()) {
        std::fs::create_dir_all(parent)
            .map_err(|error| SegmentError::Io { path: parent.to_owned(), error })?;
    }
    Counters::create(path, State::MAX_PORTS as u16 + SPARE_SLOTS, workers as u16)
}

fn start_engine(config: &Config, counters: Counters) -> Result<Engine, EngineError> {
    let mode = match config.workers.mode {
        WorkerMode::Poll => Mode::Poll,
        WorkerMode::Adaptive => Mode::Adaptive,
    };
    let cores = config.workers.cores.iter().copied().map(Some).collect();
    Engine::start(&EngineSpec { cores, mode, ..EngineSpec::default() }, counters)
}

fn open_ports(agent: &mut Agent, file: &Path, config: &Config) -> Result<(), StartError> {
    let changed = agent.change(config.state.clone(), &SentFds::new(), interfaces::nothing());
    changed.map(drop).map_err(|error| match error {
        ChangeError::Open { port, error } => {
            config.blame(file, &port, format!("port {port}: {error}")).into()
        }
        other => StartError::Setting { file: file.to_owned(), key: "port", reason: other.to_string() },
    })
}

async fn look_after(agent: Shared, events: AsyncFd<OwnedFd>) {
    loop {
        match events.readable().await {
            Ok(mut ready) => {
                // One round does not do everything, and the runtime is told of changes only: until a round
                // finds nothing, the descriptor counts as ready.
                if agent.lock().process() {
                    ready.retain_ready();
                } else {
                    ready.clear_ready();
                }
                // Others wait for this thread too, and a flood of connections must not keep it.
                tokio::task::yield_now().await;
            }
            Err(error) => {
                // Only at the end of the runtime.
                return tracing::error!("watching links: {error}");
            }
        }
    }
}

async fn serve_api(agent: Shared, socket: ApiSocket, mut stopping: watch::Receiver<bool>) {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<DataplaneServer<Service>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1();
    let reflection = match reflection {
        Ok(service) => Some(service),
        Err(error) => {
            tracing::error!("reflection is off: {error}");
            None
        }
    };
    let service = DataplaneServer::new(Service::new(agent)).max_decoding_message_size(MAX_MESSAGE);
    let server = tonic::transport::Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .add_service(service)
        .add_service(health_service)
        .add_optional_service(reflection);
    let stop = async move {
        // An error means that the sender is gone, which is the end as well.
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    if let Err(error) = server.serve_with_incoming_shutdown(socket.incoming(), stop).await {
        tracing::error!("API: {error}");
    }
}

async fn serve_admin(agent: Shared, listener: TcpListener, mut stopping: watch::Receiver<bool>) {
    let stop = async move {
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    if let Err(error) = axum::serve(admin::AdminListener::new(listener), admin::router(agent))
        .with_graceful_shutdown(stop)
        .await
    {
        tracing::error!("admin port: {error}");
    }
}
