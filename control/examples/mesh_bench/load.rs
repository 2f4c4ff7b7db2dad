//! `load`: clients of a mesh, as light as they can be: each keeps its connection to the manager, and does no more than the wire needs.

use std::cell::RefCell;
use std::io::BufRead;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tonic::Request;
use vwire_control::api::connection::{Connection, Mechanism, Path, PathSegment};
use vwire_control::api::mechanism::{INODE_URL, KERNEL, LOCAL, MEMIF, NAME};
use vwire_control::api::networkservice::NetworkServiceRequest;
use vwire_control::api::networkservice::network_service_client::NetworkServiceClient;
use vwire_control::client::Namespace;
use vwire_control::endpoint::responder::{Attachment, Responder};
use vwire_control::transport::{Hop, Pool, Target};

use crate::attach::attach;
use crate::figures::{Figures, Until, measure};
use crate::{Common, Member, text};

/// What one call may take.
const TIME: Duration = Duration::from_secs(15);
/// How long the mesh may take until it serves.
const START: Duration = Duration::from_secs(40);

/// The load's settings.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    #[command(flatten)]
    common: Common,
    /// Clients at the same time.
    #[arg(long, default_value_t = 1)]
    clients: usize,
    /// Most connections that are made.
    #[arg(long, default_value_t = 100_000)]
    count: usize,
    /// Most seconds that Requests are made for; each connection is then refreshed and closed once.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// The network service.
    #[arg(long, default_value = "icmp-responder")]
    service: String,
    /// Asks for memifs, not for interfaces, and connects to them: a Request has succeeded when its memif is up.
    #[arg(long)]
    memif: bool,
    /// Waits for a line on standard input before each phase, so that processes can be looked at between them.
    #[arg(long)]
    step: bool,
}

/// Loads, and tells of each phase.
pub async fn run(settings: Settings) -> Result<(), String> {
    let member = Member::new(&settings.common).await?;
    let namespace = Namespace::own().map_err(text)?;
    let target = &settings.common.connect_to;
    let responder = if settings.memif { Some(Responder::start(1).map_err(text)?) } else { None };
    let client = |_| Client {
        memifs: responder.clone(),
        ..Client::new(member.pool(), target, &settings.service, namespace.clone())
    };
    let clients: Rc<Vec<Client>> = Rc::new((0..settings.clients).map(client).collect());
    first(&clients[0]).await?;
    for client in clients.iter() {
        client.pool.hop(target).await.map_err(text)?;
    }
    let made: Rc<RefCell<Vec<Made>>> = Rc::default();
    step(&settings, "ready").await;
    let until = Until { count: settings.count, time: Duration::from_secs_f64(settings.seconds) };
    let (all, keep) = (Rc::clone(&clients), Rc::clone(&made));
    let request = move |client: usize, n| {
        let (all, keep) = (Rc::clone(&all), Rc::clone(&keep));
        async move {
            let connection = all[client].request(all[client].new_connection(n), n).await?;
            let memif = match &all[client].memifs {
                Some(responder) => Some(Rc::new(attach(responder, &connection).await?)),
                None => None,
            };
            keep.borrow_mut().push(Made { client, n, connection, _memif: memif });
            Ok(())
        }
    };
    measure("request", settings.clients, until, request).await.tell();
    again(&settings, "refresh", &clients, &made).await.tell();
    again(&settings, "close", &clients, &made).await.tell();
    step(&settings, "end").await;
    Ok(())
}

/// Refreshes or closes each connection that was made.
async fn again(
    settings: &Settings,
    what: &'static str,
    clients: &Rc<Vec<Client>>,
    made: &Rc<RefCell<Vec<Made>>>,
) -> Figures {
    step(settings, what).await;
    let count = made.borrow().len();
    let (clients, made) = (Rc::clone(clients), Rc::clone(made));
    let until = Until { count, time: Duration::MAX };
    measure(what, settings.clients, until, move |_, at| {
        let (clients, made) = (Rc::clone(&clients), Rc::clone(&made));
        async move {
            let Made { client, n, connection, .. } = made.borrow()[at].clone();
            if what == "close" {
                return clients[client].close(connection).await;
            }
            let connection = clients[client].request(connection, n).await?;
            made.borrow_mut()[at].connection = connection;
            Ok(())
        }
    })
    .await
}

/// Tells that a phase may begin, and waits for the word.
async fn step(settings: &Settings, next: &str) {
    if settings.step {
        println!("{{\"event\":\"before {next}\"}}");
        // The end of the input is a word, too. Connections stay alive meanwhile: their peers ask for signs of life.
        let word = || std::io::stdin().lock().read_line(&mut String::new());
        let _ = tokio::task::spawn_blocking(word).await;
    }
}

#[derive(Clone)]
struct Made {
    client: usize,
    n: usize,
    connection: Connection,
    _memif: Option<Rc<Attachment>>,
}

/// One Request that succeeds, and its Close: the mesh serves.
async fn first(client: &Client) -> Result<(), String> {
    let end = Instant::now() + START;
    loop {
        match client.request(client.new_connection(usize::MAX), 0).await {
            Ok(connection) => return client.close(connection).await,
            Err(error) if Instant::now() > end => return Err(format!("the mesh does not serve: {error}")),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A client of a mesh.
pub struct Client {
    pool: Arc<Pool>,
    target: Target,
    service: String,
    namespace: Namespace,
    /// Who serves its memifs, if it asks for such.
    memifs: Option<Arc<Responder>>,
}

impl Client {
    /// Of the manager at `target`, with its interfaces in `namespace`.
    pub fn new(pool: Arc<Pool>, target: &Target, service: &str, namespace: Namespace) -> Self {
        Self { pool, target: target.clone(), service: service.to_owned(), namespace, memifs: None }
    }

    /// A connection that is not there yet.
    pub fn new_connection(&self, n: usize) -> Connection {
        let id = if n == usize::MAX { "load-first".to_owned() } else { format!("load-{n}") };
        let segment = PathSegment { name: "load".into(), id: id.clone(), ..Default::default() };
        Connection {
            id,
            network_service: self.service.clone(),
            path: Some(Path { index: 0, path_segments: vec![segment] }),
            ..Default::default()
        }
    }

    /// Asks for a connection, or refreshes it.
    pub async fn request(&self, connection: Connection, n: usize) -> Result<Connection, String> {
        let parameters = [
            (INODE_URL.to_owned(), self.namespace.inode().to_string()),
            (NAME.to_owned(), format!("nsm-{n}")),
        ];
        let kind = if self.memifs.is_some() { MEMIF } else { KERNEL };
        let wanted = Mechanism { cls: LOCAL.into(), r#type: kind.into(), parameters: parameters.into() };
        let request =
            NetworkServiceRequest { connection: Some(connection), mechanism_preferences: vec![wanted] };
        let hop = self.hop().await?;
        let answer = NetworkServiceClient::new(hop).request(timed(request)).await;
        answer.map(tonic::Response::into_inner).map_err(text)
    }

    /// Ends a connection.
    pub async fn close(&self, connection: Connection) -> Result<(), String> {
        let hop = self.hop().await?;
        NetworkServiceClient::new(hop).close(timed(connection)).await.map(drop).map_err(text)
    }

    /// The manager, with our namespace's descriptor ahead of what is said next: mechanisms name it.
    async fn hop(&self) -> Result<Hop, String> {
        let hop = self.pool.hop(&self.target).await.map_err(text)?;
        if let Some(lane) = &hop.peer().fds {
            lane.sender.send(self.namespace.fd()).map_err(text)?;
        }
        Ok(hop)
    }
}

fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(TIME);
    request
}
