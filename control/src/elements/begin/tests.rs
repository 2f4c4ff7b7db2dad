use std::time::Duration;

use super::*;
use crate::chain::Chain;
use crate::chain::testing::{Probe, Seen, call_by, connection, request};

struct Fixture {
    chain: Arc<Chain>,
    begin: Arc<Begin>,
    probe: Arc<Probe>,
}

/// Lets a test keep an element that a chain has.
struct Shared(Arc<Begin>);

#[async_trait]
impl Element for Shared {
    async fn request(
        &self,
        call: &mut Call,
        request: NetworkServiceRequest,
        next: Next<'_>,
    ) -> Result<Connection, Status> {
        self.0.request(call, request, next).await
    }

    async fn close(&self, call: &mut Call, connection: Connection, next: Next<'_>) -> Result<(), Status> {
        self.0.close(call, connection, next).await
    }
}

fn fixture(binding: Binding) -> Fixture {
    let (begin, probe) = (Arc::new(Begin::new(binding)), Arc::<Probe>::default());
    let elements: Vec<Arc<dyn Element>> =
        vec![Arc::new(Shared(Arc::clone(&begin))), Arc::new(Arc::clone(&probe))];
    Fixture { chain: Chain::new("nsmgr", |_| elements), begin, probe }
}

impl Fixture {
    async fn ask(&self, by: &str, connection: Connection) -> Result<Connection, Status> {
        self.chain.request(&mut call_by(by), request(connection)).await
    }

    async fn close(&self, by: &str, connection: Connection) -> Result<(), Status> {
        self.chain.close(&mut call_by(by), connection).await
    }
}

fn mine() -> Connection {
    connection(&["nsc/nsc-0", "nsmgr/m"])
}

#[tokio::test]
async fn a_connection_lives_from_its_first_request_to_its_close_and_the_slot_goes() {
    let f = fixture(Binding::default());
    let mut call = call_by("nsc");
    f.chain.request(&mut call, request(mine())).await.unwrap();
    assert!(call.first && call.revision == Some(1));
    let mut call = call_by("nsc");
    f.chain.request(&mut call, request(mine())).await.unwrap();
    assert!(!call.first && call.revision == Some(2));
    assert_eq!(f.begin.len(), 1);
    f.close("nsc", mine()).await.unwrap();
    assert_eq!((f.probe.counts(), f.begin.len()), ((2, 1), 0));
    f.close("nsc", mine()).await.unwrap();
    assert_eq!((f.probe.counts(), f.begin.len()), ((2, 1), 0), "an unknown one is closed already");
}

#[tokio::test]
async fn close_gets_the_stored_connection() {
    let f = fixture(Binding::default());
    f.ask("nsc", mine()).await.unwrap();
    f.close("nsc", Connection { network_service: "other".into(), ..mine() }).await.unwrap();
    assert_eq!(f.probe.closes.lock().unwrap()[0].network_service, "s");
}

#[tokio::test]
async fn a_first_request_that_fails_is_undone_and_a_refresh_that_fails_changes_nothing() {
    let f = fixture(Binding::default());
    f.probe.fail_next(1);
    assert_eq!(f.ask("nsc", mine()).await.unwrap_err().code(), tonic::Code::Unavailable);
    assert_eq!((f.probe.counts(), f.begin.len()), ((1, 1), 0));

    f.ask("nsc", mine()).await.unwrap();
    f.probe.fail_next(1);
    let changed = Connection { network_service: "other".into(), ..mine() };
    f.ask("nsc", changed).await.unwrap_err();
    assert_eq!((f.probe.counts(), f.begin.len()), ((3, 1), 1));
    f.close("nsc", mine()).await.unwrap();
    assert_eq!(f.probe.closes.lock().unwrap()[1].network_service, "s");
}

#[tokio::test]
async fn reselection_closes_and_starts_with_fresh_state() {
    let f = fixture(Binding::default());
    f.ask("nsc", mine()).await.unwrap();
    let mut again = mine();
    again.set_state(ConnectionState::ReselectRequested);
    let mut call = call_by("nsc");
    let answer = f.chain.request(&mut call, request(again.clone())).await.unwrap();
    assert_eq!(answer.state(), ConnectionState::Up);
    assert!(call.first);
    assert_eq!(f.probe.counts(), (2, 1));
    // The state was empty again: a third Request is the second with this state.
    f.ask("nsc", mine()).await.unwrap();
    let lease = f.begin.slots.lease("m".into());
    let call = call_by("nsc");
    let slot = lease.turn(&call).await.unwrap();
    assert_eq!(slot.as_ref().unwrap().state.get::<Seen>().unwrap().0, 2);
}

