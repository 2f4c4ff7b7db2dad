//! The sockets of local endpoints: their descriptors come and go beside the calls, since an endpoint's socket may lie in a mount
//! namespace where nobody else can go by path.
//!
//! A registration with an `inode://` URL waits for its descriptor; what is found with a socket is answered with the socket's
//! `inode://` URL, and its descriptor sent ahead (sdk, `pkg/registry/common/{recvfd,sendfd}`).

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use rustix::fs::{CWD, Mode, OFlags};
use tonic::Status;
use vwire_proto::nsm::registry::NetworkServiceEndpoint;

use super::{EndpointEvent, Found, Layer, Registry, RegistryCall};
use crate::chain::Origin;
use crate::transport::{FdLane, Inode, SharedFd};

/// How a descriptor's URL begins.
pub const INODE: &str = "inode://";

/// Takes descriptors from local callers, and gives them to them.
pub struct Sockets<R>(R);

impl<R: Registry> Sockets<R> {
    /// Puts this before `inner`, which keeps the sockets.
    pub fn new(inner: R) -> Self {
        Self(inner)
    }

    /// The socket that a registration's URL names, if it is one that comes as a descriptor.
    async fn receive(&self, call: &mut RegistryCall, url: &str) -> Result<(), Status> {
        if !url.starts_with(INODE) || call.socket.is_some() {
            return Ok(());
        }
        let inode: Inode = url.parse().map_err(|_| {
            Status::invalid_argument(format!("url: {url:?} is not inode://<st_dev>/<st_ino>"))
        })?;
        let lane = lane_of(call).ok_or_else(|| {
            Status::invalid_argument(format!(
                "url: {url} comes with a descriptor, and over a unix socket only"
            ))
        })?;
        let arrival = lane.received.wait(inode);
        let fd = tokio::time::timeout_at(call.deadline.into(), arrival).await.map_err(|_| {
            Status::deadline_exceeded(format!("url: no descriptor of {url} came within the call's time"))
        })?;
        call.socket = Some(Arc::new(fd));
        Ok(())
    }
}

/// The way for descriptors to the caller.
fn lane_of(call: &RegistryCall) -> Option<FdLane> {
    match &call.origin {
        Origin::Peer { peer, .. } => peer.fds.clone(),
        Origin::Internal(_) => None,
    }
}

/// Sends the socket of a `unix://` URL, or one that is at hand. Returns the URL that names it to the receiver; none if there is
/// nothing to send.
pub(super) fn send(lane: &FdLane, url: &str, socket: Option<&SharedFd>) -> Option<String> {
    let opened = match socket {
        Some(socket) => Arc::clone(socket),
        None => Arc::new(open(url)?),
    };
    match lane.sender.send(&*opened) {
        Ok(inode) => Some(inode.to_string()),
        Err(error) => {
            tracing::warn!(%url, %error, "the endpoint's socket can't be sent");
            None
        }
    }
}

/// The file of a `unix://` URL, without the right to use it.
fn open(url: &str) -> Option<std::os::fd::OwnedFd> {
    let path = Path::new(url.strip_prefix("unix://").or_else(|| url.strip_prefix("unix:"))?);
    match rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fd) => Some(fd),
        Err(error) => {
            tracing::warn!(%url, %error, "the endpoint's socket can't be opened; its URL goes as it is");
            None
        }
    }
}

/// What goes to a caller: the socket ahead, then the event with the socket's URL.
fn hand_over(lane: &FdLane, mut event: EndpointEvent) -> EndpointEvent {
    if event.deleted {
        return event;
    }
    if let Some(url) = send(lane, &event.endpoint.url, event.socket.as_ref())
        && url != event.endpoint.url
    {
        Arc::make_mut(&mut event.endpoint).url = url;
    }
    event
}

#[async_trait]
impl<R: Registry> Layer for Sockets<R> {
    type Inner = R;

    fn inner(&self) -> &R {
        &self.0
    }

    async fn register_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<NetworkServiceEndpoint, Status> {
        self.receive(call, &endpoint.url).await?;
        self.0.register_endpoint(call, endpoint).await
    }

    async fn unregister_endpoint(
        &self,
        call: &mut RegistryCall,
        endpoint: NetworkServiceEndpoint,
    ) -> Result<(), Status> {
        // The descriptor that Go sends here, too, is of no use: it is only taken out of the way.
        if let (Some(lane), Ok(inode)) = (lane_of(call), endpoint.url.parse()) {
            drop(lane.received.take(inode));
        }
        self.0.unregister_endpoint(call, endpoint).await
    }

    async fn find_endpoints(
        &self,
        call: &mut RegistryCall,
        query: NetworkServiceEndpoint,
        watch: bool,
    ) -> Result<Found<EndpointEvent>, Status> {
        let lane = lane_of(call);
        let found = self.0.find_endpoints(call, query, watch).await?;
        Ok(match lane {
            Some(lane) => found.map(move |event| event.map(|event| hand_over(&lane, event))).boxed(),
            None => found,
        })
    }
}
