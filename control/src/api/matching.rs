//! Which endpoints may serve a client, and why the others may not.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use super::labels::{self, Labels, satisfies};
use super::registry::{Match, NetworkService, NetworkServiceEndpoint};
use crate::transport::SharedFd;

/// An endpoint that may serve a client.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// As registered.
    pub endpoint: Arc<NetworkServiceEndpoint>,
    /// Its share of new connections against the other candidates; all zero means equal shares.
    pub weight: u32,
    /// The socket's file, where the URL is `inode://`.
    pub socket: Option<SharedFd>,
}

/// A candidate by its place in the list that was matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    /// The place.
    pub index: usize,
    /// The weight of the route that chose it.
    pub weight: u32,
}

/// What came of one of a network service's matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatchResult {
    /// Which one, from 0.
    pub index: usize,
    /// Why the client is not meant by it; none if it is.
    pub not_for_client: Option<String>,
    /// How many endpoints it chose.
    pub chosen: usize,
    /// True if the next match was asked because of `fallthrough`.
    pub fell_through: bool,
}

/// An endpoint that may not serve the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its name.
    pub endpoint: String,
    /// Why.
    pub reason: String,
}

/// All that there is to say about a choice. `Display` is the text of errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The service's name.
    pub service: String,
    /// The client's labels.
    pub labels: Labels,
    /// The matches that were looked at, in their order.
    pub matches: Vec<MatchResult>,
    /// Who may serve, best first.
    pub chosen: Vec<Chosen>,
    /// Who may not.
    pub refused: Vec<Refusal>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels = labels::shown(&self.labels);
        write!(f, "no endpoint of `{}` matches {labels}; ", self.service)?;
        let not_meant = self.matches.iter().filter(|result| result.not_for_client.is_some()).count();
        if not_meant == self.matches.len() && not_meant > 0 {
            write!(f, "none of the service's {not_meant} matches is for these labels; ")?;
        }
        match self.refused.len() {
            0 => write!(f, "none is registered"),
            1 => write!(f, "1 candidate refused: "),
            count => write!(f, "{count} candidates refused: "),
        }?;
        // Errors travel in HTTP/2 trailers, which are small.
        const SHOWN: usize = 10;
        for (i, refusal) in self.refused.iter().take(SHOWN).enumerate() {
            let comma = if i == 0 { "" } else { "; " };
            write!(f, "{comma}{}: {}", refusal.endpoint, refusal.reason)?;
        }
        match self.refused.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

/// Chooses among the endpoints of a service: all if the service has no matches, else those that the first match for the client's
/// labels routes to, in the order of its routes; an empty match with `fallthrough` hands on to the next one. Endpoints that one
/// route chose are not chosen again by another.
pub fn select(
    client: &Labels,
    service: &NetworkService,
    endpoints: &[impl Borrow<NetworkServiceEndpoint>],
) -> Vec<Chosen> {
    select_at(client, service, endpoints, SystemTime::now(), &mut |_| ())
}

/// As [`select`], with the reasons.
pub fn explain(
    client: &Labels,
    service: &NetworkService,
    endpoints: &[impl Borrow<NetworkServiceEndpoint>],
) -> Explanation {
    let now = SystemTime::now();
    let mut matches = Vec::new();
    let chosen = select_at(client, service, endpoints, now, &mut |result| matches.push(result));
    let is_chosen = |index: usize| chosen.iter().any(|choice| choice.index == index);
    let refused = (0..endpoints.len()).filter(|index| !is_chosen(*index));
    let refused = refused.map(|index| Refusal {
        endpoint: endpoints[index].borrow().name.clone(),
        reason: why_not(client, service, endpoints[index].borrow(), now, &matches),
    });
    let refused = refused.collect();
    Explanation { service: service.name.clone(), labels: client.clone(), matches, chosen, refused }
}

fn select_at(
    client: &Labels,
    service: &NetworkService,
    endpoints: &[impl Borrow<NetworkServiceEndpoint>],
    now: SystemTime,
    say: &mut dyn FnMut(MatchResult),
) -> Vec<Chosen> {
    let alive = |index: &usize| !has_expired(endpoints[*index].borrow(), now);
    let all = || (0..endpoints.len()).filter(alive).map(|index| Chosen { index, weight: 0 }).collect();
    if service.matches.is_empty() {
        return all();
    }
    for (index, one) in service.matches.iter().enumerate() {
        if let Err(mismatch) = satisfies(client, &one.source_selector, client) {
            let not_for_client = Some(mismatch.to_string());
            say(MatchResult { index, not_for_client, chosen: 0, fell_through: false });
            continue;
        }
        let mut chosen = routed(client, &service.name, one, endpoints);
        chosen.retain(|choice| alive(&choice.index));
        let fell_through = chosen.is_empty() && one.fallthrough;
        if chosen.is_empty() && !fell_through && one.metadata.is_some() && one.routes.is_empty() {
            chosen = all();
        }
        say(MatchResult { index, not_for_client: None, chosen: chosen.len(), fell_through });
        if !fell_through {
            return chosen;
        }
    }
    Vec::new()
}

