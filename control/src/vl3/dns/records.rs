//! Names and the addresses behind them, by the connection that they are of.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use hickory_resolver::proto::rr::rdata::{A, AAAA, PTR};
use hickory_resolver::proto::rr::{LowerName, Name, RData};

/// Most names of one connection: one of each template.
pub const MAX_NAMES: usize = 16;
/// Most addresses of one connection.
pub const MAX_ADDRESSES: usize = 64;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// Nothing: there is no such name, and none below it.
    Nothing,
    /// There are names below it, and it has no records itself (RFC 8020).
    Empty,
    /// These, of all types, the newest connection's first.
    Data(Vec<RData>),
}

/// The records of all connections of one endpoint. Several connections may have the same name, and then it has the addresses of all.
#[derive(Debug, Default)]
pub struct Records(RwLock<Table>);

#[derive(Debug, Default)]
struct Table {
    /// In canonical order (RFC 4034, 6.1): the names below a name come right after it.
    names: BTreeMap<LowerName, Vec<(Arc<str>, RData)>>,
    /// Which names have records of a connection.
    connections: HashMap<Arc<str>, Vec<LowerName>>,
}

impl Records {
    /// A connection has these names and these addresses, and no others: A or AAAA for each name, and PTR for each address.
    /// What is beyond [`MAX_NAMES`] and [`MAX_ADDRESSES`] is left out.
    pub fn set(&self, connection: &str, names: &[Name], addresses: &[IpAddr]) {
        let records = records(names, addresses);
        let mut table = self.write();
        if table.has(connection, &records) {
            return;
        }
        table.remove(connection);
        let owner: Arc<str> = connection.into();
        let mut owners: Vec<LowerName> = Vec::new();
        for (name, data) in records {
            table.names.entry(name.clone()).or_default().insert(0, (Arc::clone(&owner), data));
            if !owners.contains(&name) {
                owners.push(name);
            }
        }
        if !owners.is_empty() {
            table.connections.insert(owner, owners);
        }
    }

    /// A connection has gone, and its records with it.
    pub fn remove(&self, connection: &str) {
        self.write().remove(connection);
    }

    /// What is known of a name.
    pub fn find(&self, name: &LowerName) -> Held {
        let table = self.read();
        if let Some(entries) = table.names.get(name) {
            return Held::Data(entries.iter().map(|(_, data)| data.clone()).collect());
        }
        match table.names.range(name..).next() {
            Some((next, _)) if name.zone_of(next) => Held::Empty,
            _ => Held::Nothing,
        }
    }

