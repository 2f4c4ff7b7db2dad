//! A session's task: the states of the module's table, one function each.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tonic::{Code, Status};
use vwire_proto::nsm::connection::{Connection, State};
use vwire_proto::nsm::connectioncontext::ConnectionContext;

use super::datapath::Alive;
use super::negotiate::{Aim, Negotiator, recovered};
use super::session::{Command, Heal, Phase, Reason, SessionStatus, Wanted};
use super::settings::ClientSettings;
use super::timing::{Backoff, call_time, refresh_delay, remaining_life};
use super::watch::{News, Subscription};

/// For so long after a success the next hop may still speak of what was before it.
const ECHO: Duration = Duration::from_millis(500);
/// How long bad news of that time are given to be followed by good news.
const SETTLE: Duration = Duration::from_millis(100);
/// How long a Close waits for a first Request that is under way: only its answer has the ids by which the hops can close.
const LAST_ANSWER: Duration = Duration::from_secs(3);
/// How long a lost next hop is waited for before Requests are tried all the same.
const MAX_LOST_WAIT: Duration = Duration::from_secs(15);

pub(super) struct Task {
    pub wanted: Wanted,
    pub negotiator: Negotiator,
    pub settings: ClientSettings,
    pub news: Subscription,
    pub commands: mpsc::UnboundedReceiver<Command>,
    pub status: watch::Sender<SessionStatus>,
    /// As last returned by the next hop, with its tokens.
    pub connection: Option<Connection>,
    /// How long the path's tokens live: at first ours, then what the last answer said.
    pub life: Option<Duration>,
    /// How long the last Request that succeeded had.
    pub asked_with: Duration,
    /// The context that the last Request that succeeded was built on.
    pub asked_context: Option<ConnectionContext>,
}

/// How a state ends.
enum Next {
    /// Requests are to be sent, because of this; `None`: there is no connection yet.
    Request(Option<Reason>),
    /// There is a connection.
    Up,
    /// The owner wants it closed.
    Close(Duration, Option<oneshot::Sender<Result<(), Status>>>),
}

/// What a command means for the state that it comes in.
enum Told {
    Again,
    Close(Duration, Option<oneshot::Sender<Result<(), Status>>>),
}

impl Task {
    pub async fn run(mut self) {
        let mut next = self.recover().await;
        loop {
            next = match next {
                Next::Request(reason) => self.request(reason).await,
                Next::Up => self.keep().await,
                Next::Close(time, done) => return self.close(time, done).await,
            };
        }
    }

    /// Recovering: what does the next hop know of us?
    async fn recover(&mut self) -> Next {
        let deadline = Instant::now() + self.settings.request_timeout;
        loop {
            tokio::select! {
                told = told(&mut self.commands, &mut self.wanted) => match told {
                    Told::Again => {}
                    Told::Close(time, done) => return Next::Close(time, done),
                },
                news = self.news.next() => match news {
                    News::Open(known) => {
                        self.connection =
                            known.and_then(|known| recovered(&self.negotiator.name, &self.wanted, *known));
                        if self.connection.is_some() {
                            tracing::info!("goes on with the connection of an earlier life");
                        }
                        return Next::Request(None);
                    }
                    News::Refused => return Next::Request(None),
                    News::State(_) | News::Lost => {}
                },
                () = tokio::time::sleep_until(deadline) => return Next::Request(None),
            }
        }
    }

    /// Requesting and Healing: Requests until one succeeds.
    async fn request(&mut self, reason: Option<Reason>) -> Next {
        let began = Instant::now();
        self.set(|status| {
            status.phase = if reason.is_some() { Phase::Healing } else { Phase::Requesting };
            status.healing = reason;
        });
        if let Some(reason) = reason {
            tracing::warn!(%reason, "heals");
        }
        let mut choice = Choice::new(reason, self.connection.is_some());
        if reason == Some(Reason::NextHopLost) {
            match self.wait_for_next_hop().await {
                Some(end) => return end,
                None => self.news.latest(),
            };
        }
        let mut backoff = Backoff::new(self.settings.first_retry, self.settings.last_retry);
        loop {
            let aim = choice.aim(self).await;
            let attempt = self.negotiate(aim);
            let answer = match self.while_open(attempt).await {
                Ok(answer) => answer,
                Err(close) => return close,
            };
            match answer {
                Ok(connection) => {
                    self.succeeded(connection);
                    if let Some(reason) = reason {
                        self.healed(reason, began.elapsed(), aim);
                    }
                    return Next::Up;
                }
                Err(status) => {
                    self.failed(&status, "Request");
                    if reason.is_some() {
                        self.count_heal(false, began.elapsed());
                    }
                    choice.failed(&status, self.connection.as_ref());
                }
            }
            if let Some(close) = self.pause(backoff.pause()).await {
                return close;
            }
        }
    }

