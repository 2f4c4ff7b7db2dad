//! Whose a prefix is: over breaks, over restarts, and when there is none left.

use std::collections::BTreeMap;
use std::future::pending;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use proptest::prelude::*;
use tonic::Code;

use super::blocks::Blocks;
use super::table::{Lease, State, Table};
use super::{Asker, Refusal, Rules, Settings, Store};

const GRACE: Duration = Duration::from_secs(600);

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn asker(stream: u64, owner: &str) -> Asker {
    Asker { stream, owner: (!owner.is_empty()).then(|| owner.into()) }
}

fn settings(prefix: &str, len: u8, state: Option<&Path>) -> Settings {
    Settings {
        prefix: net(prefix),
        client_prefix_len: len,
        excluded: Vec::new(),
        grace: GRACE,
        per_identity: 64,
        state: state.map(Path::to_owned),
    }
}

fn table(prefix: &str, len: u8, excluded: &[&str]) -> Table {
    let excluded = excluded.iter().map(|text| net(text)).collect();
    let blocks = Blocks::new(net(prefix), len).unwrap();
    Table::new(Rules { blocks, excluded, grace: GRACE, per_identity: 3 }, []).0
}

/// A table that is changed at once.
impl Table {
    fn take(
        &mut self,
        asker: &Asker,
        wanted: &str,
        excluded: &[&str],
        now: SystemTime,
    ) -> Result<String, Refusal> {
        let wanted = (!wanted.is_empty()).then(|| net(wanted));
        let excluded: Vec<IpNet> = excluded.iter().map(|text| net(text)).collect();
        let prefix = self.allocate(asker, wanted, &excluded, now)?;
        let changes = self.give(asker, prefix, now);
        self.apply(changes);
        Ok(prefix.to_string())
    }

    fn ended(&mut self, stream: u64, now: SystemTime) {
        let changes = self.end(stream, now);
        self.apply(changes);
    }
}

#[test]
fn the_lowest_free_prefix_comes_first_and_a_wanted_one_if_it_is_free() {
    let now = SystemTime::now();
    let mut table = table("172.16.0.0/16", 24, &[]);
    assert_eq!(table.take(&asker(1, "a"), "", &[], now).unwrap(), "172.16.0.0/24");
    assert_eq!(table.take(&asker(2, "b"), "172.16.9.0/24", &[], now).unwrap(), "172.16.9.0/24");
    assert_eq!(
        table.take(&asker(2, "b"), "172.16.9.0/24", &[], now).unwrap(),
        "172.16.9.0/24",
        "asked twice"
    );
    assert_eq!(table.take(&asker(3, "c"), "172.16.9.0/24", &[], now).unwrap(), "172.16.1.0/24", "another's");
    assert_eq!(table.take(&asker(4, "d"), "10.0.0.0/24", &[], now).unwrap(), "172.16.2.0/24", "not of ours");
    assert_eq!(table.take(&asker(5, "e"), "172.16.0.0/16", &[], now).unwrap(), "172.16.3.0/24", "all of it");
    assert_eq!(
        table.take(&asker(6, "f"), "172.16.9.0/25", &[], now).unwrap(),
        "172.16.4.0/24",
        "half of another's"
    );
    assert_eq!(
        table.take(&asker(7, "g"), "172.16.8.128/25", &[], now).unwrap(),
        "172.16.8.128/25",
        "less than all"
    );
    let figures = table.figures(now);
    assert_eq!((figures.held, figures.kept, figures.free), (7, 0, 249));
}

#[test]
fn what_is_excluded_is_not_handed_out() {
    let now = SystemTime::now();
    // The first block is covered by two, the second in part.
    let mut table = table("10.0.0.0/22", 24, &["10.0.0.0/25", "10.0.0.128/25", "10.0.1.1/32", "fd00::/8"]);
    assert_eq!(table.take(&asker(1, "a"), "10.0.0.0/24", &[], now).unwrap(), "10.0.1.0/24");
    // What the asker can't use is passed over, even if it had it before.
    assert_eq!(table.take(&asker(2, "b"), "10.0.2.0/24", &["10.0.2.7/32"], now).unwrap(), "10.0.3.0/24");
    table.ended(2, now);
    let told = table.take(&asker(3, "b"), "", &["10.0.3.0/24", "10.0.2.0/24"], now).unwrap_err().to_string();
    assert!(
        told.contains("none is left of the 4 /24 prefixes in 10.0.0.0/22: 1 are held, 1 are kept"),
        "{told}"
    );
    assert!(told.contains("1 overlap exclude_prefixes of the request"), "{told}");
    assert_eq!(
        table
            .take(&asker(4, "b"), "", &["10.0.0.0/8"], now)
            .unwrap_err()
            .to_string()
            .matches("overlap")
            .count(),
        1
    );
    assert_eq!(
        table.take(&asker(5, "c"), "", &[], now).unwrap(),
        "10.0.2.0/24",
        "the others are not disturbed"
    );
}

