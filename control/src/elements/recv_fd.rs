//! `recvfd`: the descriptors that a caller's mechanisms name.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tonic::Status;

use super::connect::inode;
use crate::api::connection::{Connection, Mechanism};
use crate::api::mechanism::INODE_URL;
use crate::api::networkservice::NetworkServiceRequest;
use crate::chain::{Call, Element, Fds, Next, Origin};
use crate::transport::{FdLane, Inode};

/// What is left of the deadline so that the caller learns which descriptor did not come.
const WAY_BACK: Duration = Duration::from_millis(50);

/// Waits for the descriptor of each file that the caller's mechanisms name, and keeps those of the mechanism that was chosen as long
/// as the connection. A mechanism that names a path instead of a file is refused: we would open it with our rights.
pub struct RecvFd;

#[async_trait]
impl Element for RecvFd {
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let Origin::Peer { peer, .. } = &call.origin else { return next.request(call, request).await };
        let named = named(&request)?;
        if let Some(lane) = peer.fds.clone() {
            for inode in &named {
                receive(call, &lane, *inode).await?;
            }
        }
        let connection = next.request(call, request).await?;
        let chosen = connection.mechanism.as_ref().and_then(inode);
        let fds = call.state.get_or_default::<Fds>();
        fds.retain(|inode| !named.contains(inode) || Some(*inode) == chosen);
        Ok(connection)
    }
}

/// The files that a Request's mechanisms name.
fn named(request: &NetworkServiceRequest) -> Result<BTreeSet<Inode>, Status> {
    let mut named = BTreeSet::new();
    for (i, mechanism) in request.mechanism_preferences.iter().enumerate() {
        named.extend(file_of(mechanism, || format!("mechanism_preferences[{i}]"))?);
    }
    if let Some(mechanism) = request.connection.as_ref().and_then(|connection| connection.mechanism.as_ref())
    {
        named.extend(file_of(mechanism, || "connection.mechanism".to_owned())?);
    }
    Ok(named)
}

fn file_of(mechanism: &Mechanism, field: impl Fn() -> String) -> Result<Option<Inode>, Status> {
    match mechanism.parameters.get(INODE_URL).map(String::as_str) {
        None | Some("") => Ok(None),
        Some(url) => url.parse().map(Some).map_err(|error| {
            let field = field();
            Status::invalid_argument(format!(
                "{field}.parameters[{INODE_URL}]: {error}; send the file's descriptor beside the call, paths are not opened"
            ))
        }),
    }
}

async fn receive(call: &mut Call, lane: &FdLane, inode: Inode) -> Result<(), Status> {
    let known = call.state.get_or_default::<Fds>().get(&inode).is_some();
    let fd = match lane.received.take(inode) {
        Some(fd) => fd,
        None if known => return Ok(()),
        None => {
            let until = call.deadline.checked_sub(WAY_BACK).unwrap_or(call.deadline);
            tokio::time::timeout_at(until.into(), lane.received.wait(inode)).await.map_err(|_| {
                Status::deadline_exceeded(format!(
                    "the descriptor of {inode}, which a mechanism names, did not come"
                ))
            })?
        }
    };
    call.fds_taken.push(inode);
    call.state.get_or_default::<Fds>().insert(inode, Arc::new(fd));
    Ok(())
}
