use std::time::Duration;

use super::super::directory::Naming;
use super::super::records::Held;
use super::*;
use crate::chain::Chain;
use vwire_proto::nsm::connection::{Path, PathSegment};
use vwire_proto::nsm::connectioncontext::{ConnectionContext, DnsContext, Route};

/// Assigns what the connection's id says, as the elements behind do.
struct Assigns;

#[async_trait]
impl Element for Assigns {
    async fn request(
        &self,
        _: &mut Call,
        request: NetworkServiceRequest,
        _: Next<'_>,
    ) -> Result<Connection, Status> {
        let mut connection = request.connection.unwrap();
        if connection.labels.contains_key("refuse") {
            return Err(Status::internal("no"));
        }
        let route = |prefix: &str| Route { prefix: prefix.into(), next_hop: String::new() };
        let context = connection.context.get_or_insert_default().ip_context.get_or_insert_default();
        if context.src_ip_addrs.is_empty() {
            let address = format!("172.16.1.{}/32", connection.id);
            context.dst_routes.push(route(&address));
            context.src_ip_addrs.push(address);
        }
        context.src_routes = vec![route("172.16.1.0/32"), route("172.16.1.0/24"), route("172.16.1.0/16")];
        Ok(connection)
    }
}

struct Rig {
    chain: Arc<Chain>,
    directory: Arc<Directory>,
    own: watch::Sender<Option<IpAddr>>,
    state: crate::chain::State,
}

