//! Which prefixes are whose.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use super::blocks::Blocks;
use crate::prefixes::{Span, overlap};

/// What is handed out, and how.
#[derive(Debug, Clone)]
pub struct Rules {
    /// All of it.
    pub(super) blocks: Blocks,
    /// No address of these is for endpoints: a block that they cover is not handed out, and endpoints are told of all of them.
    pub excluded: Vec<IpNet>,
    /// How long a prefix is kept for its owner after the stream has ended.
    pub grace: Duration,
    /// Most prefixes of one identity, kept ones included.
    pub per_identity: usize,
}

/// Who asks: an identity, none where there is no TLS. The stream is one of theirs.
#[derive(Debug, Clone)]
pub struct Asker {
    /// The stream's number.
    pub stream: u64,
    /// The identity.
    pub owner: Option<Arc<str>>,
}

/// A prefix that somebody has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lease {
    pub owner: Option<Arc<str>>,
    pub state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// By the stream of this number.
    Held(u64),
    /// For the owner, until then.
    Kept(SystemTime),
}

/// Why no prefix can be handed out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The wanted one is held by another stream of the same identity, which may be broken without knowing it yet.
    #[error("prefix: {0} is held by another stream of this identity")]
    Busy(IpNet),
    /// The identity has enough.
    #[error(
        "prefix: {owner} has {limit} prefixes already, which is this server's limit for one identity (VWIRE_IPAM_PER_IDENTITY)"
    )]
    TooMany {
        /// Whose.
        owner: Arc<str>,
        /// The limit.
        limit: usize,
    },
    /// All are taken.
    #[error("prefix: {0}")]
    Exhausted(Exhausted),
}

/// Where all the prefixes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exhausted {
    prefix: IpNet,
    len: u8,
    count: u128,
    figures: Figures,
    /// How many of the rest the asker does not want.
    unwanted: u128,
    /// When the next one that is kept is free.
    next: Option<Duration>,
}

impl std::fmt::Display for Exhausted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { prefix, len, count, figures: Figures { held, kept, .. }, unwanted, next } = self;
        write!(
            f,
            "none is left of the {count} /{len} prefixes in {prefix}: {held} are held, {kept} are kept for owners that are away"
        )?;
        if let Some(next) = next {
            write!(f, " (the next one for {} s)", next.as_secs())?;
        }
        if *unwanted > 0 {
            write!(f, ", {unwanted} overlap exclude_prefixes of the request")?;
        }
        f.write_str("; widen NSM_PREFIX or raise NSM_CLIENT_PREFIX_LEN of the IPAM")
    }
}

/// How many prefixes there are of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// An endpoint has them.
    pub held: usize,
    /// They are kept for owners that are away.
    pub kept: usize,
    /// Free blocks.
    pub free: u128,
}

/// What is to be written: a prefix with its lease, or without one.
pub(super) type Change = (IpNet, Option<Lease>);

/// All leases. No two overlap. Changes are made apart, so that they can be written first: see [`apply`](Self::apply).
#[derive(Debug)]
pub(super) struct Table {
    rules: Rules,
    leases: BTreeMap<IpNet, Lease>,
}

impl Table {
    /// As the rules want it, with what was written before. A lease that is none any more is left out, and told.
    pub fn new(rules: Rules, written: impl IntoIterator<Item = (IpNet, Lease)>) -> (Self, Vec<IpNet>) {
        let mut table = Self { rules, leases: BTreeMap::new() };
        let mut dropped = Vec::new();
        for (prefix, lease) in written {
            let clear = !table.leases.keys().any(|other| overlap(other, &prefix));
            let fits = clear && table.rules.blocks.prefix().contains(&prefix);
            if fits {
                table.leases.insert(prefix, lease);
            } else {
                dropped.push(prefix);
            }
        }
        (table, dropped)
    }

    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// What becomes of the table if `asker` gets a prefix: the one wanted if it can be had, else one that is kept for them, else the lowest
    /// free one.
    pub fn allocate(
        &self,
        asker: &Asker,
        wanted: Option<IpNet>,
        excluded: &[IpNet],
        now: SystemTime,
    ) -> Result<IpNet, Refusal> {
        if let Some(wanted) =
            wanted.map(|wanted| wanted.trunc()).filter(|wanted| self.is_usable(wanted, excluded))
        {
            match self.leases.get(&wanted) {
                Some(lease) => match lease.state {
                    State::Held(stream) if stream == asker.stream => return Ok(wanted),
                    State::Held(_) if lease.owner == asker.owner => return Err(Refusal::Busy(wanted)),
                    State::Kept(_) if lease.owner == asker.owner => return Ok(wanted),
                    // Its time is over.
                    State::Kept(until) if until <= now => return self.another(asker, wanted, now),
                    _ => {}
                },
                None if self.is_grantable(&wanted, now) => return self.another(asker, wanted, now),
                None => {}
            }
        }
        if let Some(kept) = self.kept_for(asker, excluded) {
            return Ok(kept);
        }
        let lowest = self.lowest(excluded, now).ok_or_else(|| self.exhausted(excluded, now))?;
        self.another(asker, lowest, now)
    }

