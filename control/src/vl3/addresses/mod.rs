//! Who has which address, of the prefixes that this endpoint was granted (sdk, connectioncontext/ipcontext/vl3 and ipam/strictvl3ipam).
//!
//! The first address of a prefix is the endpoint's own; a client gets one other of each prefix. Another endpoint of the network brings its
//! own address and says what is behind it; it gets none.
//!
//! A connection's addresses are kept for as long as it lasts and the prefix is ours. When the prefix changes, the next Request of each
//! connection gets new ones in place of the old, and the endpoint answers at its old address until the last one has asked.
//!
//! | to find … | look in |
//! |---|---|
//! | the addresses themselves | this file |
//! | what of a connection's context follows from them | `context` |
//! | the step of the chain | `element` |
//! | what a client can't use | `unwanted` |

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use tonic::Status;
use vwire_proto::nsm::connectioncontext::IpContext;

use crate::endpoint::ipam::{Excluded, Pool};
use crate::ipam::Grant;
use crate::vl3::router::Route;

mod context;
mod element;
mod unwanted;

pub use element::{Admitted, AssignAddresses, Behind};
use unwanted::Unwanted;

/// Addresses that the engine answers at. Who has one of a prefix that was ours so many prefixes ago has not asked for very long.
const MAX_GATEWAYS: usize = 16;

/// All addresses of this endpoint. One *slot* for each prefix server, or fixed prefix: two for dual stack.
pub struct Addresses(Mutex<Inner>);

struct Inner {
    slots: Vec<Slot>,
    /// By connection id.
    held: HashMap<String, Vec<Option<Held>>>,
}

/// One prefix, once there is one.
#[derive(Default)]
enum Slot {
    /// Not granted yet.
    #[default]
    None,
    /// What an earlier process of ours had. It serves those who have addresses of it, and nobody else until it is granted again.
    Before(IpNet),
    /// Granted.
    Granted { grant: Grant, pool: Pool, excluded: Excluded },
}

/// What a connection has of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The prefix at the time.
    pub prefix: IpNet,
    /// None of another endpoint, which has its own.
    pub address: Option<IpAddr>,
}

/// What a Request got.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assigned {
    /// True if the connection had nothing before.
    pub is_new: bool,
    /// What leads to the connection.
    pub routes: Vec<Route>,
    /// What of it another endpoint says is behind it; the [`Gate`](crate::vl3::peers::Gate) knows whether it may.
    pub announced: Vec<IpNet>,
}

