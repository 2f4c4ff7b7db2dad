//! How found objects are written: straight from the shared record, without a copy of it.

use std::marker::PhantomData;

use prost::Message;
use prost::bytes::BufMut;
use prost::encoding::{bool as proto_bool, message};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::registry::{EndpointEvent, ServiceEvent};

/// An event that is written as its response message: field 1 the object, field 2 whether it went.
pub(super) trait Event: Send + 'static {
    fn write(&self, to: &mut impl BufMut);
}

impl Event for ServiceEvent {
    fn write(&self, to: &mut impl BufMut) {
        write(&*self.service, self.deleted, to);
    }
}

impl Event for EndpointEvent {
    fn write(&self, to: &mut impl BufMut) {
        write(&*self.endpoint, self.deleted, to);
    }
}

fn write<T: Message>(object: &T, deleted: bool, to: &mut impl BufMut) {
    message::encode(1, object, to);
    if deleted {
        proto_bool::encode(2, &deleted, to);
    }
}

/// Reads queries, writes events.
pub(super) struct FindCodec<Q, E>(PhantomData<(Q, E)>);

impl<Q, E> Default for FindCodec<Q, E> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<Q: Message + Default + 'static, E: Event> Codec for FindCodec<Q, E> {
    type Encode = E;
    type Decode = Q;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl<Q, E: Event> Encoder for FindCodec<Q, E> {
    type Item = E;
    type Error = Status;

    fn encode(&mut self, event: E, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        event.write(to);
        Ok(())
    }
}

impl<Q: Message + Default, E> Decoder for FindCodec<Q, E> {
    type Item = Q;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Q>, Status> {
        Q::decode(from).map(Some).map_err(|error| Status::invalid_argument(format!("query: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use vwire_proto::nsm::registry::{
        NetworkService, NetworkServiceEndpoint, NetworkServiceEndpointResponse, NetworkServiceResponse,
    };

    #[test]
    fn events_are_written_as_their_responses() {
        for deleted in [false, true] {
            let service = NetworkService { name: "s".into(), payload: "IP".into(), ..Default::default() };
            let response = NetworkServiceResponse { network_service: Some(service.clone()), deleted };
            let mut bytes = vec![];
            ServiceEvent { service: Arc::new(service), deleted }.write(&mut bytes);
            assert_eq!(bytes, response.encode_to_vec());
            let endpoint = NetworkServiceEndpoint { name: "e".into(), url: "u".into(), ..Default::default() };
            let response =
                NetworkServiceEndpointResponse { network_service_endpoint: Some(endpoint.clone()), deleted };
            bytes.clear();
            EndpointEvent { endpoint: Arc::new(endpoint), deleted, socket: None }.write(&mut bytes);
            assert_eq!(bytes, response.encode_to_vec());
        }
    }
}
