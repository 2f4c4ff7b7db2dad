//! One exchange with the next hop: the Request that is built, and what is asked of the answer.

use std::sync::Arc;
use std::time::Duration;

use tonic::{Code, Status};
use vwire_proto::nsm::connection::{Connection, Mechanism, Path, PathSegment, State};
use vwire_proto::nsm::networkservice::NetworkServiceRequest;

use super::Namespace;
use super::datapath::DataPath;
use super::excluded::AddressBook;
use super::session::Wanted;
use super::upstream::Upstream;
use crate::api::mechanism;

/// What a Request is to achieve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    /// A first connection, or the same one again.
    Same,
    /// A connection to whichever endpoint is best.
    Reselect,
}

/// What the exchanges of one session need.
#[derive(Clone)]
pub(super) struct Negotiator {
    pub name: Arc<str>,
    pub upstream: Arc<dyn Upstream>,
    pub addresses: Arc<AddressBook>,
    pub datapath: Arc<dyn DataPath>,
    pub time: Duration,
}

impl Negotiator {
    /// Sends a Request for what is wanted on top of what there is, and again if the answer's addresses clash with another session's.
    pub async fn run(
        self,
        wanted: Wanted,
        current: Option<Connection>,
        aim: Aim,
    ) -> Result<Connection, Status> {
        let id = wanted.connection.id.clone();
        let mut base = current;
        let mut aim = aim;
        for last in [false, true] {
            let mut request = build(&self.name, &wanted, base.as_ref(), aim);
            self.exclude(&wanted, &mut request);
            let mut connection = self.exchange(&wanted, request).await?;
            restore_excluded(&wanted, &mut connection);
            let context = connection.context.get_or_insert_default().ip_context.get_or_insert_default();
            match self.addresses.enter(&id, wanted.awareness_group, context) {
                Ok(()) => {
                    self.datapath.connected(&connection).await;
                    return Ok(connection);
                }
                Err((address, other)) if last => {
                    let error = format!(
                        "context.ip_context: the endpoint assigned {address}, which connection {other} has already, though it was \
                         excluded; put both services into one awareness group if they may share addresses"
                    );
                    self.close(&wanted, connection).await;
                    return Err(Status::failed_precondition(error));
                }
                // Both asked at the same time: now the address is in the book, and the endpoint will be told.
                Err(_) => (base, aim) = (Some(connection), Aim::Same),
            }
        }
        unreachable!("the second round returns")
    }

    /// Sends a Close, whose answer is only logged.
    pub async fn close(&self, wanted: &Wanted, connection: Connection) {
        let closed = self.upstream.close(connection, wanted.namespace.as_ref(), self.time).await;
        if let Err(status) = closed {
            tracing::debug!(error = %status.message(), "Close failed");
        }
    }

    async fn exchange(&self, wanted: &Wanted, request: NetworkServiceRequest) -> Result<Connection, Status> {
        let answer = self.upstream.request(request, wanted.namespace.as_ref(), self.time);
        let connection = match tokio::time::timeout(self.time, answer).await {
            Ok(answer) => answer?,
            Err(_) => {
                let error =
                    format!("no answer from the next hop within the request timeout of {:?}", self.time);
                return Err(Status::new(Code::DeadlineExceeded, error));
            }
        };
        match check(&self.name, wanted, &connection) {
            Ok(()) => Ok(connection),
            Err(status) => {
                self.close(wanted, connection).await;
                Err(status)
            }
        }
    }

    fn exclude(&self, wanted: &Wanted, request: &mut NetworkServiceRequest) {
        let Some(connection) = request.connection.as_mut() else { return };
        let excluded = self.addresses.excluded_for(&wanted.connection.id, wanted.awareness_group);
        if excluded.is_empty() {
            return;
        }
        let context = connection.context.get_or_insert_default().ip_context.get_or_insert_default();
        for prefix in excluded {
            if !context.excluded_prefixes.contains(&prefix) {
                context.excluded_prefixes.push(prefix);
            }
        }
    }
}

/// Excluded prefixes are of a request, not of the connection: the next request has those of its own time.
fn restore_excluded(wanted: &Wanted, connection: &mut Connection) {
    let Some(context) = connection.context.as_mut().and_then(|context| context.ip_context.as_mut()) else {
        return;
    };
    let asked = wanted.connection.context.as_ref().and_then(|context| context.ip_context.as_ref());
    context.excluded_prefixes = asked.map(|asked| asked.excluded_prefixes.clone()).unwrap_or_default();
}