#[tokio::test]
async fn a_reselection_that_fails_leaves_nothing() {
    let f = fixture(Binding::default());
    f.ask("nsc", mine()).await.unwrap();
    f.probe.fail_next(1);
    let mut again = mine();
    again.set_state(ConnectionState::ReselectRequested);
    f.ask("nsc", again).await.unwrap_err();
    assert!(f.begin.is_empty());
}

#[tokio::test]
async fn internal_runs_get_the_stored_connection_and_unknown_ones_are_refused() {
    let f = fixture(Binding::default());
    let by_id = || Connection { id: "m".into(), ..Default::default() };
    let mut call = Call::internal("test", Duration::from_secs(1));
    let status = f.chain.request(&mut call, request(by_id())).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::NotFound);
    f.ask("nsc", mine()).await.unwrap();
    let mut call = Call::internal("test", Duration::from_secs(1));
    f.chain.request(&mut call, request(by_id())).await.unwrap();
    assert_eq!(f.probe.requests.lock().unwrap()[1], mine());
    // A Close that is meant for what was before the refresh does nothing.
    let mut call = Call::internal("test", Duration::from_secs(1));
    call.revision = Some(1);
    f.chain.close(&mut call, by_id()).await.unwrap();
    assert_eq!(f.begin.len(), 1);
    call.revision = Some(2);
    f.chain.close(&mut call, by_id()).await.unwrap();
    assert!(f.begin.is_empty());
}

#[tokio::test]
async fn runs_of_one_connection_wait_for_each_other_and_others_do_not() {
    let f = Arc::new(fixture(Binding::default()));
    let gate = Arc::new(tokio::sync::Notify::new());
    *f.probe.gate.lock().unwrap() = Some(Arc::clone(&gate));
    let run = |connection: Connection| {
        let f = Arc::clone(&f);
        tokio::spawn(async move { f.ask("nsc", connection).await })
    };
    let first = run(mine());
    while f.probe.counts().0 < 1 {
        tokio::task::yield_now().await;
    }
    let second = run(mine());
    let other = run(connection(&["nsc/nsc-1", "nsmgr/n"]));
    while f.probe.counts().0 < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(f.probe.requests.lock().unwrap()[1].id, "n", "the second of one id has not begun");
    let mut late = call_by("nsc");
    late.deadline = std::time::Instant::now();
    let status = f.chain.request(&mut late, request(mine())).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    *f.probe.gate.lock().unwrap() = None;
    gate.notify_waiters();
    for run in [first, second, other] {
        run.await.unwrap().unwrap();
    }
    assert_eq!((f.probe.counts().0, f.begin.len()), (3, 2));
}

#[tokio::test]
async fn an_id_alone_gives_no_right_to_a_connection() {
    let f = fixture(Binding::default());
    f.ask("nsc", mine()).await.unwrap();
    // Another identity, with the victim's id and path.
    let denied = [
        f.ask("mallory", connection(&["mallory/x", "nsmgr/m"])).await.map(drop),
        f.ask("mallory", mine()).await.map(drop),
        f.close("mallory", mine()).await,
        f.close("mallory", Connection { id: "m".into(), ..Default::default() }).await,
        // The same identity with another connection of its own.
        f.ask("nsc", connection(&["nsc/nsc-1", "nsmgr/m"])).await.map(drop),
        f.close("nsc", connection(&["nsc/nsc-1", "nsmgr/m"])).await,
    ];
    for status in denied {
        assert_eq!(status.unwrap_err().code(), tonic::Code::PermissionDenied);
    }
    assert_eq!(f.probe.counts(), (1, 0), "the victim is undisturbed");
    f.ask("nsc", mine()).await.unwrap();
    f.close("nsc", mine()).await.unwrap();
}

