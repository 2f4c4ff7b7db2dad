//! `forget_fds`: descriptors of a Request are closed when it is answered.
//!
//! A namespace that is held open does not end, and with it neither do the interfaces in it: nobody would ever hear that a workload is
//! gone. Callers send the descriptors with each Request, so nothing is lost.

use async_trait::async_trait;
use tonic::Status;

use crate::api::connection::Connection;
use crate::api::networkservice::NetworkServiceRequest;
use crate::chain::{Call, Element, Fds, Next};

/// The element. It stands before those that receive and send descriptors.
pub struct ForgetFds;

#[async_trait]
impl Element for ForgetFds {
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let done = next.request(call, request).await;
        call.state.remove::<Fds>();
        done
    }
}
