//! A bound on Requests that are under way.

use async_trait::async_trait;
use tonic::Status;

use crate::api::connection::Connection;
use crate::api::networkservice::NetworkServiceRequest;
use crate::chain::{Call, Element, Next};
use crate::transport::Gate;

/// Refuses a Request where the gate is full, before anything is kept for it. A Close is never refused: it frees something.
pub struct Admission(pub Gate);

#[async_trait]
impl Element for Admission {
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let _place = self.0.enter()?;
        next.request(call, request).await
    }
}
