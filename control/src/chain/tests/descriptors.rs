//! Descriptors beside calls, through every hop.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tonic::{Code, Status};
use vwire_dataplane::fdpass::identify;

use super::mesh::*;
use crate::api::connection::{Connection, Mechanism};
use crate::api::mechanism::INODE_URL;
use crate::api::networkservice::NetworkServiceRequest;
use crate::chain::{Call, Element, Fds, Next};
use crate::transport::{Inode, SharedFd};

fn file(text: &str) -> (SharedFd, Inode) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let fd = OwnedFd::from(file);
    let inode = identify(&fd).unwrap();
    (Arc::new(fd), inode)
}

fn text(fd: impl AsFd) -> String {
    let mut file = File::from(fd.as_fd().try_clone_to_owned().unwrap());
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

fn naming(url: impl ToString) -> Mechanism {
    let parameters = [(INODE_URL.to_owned(), url.to_string())].into();
    Mechanism { cls: "LOCAL".into(), r#type: "KERNEL".into(), parameters }
}

/// An endpoint that reads the client's file, if it was offered one, and answers with one of its own.
struct Own(SharedFd, Inode);

#[async_trait]
impl Element for Own {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        call.state.get_or_default::<Fds>().insert(self.1, Arc::clone(&self.0));
        request.connection.get_or_insert_default().mechanism = Some(naming(self.1));
        next.request(call, request).await
    }
}

/// A forwarder's view: what it holds after a Request that reached the next hop.
#[derive(Default)]
struct Look(std::sync::Mutex<Vec<String>>);

#[async_trait]
impl Element for Arc<Look> {
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let seen: Vec<String> = call.state.get_or_default::<Fds>().iter().map(|(_, fd)| text(fd)).collect();
        *self.0.lock().unwrap() = seen;
        next.request(call, request).await
    }
}

async fn send(client: &Client, to: &Hop, fds: &[&SharedFd]) {
    let hop = client.pool.hop(&to.target).await.unwrap();
    for fd in fds {
        hop.peer().fds.as_ref().unwrap().sender.send(fd).unwrap();
    }
}

#[tokio::test]
async fn the_clients_descriptor_reaches_the_endpoint_and_the_endpoints_comes_back() {
    let mesh = Mesh::new();
    mesh.register_service(service("s")).await;
    let look = Arc::<Look>::default();
    let (own, own_inode) = file("the endpoint's");
    let elements: Vec<Arc<dyn Element>> = vec![Arc::new(Arc::clone(&look)), Arc::new(Own(own, own_inode))];
    let endpoint = mesh.endpoint_with("nse-1", "s", &[], elements).await;
    let client = mesh.client("nsc");
    let (mine, inode) = file("the client's");
    let (spare, spare_inode) = file("of a preference that is not chosen");

    // Straight to the endpoint: each Request sends its descriptors.
    let mut made = client.first(0, "s");
    for round in 0..3 {
        send(&client, &endpoint, &[&mine, &spare]).await;
        let preferences = vec![naming(inode), naming(spare_inode)];
        made = client.request_with(&endpoint, made, preferences, Duration::from_secs(5)).await.unwrap();
        assert_eq!(made.mechanism, Some(naming(own_inode)));
        let mut seen = look.0.lock().unwrap().clone();
        seen.sort_unstable();
        let mut expected = vec!["of a preference that is not chosen", "the client's"];
        if round > 0 {
            expected.push("the endpoint's");
        }
        assert_eq!(seen, expected, "round {round}");
        let hop = client.pool.hop(&endpoint.target).await.unwrap();
        let lane = hop.peer().fds.clone().unwrap();
        let came = lane.received.take(own_inode).expect("sent ahead of the answer");
        assert_eq!(text(came), "the endpoint's");
    }
}

#[tokio::test]
async fn managers_and_forwarders_pass_the_descriptor_on_also_to_a_second_forwarder() {
    let (mesh, manager, first, _endpoint) = one_of_each().await;
    let second = mesh.forwarder("forwarder-2").await;
    let client = mesh.client("nsc");
    let (mine, inode) = file("the client's");
    // Whichever comes first fails.
    first.probe.fail_next(1);
    second.probe.fail_next(1);
    for round in 0..2 {
        send(&client, &manager, &[&mine]).await;
        let made = client
            .request_with(
                &manager,
                client.first(0, "icmp-responder"),
                vec![naming(inode)],
                Duration::from_secs(5),
            )
            .await;
        match round {
            0 => assert_eq!(made.unwrap_err().code(), Code::Unavailable),
            _ => {
                let made = made.unwrap();
                assert_eq!(made.mechanism, Some(naming(inode)));
                client.close(&manager, made).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_descriptor_that_does_not_come_and_a_path_are_refused_with_the_reason() {
    let (mesh, manager, _forwarder, endpoint) = one_of_each().await;
    let client = mesh.client("nsc");
    let ask = |url: String| {
        let first = client.first(0, "icmp-responder");
        client.request_with(&manager, first, vec![naming(url)], Duration::from_millis(600))
    };
    let status = ask("inode://4/77".to_owned()).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().contains("inode://4/77"), "{status}");
    for url in ["file:///proc/1/ns/net", "/proc/1/ns/net", "inode://4"] {
        let status = ask(url.to_owned()).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("mechanism_preferences[0].parameters[inodeURL]"), "{status}");
    }
    assert_eq!(endpoint.probe.counts(), (0, 0));
}

#[tokio::test]
async fn descriptors_that_nothing_takes_do_not_pile_up() {
    let (mesh, manager, _forwarder, _endpoint) = one_of_each().await;
    let client = mesh.client("nsc");
    for i in 0..300 {
        let (fd, inode) = file(&i.to_string());
        send(&client, &manager, &[&fd]).await;
        // A Close of an unknown connection takes nothing.
        let unknown = Connection { mechanism: Some(naming(inode)), ..client.first(i, "icmp-responder") };
        client.close(&manager, unknown).await.unwrap();
    }
    let (fd, inode) = file("still taken");
    send(&client, &manager, &[&fd]).await;
    let first = client.first(0, "icmp-responder");
    client.request_with(&manager, first, vec![naming(inode)], Duration::from_secs(5)).await.unwrap();
}