/// The Request for what is wanted, on top of what there is.
pub(super) fn build(
    name: &str,
    wanted: &Wanted,
    current: Option<&Connection>,
    aim: Aim,
) -> NetworkServiceRequest {
    let preferences: Vec<Mechanism> =
        wanted.preferences.iter().map(|preference| placed(preference, wanted.namespace.as_ref())).collect();
    let mut connection = current.unwrap_or(&wanted.connection).clone();
    connection.id.clone_from(&wanted.connection.id);
    connection.network_service.clone_from(&wanted.connection.network_service);
    connection.labels.clone_from(&wanted.connection.labels);
    connection.set_state(State::Up);
    if aim == Aim::Reselect {
        connection.mechanism = None;
        connection.network_service_endpoint_name.clone_from(&wanted.connection.network_service_endpoint_name);
        // Addresses and routes are the former endpoint's: another one would leave them beside its own.
        connection.context.clone_from(&wanted.connection.context);
        // The first Request of all asks for an endpoint anyhow.
        if current.is_some() {
            connection.set_state(State::ReselectRequested);
        }
    }
    let path = connection.path.get_or_insert_default();
    path.index = 0;
    if path.path_segments.is_empty() {
        path.path_segments.push(PathSegment::default());
    }
    let own = &mut path.path_segments[0];
    own.name = name.to_owned();
    own.id.clone_from(&wanted.connection.id);
    if let Some(used) = connection.mechanism.as_ref().or(preferences.first()) {
        let interface = used.parameters.get(mechanism::NAME).map_or("", String::as_str);
        own.metrics.insert("client_interface".to_owned(), format!("{}/{interface}", used.r#type));
    }
    NetworkServiceRequest { connection: Some(connection), mechanism_preferences: preferences }
}

/// The preference with the URL of the namespace that it is for.
fn placed(preference: &Mechanism, namespace: Option<&Namespace>) -> Mechanism {
    let mut preference = preference.clone();
    if let Some(namespace) = namespace {
        preference.parameters.insert(mechanism::INODE_URL.to_owned(), namespace.inode().to_string());
    }
    preference
}

/// Whether an answer is one to the Request: ours by name and id, in our coordinates, carried as we can.
fn check(name: &str, wanted: &Wanted, connection: &Connection) -> Result<(), Status> {
    let bad =
        |what: String| Err(Status::internal(format!("the next hop's answer is not to this Request: {what}")));
    let id = &wanted.connection.id;
    if connection.id != *id {
        return bad(format!("connection.id is {:?} and should be {id:?}", shortened(&connection.id)));
    }
    let path = connection.path.as_ref();
    let own = path.filter(|path| path.index == 0).and_then(|path| path.path_segments.first());
    if own.is_none_or(|own| own.name != name || own.id != *id) {
        return bad(format!("connection.path does not begin with {name:?} and {id:?} at index 0"));
    }
    let used = connection.mechanism.as_ref().map_or("", |mechanism| &mechanism.r#type);
    if !wanted.preferences.iter().any(|preference| preference.r#type == used) {
        let asked: Vec<&str> =
            wanted.preferences.iter().map(|preference| preference.r#type.as_str()).collect();
        return bad(format!(
            "connection.mechanism is {:?}; asked for was {}",
            shortened(used),
            asked.join(", ")
        ));
    }
    Ok(())
}

fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

/// The connection that an earlier life of this client left with the next hop, in our coordinates; none if it is not one that this
/// session can go on with.
pub(super) fn recovered(name: &str, wanted: &Wanted, known: Connection) -> Option<Connection> {
    let mut connection = known;
    let id = &wanted.connection.id;
    let path: &mut Path = connection.path.as_mut()?;
    let own = path.path_segments.first()?;
    if path.index != 1 || own.id != *id || own.name != name {
        return None;
    }
    let used = connection.mechanism.as_ref()?;
    let preference = wanted.preferences.iter().find(|preference| preference.r#type == used.r#type)?;
    let place = placed(preference, wanted.namespace.as_ref());
    // A restart in another namespace needs another interface.
    if place.parameters.get(mechanism::INODE_URL) != used.parameters.get(mechanism::INODE_URL) {
        return None;
    }
    path.index = 0;
    connection.id.clone_from(id);
    Some(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        let connection = Connection {
            id: "nsc-0".into(),
            network_service: "svc".into(),
            labels: [("app".to_owned(), "a".to_owned())].into(),
            ..Default::default()
        };
        let preferences =
            vec!["kernel://svc/nsm-1".parse::<crate::client::nsurl::ServiceUrl>().unwrap().preference()];
        Wanted { connection, preferences, namespace: Some(Namespace::own().unwrap()), awareness_group: None }
    }

    fn answer(wanted: &Wanted) -> Connection {
        let request = build("nsc", wanted, None, Aim::Same);
        let mut connection = request.connection.unwrap();
        connection.mechanism = Some(request.mechanism_preferences[0].clone());
        connection.network_service_endpoint_name = "nse".into();
        let segments = &mut connection.path.as_mut().unwrap().path_segments;
        segments.push(PathSegment { name: "nsmgr".into(), id: "m".into(), ..Default::default() });
        connection
    }

    #[test]
    fn the_first_request_is_the_one_that_go_clients_send() {
        let wanted = wanted();
        let request = build("nsc", &wanted, None, Aim::Same);
        let connection = request.connection.unwrap();
        let path = connection.path.unwrap();
        assert_eq!((path.index, path.path_segments.len()), (0, 1));
        let own = &path.path_segments[0];
        assert_eq!((own.name.as_str(), own.id.as_str(), own.token.as_str()), ("nsc", "nsc-0", ""));
        assert_eq!(own.metrics["client_interface"], "KERNEL/nsm-1");
        let [preference] = request.mechanism_preferences.as_slice() else { panic!("one") };
        assert_eq!((preference.cls.as_str(), preference.r#type.as_str()), ("LOCAL", "KERNEL"));
        assert_eq!(preference.parameters["inodeURL"], Namespace::own().unwrap().inode().to_string());
        assert_eq!(preference.parameters["name"], "nsm-1");
    }

    #[test]
    fn a_refresh_carries_everything_and_a_reselect_forgets_the_endpoint() {
        let mut wanted = wanted();
        let current = answer(&wanted);
        wanted.connection.labels.insert("app".into(), "b".into());
        let same = build("nsc", &wanted, Some(&current), Aim::Same).connection.unwrap();
        assert_eq!((same.network_service_endpoint_name.as_str(), same.mechanism.is_some()), ("nse", true));
        assert_eq!((same.labels["app"].as_str(), same.state()), ("b", State::Up));
        assert_eq!(same.path.unwrap().path_segments.len(), 2);
        let other = build("nsc", &wanted, Some(&current), Aim::Reselect).connection.unwrap();
        assert_eq!((other.network_service_endpoint_name.as_str(), other.mechanism), ("", None));
        assert_eq!(other.state, State::ReselectRequested as i32);
        assert_eq!(other.context, wanted.connection.context, "addresses of the former endpoint");
        assert_eq!(other.path.unwrap().path_segments.len(), 2, "ids are kept");
    }

    #[test]
    fn an_answer_to_another_request_is_refused_by_field() {
        let wanted = wanted();
        let good = answer(&wanted);
        assert!(check("nsc", &wanted, &good).is_ok());
        let broken = |change: fn(&mut Connection)| {
            let mut connection = good.clone();
            change(&mut connection);
            check("nsc", &wanted, &connection).unwrap_err().message().to_owned()
        };
        assert!(broken(|c| c.id = "x".repeat(10_000)).contains("connection.id"));
        assert!(broken(|c| c.path = None).contains("connection.path"));
        assert!(broken(|c| c.path.as_mut().unwrap().index = 1).contains("connection.path"));
        assert!(
            broken(|c| c.path.as_mut().unwrap().path_segments[0].id = "y".into()).contains("connection.path")
        );
        assert!(broken(|c| c.mechanism = None).contains("connection.mechanism"));
        assert!(
            broken(|c| c.mechanism.as_mut().unwrap().r#type = "MEMIF".into())
                .contains("asked for was KERNEL")
        );
    }

    #[test]
    fn an_earlier_life_is_continued_only_if_it_is_ours_and_here() {
        let wanted = wanted();
        let mut known = answer(&wanted);
        known.id = "m".into();
        known.path.as_mut().unwrap().index = 1;
        let ours = recovered("nsc", &wanted, known.clone()).unwrap();
        assert_eq!((ours.id.as_str(), ours.path.as_ref().unwrap().index), ("nsc-0", 0));
        let refused = |change: fn(&mut Connection)| {
            let mut connection = known.clone();
            change(&mut connection);
            recovered("nsc", &wanted, connection).is_none()
        };
        assert!(refused(|c| c.path.as_mut().unwrap().index = 2));
        assert!(refused(|c| c.path.as_mut().unwrap().path_segments[0].id = "nsc-1".into()));
        assert!(refused(|c| c.mechanism.as_mut().unwrap().r#type = "MEMIF".into()));
        assert!(refused(|c| {
            c.mechanism.as_mut().unwrap().parameters.insert("inodeURL".into(), "inode://4/1".into());
        }));
        assert!(refused(|c| c.mechanism = None));
    }
}
