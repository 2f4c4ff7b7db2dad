//! The state machine against a scripted next hop, with time that passes as fast as nothing happens.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tonic::Status;
use vwire_proto::nsm::connection::{
    Connection, ConnectionEvent, ConnectionEventType, Mechanism, MonitorScopeSelector, PathSegment, State,
};
use vwire_proto::nsm::connectioncontext::IpContext;
use vwire_proto::nsm::networkservice::NetworkServiceRequest;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// What the next hop does with a Request.
enum Reply {
    /// Grants it after this time.
    Grant(Duration),
    Refuse(Status),
    /// Never answers.
    Hang,
}

#[derive(Default)]
struct Script {
    requests: Vec<(Instant, NetworkServiceRequest)>,
    closes: Vec<(Instant, Connection)>,
    replies: VecDeque<Reply>,
    /// When the replies are used up; `None` grants.
    always: Option<Status>,
    close_hangs: bool,
    streams: usize,
    stream: Option<mpsc::UnboundedSender<Result<ConnectionEvent, Status>>>,
    /// No stream is given; UNAVAILABLE: the next hop is away.
    no_stream: Option<Status>,
    /// What a new stream tells.
    known: Vec<Connection>,
    /// The source address that is assigned unless it is excluded.
    address: Option<String>,
    address_is_stubborn: bool,
    token_life: Option<Duration>,
}

#[derive(Clone, Default)]
struct Hop(Arc<Mutex<Script>>);

