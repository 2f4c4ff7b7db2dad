//! `trimpath`: the path ends where the chain ends.

use async_trait::async_trait;
use tonic::Status;

use super::connect::Connected;
use crate::api::connection::Connection;
use crate::api::networkservice::NetworkServiceRequest;
use crate::chain::{Call, Element, Next};

/// Drops the segments after ours from the answer of a chain that went to no next hop: they were left by another selection.
pub struct TrimPath;

#[async_trait]
impl Element for TrimPath {
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let mut connection = next.request(call, request).await?;
        if call.state.get::<Connected>().is_none()
            && let Some(path) = &mut connection.path
        {
            path.path_segments.truncate(path.index as usize + 1);
        }
        Ok(connection)
    }
}