    /// Waits until the lost next hop can be reached. `Some(Up)` if it knows the connection as healthy.
    async fn wait_for_next_hop(&mut self) -> Option<Next> {
        let deadline = Instant::now() + MAX_LOST_WAIT;
        loop {
            tokio::select! {
                told = told(&mut self.commands, &mut self.wanted) => match told {
                    Told::Again => {}
                    Told::Close(time, done) => return Some(Next::Close(time, done)),
                },
                news = self.news.next() => match news {
                    News::Open(Some(known)) if known.state() != State::Down => {
                        tracing::info!("the next hop is back and knows the connection");
                        self.set(|status| {
                            status.phase = Phase::Up;
                            status.healing = None;
                        });
                        return Some(Next::Up);
                    }
                    News::Open(_) | News::Refused => return None,
                    News::State(_) | News::Lost => {}
                },
                () = tokio::time::sleep_until(deadline) => return None,
            }
        }
    }

    /// Waits before the next attempt; that the next hop is back ends the wait.
    async fn pause(&mut self, pause: Duration) -> Option<Next> {
        let deadline = Instant::now() + pause;
        loop {
            tokio::select! {
                told = told(&mut self.commands, &mut self.wanted) => return match told {
                    Told::Again => None,
                    Told::Close(time, done) => Some(Next::Close(time, done)),
                },
                news = self.news.next() => if matches!(news, News::Open(_)) { return None },
                () = tokio::time::sleep_until(deadline) => return None,
            }
        }
    }

    /// Up: refreshes, listens, asks whether packets are answered.
    async fn keep(&mut self) -> Next {
        let since = Instant::now();
        let mut backoff = Backoff::new(self.settings.first_retry, self.settings.last_retry);
        let mut refresh = Refresh::Due(self.next_refresh());
        let mut dead = self.death();
        loop {
            tokio::select! {
                told = told(&mut self.commands, &mut self.wanted) => match told {
                    Told::Again => refresh = Refresh::Running(self.negotiate(Aim::Same)),
                    Told::Close(time, done) => return Next::Close(time, done),
                },
                news = self.news.next() => match news {
                    News::Lost => return Next::Request(Some(Reason::NextHopLost)),
                    News::State(State::Down) | News::Open(None) => {
                        if since.elapsed() >= ECHO || !self.was_an_echo().await {
                            return Next::Request(Some(Reason::Down));
                        }
                    }
                    News::State(State::RefreshRequested) if !refresh.is_running() => {
                        refresh = Refresh::Running(self.negotiate(Aim::Same));
                    }
                    News::Open(Some(_)) | News::Refused | News::State(_) => {}
                },
                () = &mut dead => return Next::Request(Some(Reason::DataPlane)),
                answer = refresh.turn() => match answer {
                    None => refresh = Refresh::Running(self.negotiate(Aim::Same)),
                    Some(Ok(connection)) => {
                        self.succeeded(connection);
                        backoff.reset();
                        refresh = Refresh::Due(self.next_refresh());
                        dead = self.death();
                    }
                    Some(Err(status)) => {
                        self.failed(&status, "refresh");
                        if self.is_expired() {
                            return Next::Request(Some(Reason::RefreshFailed));
                        }
                        refresh = Refresh::Due(Some(Instant::now() + backoff.pause()));
                    }
                },
            }
        }
    }