    /// How many connections have records.
    pub fn connections(&self) -> usize {
        self.read().connections.len()
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        // A change is a removal and insertions, none of which fails.
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Whether a connection has exactly these already: a refresh changes nothing, and is what comes most often.
    fn has(&self, connection: &str, records: &[(LowerName, RData)]) -> bool {
        let Some(owners) = self.connections.get(connection) else { return records.is_empty() };
        let held = |(name, data): &(LowerName, RData)| {
            let entries = self.names.get(name);
            entries.is_some_and(|entries| {
                entries.iter().any(|(owner, held)| owner.as_ref() == connection && held == data)
            })
        };
        let count: usize = owners
            .iter()
            .filter_map(|name| self.names.get(name))
            .map(|entries| entries.iter().filter(|(owner, _)| owner.as_ref() == connection).count())
            .sum();
        count == records.len() && records.iter().all(held)
    }

    fn remove(&mut self, connection: &str) {
        for name in self.connections.remove(connection).unwrap_or_default() {
            if let Some(entries) = self.names.get_mut(&name) {
                entries.retain(|(owner, _)| owner.as_ref() != connection);
                if entries.is_empty() {
                    self.names.remove(&name);
                }
            }
        }
    }
}

fn records(names: &[Name], addresses: &[IpAddr]) -> Vec<(LowerName, RData)> {
    let mut records: Vec<(LowerName, RData)> = Vec::new();
    for address in addresses.iter().take(MAX_ADDRESSES) {
        let forward = match address {
            IpAddr::V4(address) => RData::A(A(*address)),
            IpAddr::V6(address) => RData::AAAA(AAAA(*address)),
        };
        let reverse = LowerName::from(Name::from(*address));
        for name in names.iter().take(MAX_NAMES) {
            records.push((LowerName::from(name), forward.clone()));
            records.push((reverse.clone(), RData::PTR(PTR(name.clone()))));
        }
    }
    let mut seen: Vec<(LowerName, RData)> = Vec::with_capacity(records.len());
    for record in records {
        if !seen.contains(&record) {
            seen.push(record);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn found(records: &Records, text: &str) -> Vec<String> {
        match records.find(&LowerName::from(name(text))) {
            Held::Data(data) => data.iter().map(ToString::to_string).collect(),
            Held::Empty => vec!["empty".to_owned()],
            Held::Nothing => Vec::new(),
        }
    }

    #[test]
    fn records_come_and_go_with_their_connection() {
        let records = Records::default();
        let both: [IpAddr; 2] = ["172.16.1.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        records.set("a", &[name("Pod-1.vl3.")], &both);
        assert_eq!(found(&records, "pod-1.VL3."), ["fd00::2", "172.16.1.2"], "whatever the case");
        assert_eq!(found(&records, "2.1.16.172.in-addr.arpa."), ["Pod-1.vl3."]);
        let six = format!("2.{}0.0.d.f.ip6.arpa.", "0.".repeat(27));
        assert_eq!(found(&records, &six), ["Pod-1.vl3."]);
        assert_eq!(
            (found(&records, "vl3."), found(&records, "16.172.in-addr.arpa.")),
            (vec!["empty".to_owned()], vec!["empty".to_owned()])
        );
        for none in ["pod-2.vl3.", "l3.", "x.pod-1.vl3.", "6.172.in-addr.arpa.", "3.1.16.172.in-addr.arpa."] {
            assert_eq!(found(&records, none), Vec::<String>::new(), "{none}");
        }
        // Another address, another name: nothing is left of what was.
        records.set("a", &[name("pod-9.vl3.")], &both[..1]);
        assert_eq!((found(&records, "pod-1.vl3."), found(&records, &six)), (vec![], vec![]));
        assert_eq!(found(&records, "pod-9.vl3."), ["172.16.1.2"]);
        records.remove("a");
        records.remove("a");
        assert_eq!(
            (found(&records, "pod-9.vl3."), found(&records, "vl3."), records.connections()),
            (vec![], vec![], 0)
        );
        let table = records.read();
        assert!(table.names.is_empty() && table.connections.is_empty());
    }

    #[test]
    fn one_connection_takes_nothing_from_another_of_the_same_name() {
        let records = Records::default();
        let address = |n: u8| IpAddr::from([172, 16, 0, n]);
        records.set("a", &[name("db.vl3.")], &[address(1)]);
        records.set("b", &[name("db.vl3.")], &[address(2)]);
        assert_eq!(found(&records, "db.vl3."), ["172.16.0.2", "172.16.0.1"], "the newest first");
        records.set("a", &[name("db.vl3.")], &[address(1)]);
        assert_eq!(found(&records, "db.vl3."), ["172.16.0.2", "172.16.0.1"], "a refresh is nothing new");
        records.remove("b");
        assert_eq!(found(&records, "db.vl3."), ["172.16.0.1"]);
    }

    #[test]
    fn what_a_connection_may_have_is_bounded() {
        let records = Records::default();
        let names: Vec<Name> = (0..100).map(|n| name(&format!("n{n}.vl3."))).collect();
        let addresses: Vec<IpAddr> = (0..200).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        records.set("a", &names, &addresses);
        assert_eq!(records.read().names.len(), MAX_NAMES + MAX_ADDRESSES);
        assert_eq!(found(&records, "n0.vl3.").len(), MAX_ADDRESSES);
    }
}