impl Rig {
    fn new() -> Self {
        let directory = Arc::new(Directory::new(Naming {
            templates: vec![r#"{{ index .Labels "podName" }}.{{ .NetworkService }}."#.parse().unwrap()],
            services: vec!["vl3".into()],
            ttl: super::super::TTL,
        }));
        let (own, receiver) = watch::channel(Some("172.16.1.1".parse().unwrap()));
        let dns = Vl3Dns::new(Arc::clone(&directory), receiver, "vl3-nse");
        let chain = Chain::new("vl3-nse", |_| vec![Arc::new(dns), Arc::new(Assigns)]);
        Self { chain, directory, own, state: Default::default() }
    }

    async fn request(&mut self, connection: Connection) -> Result<Connection, Status> {
        let request = NetworkServiceRequest { connection: Some(connection), mechanism_preferences: vec![] };
        let mut call = Call::internal("test", Duration::from_secs(15));
        call.state = std::mem::take(&mut self.state);
        let answer = self.chain.request(&mut call, request).await;
        self.state = call.state;
        answer
    }

    fn held(&self, name: &str) -> usize {
        match self.directory.records.find(&name.parse::<hickory_resolver::proto::rr::Name>().unwrap().into())
        {
            Held::Data(data) => data.len(),
            _ => 0,
        }
    }
}

fn connection(id: &str, from: &str) -> Connection {
    let path_segments =
        vec![PathSegment { name: from.into(), id: format!("{id}-root"), ..Default::default() }];
    Connection {
        id: id.into(),
        network_service: "vl3".into(),
        labels: [("podName".to_owned(), from.to_owned())].into(),
        path: Some(Path { index: 0, path_segments }),
        ..Default::default()
    }
}

fn told(connection: &Connection) -> Vec<(Vec<String>, Vec<String>)> {
    let configs = connection.context.clone().unwrap().dns_context.unwrap().configs;
    configs.into_iter().map(|config| (config.dns_server_ips, config.search_domains)).collect()
}

fn config(server: &str, domains: &[&str]) -> DnsConfig {
    let search_domains = domains.iter().map(|domain| (*domain).to_owned()).collect();
    DnsConfig { dns_server_ips: vec![server.to_owned()], search_domains }
}

fn bringing(mut connection: Connection, configs: Vec<DnsConfig>) -> Connection {
    connection.context =
        Some(ConnectionContext { dns_context: Some(DnsContext { configs }), ..Default::default() });
    connection
}

#[tokio::test]
async fn a_client_is_told_our_server_and_has_its_name_until_it_closes() {
    let mut rig = Rig::new();
    let answer = rig.request(connection("5", "pod-1")).await.unwrap();
    let ours = (vec!["172.16.1.1".to_owned()], vec!["vl3".to_owned()]);
    assert_eq!(told(&answer), std::slice::from_ref(&ours));
    assert_eq!((rig.held("pod-1.vl3."), rig.held("5.1.16.172.in-addr.arpa.")), (1, 1));
    let again = rig.request(answer.clone()).await.unwrap();
    assert_eq!(told(&again), [ours], "once, however often it is refreshed");
    // Another name by another label: the old one goes.
    let mut renamed = again;
    renamed.labels.insert("podName".into(), "pod-2".into());
    let renamed = rig.request(renamed).await.unwrap();
    assert_eq!((rig.held("pod-1.vl3."), rig.held("pod-2.vl3.")), (0, 1));
    // Our server moved.
    rig.own.send_replace(Some("172.16.9.1".parse().unwrap()));
    let moved = rig.request(renamed).await.unwrap();
    assert_eq!(told(&moved)[0].0, ["172.16.9.1"]);
    let mut call = Call::internal("test", Duration::from_secs(1));
    rig.chain.close(&mut call, moved).await.unwrap();
    assert_eq!((rig.held("pod-2.vl3."), rig.directory.records.connections()), (0, 0));
}

#[tokio::test]
async fn what_others_said_stays_and_what_another_endpoint_of_the_network_said_goes() {
    let mut rig = Rig::new();
    let brought = vec![
        config("10.96.0.10", &["svc.cluster.local"]),
        config("172.16.2.1", &["vl3"]),
        config("1.1.1.1", &[]),
    ];
    let answer = rig.request(bringing(connection("5", "pod-1"), brought)).await.unwrap();
    let servers: Vec<String> = told(&answer).into_iter().flat_map(|config| config.0).collect();
    assert_eq!(servers, ["10.96.0.10", "1.1.1.1", "172.16.1.1"]);
}

#[tokio::test(start_paused = true)]
async fn the_address_is_waited_for_and_then_done_without() {
    let mut rig = Rig::new();
    rig.own.send_replace(None);
    let own = rig.own.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        own.send_replace(Some("172.16.1.1".parse().unwrap()));
    });
    let answer = rig.request(connection("4", "pod-0")).await.unwrap();
    assert_eq!(told(&answer)[0].0, ["172.16.1.1"], "it came while the Request waited");

    let mut rig = Rig::new();
    rig.own.send_replace(None);
    let answer = rig.request(connection("5", "pod-1")).await.unwrap();
    assert!(told(&answer).is_empty(), "the network is there, if names are not");
    assert_eq!(rig.held("pod-1.vl3."), 1);
    rig.state = Default::default();
    let answer = rig.request(connection("6", "vl3-nse")).await.unwrap();
    assert!(told(&answer).is_empty());
    assert_eq!(rig.held("vl3-nse.vl3."), 1, "it has a name as others do");
    // Once it was known, clients are not turned away while it is made again.
    rig.own.send_replace(Some("172.16.1.1".parse().unwrap()));
    rig.state = Default::default();
    rig.request(connection("5", "pod-1")).await.unwrap();
    rig.own.send_replace(None);
    let answer = rig.request(connection("5", "pod-1")).await.unwrap();
    assert_eq!(told(&answer)[0].0, ["172.16.1.1"]);
}

#[tokio::test]
async fn a_first_request_that_fails_leaves_no_name_and_a_failed_refresh_takes_none() {
    let mut rig = Rig::new();
    let mut refused = connection("5", "pod-1");
    refused.labels.insert("refuse".into(), "yes".into());
    rig.request(refused.clone()).await.unwrap_err();
    assert_eq!(rig.held("pod-1.vl3."), 0);
    rig.request(connection("5", "pod-1")).await.unwrap();
    rig.request(refused).await.unwrap_err();
    assert_eq!(rig.held("pod-1.vl3."), 1);
}