    /// Closing, and then Closed.
    async fn close(mut self, time: Duration, done: Option<oneshot::Sender<Result<(), Status>>>) {
        self.set(|status| status.phase = Phase::Closing);
        self.negotiator.datapath.closed().await;
        let answer = match self.connection.take() {
            Some(connection) => {
                let close = self.negotiator.upstream.close(connection, self.wanted.namespace.as_ref(), time);
                tokio::time::timeout(time, close).await.unwrap_or_else(|_| {
                    Err(Status::new(Code::DeadlineExceeded, format!("no answer to Close within {time:?}")))
                })
            }
            None => Ok(()),
        };
        if let Err(status) = &answer {
            tracing::warn!(error = %status.message(), "Close failed; what hops hold goes with our token's expiry");
        }
        self.negotiator.addresses.remove(&self.wanted.connection.id);
        self.set(|status| {
            status.phase = Phase::Closed;
            status.healing = None;
            status.refresh_at = None;
        });
        if let Some(done) = done {
            // Nobody may be waiting.
            let _ = done.send(answer);
        }
    }

    fn negotiate(&self, aim: Aim) -> BoxFuture<'static, Result<Connection, Status>> {
        let negotiator = Negotiator { time: self.call_time(), ..self.negotiator.clone() };
        let mut current = self.connection.clone();
        // What the former context brought is not for one who wants another.
        if let Some(current) =
            current.as_mut().filter(|_| self.asked_context != self.wanted.connection.context)
        {
            current.context.clone_from(&self.wanted.connection.context);
        }
        negotiator.run(self.wanted.clone(), current, aim).boxed()
    }

    /// Runs an attempt unless the session is closed. Changes are taken up by the next attempt.
    async fn while_open(
        &mut self,
        mut attempt: BoxFuture<'static, Result<Connection, Status>>,
    ) -> Result<Result<Connection, Status>, Next> {
        let mut changed = false;
        loop {
            tokio::select! {
                told = told(&mut self.commands, &mut self.wanted) => match told {
                    Told::Again => changed = true,
                    Told::Close(time, done) => {
                        if self.connection.is_none()
                            && let Ok(Ok(made)) = tokio::time::timeout(LAST_ANSWER.min(time), attempt).await
                        {
                            self.connection = Some(made);
                        }
                        return Err(Next::Close(time, done));
                    }
                },
                answer = &mut attempt => {
                    return match answer {
                        Ok(connection) if changed => {
                            self.connection = Some(connection);
                            changed = false;
                            attempt = self.negotiate(Aim::Same);
                            continue;
                        }
                        answer => Ok(answer),
                    };
                }
            }
        }
    }

    /// True if bad news is followed by good news at once: then it was about the time before the heal.
    async fn was_an_echo(&mut self) -> bool {
        let good = async {
            loop {
                if let News::State(State::Up) | News::Open(Some(_)) = self.news.next().await {
                    return;
                }
            }
        };
        tokio::time::timeout(SETTLE, good).await.is_ok()
    }

    /// Completes when the data plane is found dead.
    fn death(&self) -> BoxFuture<'static, ()> {
        let (Some(liveness), Some(connection)) = (self.settings.liveness, self.connection.clone()) else {
            return std::future::pending().boxed();
        };
        let datapath = Arc::clone(&self.negotiator.datapath);
        async move {
            loop {
                tokio::time::sleep(liveness.interval).await;
                let alive = tokio::time::timeout(liveness.timeout, datapath.alive(&connection)).await;
                if alive.unwrap_or(Alive::No) == Alive::No {
                    return;
                }
            }
        }
        .boxed()
    }

    async fn alive(&self) -> Alive {
        let (Some(liveness), Some(connection)) = (self.settings.liveness, &self.connection) else {
            return Alive::Unknown;
        };
        let check = self.negotiator.datapath.alive(connection);
        tokio::time::timeout(liveness.timeout, check).await.unwrap_or(Alive::No)
    }

    /// How long the next Request may take.
    fn call_time(&self) -> Duration {
        call_time(self.settings.request_timeout, self.life)
    }

    fn next_refresh(&self) -> Option<Instant> {
        let path = self.connection.as_ref()?.path.as_ref()?;
        Some(Instant::now() + refresh_delay(path, SystemTime::now(), self.asked_with)?)
    }

    fn is_expired(&self) -> bool {
        is_expired(self.connection.as_ref())
    }

    fn succeeded(&mut self, connection: Connection) {
        let mut shown = connection.clone();
        let path = shown.path.get_or_insert_default();
        // This Request had the time of what was known before.
        self.asked_with = self.call_time();
        self.life = remaining_life(path, SystemTime::now()).or(self.settings.token_life);
        let delay = refresh_delay(path, SystemTime::now(), self.asked_with);
        path.path_segments.iter_mut().for_each(|segment| segment.token.clear());
        self.connection = Some(connection);
        self.asked_context.clone_from(&self.wanted.connection.context);
        self.set(|status| {
            status.phase = Phase::Up;
            status.connection = Some(shown);
            status.requests += 1;
            status.refresh_at = delay.map(|delay| SystemTime::now() + delay);
            status.healing = None;
        });
    }

    fn healed(&mut self, reason: Reason, took: Duration, aim: Aim) {
        self.count_heal(true, took);
        tracing::info!(%reason, ?took, reselected = aim == Aim::Reselect, "healed");
        self.set(|status| {
            let at = SystemTime::now();
            status.last_heal = Some(Heal { at, reason, took, reselected: aim == Aim::Reselect });
            status.heals += 1;
        });
    }

    fn count_heal(&self, ok: bool, took: Duration) {
        if let Some(metrics) = &self.settings.metrics {
            metrics.healed(ok, took);
        }
    }

    fn failed(&mut self, status: &Status, what: &str) {
        tracing::warn!(code = ?status.code(), error = %status.message(), "{what} failed");
        let error = (SystemTime::now(), status.clone());
        self.set(|status| status.last_error = Some(error));
    }

    fn set(&self, change: impl FnOnce(&mut SessionStatus)) {
        self.status.send_modify(change);
    }
}