/// The endpoints that a match's routes lead to.
fn routed(
    client: &Labels,
    service: &str,
    one: &Match,
    endpoints: &[impl Borrow<NetworkServiceEndpoint>],
) -> Vec<Chosen> {
    let mut chosen: Vec<Chosen> = Vec::new();
    let mut seen = vec![false; endpoints.len()];
    for route in &one.routes {
        for (index, endpoint) in endpoints.iter().enumerate() {
            let fits =
                satisfies(labels_of(endpoint.borrow(), service), &route.destination_selector, client).is_ok();
            if fits && !std::mem::replace(&mut seen[index], true) {
                chosen.push(Chosen { index, weight: route.weight });
            }
        }
    }
    chosen
}

/// Why an endpoint was not chosen.
fn why_not(
    client: &Labels,
    service: &NetworkService,
    endpoint: &NetworkServiceEndpoint,
    now: SystemTime,
    looked_at: &[MatchResult],
) -> String {
    if has_expired(endpoint, now) {
        return "its registration has expired".to_owned();
    }
    let meant = looked_at.iter().filter(|result| result.not_for_client.is_none());
    let routes: Vec<_> = meant.flat_map(|result| &service.matches[result.index].routes).collect();
    let have = labels_of(endpoint, &service.name);
    let reasons: Vec<String> = routes
        .iter()
        .filter_map(|route| satisfies(have, &route.destination_selector, client).err())
        .map(|mismatch| mismatch.to_string())
        .collect();
    if !reasons.is_empty() {
        return reasons.join(", and ");
    }
    match looked_at.iter().find_map(|result| result.not_for_client.as_deref()) {
        Some(reason) => format!("no match is for this client ({reason})"),
        None => "the match has no routes".to_owned(),
    }
}

/// Chooses among the forwarders of this node: the service's first match for the client says in its metadata what labels a
/// forwarder must have; `p2p=true` if it says nothing. A service without matches takes any forwarder.
pub fn select_forwarders(
    client: &Labels,
    service: &NetworkService,
    forwarder_service: &str,
    forwarders: &[impl Borrow<NetworkServiceEndpoint>],
) -> Result<Vec<usize>, Vec<Refusal>> {
    if service.matches.is_empty() {
        return Ok((0..forwarders.len()).collect());
    }
    let default: Labels = [("p2p".to_owned(), "true".to_owned())].into();
    let mut refused = Vec::new();
    for one in &service.matches {
        if satisfies(client, &one.source_selector, client).is_err() {
            continue;
        }
        let wanted = one.metadata.as_ref().map_or(&default, |metadata| &metadata.labels);
        let mut chosen = Vec::new();
        for (index, forwarder) in forwarders.iter().enumerate() {
            let forwarder: &NetworkServiceEndpoint = forwarder.borrow();
            let fits = match forwarder.network_service_labels.get(forwarder_service) {
                Some(have) => {
                    satisfies(&have.labels, wanted, client).map_err(|mismatch| mismatch.to_string())
                }
                None => Err(format!("it has no labels for `{forwarder_service}`")),
            };
            match fits {
                Ok(()) => chosen.push(index),
                Err(reason) => refused.push(Refusal { endpoint: forwarder.name.clone(), reason }),
            }
        }
        if !chosen.is_empty() {
            return Ok(chosen);
        }
        if !one.fallthrough {
            break;
        }
    }
    Err(refused)
}

fn labels_of<'a>(endpoint: &'a NetworkServiceEndpoint, service: &str) -> &'a Labels {
    static NONE: Labels = Labels::new();
    endpoint.network_service_labels.get(service).map_or(&NONE, |labels| &labels.labels)
}

/// True if the endpoint's registration has ended.
pub fn has_expired(endpoint: &NetworkServiceEndpoint, now: SystemTime) -> bool {
    let end = endpoint.expiration_time.and_then(|time| SystemTime::try_from(time).ok());
    end.is_some_and(|end| end <= now)
}

/// Puts candidates into the order in which to try them, given how many turns there were before: in turn if all weights are equal
/// or zero, else each first as often as its weight says, and those of weight zero last.
pub fn in_turn(candidates: &mut [Candidate], turn: u64) {
    if candidates.len() < 2 {
        return;
    }
    let equal = candidates.iter().all(|candidate| candidate.weight == candidates[0].weight);
    if !equal {
        // Stable: the order of routes stays among equals.
        candidates.sort_by_key(|candidate| candidate.weight == 0);
    }
    let weight = |candidate: &Candidate| if equal { 1 } else { u64::from(candidate.weight) };
    let total: u64 = candidates.iter().map(weight).sum();
    let mut point = turn % total;
    let first = candidates.iter().position(|candidate| match point.checked_sub(weight(candidate)) {
        Some(rest) => {
            point = rest;
            false
        }
        None => true,
    });
    let weighted = candidates.iter().filter(|candidate| equal || candidate.weight > 0).count();
    candidates[..weighted].rotate_left(first.unwrap_or(0));
}

/// How often each service was asked for.
#[derive(Default)]
pub struct Turns(std::sync::Mutex<HashMap<String, u64>>);

impl Turns {
    /// The number of this turn, from 0.
    pub fn next(&self, service: &str) -> u64 {
        let mut turns = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match turns.get_mut(service) {
            Some(turn) => {
                *turn = turn.wrapping_add(1);
                *turn
            }
            None => {
                turns.insert(service.to_owned(), 0);
                0
            }
        }
    }
}

#[cfg(test)]
#[path = "matching_tests.rs"]
mod tests;