#[tokio::test]
async fn healing_over_another_hop_is_admitted_if_the_client_is_the_same() {
    let old = || connection(&["nsc/nsc-0", "nsmgr/m", "fwd-1/f", "nse/e"]);
    let healed = || connection(&["nsc/nsc-0", "nsmgr/m", "fwd-2/g", "nse/e"]);
    let f = fixture(Binding::Healing);
    f.ask("fwd-1", old()).await.unwrap();
    let foreign = connection(&["mallory/nsc-0", "nsmgr/m", "fwd-2/g", "nse/e"]);
    assert_eq!(f.ask("fwd-2", foreign).await.unwrap_err().code(), tonic::Code::PermissionDenied);
    assert_eq!(f.close("fwd-2", healed()).await.unwrap_err().code(), tonic::Code::PermissionDenied);
    f.ask("fwd-2", healed()).await.unwrap();
    // It now belongs to the new hop; the one that was left can't end it.
    assert_eq!(f.close("fwd-1", old()).await.unwrap_err().code(), tonic::Code::PermissionDenied);
    f.close("fwd-2", healed()).await.unwrap();

    let f = fixture(Binding::Exact);
    f.ask("fwd-1", old()).await.unwrap();
    assert_eq!(f.ask("fwd-2", healed()).await.unwrap_err().code(), tonic::Code::PermissionDenied);
    let f = fixture(Binding::Off);
    f.ask("fwd-1", old()).await.unwrap();
    f.ask("mallory", connection(&["mallory/x", "nse/e"])).await.unwrap();
}

struct Panics;

#[async_trait]
impl Element for Panics {
    async fn request(
        &self,
        _: &mut Call,
        _: NetworkServiceRequest,
        _: Next<'_>,
    ) -> Result<Connection, Status> {
        panic!("on purpose")
    }
}

#[tokio::test]
async fn a_panic_fails_its_run_only() {
    let begin = Arc::new(Begin::new(Binding::default()));
    let shared = Shared(Arc::clone(&begin));
    let chain = Chain::new("nsmgr", |_| vec![Arc::new(shared), Arc::new(Panics)]);
    let status = chain.request(&mut call_by("nsc"), request(mine())).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Internal);
    assert!(begin.is_empty());
}

#[tokio::test]
async fn an_empty_id_is_refused() {
    let f = fixture(Binding::default());
    let status = f.ask("nsc", Connection::default()).await.unwrap_err();
    assert_eq!(status.message(), "connection.id: empty");
}

/// Policies that know who may be the hop before us: who is in the path there.
struct CameBy;

impl crate::elements::authorize::PathPolicy for CameBy {
    fn incoming(
        &self,
        path: &crate::api::connection::Path,
        peer: &crate::transport::Peer,
    ) -> Result<(), Status> {
        let before = crate::api::path::PathExt::previous(path).map(|segment| segment.name.as_str());
        let caller = peer.id.as_ref().map(|id| id.path().trim_start_matches('/').to_owned());
        match before == caller.as_deref() {
            true => Ok(()),
            false => Err(Status::permission_denied(format!("{before:?} is not {caller:?}"))),
        }
    }

    fn returned(&self, _: &crate::api::connection::Path, _: &crate::transport::Peer) -> Result<(), Status> {
        Ok(())
    }
}

#[tokio::test]
async fn a_refused_close_changes_nothing_and_a_reselection_by_another_hop_closes_what_was_there() {
    let (begin, probe) = (Arc::new(Begin::new(Binding::Off)), Arc::<Probe>::default());
    let elements: Vec<Arc<dyn Element>> = vec![
        Arc::new(Shared(Arc::clone(&begin))),
        Arc::new(crate::elements::Authorize::new(Arc::new(CameBy))),
        Arc::new(Arc::clone(&probe)),
    ];
    let f = Fixture { chain: Chain::new("nse", |_| elements), begin, probe };
    let by = |hop: &str| connection(&["nsc/nsc-0", &format!("{hop}/h"), "nse/e"]);
    f.ask("one", by("one")).await.unwrap();
    f.close("two", by("two")).await.unwrap_err();
    assert_eq!((f.probe.counts(), f.begin.len()), ((1, 0), 1), "refused, and still there");
    let mut again = by("two");
    again.set_state(ConnectionState::ReselectRequested);
    f.ask("thief", again.clone()).await.unwrap_err();
    assert_eq!((f.probe.counts(), f.begin.len()), ((1, 0), 1), "refused, and still there");
    f.ask("two", again).await.unwrap();
    assert_eq!((f.probe.counts(), f.begin.len()), ((2, 1), 1));
    let lease = f.begin.slots.lease("e".into());
    let slot = lease.turn(&call_by("two")).await.unwrap();
    assert_eq!(slot.as_ref().unwrap().state.get::<Seen>().unwrap().0, 1, "the state is the second's");
}
