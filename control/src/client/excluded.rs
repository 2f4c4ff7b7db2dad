//! Addresses that a client's connections use, so that no two endpoints give it clashing ones.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use ipnet::IpNet;
use vwire_proto::nsm::connectioncontext::IpContext;

/// The prefixes of a client's connections by connection id. Connections of one awareness group may overlap.
#[derive(Default)]
pub struct AddressBook(Mutex<BTreeMap<String, Entry>>);

struct Entry {
    group: Option<usize>,
    prefixes: Vec<IpNet>,
}

impl AddressBook {
    /// What the other connections use and this one must not be given: their addresses and the prefixes routed to them (but for
    /// default routes), less what is entered as its own.
    pub fn excluded_for(&self, id: &str, group: Option<usize>) -> Vec<String> {
        let book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = book.get(id).map(|entry| entry.prefixes.as_slice()).unwrap_or_default();
        let mut excluded: Vec<IpNet> = others(&book, id, group)
            .flat_map(|entry| &entry.prefixes)
            .filter(|prefix| !own.contains(prefix))
            .copied()
            .collect();
        excluded.sort();
        excluded.dedup();
        excluded.iter().map(IpNet::to_string).collect()
    }

    /// Enters a connection's prefixes in place of those it had.
    ///
    /// # Errors
    /// The first of its addresses that another connection has, and that connection's id; nothing is entered then.
    pub fn enter(&self, id: &str, group: Option<usize>, context: &IpContext) -> Result<(), (IpAddr, String)> {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for address in addresses(context) {
            for (other, entry) in
                book.iter().filter(|(other, entry)| *other != id && !together(group, entry.group))
            {
                let clash = |prefix: &&IpNet| is_host(prefix) && prefix.addr() == address.addr();
                if entry.prefixes.iter().find(clash).is_some() {
                    return Err((address.addr(), other.clone()));
                }
            }
        }
        let mut prefixes = addresses(context);
        let routes = context.src_routes.iter().chain(&context.dst_routes);
        prefixes.extend(routes.filter_map(|route| net(&route.prefix)).filter(|net| net.prefix_len() > 0));
        prefixes.sort();
        prefixes.dedup();
        book.insert(id.to_owned(), Entry { group, prefixes });
        Ok(())
    }

    /// Forgets a connection.
    pub fn remove(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

fn others<'a>(
    book: &'a BTreeMap<String, Entry>,
    id: &str,
    group: Option<usize>,
) -> impl Iterator<Item = &'a Entry> {
    book.iter()
        .filter(move |(other, entry)| *other != id && !together(group, entry.group))
        .map(|(_, entry)| entry)
}

fn together(one: Option<usize>, other: Option<usize>) -> bool {
    one.is_some() && one == other
}

fn addresses(context: &IpContext) -> Vec<IpNet> {
    let texts = context.src_ip_addrs.iter().chain(&context.dst_ip_addrs);
    texts.filter_map(|text| net(text)).map(|net| IpNet::from(net.addr())).collect()
}

fn net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn is_host(prefix: &IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vwire_proto::nsm::connectioncontext::Route;

    fn context(src: &str, dst: &str, route: &str) -> IpContext {
        IpContext {
            src_ip_addrs: vec![src.into()],
            dst_ip_addrs: vec![dst.into()],
            src_routes: vec![Route { prefix: route.into(), next_hop: String::new() }],
            ..Default::default()
        }
    }

    #[test]
    fn a_connection_is_kept_off_the_others_prefixes_but_not_off_its_own() {
        let book = AddressBook::default();
        let one = context("10.0.0.1/32", "10.0.0.0/32", "172.16.0.0/24");
        book.enter("a", None, &one).unwrap();
        let expected = ["10.0.0.0/32", "10.0.0.1/32", "172.16.0.0/24"];
        assert_eq!(book.excluded_for("b", None), expected);
        assert_eq!(book.excluded_for("a", None), [""; 0]);
        let clash = book.enter("b", None, &one).unwrap_err();
        assert_eq!(clash, ("10.0.0.1".parse().unwrap(), "a".to_owned()));
        book.enter("b", None, &context("172.16.0.9/32", "10.0.0.2/32", "0.0.0.0/0")).unwrap();
        assert_eq!(book.excluded_for("c", None).len(), 5, "the default route is no prefix to stay away from");
        book.remove("a");
        book.enter("c", None, &one).unwrap();
    }

    #[test]
    fn a_group_may_share() {
        let book = AddressBook::default();
        let one = context("10.0.0.1/32", "10.0.0.0/32", "10.0.0.0/32");
        book.enter("a", Some(0), &one).unwrap();
        assert_eq!(book.excluded_for("b", Some(0)), [""; 0]);
        book.enter("b", Some(0), &one).unwrap();
        assert!(book.enter("c", Some(1), &one).is_err() && book.enter("d", None, &one).is_err());
        assert_eq!(book.excluded_for("c", Some(1)).len(), 2);
    }
}
