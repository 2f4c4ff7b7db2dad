//! What is told of links: to those in the process who follow the peers, and to `vwire status`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Links, State};
use crate::domain;
use crate::vl3::peers::Peer;
use crate::vl3::peers::announced::Announced;

impl Links {
    /// Tells who is linked, if that has changed.
    pub fn publish(&self) {
        let now = self.lock().linked();
        self.told.send_if_modified(|told| {
            let changed = *told != now;
            if changed {
                *told = now;
            }
            changed
        });
    }

    /// For `vwire status`: each endpoint that is registered or linked.
    pub fn report(&self) -> Vec<Value> {
        self.lock().report()
    }
}

impl State {
    /// Whoever packets can be sent to, by name.
    fn linked(&self) -> Vec<Peer> {
        let mut all: BTreeMap<String, Peer> = BTreeMap::new();
        let mut add = |name: &str, said: &Announced| {
            let peer = Peer { name: name.to_owned(), prefixes: said.prefixes.clone(), dns: said.dns.clone() };
            all.insert(name.to_owned(), peer);
        };
        for theirs in self.theirs.values().filter(|theirs| theirs.up) {
            add(self.name_of(&theirs.caller), &theirs.announced);
        }
        for (name, ours) in self.ours.iter().filter(|(_, ours)| ours.attached) {
            ours.leg.iter().for_each(|(said, _)| add(name, said));
        }
        all.into_values().collect()
    }

    fn report(&self) -> Vec<Value> {
        let linked = self.linked();
        let mut names: Vec<&str> = self.pairing.names().collect();
        names.extend(linked.iter().map(|peer| peer.name.as_str()));
        let known: BTreeSet<&str> = names.iter().map(|name| domain::target(name)).collect();
        names.extend(self.turned_away.keys().map(String::as_str).filter(|name| !known.contains(name)));
        names.sort_unstable();
        names.dedup();
        names.into_iter().map(|name| self.line(name, &linked)).collect()
    }

    fn line(&self, name: &str, linked: &[Peer]) -> Value {
        let peer = linked.iter().find(|peer| peer.name == name);
        let ours = self.ours.get(name);
        let status = ours.map(|ours| ours.status.borrow().clone());
        let away = self.turned_away.get(domain::target(name)).filter(|_| peer.is_none());
        let failed = status.as_ref().and_then(|status| status.last_error.as_ref());
        let failed = failed.map(|(at, status)| (at, status.message()));
        let failed = failed.or(away.map(|(at, text)| (at, text.as_str())));
        let theirs = self.their_links(name).find(|theirs| theirs.up);
        let state = match (peer, ours) {
            (Some(_), _) => "linked".to_owned(),
            (None, Some(_)) => status
                .as_ref()
                .map_or_else(String::new, |status| format!("{:?}", status.phase).to_lowercase()),
            (None, None) if away.is_some() => "refused".to_owned(),
            (None, None) => "waits for its call".to_owned(),
        };
        json!({
            "name": name,
            "state": state,
            "dialled_by": if theirs.is_some() { "them" } else if ours.is_some() { "us" } else { "" },
            "connection": theirs.map_or_else(|| ours.map(|_| self.pairing.link_id(name)), |theirs| Some(theirs.port.clone())),
            "prefixes": peer.map(|peer| peer.prefixes.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap_or_default(),
            "dns": peer.map(|peer| peer.dns.clone()).unwrap_or_default(),
            "heals": status.as_ref().map_or(0, |status| status.heals),
            "error": ours.and_then(|ours| ours.error.clone()).or_else(|| away.map(|(_, text)| text.clone())),
            "last_error": failed.map(|(at, text)| json!({
                "at": at.duration_since(std::time::UNIX_EPOCH).map_or(0, |at: Duration| at.as_secs()),
                "text": text,
            })),
        })
    }
}
