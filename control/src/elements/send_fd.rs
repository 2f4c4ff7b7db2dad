//! `sendfd`: the descriptor that an answer's mechanism names.

use async_trait::async_trait;
use tonic::Status;

use super::connect::inode;
use crate::api::connection::Connection;
use crate::api::networkservice::NetworkServiceRequest;
use crate::chain::{Call, Element, Fds, Next};

/// Sends the caller the descriptor of the file that the answer's mechanism names, ahead of the answer, unless the caller sent that
/// descriptor itself with this call.
pub struct SendFd;

#[async_trait]
impl Element for SendFd {
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let connection = next.request(call, request).await?;
        let lane = call.peer().and_then(|peer| peer.fds.clone());
        let chosen =
            connection.mechanism.as_ref().and_then(inode).filter(|inode| !call.fds_taken.contains(inode));
        if let (Some(lane), Some(inode)) = (lane, chosen)
            && let Some(fd) = call.state.get::<Fds>().and_then(|fds| fds.get(&inode))
        {
            let sent = lane.sender.send(fd);
            sent.map_err(|error| Status::internal(format!("{inode}: sending the descriptor: {error}")))?;
        }
        Ok(connection)
    }
}
