//! Health and reflection, as probes and grpcurl ask for them.

use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};
use vwire_proto::nsm::networkservice::network_service_server::NetworkServiceServer;

use super::support::*;
use crate::transport::*;

async fn status(hop: &Hop, service: &str) -> Result<ServingStatus, tonic::Code> {
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(hop.clone()).check(request).await;
    answer.map(|answer| answer.into_inner().status()).map_err(|error| error.code())
}

async fn reflect(hop: &Hop, ask: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(ask) };
    let mut client = ServerReflectionClient::new(hop.clone());
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let answer: ServerReflectionResponse = answers.next().await.unwrap().unwrap();
    answer.message_response.unwrap()
}

#[tokio::test]
async fn every_service_has_health_and_is_found_by_reflection() {
    let authority = authority("example.org");
    let (routes, health) = Services::new().serve(NetworkServiceServer::new(Echo)).routes().await;
    let shutdown = CancellationToken::new();
    let server =
        Server::bind(&[Target::parse("tcp://127.0.0.1:0").unwrap()], Limits::default()).await.unwrap();
    let target = server.targets().remove(0);
    tokio::spawn(server.serve(identity(&authority, "/nsmgr"), routes, shutdown.clone()));
    let hop = pool(&identity(&authority, "/nsc")).hop(&target).await.unwrap();

    let service = "networkservice.NetworkService";
    for name in ["", service] {
        assert_eq!(status(&hop, name).await, Ok(ServingStatus::Serving), "{name}");
    }
    assert_eq!(status(&hop, "connection.MonitorConnection").await, Err(tonic::Code::NotFound));
    health.set(false).await;
    assert_eq!(status(&hop, service).await, Ok(ServingStatus::NotServing));

    let listed = reflect(&hop, MessageRequest::ListServices(String::new())).await;
    let MessageResponse::ListServicesResponse(listed) = listed else { panic!("{listed:?}") };
    let mut names: Vec<&str> = listed.service.iter().map(|service| service.name.as_str()).collect();
    names.sort_unstable();
    assert!(names.contains(&service) && names.contains(&"grpc.health.v1.Health"), "{names:?}");
    assert!(!names.contains(&"registry.NetworkServiceRegistry"), "only what is served: {names:?}");
    let file = reflect(&hop, MessageRequest::FileContainingSymbol(service.to_owned())).await;
    assert!(matches!(file, MessageResponse::FileDescriptorResponse(_)), "{file:?}");
    shutdown.cancel();
}
