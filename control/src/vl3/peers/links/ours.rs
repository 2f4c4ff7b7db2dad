//! Links that we dial: their sessions, what the peers answered, and their ports in the network.

use std::net::IpAddr;

use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;
use vwire_proto::nsm::connection::Connection;

use super::Links;
use crate::client::{Session, SessionStatus};
use crate::dataplane::wanted::short;
use crate::domain;
use crate::vl3::peers::announced::Announced;
use crate::vl3::peers::ports::Leg;

/// A link that we dialled.
pub(super) struct Ours {
    pub session: Option<Session>,
    pub status: watch::Receiver<SessionStatus>,
    /// What was last announced and admitted, and the leg that leads there.
    pub leg: Option<(Announced, Leg)>,
    pub attached: bool,
    /// Packets were not answered.
    pub suspect: bool,
    pub error: Option<String>,
}

impl Links {
    pub fn opened(&self, peer: &str, session: Session) {
        let status = session.status();
        let ours =
            Ours { session: Some(session), status, leg: None, attached: false, suspect: false, error: None };
        self.lock().ours.insert(peer.to_owned(), ours);
    }

    /// Runs `with` on each of our sessions.
    pub fn each_session(&self, mut with: impl FnMut(&Session)) {
        self.lock().ours.values().filter_map(|ours| ours.session.as_ref()).for_each(&mut with);
    }

    /// Gives up one of our links; its session is to be closed, and then [`hung_up`](Self::hung_up) told.
    pub fn give_up(&self, peer: &str) -> Option<Session> {
        self.lock().ours.get_mut(peer)?.session.take()
    }

    pub fn hung_up(&self, peer: &str) {
        let mut state = self.lock();
        state.ours.remove(peer);
        state.pairing.hung_up(peer, Instant::now());
        drop(state);
        self.changed.notify_one();
    }

    /// All that we dialled.
    pub fn dialled(&self) -> Vec<String> {
        self.lock().ours.keys().cloned().collect()
    }

    /// The name of our port to a peer.
    pub fn port_of(&self, peer: &str) -> String {
        format!("to.{}", short(peer))
    }

    /// Whether what a peer said of itself in an answer may be so.
    ///
    /// # Errors
    /// FAILED_PRECONDITION that names the peer and the route.
    pub fn judge_answer(&self, peer: &str, connection: &Connection) -> Result<(), Status> {
        let mut state = self.lock();
        let said = Announced::in_answer(connection, &state.own.network);
        let judged = self.judge(&state, peer, None, &said);
        match judged {
            Ok(_) => Ok(()),
            Err(refused) => {
                state.refused += 1;
                let text = format!("peer {peer}: {refused}; it is not linked");
                if let Some(ours) = state.ours.get_mut(peer) {
                    ours.error = Some(text.clone());
                }
                Err(Status::failed_precondition(text))
            }
        }
    }

    /// Our link to a peer was made or refreshed: what it leads to. Then [`attach`](Self::attach) is to be called.
    pub fn answered(&self, peer: &str, connection: &Connection, socket: String, mtu: u32) {
        let mut state = self.lock();
        let said = Announced::in_answer(connection, &state.own.network);
        let Ok(routes) = self.judge(&state, peer, None, &said) else { return };
        let leg = Leg { socket, mtu, routes, via: said.addresses.clone() };
        if let Some(ours) = state.ours.get_mut(peer) {
            // Also what was attached like this is looked at again: its link may be down.
            ours.attached = false;
            ours.leg = Some((said, leg));
        }
    }

    /// The packets of our link to a peer are not answered: whatever its port looks like, it is made anew with the next answer.
    pub fn suspect(&self, peer: &str) {
        if let Some(ours) = self.lock().ours.get_mut(peer) {
            ours.suspect = true;
        }
    }

    /// Puts our link to a peer into the network, unless it is there, or theirs is.
    pub async fn attach(&self, peer: &str) {
        let Some(leg) = self.leg_to_attach(peer) else { return };
        let suspect = self.lock().ours.get_mut(peer).is_some_and(|ours| std::mem::take(&mut ours.suspect));
        if suspect && let Err(status) = self.ports.detach(&self.port_of(peer)).await {
            tracing::warn!(peer, error = %status.message(), "removing a peer's port");
        }
        let attached = self.ports.attach(&self.port_of(peer), &leg).await;
        let mut state = self.lock();
        let Some(ours) = state.ours.get_mut(peer) else { return };
        match attached {
            Ok(()) if ours.leg.as_ref().is_some_and(|(_, wanted)| *wanted == leg) => {
                (ours.attached, ours.error) = (true, None);
                state.turned_away.remove(domain::target(peer));
                tracing::debug!(peer, routes = ?leg.routes, "a link of ours to a peer");
            }
            Ok(()) => {}
            Err(status) => {
                let text = status.message().to_owned();
                if ours.error.as_ref() != Some(&text) {
                    tracing::warn!(peer, error = text, "a peer's routes are not set; trying on");
                }
                ours.error = Some(text);
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    fn leg_to_attach(&self, peer: &str) -> Option<Leg> {
        let state = self.lock();
        let ours = state.ours.get(peer).filter(|ours| ours.session.is_some() && !ours.attached)?;
        let leg = ours.leg.as_ref()?.1.clone();
        // While theirs has the routes, or is about to, ours waits.
        state.their_links(peer).next().is_none().then_some(leg)
    }

    /// Links of ours whose routes could not be set yet.
    pub fn waiting(&self) -> Vec<String> {
        let state = self.lock();
        let waits =
            |(_, ours): &(&String, &Ours)| ours.leg.is_some() && !ours.attached && ours.session.is_some();
        state.ours.iter().filter(waits).map(|(peer, _)| peer.clone()).collect()
    }

    /// Takes our link to a peer out of the network. It comes back if it stays open and there is no other.
    pub async fn detach(&self, peer: &str) {
        if let Some(ours) = self.lock().ours.get_mut(peer) {
            ours.attached = false;
        }
        if let Err(status) = self.ports.detach(&self.port_of(peer)).await {
            tracing::warn!(peer, error = %status.message(), "removing a peer's port");
        }
    }

    /// The addresses of a peer that we dialled, if our link is in the network.
    pub fn addresses_of(&self, peer: &str) -> Vec<IpAddr> {
        let state = self.lock();
        let ours = state.ours.get(peer).filter(|ours| ours.attached).and_then(|ours| ours.leg.as_ref());
        ours.map(|(said, _)| said.addresses.clone()).unwrap_or_default()
    }

    /// Connections that we dialled, as last answered.
    pub fn connections(&self) -> Vec<Connection> {
        let state = self.lock();
        state.ours.values().filter_map(|ours| ours.status.borrow().connection.clone()).collect()
    }
}