#[test]
fn a_prefix_is_kept_for_its_owner_against_newcomers() {
    let now = SystemTime::now();
    let mut table = table("fd00::/62", 64, &[]);
    let (one, two) = (asker(1, "a"), asker(2, "b"));
    assert_eq!(table.take(&one, "", &[], now).unwrap(), "fd00::/64");
    assert_eq!(table.take(&two, "", &[], now).unwrap(), "fd00:0:0:1::/64");
    table.ended(1, now);
    table.ended(2, now + Duration::from_secs(1));
    // Neither a wish nor want gets them.
    assert_eq!(table.take(&asker(3, "c"), "fd00::/64", &[], now).unwrap(), "fd00:0:0:2::/64");
    assert_eq!(table.take(&asker(4, "c"), "", &[], now).unwrap(), "fd00:0:0:3::/64");
    let told = table.take(&asker(5, "d"), "fd00::/64", &[], now + Duration::from_secs(2)).unwrap_err();
    let told = told.to_string();
    assert!(told.contains("4 /64 prefixes in fd00::/62: 2 are held, 2 are kept"), "{told}");
    assert!(told.contains("(the next one for 598 s)") && told.contains("NSM_PREFIX"), "{told}");
    // The owner gets it back, whether it knows what it had or not.
    assert_eq!(table.take(&asker(6, "a"), "fd00::/64", &[], now).unwrap(), "fd00::/64");
    assert_eq!(table.take(&asker(7, "b"), "", &[], now).unwrap(), "fd00:0:0:1::/64");
    // When the time is over anybody does.
    table.ended(6, now);
    assert_eq!(table.take(&asker(8, "d"), "", &[], now + GRACE).unwrap(), "fd00::/64");
}

#[test]
fn without_identities_a_wish_is_all_that_tells_who_asks() {
    let now = SystemTime::now();
    let mut table = table("10.0.0.0/22", 24, &[]);
    assert_eq!(table.take(&asker(1, ""), "", &[], now).unwrap(), "10.0.0.0/24");
    table.ended(1, now);
    assert_eq!(table.take(&asker(2, ""), "", &[], now).unwrap(), "10.0.1.0/24");
    assert_eq!(table.take(&asker(3, ""), "10.0.0.0/24", &[], now).unwrap(), "10.0.0.0/24");
}

#[test]
fn one_identity_can_not_have_all() {
    let now = SystemTime::now();
    let mut table = table("10.0.0.0/16", 24, &[]);
    for stream in 0..3 {
        table.take(&asker(stream, "greedy"), "", &[], now).unwrap();
    }
    for wanted in ["", "10.0.7.0/24"] {
        let told = table.take(&asker(4, "greedy"), wanted, &[], now).unwrap_err().to_string();
        assert!(told.contains("greedy has 3 prefixes") && told.contains("VWIRE_IPAM_PER_IDENTITY"), "{told}");
    }
    // Neither do those that are kept make room; one that is given back does.
    table.ended(0, now);
    assert_eq!(table.take(&asker(5, "greedy"), "", &[], now).unwrap(), "10.0.0.0/24");
    assert!(table.take(&asker(6, "greedy"), "", &[], now).is_err());
    assert_eq!(table.give_back(1, net("10.0.0.0/24")), None, "another stream's");
    let change = table.give_back(1, net("10.0.1.0/24")).unwrap();
    table.apply(vec![change]);
    assert_eq!(table.take(&asker(6, "other"), "10.0.1.0/24", &[], now).unwrap(), "10.0.1.0/24");
    assert_eq!(table.take(&asker(7, "greedy"), "", &[], now).unwrap(), "10.0.3.0/24");
}

