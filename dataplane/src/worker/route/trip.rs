//! One burst's journey: what is the same for all of its packets, what the last one's answers were, and what is counted.

use std::net::IpAddr;

use super::Exit;
use super::recent::{Key, Recent};
use crate::DropReason;
use crate::port::PortIndex;
use crate::route::control::Arrival;
use crate::route::counters::RouteDrop;
use crate::route::domain::Domain;
use crate::route::packet::is_routable;
use crate::tables::Place;

/// One burst's journey through a domain.
pub(super) struct Trip<'d> {
    pub domain: &'d Domain,
    pub publication: u64,
    pub place: Place,
    pub ingress: PortIndex,
    pub arrival: Arrival<'d>,
    pub source: Option<(IpAddr, bool)>,
    pub exit: Option<(IpAddr, Exit)>,
    /// The route of the packets so far, their number and their bytes.
    pub run: (u32, u64, u64),
    pub all: (u64, u64),
}

impl Trip<'_> {
    /// Whether packets from `source` may come by this port.
    #[inline]
    pub fn may_come(&mut self, source: IpAddr, recent: &mut Recent<()>) -> bool {
        match self.source {
            Some((last, may)) if last == source => may,
            _ => {
                let may =
                    is_routable(source) && (!self.arrival.member.strict || self.leads_there(source, recent));
                self.source = Some((source, may));
                may
            }
        }
    }

    /// Whether `source` is routed to the port. Only that it is, is remembered: who forges addresses pushes nobody out.
    #[inline]
    fn leads_there(&self, source: IpAddr, recent: &mut Recent<()>) -> bool {
        let key = self.key(source);
        if recent.get(&key).is_some() {
            return true;
        }
        let found = self.domain.lookup(source).is_some_and(|target| target.member == self.arrival.at);
        if found {
            recent.put(key, ());
        }
        found
    }

    #[inline]
    pub fn key(&self, address: IpAddr) -> Key {
        Key { publication: self.publication, place: self.place, address }
    }

    #[inline]
    pub fn count(&mut self, route: u32, bytes: usize) {
        if route != self.run.0 {
            self.count_run();
            self.run = (route, 0, 0);
        }
        self.run.1 += 1;
        self.run.2 += bytes as u64;
    }

    pub fn count_run(&mut self) {
        let (route, packets, bytes) = self.run;
        if packets > 0
            && let Some(counters) = self.domain.routes.get(route)
        {
            counters.forwarded(packets, bytes);
        }
        self.all = (self.all.0 + packets, self.all.1 + bytes);
    }

    pub fn count_drop(&self, route: u32, why: RouteDrop) -> DropReason {
        if let Some(counters) = self.domain.routes.get(route) {
            counters.dropped(why);
        }
        why.reason()
    }
}
