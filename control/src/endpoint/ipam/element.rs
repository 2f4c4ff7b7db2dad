//! IPAM as a step of an endpoint's chain.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use ipnet::IpNet;
use tonic::Status;
use vwire_proto::nsm::connection::Connection;
use vwire_proto::nsm::connectioncontext::{IpContext, Route};
use vwire_proto::nsm::networkservice::NetworkServiceRequest;

use super::{Excluded, Groups, Pair, Policy, Table};
use crate::chain::{Call, Element, Next};

/// Most prefixes that a request may exclude.
const MAX_EXCLUDED: usize = 10_000;
/// Most addresses of either end that a request may bring.
const MAX_ADDRESSES: usize = 64;

/// Assigns addresses on the way in. A first Request that fails further on leaves nothing assigned.
pub struct Ipam {
    table: Mutex<Table>,
    policy: Policy,
}

impl Ipam {
    /// Assigns from these groups.
    pub fn new(groups: &Groups, policy: Policy) -> Self {
        Self { table: Mutex::new(Table::new(groups)), policy }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Each operation leaves the table whole or fails before it changes it.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn assign(&self, id: &str, context: &mut IpContext) -> Result<bool, Status> {
        let prefixes = excluded_prefixes(context)?;
        let excluded = Excluded::new(&prefixes);
        let mut table = self.table();
        if self.policy == Policy::Strict {
            remove_foreign(context, |address| table.contains(address))?;
        }
        let wished = wishes(context)?;
        let before = table.get(id).map(<[_]>::to_vec);
        let pairs = table
            .assign(id, &wished, &excluded, prefixes.len())
            .map_err(|exhausted| Status::resource_exhausted(exhausted.to_string()))?;
        for old in before.iter().flatten().filter(|old| !pairs.contains(old)) {
            remove_pair(context, old);
        }
        for pair in pairs {
            add_pair(context, pair);
        }
        Ok(before.is_none())
    }
}

#[async_trait]
impl Element for Ipam {
    async fn request(
        &self,
        call: &mut Call,
        mut request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        let connection = request
            .connection
            .as_mut()
            .ok_or_else(|| Status::invalid_argument("connection: missing from the request"))?;
        let id = connection.id.clone();
        let context = connection.context.get_or_insert_default().ip_context.get_or_insert_default();
        let first = self.assign(&id, context)?;
        let answer = next.request(call, request).await;
        if answer.is_err() && first {
            self.table().free(&id);
        }
        answer
    }