#[test]
fn leases_of_another_prefix_are_left_out() {
    let now = SystemTime::now();
    let lease = Lease { owner: Some("a".into()), state: State::Kept(now + GRACE) };
    let rules = Rules {
        blocks: Blocks::new(net("10.10.0.0/24"), 28).unwrap(),
        excluded: Vec::new(),
        grace: GRACE,
        per_identity: 9,
    };
    let written =
        ["10.0.0.0/24", "10.10.0.16/28", "10.10.0.0/25", "fd00::/64"].map(|text| (net(text), lease.clone()));
    let (mut table, dropped) = Table::new(rules, written);
    assert_eq!(dropped, [net("10.0.0.0/24"), net("10.10.0.0/25"), net("fd00::/64")]);
    assert_eq!(table.take(&asker(1, "a"), "10.0.0.0/24", &[], now).unwrap(), "10.10.0.16/28");
}

proptest! {
    /// Whatever streams come, wish and go: no address has two owners, nothing excluded is given, and nobody gets what is kept for another.
    #[test]
    fn no_address_has_two_owners(
        steps in prop::collection::vec((0_u8..4, 0_u64..6, 0_u8..8, 0_u8..64, 24_u8..=30), 1..120),
    ) {
        let mut table = table("10.0.0.0/24", 27, &["10.0.0.64/27"]);
        let mut now = SystemTime::now();
        let mut held: BTreeMap<u64, Vec<IpNet>> = BTreeMap::new();
        let mut kept: Vec<(IpNet, String, SystemTime)> = Vec::new();
        let mut next = 100;
        let mut streams: BTreeMap<u64, u64> = BTreeMap::new();
        for (step, who, wish, at, len) in steps {
            let owner = format!("owner-{}", who % 3);
            let stream = *streams.entry(who).or_insert_with(|| { next += 1; next });
            match step {
                0 | 1 => {
                    let wished = IpNet::new([10, 0, 0, at * 4].into(), len).unwrap().trunc();
                    let wanted = (wish > 3).then_some(wished);
                    let asker = asker(stream, &owner);
                    if let Ok(prefix) = table.allocate(&asker, wanted, &[], now) {
                        let changes = table.give(&asker, prefix, now);
                        table.apply(changes);
                        prop_assert!(net("10.0.0.0/24").contains(&prefix) && prefix != net("10.0.0.64/27"));
                        for (other, all) in &held {
                            let clash = all.iter().find(|one| one.contains(&prefix) || prefix.contains(*one));
                            prop_assert!(clash.is_none() || (*other == stream && clash == Some(&prefix)), "{prefix} {clash:?}");
                        }
                        let theft = kept.iter().find(|(one, of, until)| {
                            (one.contains(&prefix) || prefix.contains(one)) && *of != owner && *until > now
                        });
                        prop_assert!(theft.is_none(), "{prefix}: {theft:?}");
                        kept.retain(|(one, ..)| *one != prefix);
                        let mine = held.entry(stream).or_default();
                        if !mine.contains(&prefix) {
                            mine.push(prefix);
                        }
                    }
                }
                2 => {
                    table.ended(stream, now);
                    for prefix in held.remove(&stream).unwrap_or_default() {
                        kept.push((prefix, owner.clone(), now + GRACE));
                    }
                    streams.remove(&who);
                }
                _ => now += Duration::from_secs(u64::from(wish) * 60),
            }
            let figures = table.figures(now);
            prop_assert_eq!(figures.held, held.values().map(Vec::len).sum::<usize>());
        }
    }
}

