//! The IPAM service of NSM: one stream for each endpoint.

use std::sync::Arc;

use async_trait::async_trait;
use ipnet::IpNet;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use vwire_proto::nsm::ipam::ipam_server::{Ipam, IpamServer};
use vwire_proto::nsm::ipam::{PrefixRequest, PrefixResponse, Type};

use super::Store;
use super::store::owner_of;
use super::table::Asker;
use crate::transport::peer;

/// Answers that wait for a stream whose client does not read.
const ANSWERS: usize = 4;
/// Most prefixes that a request may exclude.
const MAX_EXCLUDED: usize = 1024;
/// Longest text of a prefix in an error.
const SHOWN: usize = 64;

/// Adds the service.
pub fn add_to(routes: Routes, store: &Arc<Store>, shutdown: &CancellationToken) -> Routes {
    let service = Service { store: Arc::clone(store), shutdown: shutdown.clone() };
    routes.add_service(IpamServer::new(service))
}

/// Its name, for health and reflection.
pub const NAME: &str = "ipam.IPAM";

struct Service {
    store: Arc<Store>,
    shutdown: CancellationToken,
}

#[async_trait]
impl Ipam for Service {
    type ManagePrefixesStream = ReceiverStream<Result<PrefixResponse, Status>>;

    async fn manage_prefixes(
        &self,
        request: Request<Streaming<PrefixRequest>>,
    ) -> Result<Response<Self::ManagePrefixesStream>, Status> {
        let owner = peer(&request)?.id.as_ref().map(owner_of);
        let (answers, answered) = mpsc::channel(ANSWERS);
        let asker = Asker { stream: self.store.stream(), owner };
        let client = Client { store: Arc::clone(&self.store), asker, shutdown: self.shutdown.clone() };
        tokio::spawn(client.run(request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(answered)))
    }
}

/// One stream. What it holds ends with it.
struct Client {
    store: Arc<Store>,
    asker: Asker,
    shutdown: CancellationToken,
}

impl Client {
    async fn run(
        self,
        mut requests: Streaming<PrefixRequest>,
        answers: mpsc::Sender<Result<PrefixResponse, Status>>,
    ) {
        if let Err(status) = self.serve(&mut requests, &answers).await {
            tracing::info!(owner = self.asker.owner.as_deref(), %status, "a stream of prefixes ends");
            // Who is gone does not want to know.
            let _ = answers.try_send(Err(status));
        }
    }

    /// Nothing here is dropped half-way but waiting: what is being written is also applied.
    async fn serve(
        &self,
        requests: &mut Streaming<PrefixRequest>,
        answers: &mpsc::Sender<Result<PrefixResponse, Status>>,
    ) -> Result<(), Status> {
        loop {
            let request = tokio::select! {
                request = requests.message() => request?,
                () = answers.closed() => None,
                () = self.shutdown.cancelled() => return Err(Status::unavailable("the IPAM ends")),
            };
            let Some(request) = request else { return Ok(()) };
            let Some(answer) = self.answer(&request, answers).await? else { continue };
            tokio::select! {
                sent = answers.send(Ok(answer)) => if sent.is_err() { return Ok(()) },
                () = self.shutdown.cancelled() => {}
            }
        }
    }

    /// What is said to a request; a DELETE has no answer.
    async fn answer(
        &self,
        request: &PrefixRequest,
        answers: &mpsc::Sender<Result<PrefixResponse, Status>>,
    ) -> Result<Option<PrefixResponse>, Status> {
        match Type::try_from(request.r#type) {
            Ok(Type::Allocate) => self.allocate(request, answers).await.map(Some),
            Ok(Type::Delete) => self.delete(request).await.map(|()| None),
            Ok(Type::Undefined) => {
                Err(Status::invalid_argument("type: UNDEFINED; a request says ALLOCATE or DELETE"))
            }
            Err(_) => {
                let told =
                    format!("type: {} is none; a request says ALLOCATE (1) or DELETE (2)", request.r#type);
                Err(Status::invalid_argument(told))
            }
        }
    }

    async fn allocate(
        &self,
        request: &PrefixRequest,
        answers: &mpsc::Sender<Result<PrefixResponse, Status>>,
    ) -> Result<PrefixResponse, Status> {
        let wanted = Some(&request.prefix).filter(|text| !text.is_empty());
        let wanted = wanted.map(|text| prefix("prefix", text)).transpose()?;
        let excluded = excluded(&request.exclude_prefixes)?;
        let gone = async {
            tokio::select! {
                () = answers.closed() => {}
                () = self.shutdown.cancelled() => {}
            }
        };
        let given = self.store.allocate(&self.asker, wanted, &excluded, gone).await?;
        tracing::info!(
            owner = self.asker.owner.as_deref(), prefix = %given, wanted = wanted.map(|wanted| wanted.to_string()),
            "a prefix was handed out"
        );
        let ours = self.store.excluded().await;
        let exclude_prefixes = excluded.iter().chain(&ours).map(IpNet::to_string).collect();
        Ok(PrefixResponse { prefix: given.to_string(), exclude_prefixes })
    }

    async fn delete(&self, request: &PrefixRequest) -> Result<(), Status> {
        let prefix = prefix("prefix", &request.prefix)?;
        // Not an error, as in Go: the stream's other prefixes must not end because of it.
        let known = self.store.give_back(self.asker.stream, prefix).await;
        tracing::info!(owner = self.asker.owner.as_deref(), %prefix, known, "a prefix was given back");
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It is we who end: clients come back, and find what they had.
        if self.shutdown.is_cancelled() {
            return;
        }
        let (store, stream) = (Arc::clone(&self.store), self.asker.stream);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { store.end(stream).await });
        }
    }
}

fn excluded(texts: &[String]) -> Result<Vec<IpNet>, Status> {
    if texts.len() > MAX_EXCLUDED {
        let told =
            format!("exclude_prefixes: {} prefixes; a request has at most {MAX_EXCLUDED}", texts.len());
        return Err(Status::invalid_argument(told));
    }
    texts.iter().map(|text| prefix("exclude_prefixes", text)).collect()
}

fn prefix(field: &str, text: &str) -> Result<IpNet, Status> {
    let read: Result<IpNet, _> = text.parse();
    read.map(|prefix| prefix.trunc()).map_err(|_| {
        let shown: String = text.chars().take(SHOWN).collect();
        Status::invalid_argument(format!(
            "{field}: {shown:?} is no prefix; write address/length such as 172.16.1.0/24"
        ))
    })
}