    /// The change that gives `prefix` to `asker`, and ends what was kept for others there.
    pub fn give(&self, asker: &Asker, prefix: IpNet, now: SystemTime) -> Vec<Change> {
        let over = self.leases.iter().filter(|(other, lease)| **other != prefix && is_over(lease, now));
        let mut changes: Vec<Change> = over.map(|(other, _)| (*other, None)).collect();
        changes.push((prefix, Some(Lease { owner: asker.owner.clone(), state: State::Held(asker.stream) })));
        changes
    }

    /// The changes when a stream has ended: what it held is kept for its owner.
    pub fn end(&self, stream: u64, now: SystemTime) -> Vec<Change> {
        let until = State::Kept(now + self.rules.grace);
        let held = self.leases.iter().filter(|(_, lease)| lease.state == State::Held(stream));
        let kept = |lease: &Lease| {
            (!self.rules.grace.is_zero()).then(|| Lease { owner: lease.owner.clone(), state: until })
        };
        held.map(|(prefix, lease)| (*prefix, kept(lease))).collect()
    }

    /// The change when a stream gives a prefix back. None if it does not hold it.
    pub fn give_back(&self, stream: u64, prefix: IpNet) -> Option<Change> {
        let lease = self.leases.get(&prefix.trunc())?;
        (lease.state == State::Held(stream)).then(|| (prefix.trunc(), None))
    }

    /// Makes changes that have been written.
    pub fn apply(&mut self, changes: Vec<Change>) {
        for (prefix, lease) in changes {
            match lease {
                Some(lease) => drop(self.leases.insert(prefix, lease)),
                None => drop(self.leases.remove(&prefix)),
            }
        }
    }

    /// How many there are of each kind.
    pub fn figures(&self, now: SystemTime) -> Figures {
        let held = self.live(now).filter(|(_, lease)| matches!(lease.state, State::Held(_))).count();
        let mut taken = self.taken(now);
        taken.extend(self.rules.blocks.covered(&self.rules.excluded));
        Figures { held, kept: self.live(now).count() - held, free: self.rules.blocks.count_beside(taken) }
    }

    /// One more for an identity that has not enough yet.
    fn another(&self, asker: &Asker, prefix: IpNet, now: SystemTime) -> Result<IpNet, Refusal> {
        let limit = self.rules.per_identity;
        let count = || self.live(now).filter(|(_, lease)| lease.owner == asker.owner).count();
        match &asker.owner {
            Some(owner) if count() >= limit => Err(Refusal::TooMany { owner: Arc::clone(owner), limit }),
            _ => Ok(prefix),
        }
    }

    /// The one of the asker's that was held last. Without an identity nobody can be known again.
    fn kept_for(&self, asker: &Asker, excluded: &[IpNet]) -> Option<IpNet> {
        asker.owner.as_ref()?;
        let kept = self.leases.iter().filter_map(|(prefix, lease)| match lease.state {
            State::Kept(until) if lease.owner == asker.owner && self.is_usable(prefix, excluded) => {
                Some((until, *prefix))
            }
            _ => None,
        });
        kept.max().map(|(_, prefix)| prefix)
    }

    fn lowest(&self, excluded: &[IpNet], now: SystemTime) -> Option<IpNet> {
        let blocks = &self.rules.blocks;
        let mut taken = self.taken(now);
        taken.extend(blocks.covered(&self.rules.excluded));
        taken.extend(excluded.iter().filter_map(|prefix| blocks.touched(prefix)));
        blocks.lowest_beside(taken)
    }

    fn exhausted(&self, excluded: &[IpNet], now: SystemTime) -> Refusal {
        let blocks = self.rules.blocks;
        let figures = self.figures(now);
        let kept = self.leases.values().filter_map(|lease| match lease.state {
            State::Kept(until) => until.duration_since(now).ok(),
            State::Held(_) => None,
        });
        // What is free and yet not to be had is what the request excludes.
        let unwanted = if excluded.is_empty() { 0 } else { figures.free };
        let (prefix, len, count) = (blocks.prefix(), blocks.len(), blocks.count());
        Refusal::Exhausted(Exhausted { prefix, len, count, figures, unwanted, next: kept.min() })
    }

    /// True if an endpoint that excludes these may have a prefix of ours.
    fn is_usable(&self, prefix: &IpNet, excluded: &[IpNet]) -> bool {
        let ours = self.rules.blocks.prefix().contains(prefix);
        let whole = Blocks::new(*prefix, prefix.prefix_len());
        let covered = whole.is_none_or(|whole| !whole.covered(&self.rules.excluded).is_empty());
        ours && !covered && !excluded.iter().any(|excluded| overlap(excluded, prefix))
    }

    /// True if a prefix that nobody has may be handed out as it is: it is no larger than a block, and in nobody's way.
    fn is_grantable(&self, prefix: &IpNet, now: SystemTime) -> bool {
        prefix.prefix_len() >= self.rules.blocks.len()
            && !self.live(now).any(|(taken, _)| overlap(taken, prefix))
    }

    fn taken(&self, now: SystemTime) -> Vec<Span> {
        self.live(now).filter_map(|(prefix, _)| self.rules.blocks.touched(prefix)).collect()
    }

    /// Leases whose time is not over.
    fn live(&self, now: SystemTime) -> impl Iterator<Item = (&IpNet, &Lease)> {
        self.leases.iter().filter(move |(_, lease)| !is_over(lease, now))
    }
}

/// True if nobody has a right to it any more.
fn is_over(lease: &Lease, now: SystemTime) -> bool {
    matches!(lease.state, State::Kept(until) if until <= now)
}