fn is_expired(connection: Option<&Connection>) -> bool {
    let life = connection.and_then(|c| remaining_life(c.path.as_ref()?, SystemTime::now()));
    life.is_some_and(|life| life.is_zero())
}

/// Waits for a command, and does what needs no state.
async fn told(commands: &mut mpsc::UnboundedReceiver<Command>, wanted: &mut Wanted) -> Told {
    match commands.recv().await {
        Some(Command::Refresh) => Told::Again,
        Some(Command::Change(change)) => {
            let id = wanted.connection.id.clone();
            change(wanted);
            wanted.connection.id = id;
            Told::Again
        }
        Some(Command::Close(time, done)) => Told::Close(time, Some(done)),
        None => Told::Close(Duration::from_secs(5), None),
    }
}

/// The refresh of a connection that is up.
enum Refresh {
    Due(Option<Instant>),
    Running(BoxFuture<'static, Result<Connection, Status>>),
}

impl Refresh {
    fn is_running(&self) -> bool {
        matches!(self, Self::Running(_))
    }

    /// Waits until it is time (`None`), or for the answer.
    async fn turn(&mut self) -> Option<Result<Connection, Status>> {
        match self {
            Self::Due(Some(at)) => {
                tokio::time::sleep_until(*at).await;
                None
            }
            Self::Due(None) => std::future::pending().await,
            Self::Running(answer) => Some(answer.await),
        }
    }
}

/// Whether an attempt keeps the endpoint.
struct Choice {
    reason: Option<Reason>,
    /// Once decided it stays: an endpoint that has been given up is not gone back to.
    reselect: bool,
    /// There is a connection that was up, or was recovered.
    known: bool,
    refused: bool,
}

impl Choice {
    fn new(reason: Option<Reason>, known: bool) -> Self {
        Self { reason, reselect: reason == Some(Reason::DataPlane), known, refused: false }
    }

    async fn aim(&mut self, task: &Task) -> Aim {
        if !self.known {
            return Aim::Same;
        }
        if !self.reselect {
            self.reselect = match (task.alive().await, self.reason) {
                (Alive::Yes, _) => false,
                // A recovered connection may have an interface whose far end is long gone.
                (Alive::No, _) => self.reason.is_some() || self.refused || is_down(task.connection.as_ref()),
                (Alive::Unknown, Some(Reason::Down | Reason::DataPlane)) => true,
                (Alive::Unknown, Some(Reason::NextHopLost | Reason::RefreshFailed) | None) => self.refused,
            };
        }
        if self.reselect { Aim::Reselect } else { Aim::Same }
    }

    /// A refusal by a hop further on says that the same can't be had; one that never reached a hop says nothing.
    fn failed(&mut self, status: &Status, current: Option<&Connection>) {
        let reached = !matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled);
        self.refused |= reached || is_expired(current);
    }
}

fn is_down(connection: Option<&Connection>) -> bool {
    connection.is_some_and(|connection| connection.state() == State::Down)
}