impl Slot {
    fn prefix(&self) -> Option<IpNet> {
        match self {
            Self::None => None,
            Self::Before(prefix) => Some(*prefix),
            Self::Granted { grant, .. } => Some(grant.prefix),
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.prefix().is_some_and(|prefix| prefix.contains(&address))
    }

    /// Gives this address to a client. False if it is not to be had.
    fn take(&mut self, address: IpAddr) -> bool {
        match self {
            Self::Granted { pool, excluded, .. } => !excluded.covers(address) && pool.take(address),
            _ => false,
        }
    }

    fn give_back(&mut self, address: IpAddr) {
        if let Self::Granted { grant, pool, .. } = self
            && address != grant.prefix.network()
        {
            pool.give_back(address);
        }
    }

    /// What a connection has of this slot from now on; `context` loses what it had before. `unwanted` are the client's own networks.
    fn next(
        &mut self,
        had: Option<Held>,
        context: &mut IpContext,
        unwanted: &Unwanted,
    ) -> Result<Held, Status> {
        let Some(prefix) = self.prefix() else { return Err(initializing()) };
        let is_v4 = prefix.addr().is_ipv4();
        if had.is_none() {
            unwanted.check(prefix)?;
        }
        let is_fine =
            |address| self.contains(address) && !self.excludes(address) && !unwanted.covers(address);
        let address = match had {
            Some(had) if had.prefix == prefix && had.address.is_none_or(is_fine) => return Ok(had),
            Some(had) => {
                context::remove(context, &had);
                match had.address {
                    Some(address) if !is_fine(address) => Some(self.take_any(unwanted)?),
                    kept => kept,
                }
            }
            None if matches!(self, Self::Before(_)) => return Err(initializing()),
            None if context::is_peer(context, is_v4) => None,
            None => {
                let wishes = context::sources(context, is_v4);
                match wishes.into_iter().find(|wish| !unwanted.covers(*wish) && self.take(*wish)) {
                    Some(wish) => Some(wish),
                    None => Some(self.take_any(unwanted)?),
                }
            }
        };
        Ok(Held { prefix, address })
    }

    fn excludes(&self, address: IpAddr) -> bool {
        matches!(self, Self::Granted { excluded, .. } if excluded.covers(address))
    }

    /// Any free one.
    fn take_any(&mut self, unwanted: &Unwanted) -> Result<IpAddr, Status> {
        let Self::Granted { grant, pool, excluded } = self else { return Err(initializing()) };
        let both;
        let left_out = if unwanted.is_empty() {
            &*excluded
        } else {
            both = Excluded::new(grant.excluded.iter().chain(unwanted.prefixes()));
            &both
        };
        pool.take_one(left_out).ok_or_else(|| {
            Status::resource_exhausted(format!(
                "prefix {} of this endpoint has no free address for another client, its own and excluded ones left out{}; a client \
                 has to leave, or the prefix server to grant larger ones (NSM_CLIENT_PREFIX_LEN)",
                grant.prefix, unwanted.told()
            ))
        })
    }
}

fn initializing() -> Status {
    Status::unavailable("prefix pool is initializing: the prefix server has not granted one yet; ask again")
}

impl Addresses {
    /// For so many slots.
    pub fn new(slots: usize) -> Self {
        let slots = std::iter::repeat_with(Slot::default).take(slots).collect();
        Self(Mutex::new(Inner { slots, held: HashMap::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The prefix of a slot, or another in its place. Connections whose addresses are of it keep them.
    pub fn grant(&self, slot: usize, grant: Grant) {
        let mut inner = self.lock();
        let mut pool = Pool::new(grant.prefix);
        let excluded = Excluded::new(&grant.excluded);
        pool.take(grant.prefix.network());
        let held = inner.held.values().filter_map(|held| held.get(slot)?.as_ref()?.address);
        held.filter(|address| !excluded.covers(*address)).for_each(|address| _ = pool.take(address));
        if let Some(slot) = inner.slots.get_mut(slot) {
            *slot = Slot::Granted { grant, pool, excluded };
        }
    }

    /// What a connection of an earlier process of ours has, by slot. To be called before any prefix is granted.
    pub fn restore(&self, id: &str, held: Vec<Option<Held>>) {
        let mut inner = self.lock();
        for (slot, held) in inner.slots.iter_mut().zip(&held) {
            if let (Slot::None, Some(held)) = (&slot, held) {
                *slot = Slot::Before(held.prefix);
            }
        }
        inner.held.insert(id.to_owned(), held);
    }

    /// The prefix of each slot, granted or had before.
    pub fn prefixes(&self) -> Vec<Option<IpNet>> {
        self.lock().slots.iter().map(Slot::prefix).collect()
    }

    /// Where the endpoint answers: the first address of each prefix, and of those that some connection still has from before.
    pub fn gateways(&self) -> Vec<IpAddr> {
        let inner = self.lock();
        let now = inner.slots.iter().filter_map(Slot::prefix);
        let before = inner.held.values().flatten().flatten().map(|held| held.prefix);
        // In an order that does not depend on that of the connections.
        let before: std::collections::BTreeSet<IpNet> = before.collect();
        let mut all = Vec::new();
        for gateway in now.chain(before).map(|prefix| prefix.network()) {
            if !all.contains(&gateway) {
                all.push(gateway);
            }
        }
        all.truncate(MAX_GATEWAYS);
        all
    }

    /// What a connection has, by slot.
    pub fn held(&self, id: &str) -> Option<Vec<Option<Held>>> {
        self.lock().held.get(id).cloned()
    }

    /// How many connections have addresses, and how many addresses are free, by prefix.
    pub fn figures(&self) -> Vec<(IpNet, usize, u128)> {
        let inner = self.lock();
        let used = |at: usize| {
            let of = inner.held.values().filter_map(|held| held.get(at)?.as_ref()?.address);
            of.count()
        };
        let figures = inner.slots.iter().enumerate().filter_map(|(at, slot)| match slot {
            Slot::Granted { grant, pool, .. } => Some((grant.prefix, used(at), pool.free())),
            _ => None,
        });
        figures.collect()
    }

    /// Gives a connection what it lacks, and puts it into its context. A first Request may wish for an address: that which it brings, if
    /// it is free.
    ///
    /// # Errors
    /// UNAVAILABLE while a prefix is missing; RESOURCE_EXHAUSTED; INVALID_ARGUMENT for a context that can't be read. Nothing has changed
    /// then.
    pub fn assign(&self, id: &str, context: &mut IpContext) -> Result<Assigned, Status> {
        context::check(context)?;
        let unwanted = Unwanted::of(context)?;
        let mut inner = self.lock();
        let Inner { slots, held } = &mut *inner;
        let before = held.get(id);
        let had = |at: usize| before.and_then(|before| before.get(at).copied().flatten());
        let mut wanted = context.clone();
        let ours = |address| slots.iter().any(|slot| slot.contains(address));
        if before.is_none() && context::leads_elsewhere(&wanted, ours) {
            let excluded_prefixes = std::mem::take(&mut wanted.excluded_prefixes);
            wanted = IpContext { excluded_prefixes, ..Default::default() };
        }
        let mut after: Vec<Held> = Vec::new();
        for at in 0..slots.len() {
            match slots[at].next(had(at), &mut wanted, &unwanted) {
                Ok(next) => after.push(next),
                Err(status) => {
                    give_back(slots, after.iter().map(|held| Some(*held)), had);
                    return Err(status);
                }
            }
        }
        let count = slots.len();
        give_back(slots, (0..count).map(had), |at| Some(after[at]));
        context::finish(&mut wanted, &after);
        let (routes, announced) = context::behind(&wanted, &after);
        let is_new = held.insert(id.to_owned(), after.into_iter().map(Some).collect()).is_none();
        *context = wanted;
        Ok(Assigned { is_new, routes, announced })
    }

    /// The routes that an answer has beyond those that a Request gets on its way: to the whole network.
    pub fn add_global(&self, id: &str, context: &mut IpContext) {
        context::add_global(context, self.lock().held.get(id).into_iter().flatten().flatten());
    }

    /// Frees what a connection has.
    pub fn free(&self, id: &str) {
        let mut inner = self.lock();
        if let Some(held) = inner.held.remove(id) {
            give_back(&mut inner.slots, held.into_iter(), |_| None);
        }
    }
}

/// Frees the addresses of `these`, one for each slot, that are not also those of `but`.
fn give_back(
    slots: &mut [Slot],
    these: impl Iterator<Item = Option<Held>>,
    but: impl Fn(usize) -> Option<Held>,
) {
    for (at, (slot, held)) in slots.iter_mut().zip(these).enumerate() {
        let kept = but(at).and_then(|held| held.address);
        if let Some(address) = held.and_then(|held| held.address).filter(|address| Some(*address) != kept) {
            slot.give_back(address);
        }
    }
}

#[cfg(test)]
mod tests;