    async fn close(&self, call: &mut Call, connection: Connection, next: Next<'_>) -> Result<(), Status> {
        self.table().free(&connection.id);
        next.close(call, connection).await
    }
}

fn excluded_prefixes(context: &IpContext) -> Result<Vec<IpNet>, Status> {
    let texts = &context.excluded_prefixes;
    if texts.len() > MAX_EXCLUDED {
        return Err(Status::invalid_argument(format!(
            "context.ip_context.excluded_prefixes: {} entries; at most {MAX_EXCLUDED} are taken",
            texts.len()
        )));
    }
    texts.iter().map(|text| prefix("excluded_prefixes", text)).collect()
}

/// `address/length`, or a bare address as Go's parser takes it.
fn prefix(field: &str, text: &str) -> Result<IpNet, Status> {
    let parsed = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    parsed.map_err(|_| {
        let shown: String = text.chars().take(64).collect();
        Status::invalid_argument(format!("context.ip_context.{field}: {shown:?} is not address/length"))
    })
}

/// Each pair of a client's and an endpoint's address, of one family, that the request brings.
fn wishes(context: &IpContext) -> Result<Vec<Pair>, Status> {
    for (field, addresses) in
        [("src_ip_addrs", &context.src_ip_addrs), ("dst_ip_addrs", &context.dst_ip_addrs)]
    {
        if addresses.len() > MAX_ADDRESSES {
            return Err(Status::invalid_argument(format!(
                "context.ip_context.{field}: {} addresses; at most {MAX_ADDRESSES} are taken",
                addresses.len()
            )));
        }
    }
    let mut wishes = Vec::new();
    for src in &context.src_ip_addrs {
        let src = prefix("src_ip_addrs", src)?.addr();
        for dst in &context.dst_ip_addrs {
            let dst = prefix("dst_ip_addrs", dst)?.addr();
            if src.is_ipv4() == dst.is_ipv4() {
                wishes.push(Pair { dst, src });
            }
        }
    }
    Ok(wishes)
}

fn add_pair(context: &mut IpContext, pair: &Pair) {
    let (dst, src) = (IpNet::from(pair.dst).to_string(), IpNet::from(pair.src).to_string());
    add_route(&mut context.src_routes, &dst);
    add_route(&mut context.dst_routes, &src);
    add(&mut context.src_ip_addrs, src);
    add(&mut context.dst_ip_addrs, dst);
}

fn remove_pair(context: &mut IpContext, pair: &Pair) {
    let (dst, src) = (IpNet::from(pair.dst).to_string(), IpNet::from(pair.src).to_string());
    context.src_routes.retain(|route| route.prefix != dst);
    context.dst_routes.retain(|route| route.prefix != src);
    context.src_ip_addrs.retain(|address| *address != src);
    context.dst_ip_addrs.retain(|address| *address != dst);
}

fn add(list: &mut Vec<String>, value: String) {
    if !list.contains(&value) {
        list.push(value);
    }
}

fn add_route(routes: &mut Vec<Route>, prefix: &str) {
    if !routes.iter().any(|route| route.prefix == prefix) {
        routes.push(Route { prefix: prefix.to_owned(), next_hop: String::new() });
    }
}

/// Removes addresses that are not `ours`, and the routes to them and over them.
fn remove_foreign(context: &mut IpContext, ours: impl Fn(IpAddr) -> bool) -> Result<(), Status> {
    let mut foreign = Vec::new();
    for address in context.src_ip_addrs.iter().chain(&context.dst_ip_addrs) {
        let net = prefix("src_ip_addrs or dst_ip_addrs", address)?;
        if !ours(net.addr()) {
            foreign.push((address.clone(), net.addr()));
        }
    }
    let is_foreign = |text: &String| foreign.iter().any(|(address, _)| address == text);
    context.src_ip_addrs.retain(|address| !is_foreign(address));
    context.dst_ip_addrs.retain(|address| !is_foreign(address));
    let goes = |route: &Route| {
        let to = prefix("routes", &route.prefix).is_ok_and(|net| {
            net.prefix_len() == net.max_prefix_len()
                && foreign.iter().any(|(_, address)| *address == net.addr())
        });
        let over = route
            .next_hop
            .parse()
            .is_ok_and(|hop: IpAddr| foreign.iter().any(|(_, address)| *address == hop));
        to || over
    };
    context.src_routes.retain(|route| !goes(route));
    context.dst_routes.retain(|route| !goes(route));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::chain::Chain;
    use vwire_proto::nsm::connectioncontext::ConnectionContext;

    struct Refusing;

    #[async_trait]
    impl Element for Refusing {
        async fn request(
            &self,
            _: &mut Call,
            request: NetworkServiceRequest,
            _: Next<'_>,
        ) -> Result<Connection, Status> {
            let connection = request.connection.unwrap();
            if connection.labels.contains_key("refuse") {
                Err(Status::internal("no"))
            } else {
                Ok(connection)
            }
        }
    }

    fn chain(groups: &str, policy: Policy) -> Arc<Chain> {
        let groups = groups.parse().unwrap();
        Chain::new("nse", |_| vec![Arc::new(Ipam::new(&groups, policy)), Arc::new(Refusing)])
    }

    fn connection(id: &str, context: IpContext) -> Connection {
        let context = ConnectionContext { ip_context: Some(context), ..Default::default() };
        Connection { id: id.into(), context: Some(context), ..Default::default() }
    }

    async fn request(chain: &Chain, connection: Connection) -> Result<IpContext, Status> {
        let request = NetworkServiceRequest { connection: Some(connection), mechanism_preferences: vec![] };
        let mut call = Call::internal("test", Duration::from_secs(1));
        Ok(chain.request(&mut call, request).await?.context.unwrap().ip_context.unwrap())
    }

    fn routes(routes: &[Route]) -> Vec<&str> {
        routes.iter().map(|route| route.prefix.as_str()).collect()
    }

    #[tokio::test]
    async fn a_request_gets_what_a_go_endpoint_gives() {
        let chain = chain("172.16.0.0/16", Policy::Polite);
        let context = request(&chain, connection("a", IpContext::default())).await.unwrap();
        assert_eq!(context.src_ip_addrs, ["172.16.0.1/32"]);
        assert_eq!(context.dst_ip_addrs, ["172.16.0.0/32"]);
        assert_eq!(routes(&context.src_routes), ["172.16.0.0/32"]);
        assert_eq!(routes(&context.dst_routes), ["172.16.0.1/32"]);
        assert!(context.src_routes.iter().chain(&context.dst_routes).all(|route| route.next_hop.is_empty()));
        assert_eq!(request(&chain, connection("a", context.clone())).await.unwrap(), context, "a refresh");
    }

    #[tokio::test]
    async fn a_failed_first_request_and_a_close_free_the_addresses() {
        let chain = chain("10.0.0.0/31", Policy::Polite);
        let mut refused = connection("a", IpContext::default());
        refused.labels.insert("refuse".into(), "yes".into());
        assert!(request(&chain, refused.clone()).await.is_err());
        request(&chain, connection("b", IpContext::default())).await.unwrap();
        refused.id = "b".into();
        assert!(request(&chain, refused).await.is_err(), "a refresh that fails …");
        let full = request(&chain, connection("c", IpContext::default())).await.unwrap_err();
        assert_eq!(full.code(), tonic::Code::ResourceExhausted, "… keeps the addresses");
        let mut call = Call::internal("test", Duration::from_secs(1));
        chain.close(&mut call, connection("b", IpContext::default())).await.unwrap();
        request(&chain, connection("c", IpContext::default())).await.unwrap();
    }

    #[tokio::test]
    async fn newly_excluded_addresses_leave_the_context() {
        let chain = chain("10.0.0.0/24", Policy::Polite);
        let mut context = request(&chain, connection("a", IpContext::default())).await.unwrap();
        context.excluded_prefixes = vec!["10.0.0.0/28".into()];
        let context = request(&chain, connection("a", context)).await.unwrap();
        assert_eq!(
            (context.src_ip_addrs, context.dst_ip_addrs),
            (vec!["10.0.0.17/32".into()], vec!["10.0.0.16/32".into()])
        );
        assert_eq!(
            (routes(&context.src_routes), routes(&context.dst_routes)),
            (vec!["10.0.0.16/32"], vec!["10.0.0.17/32"])
        );
    }

    #[tokio::test]
    async fn polite_keeps_what_it_can_and_strict_removes_what_is_not_its_own() {
        let brought = IpContext {
            src_ip_addrs: vec!["10.0.0.7/32".into(), "192.0.2.1/32".into()],
            dst_ip_addrs: vec!["10.0.0.6/32".into(), "192.0.2.0/32".into()],
            src_routes: vec![
                Route { prefix: "192.0.2.0/32".into(), next_hop: String::new() },
                Route { prefix: "203.0.113.0/24".into(), next_hop: "192.0.2.0".into() },
                Route { prefix: "198.51.100.0/24".into(), next_hop: String::new() },
            ],
            ..Default::default()
        };
        let polite = chain("10.0.0.0/24", Policy::Polite);
        let context = request(&polite, connection("a", brought.clone())).await.unwrap();
        assert_eq!(
            context.src_ip_addrs, brought.src_ip_addrs,
            "its own again, and the foreign one untouched"
        );
        assert_eq!(context.src_routes.len(), 4);
        let strict = chain("10.0.0.0/24", Policy::Strict);
        let context = request(&strict, connection("a", brought)).await.unwrap();
        assert_eq!(
            (context.src_ip_addrs, context.dst_ip_addrs),
            (vec!["10.0.0.7/32".into()], vec!["10.0.0.6/32".into()])
        );
        assert_eq!(routes(&context.src_routes), ["198.51.100.0/24", "10.0.0.6/32"]);
    }

    #[tokio::test]
    async fn bad_input_is_named_and_changes_nothing() {
        let chain = chain("10.0.0.0/24", Policy::Strict);
        let cases = [
            (
                IpContext { excluded_prefixes: vec!["10.0.0.0/99".into()], ..Default::default() },
                "excluded_prefixes",
            ),
            (IpContext { src_ip_addrs: vec!["x".repeat(1 << 16)], ..Default::default() }, "src_ip_addrs"),
            (
                IpContext { src_ip_addrs: vec!["10.0.0.1/32".into(); 65], ..Default::default() },
                "src_ip_addrs",
            ),
            (
                IpContext { excluded_prefixes: vec!["10.0.0.0/32".into(); 10_001], ..Default::default() },
                "10000",
            ),
        ];
        for (context, part) in cases {
            let error = request(&chain, connection("bad", context)).await.unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.message().contains(part) && error.message().len() < 300, "{error}");
        }
        let context = request(&chain, connection("good", IpContext::default())).await.unwrap();
        assert_eq!(context.dst_ip_addrs, ["10.0.0.0/32"]);
    }
}