#[tokio::test]
async fn prefixes_keep_their_owners_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ipam.redb");
    let settings = settings("10.0.0.0/16", 24, Some(&file));
    let store = Store::open(&settings).unwrap();
    let (one, two, three) =
        (asker(store.stream(), "a"), asker(store.stream(), "b"), asker(store.stream(), "c"));
    assert_eq!(store.allocate(&one, None, &[], pending()).await.unwrap(), net("10.0.0.0/24"));
    assert_eq!(store.allocate(&two, None, &[], pending()).await.unwrap(), net("10.0.1.0/24"));
    assert_eq!(store.allocate(&three, None, &[], pending()).await.unwrap(), net("10.0.2.0/24"));
    store.end(two.stream).await;
    assert!(store.give_back(three.stream, net("10.0.2.0/24")).await);
    assert!(!store.give_back(three.stream, net("10.0.2.0/24")).await);
    // As if it were killed: nothing is told to it.
    drop(store);
    let store = Store::open(&settings).unwrap();
    assert_eq!(store.figures().await.kept, 2, "what was held is kept, too");
    let newcomer = asker(store.stream(), "new");
    assert_eq!(store.allocate(&newcomer, None, &[], pending()).await.unwrap(), net("10.0.2.0/24"));
    assert_eq!(
        store.allocate(&newcomer, Some(net("10.0.0.0/24")), &[], pending()).await.unwrap(),
        net("10.0.3.0/24")
    );
    let (one, two) = (asker(store.stream(), "a"), asker(store.stream(), "b"));
    assert_eq!(
        store.allocate(&one, Some(net("10.0.0.0/24")), &[], pending()).await.unwrap(),
        net("10.0.0.0/24")
    );
    assert_eq!(store.allocate(&two, None, &[], pending()).await.unwrap(), net("10.0.1.0/24"));
}

#[tokio::test]
async fn another_prefix_for_the_network_ends_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ipam.redb");
    let store = Store::open(&settings("10.0.0.0/24", 28, Some(&file))).unwrap();
    let one = asker(store.stream(), "a");
    assert_eq!(store.allocate(&one, None, &[], pending()).await.unwrap(), net("10.0.0.0/28"));
    drop(store);
    let store = Store::open(&settings("10.10.0.0/24", 28, Some(&file))).unwrap();
    let one = asker(store.stream(), "a");
    assert_eq!(
        store.allocate(&one, Some(net("10.0.0.0/28")), &[], pending()).await.unwrap(),
        net("10.10.0.0/28")
    );
}

#[tokio::test]
async fn who_comes_back_before_the_break_was_seen_waits_for_it() {
    let store = Store::open(&settings("10.0.0.0/16", 24, None)).unwrap();
    let store = Arc::new(store.with_busy(Duration::from_secs(60)));
    let old = asker(store.stream(), "a");
    let prefix = store.allocate(&old, None, &[], pending()).await.unwrap();
    let again = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.allocate(&asker(store.stream(), "a"), Some(prefix), &[], pending()).await }
    });
    // Others are not held up by it.
    assert_eq!(
        store.allocate(&asker(store.stream(), "b"), None, &[], pending()).await.unwrap(),
        net("10.0.1.0/24")
    );
    assert!(!again.is_finished());
    store.end(old.stream).await;
    assert_eq!(again.await.unwrap().unwrap(), prefix);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_lives_keeps_its_prefix_against_its_own_identity() {
    let store = Store::open(&settings("10.0.0.0/16", 24, None)).unwrap();
    let old = asker(store.stream(), "a");
    let prefix = store.allocate(&old, None, &[], pending()).await.unwrap();
    let twin = asker(store.stream(), "a");
    assert_eq!(store.allocate(&twin, Some(prefix), &[], pending()).await.unwrap(), net("10.0.1.0/24"));
    let gone = store.allocate(&asker(store.stream(), "a"), Some(prefix), &[], async {}).await.unwrap_err();
    assert_eq!(gone.code(), Code::Cancelled);
    assert_eq!(store.figures().await.held, 2);
}

#[tokio::test]
async fn what_nothing_can_be_handed_out_by_is_refused_with_the_setting() {
    let folder = tempfile::tempdir().unwrap();
    let mut nothing = settings("10.0.0.0/24", 28, None);
    nothing.excluded = vec![net("10.0.0.0/25"), net("10.0.0.128/25")];
    for (settings, told) in [
        (
            settings("10.0.0.0/24", 16, None),
            "NSM_CLIENT_PREFIX_LEN: 16: a prefix for an endpoint out of NSM_PREFIX 10.0.0.0/24 has a length of 24 to 32",
        ),
        (settings("fd00::/32", 128, None), "has a length of 32 to 96"),
        (nothing, "VWIRE_IPAM_EXCLUDED: nothing is left of NSM_PREFIX 10.0.0.0/24"),
        (settings("10.0.0.0/24", 28, Some(folder.path())), "VWIRE_IPAM_STATE: "),
    ] {
        let error = Store::open(&settings).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
}