impl Hop {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.0.lock().unwrap()
    }

    fn requests(&self) -> usize {
        self.script().requests.len()
    }

    fn last(&self) -> Connection {
        self.script().requests.last().unwrap().1.connection.clone().unwrap()
    }

    fn tell(&self, r#type: ConnectionEventType, state: State) {
        let script = self.script();
        let mut connection = script.requests.last().map(|(_, r)| grant(r, &script)).unwrap();
        drop(script);
        as_the_hop_sees_it(&mut connection);
        connection.set_state(state);
        self.send(event(r#type, [connection]));
    }

    fn send(&self, event: ConnectionEvent) {
        self.script().stream.as_ref().unwrap().send(Ok(event)).unwrap();
    }

    fn break_stream(&self) {
        self.script().stream = None;
    }
}

fn event(r#type: ConnectionEventType, connections: impl IntoIterator<Item = Connection>) -> ConnectionEvent {
    let connections = connections.into_iter().map(|c| (c.id.clone(), c)).collect();
    ConnectionEvent { r#type: r#type as i32, connections }
}

fn as_the_hop_sees_it(connection: &mut Connection) {
    connection.id = "hop-id".into();
    connection.path.as_mut().unwrap().index = 1;
}

fn grant(request: &NetworkServiceRequest, script: &Script) -> Connection {
    let mut connection = request.connection.clone().unwrap();
    connection.mechanism.get_or_insert_with(|| request.mechanism_preferences[0].clone());
    connection.network_service_endpoint_name = "nse".into();
    connection.set_state(State::Up);
    let path = connection.path.as_mut().unwrap();
    path.path_segments.truncate(1);
    path.path_segments.push(PathSegment { name: "hop".into(), id: "hop-id".into(), ..Default::default() });
    let end = SystemTime::now() + script.token_life.unwrap_or(600 * SECOND);
    path.path_segments.iter_mut().for_each(|segment| {
        segment.expires = Some(end.into());
        segment.token = "secret".into();
    });
    if let Some(address) = &script.address {
        let context = connection.context.get_or_insert_default().ip_context.get_or_insert_default();
        let excluded = context.excluded_prefixes.contains(address) && !script.address_is_stubborn;
        context.src_ip_addrs = vec![if excluded { "10.9.9.9/32".into() } else { address.clone() }];
    }
    connection
}

#[async_trait]
impl Upstream for Hop {
    async fn request(
        &self,
        request: NetworkServiceRequest,
        _: Option<&Namespace>,
        _: Duration,
    ) -> Result<Connection, Status> {
        let reply = {
            let mut script = self.script();
            script.requests.push((Instant::now(), request.clone()));
            script.replies.pop_front().unwrap_or_else(|| match script.always.clone() {
                Some(status) => Reply::Refuse(status),
                None => Reply::Grant(Duration::ZERO),
            })
        };
        match reply {
            Reply::Grant(after) => {
                sleep(after).await;
                Ok(grant(&request, &self.script()))
            }
            Reply::Refuse(status) => Err(status),
            Reply::Hang => std::future::pending().await,
        }
    }

    async fn close(&self, connection: Connection, _: Option<&Namespace>, _: Duration) -> Result<(), Status> {
        self.script().closes.push((Instant::now(), connection));
        if self.script().close_hangs {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    async fn monitor(
        &self,
        selector: MonitorScopeSelector,
    ) -> Result<BoxStream<'static, Result<ConnectionEvent, Status>>, Status> {
        let [segment] = selector.path_segments.as_slice() else { panic!("one segment") };
        assert_eq!((segment.name.as_str(), segment.id.as_str()), ("nsc", ""));
        let mut script = self.script();
        if let Some(status) = &script.no_stream {
            return Err(status.clone());
        }
        script.streams += 1;
        let (sender, receiver) = mpsc::unbounded_channel();
        sender.send(Ok(event(ConnectionEventType::InitialStateTransfer, script.known.clone()))).unwrap();
        script.stream = Some(sender);
        Ok(tokio_stream::wrappers::UnboundedReceiverStream::new(receiver).boxed())
    }
}

/// A data plane that says what it is told to say.
#[derive(Clone)]
struct Packets(Arc<Mutex<(Option<Alive>, Vec<&'static str>)>>);

impl Packets {
    fn new(alive: Alive) -> Self {
        Self(Arc::new(Mutex::new((Some(alive), vec![]))))
    }

    fn set(&self, alive: Option<Alive>) {
        self.0.lock().unwrap().0 = alive;
    }
}

#[async_trait]
impl DataPath for Packets {
    async fn connected(&self, _: &Connection) {
        self.0.lock().unwrap().1.push("connected");
    }

    async fn closed(&self) {
        self.0.lock().unwrap().1.push("closed");
    }

    async fn alive(&self, _: &Connection) -> Alive {
        let alive = self.0.lock().unwrap().0;
        match alive {
            Some(alive) => alive,
            None => std::future::pending().await,
        }
    }
}

fn wanted(id: &str) -> Wanted {
    let preference = Mechanism { cls: "LOCAL".into(), r#type: "KERNEL".into(), ..Default::default() };
    let connection = Connection { id: id.into(), network_service: "svc".into(), ..Default::default() };
    Wanted { connection, preferences: vec![preference], ..Default::default() }
}

fn client(hop: &Hop) -> Client {
    Client::new("nsc", Arc::new(hop.clone()), ClientSettings::default())
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if condition() {
            return;
        }
        sleep(MS).await;
    }
    panic!("not within 100 s of its time: {what}");
}

async fn heals(session: &Session, count: u64) -> Heal {
    let mut status = session.status();
    status.wait_for(|s| s.heals == count && s.phase == Phase::Up).await.unwrap().last_heal.clone().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_refreshed_at_a_fifth_of_its_tokens_life_and_closed() {
    let hop = Hop::default();
    let client = client(&hop);
    let session = client.open(wanted("nsc-0"), Arc::new(Elsewhere));
    let connection = session.up().await.unwrap();
    assert_eq!((connection.id.as_str(), connection.network_service_endpoint_name.as_str()), ("nsc-0", "nse"));
    let path = connection.path.unwrap();
    assert!(path.path_segments.iter().all(|segment| segment.token.is_empty()), "no token is shown");
    sleep(3600 * SECOND).await;
    let times: Vec<Instant> = hop.script().requests.iter().map(|(at, _)| *at).collect();
    for pair in times.windows(2) {
        let gap = (pair[1] - pair[0]).as_secs_f64();
        assert!((118.0..=122.0).contains(&gap), "{gap}");
    }
    assert!((30..=32).contains(&times.len()), "{}", times.len());
    assert_eq!(hop.last().path.unwrap().path_segments[1].token, "secret", "the next hop gets what it gave");
    let status = session.status();
    assert_eq!((status.borrow().heals, status.borrow().requests), (0, times.len() as u64));
    session.close(SECOND).await.unwrap();
    assert_eq!(status.borrow().phase, Phase::Closed);
    assert_eq!(hop.script().closes.len(), 1);
    let told = hop.script().closes[0].1.clone();
    assert_eq!((told.id.as_str(), told.path.unwrap().path_segments.len()), ("nsc-0", 2));
}

#[tokio::test(start_paused = true)]
async fn tokens_of_seconds_and_dead_tokens_make_no_busy_loop() {
    for (life, most) in [(2 * SECOND, 27), (Duration::ZERO, 101)] {
        let hop = Hop::default();
        hop.script().token_life = Some(life);
        let client = client(&hop);
        let session = client.open(wanted("nsc-0"), Arc::new(Elsewhere));
        sleep(10 * SECOND).await;
        let count = hop.requests();
        assert!((20..=most).contains(&count), "{count} Requests in 10 s with tokens of {life:?}");
        session.close(SECOND).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn failures_are_repeated_with_growing_pauses_and_told() {
    let hop = Hop::default();
    hop.script().always = Some(Status::not_found("no endpoint of `svc` matches"));
    let client = client(&hop);
    let session = client.open(wanted("nsc-0"), Arc::new(Elsewhere));
    sleep(20 * SECOND).await;
    let count = hop.requests();
    assert!((15..50).contains(&count), "{count} Requests in 20 s");
    let error = session.status().borrow().last_error.clone().unwrap().1;
    assert_eq!(error.message(), "no endpoint of `svc` matches");
    hop.script().always = None;
    session.up().await.unwrap();
    assert!(session.status().borrow().last_error.is_some(), "the last error stays to be seen");
    assert_eq!(session.status().borrow().heals, 0, "a first success is no heal");
    session.close(SECOND).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn down_is_healed_with_the_same_endpoint_while_packets_are_answered() {
    let hop = Hop::default();
    let client = client(&hop);
    let packets = Packets::new(Alive::Yes);
    let session = client.open(wanted("nsc-0"), Arc::new(packets.clone()));
    session.up().await.unwrap();
    sleep(2 * SECOND).await;
    hop.script().replies.extend((0..5).map(|_| Reply::Refuse(Status::unavailable("endpoint is away"))));
    hop.tell(ConnectionEventType::Update, State::Down);
    let heal = heals(&session, 1).await;
    assert_eq!((heal.reason, heal.reselected), (Reason::Down, false));
    assert_eq!(hop.requests(), 7);
    for (_, request) in &hop.script().requests {
        let connection = request.connection.as_ref().unwrap();
        assert_ne!(
            connection.state(),
            State::ReselectRequested,
            "the endpoint answers, nobody moves away from it"
        );
    }
    assert!(hop.script().closes.is_empty());
    session.close(SECOND).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn down_chooses_another_endpoint_if_packets_are_not_answered_or_nobody_knows() {
    for (alive, r#type) in
        [(Alive::No, ConnectionEventType::Update), (Alive::Unknown, ConnectionEventType::Delete)]
    {
        let hop = Hop::default();
        let client = Client::new(
            "nsc",
            Arc::new(hop.clone()),
            // The event is to be noticed, not the silence.
            ClientSettings {
                liveness: Some(LivenessSettings { interval: 3600 * SECOND, timeout: SECOND }),
                ..Default::default()
            },
        );
        let session = client.open(wanted("nsc-0"), Arc::new(Packets::new(alive)));
        session.up().await.unwrap();
        sleep(2 * SECOND).await;
        hop.tell(r#type, State::Down);
        let heal = heals(&session, 1).await;
        assert_eq!((heal.reason, heal.reselected), (Reason::Down, true));
        let sent = hop.last();
        assert_eq!((sent.state(), sent.mechanism), (State::ReselectRequested, None));
        assert_eq!((sent.network_service_endpoint_name.as_str(), sent.id.as_str()), ("", "nsc-0"));
        session.close(SECOND).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_next_hop_says_of_the_time_before_a_heal_does_not_heal_again() {
    let hop = Hop::default();
    let client = client(&hop);
    let session = client.open(wanted("nsc-0"), Arc::new(Elsewhere));
    session.up().await.unwrap();
    sleep(2 * SECOND).await;
    hop.tell(ConnectionEventType::Update, State::Down);
    heals(&session, 1).await;
    // As a server's reselect looks from outside: it closes what was, and makes it anew.
    hop.tell(ConnectionEventType::Delete, State::Up);
    hop.tell(ConnectionEventType::Update, State::Up);
    sleep(5 * SECOND).await;
    assert_eq!(session.status().borrow().heals, 1);
    session.close(SECOND).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_dead_or_stalled_data_plane_is_noticed_and_left() {
    for silence in [Some(Alive::No), None] {
        let hop = Hop::default();
        let client = client(&hop);
        let packets = Packets::new(Alive::Yes);
        let session = client.open(wanted("nsc-0"), Arc::new(packets.clone()));
        session.up().await.unwrap();
        sleep(60 * SECOND).await;
        assert_eq!(hop.requests(), 1);
        let before = Instant::now();
        packets.set(silence);
        until("a Request", || hop.requests() == 2).await;
        assert!(before.elapsed() < 2 * SECOND, "{:?}", before.elapsed());
        packets.set(Some(Alive::Yes));
        let heal = heals(&session, 1).await;
        assert_eq!((heal.reason, heal.reselected), (Reason::DataPlane, true));
        session.close(SECOND).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_refresh_does_not_hide_a_dead_data_plane() {
    let hop = Hop::default();
    let client = client(&hop);
    let packets = Packets::new(Alive::Yes);
    let session = client.open(wanted("nsc-0"), Arc::new(packets.clone()));
    session.up().await.unwrap();
    hop.script().replies.push_back(Reply::Hang);
    session.refresh();
    until("the refresh", || hop.requests() == 2).await;
    packets.set(Some(Alive::No));
    let before = Instant::now();
    until("the heal", || hop.requests() == 3).await;
    assert!(before.elapsed() < SECOND);
    session.close(SECOND).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_next_hop_that_comes_back_without_memory_gets_the_connection_again() {
    let hop = Hop::default();
    let client = client(&hop);
    let session = client.open(wanted("nsc-0"), Arc::new(Packets::new(Alive::Yes)));
    session.up().await.unwrap();
    hop.script().no_stream = Some(Status::unavailable("away"));
    hop.script().always = Some(Status::unavailable("away"));
    hop.break_stream();
    sleep(10 * SECOND).await;
    assert_eq!(session.status().borrow().healing, Some(Reason::NextHopLost));
    assert_eq!(hop.requests(), 1, "nobody is asked who is away");
    hop.script().always = None;
    hop.script().no_stream = None;
    let back = Instant::now();
    let heal = heals(&session, 1).await;
    assert!(back.elapsed() <= SECOND, "{:?}", back.elapsed());
    assert_eq!((heal.reason, heal.reselected), (Reason::NextHopLost, false));
    assert_eq!((hop.requests(), hop.last().network_service_endpoint_name.as_str()), (2, "nse"));
    session.close(SECOND).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_only_hiccuped_changes_nothing() {
    let hop = Hop::default();
    let client = client(&hop);
    let session = client.open(wanted("nsc-0"), Arc::new(Packets::new(Alive::Yes)));
    session.up().await.unwrap();
    let first = hop.script().requests[0].1.clone();
    let mut known = grant(&first, &hop.script());
    as_the_hop_sees_it(&mut known);
    hop.script().known = vec![known];
    hop.break_stream();
    until("the second stream", || hop.script().streams == 2).await;
    sleep(5 * SECOND).await;
    assert_eq!((hop.requests(), session.status().borrow().phase), (1, Phase::Up));
    session.close(SECOND).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_next_hop_that_refuses_to_be_watched_is_used_all_the_same() {
    let hop = Hop::default();
    hop.script().no_stream = Some(Status::permission_denied("no"));
    let client = client(&hop);
    let before = Instant::now();
    let session = client.open(wanted("nsc-0"), Arc::new(Elsewhere));
    session.up().await.unwrap();
    assert!(before.elapsed() < SECOND);
    sleep(600 * SECOND).await;
    assert!((5..=7).contains(&hop.requests()), "{}: refreshes only", hop.requests());
    session.close(SECOND).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_connection_of_an_earlier_life_is_gone_on_with() {
    let hop = Hop::default();
    let first = build_request("nsc-0");
    let mut known = grant(&first, &hop.script());
    as_the_hop_sees_it(&mut known);
    let mut other = known.clone();
    other.id = "other".into();
    other.path.as_mut().unwrap().path_segments[0].id = "nsc-1".into();
    hop.script().known = vec![other, known];
    let client = client(&hop);
    let session = client.open(wanted("nsc-0"), Arc::new(Packets::new(Alive::Yes)));
    session.up().await.unwrap();
    let sent = hop.last();
    assert_eq!((sent.id.as_str(), sent.network_service_endpoint_name.as_str()), ("nsc-0", "nse"));
    let path = sent.path.unwrap();
    assert_eq!((path.index, path.path_segments[1].id.as_str()), (0, "hop-id"));
    assert_eq!(sent.mechanism.unwrap().r#type, "KERNEL");
    // A session that is opened later finds its own, too.
    let late = client.open(wanted("nsc-1"), Arc::new(Packets::new(Alive::Yes)));
    late.up().await.unwrap();
    assert_eq!(hop.last().path.unwrap().path_segments.len(), 2);
    late.close(SECOND).await.unwrap();
    session.close(SECOND).await.unwrap();
}

fn build_request(id: &str) -> NetworkServiceRequest {
    negotiate::build("nsc", &wanted(id), None, negotiate::Aim::Same)
}

#[tokio::test(start_paused = true)]
async fn the_next_hop_may_ask_for_a_refresh() {
    let hop = Hop::default();
    let client = client(&hop);
    let session = client.open(wanted("nsc-0"), Arc::new(Elsewhere));
    session.up().await.unwrap();
    sleep(2 * SECOND).await;
    hop.tell(ConnectionEventType::Update, State::RefreshRequested);
    until("the refresh", || hop.requests() == 2).await;
    sleep(5 * SECOND).await;
    assert_eq!((hop.requests(), session.status().borrow().heals), (2, 0));
    assert_eq!(hop.last().state(), State::Up);
    session.close(SECOND).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_first_request_that_is_under_way_is_waited_for_and_closed() {
    let hop = Hop::default();
    hop.script().replies.push_back(Reply::Grant(SECOND));
    let client = client(&hop);
    let session = client.open(wanted("nsc-0"), Arc::new(Elsewhere));
    until("the Request", || hop.requests() == 1).await;
    session.close(5 * SECOND).await.unwrap();
    let script = hop.script();
    assert_eq!((script.requests.len(), script.closes.len()), (1, 1));
    assert_eq!(script.closes[0].1.path.as_ref().unwrap().path_segments.len(), 2, "with the next hop's id");
}

#[tokio::test(start_paused = true)]
async fn close_ends_a_heal_at_once_and_a_next_hop_that_hangs_in_time() {
    let hop = Hop::default();
    let client = client(&hop);
    let packets = Packets::new(Alive::Yes);
    let session = client.open(wanted("nsc-0"), Arc::new(packets.clone()));
    session.up().await.unwrap();
    hop.script().replies.push_back(Reply::Hang);
    packets.set(Some(Alive::No));
    until("the heal", || hop.requests() == 2).await;
    let before = Instant::now();
    session.close(5 * SECOND).await.unwrap();
    assert!(before.elapsed() < 10 * MS, "{:?}", before.elapsed());
    assert_eq!(hop.script().closes.len(), 1);
    assert_eq!(packets.0.lock().unwrap().1, ["connected", "closed"]);

    let session = client.open(wanted("nsc-1"), Arc::new(Elsewhere));
    session.up().await.unwrap();
    hop.script().close_hangs = true;
    let before = Instant::now();
    let error = session.close(4 * SECOND).await.unwrap_err();
    assert_eq!((error.code(), before.elapsed().as_secs()), (tonic::Code::DeadlineExceeded, 4));

    hop.script().replies.push_back(Reply::Hang);
    let session = client.open(wanted("nsc-2"), Arc::new(Elsewhere));
    until("the Request", || hop.requests() == 4).await;
    let before = Instant::now();
    session.close(5 * SECOND).await.unwrap();
    assert!(before.elapsed() <= 4 * SECOND, "{:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_dropped_is_closed() {
    let hop = Hop::default();
    let client = client(&hop);
    let session = client.open(wanted("nsc-0"), Arc::new(Elsewhere));
    session.up().await.unwrap();
    drop(session);
    until("the Close", || hop.script().closes.len() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn sessions_that_ask_at_once_end_with_different_addresses() {
    let hop = Hop::default();
    hop.script().address = Some("10.0.0.1/32".into());
    hop.script().replies.extend([Reply::Grant(SECOND), Reply::Grant(SECOND)]);
    let client = client(&hop);
    let one = client.open(wanted("nsc-0"), Arc::new(Elsewhere));
    let two = client.open(wanted("nsc-1"), Arc::new(Elsewhere));
    let source = |c: Connection| c.context.unwrap().ip_context.unwrap().src_ip_addrs;
    let mut both = [source(one.up().await.unwrap()), source(two.up().await.unwrap())].concat();
    both.sort();
    assert_eq!(both, ["10.0.0.1/32", "10.9.9.9/32"]);
    assert_eq!(hop.requests(), 3);
    let kept =
        |c: &Connection| c.context.as_ref().unwrap().ip_context.as_ref().unwrap().excluded_prefixes.clone();
    assert_eq!(kept(&two.up().await.unwrap()), [""; 0], "what was excluded is no part of the connection");
    one.close(SECOND).await.unwrap();
    two.close(SECOND).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_insists_on_a_clashing_address_is_left() {
    let hop = Hop::default();
    hop.script().address = Some("10.0.0.1/32".into());
    hop.script().address_is_stubborn = true;
    let client = client(&hop);
    let one = client.open(wanted("nsc-0"), Arc::new(Elsewhere));
    one.up().await.unwrap();
    let two = client.open(wanted("nsc-1"), Arc::new(Elsewhere));
    let mut status = two.status();
    let error = status.wait_for(|s| s.last_error.is_some()).await.unwrap().last_error.clone().unwrap().1;
    assert!(error.message().contains("10.0.0.1") && error.message().contains("nsc-0"), "{error}");
    assert_eq!(hop.script().closes[0].1.id, "nsc-1");
    two.close(SECOND).await.unwrap();
    let together = |id: &str| Wanted { awareness_group: Some(1), ..wanted(id) };
    let three = client.open(together("nsc-3"), Arc::new(Elsewhere));
    assert!(tokio::time::timeout(5 * SECOND, three.up()).await.is_err(), "nsc-0 is of no group");
    one.close(SECOND).await.unwrap();
    three.up().await.unwrap();
    let four = client.open(together("nsc-4"), Arc::new(Elsewhere));
    four.up().await.unwrap();
    three.close(SECOND).await.unwrap();
    four.close(SECOND).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_change_is_requested_on_the_same_connection() {
    let hop = Hop::default();
    let client = client(&hop);
    let session = client.open(wanted("nsc-0"), Arc::new(Elsewhere));
    session.up().await.unwrap();
    session.change(|wanted| {
        wanted.connection.id = "another".into();
        wanted.connection.labels.insert("version".into(), "v2".into());
    });
    until("the Request", || hop.requests() == 2).await;
    assert_eq!((hop.last().labels["version"].as_str(), hop.last().id.as_str()), ("v2", "nsc-0"));
    session.close(SECOND).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_ours_is_an_error_and_closed() {
    struct Liar(Hop);
    #[async_trait]
    impl Upstream for Liar {
        async fn request(
            &self,
            request: NetworkServiceRequest,
            namespace: Option<&Namespace>,
            time: Duration,
        ) -> Result<Connection, Status> {
            let mut connection = self.0.request(request, namespace, time).await?;
            connection.id = "victim".into();
            connection.context.get_or_insert_default().ip_context = Some(IpContext::default());
            Ok(connection)
        }
        async fn close(&self, c: Connection, n: Option<&Namespace>, t: Duration) -> Result<(), Status> {
            self.0.close(c, n, t).await
        }
        async fn monitor(
            &self,
            selector: MonitorScopeSelector,
        ) -> Result<BoxStream<'static, Result<ConnectionEvent, Status>>, Status> {
            self.0.monitor(selector).await
        }
    }
    let hop = Hop::default();
    let client = Client::new("nsc", Arc::new(Liar(hop.clone())), ClientSettings::default());
    let session = client.open(wanted("nsc-0"), Arc::new(Elsewhere));
    let mut status = session.status();
    let error = status.wait_for(|s| s.last_error.is_some()).await.unwrap().last_error.clone().unwrap().1;
    assert!(error.message().contains("connection.id"), "{error}");
    assert!(!hop.script().closes.is_empty());
    session.close(SECOND).await.unwrap();
}
