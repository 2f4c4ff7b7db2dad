//! Policy rules, each with a routing table of its own.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use netlink_packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage};
use tonic::Status;

use super::apply::{PROTOCOL, doing, family, list_routes, message, route_of, table_of};
use super::{Netlink, Policy};

/// Our tables begin here, out of the way of those that people number by hand.
const FIRST_TABLE: u32 = 5001;
/// Two connections of one namespace must not take the same free table.
static ALLOCATING: Mutex<()> = Mutex::new(());

/// Makes rules and tables what `wanted` says. Returns the tables, in the order of the policies.
///
/// # Errors
/// FAILED_PRECONDITION, naming what the kernel refused.
pub fn ensure(
    netlink: &mut Netlink,
    index: u32,
    wanted: &[Policy],
    tables: &[u32],
) -> Result<Vec<u32>, Status> {
    if wanted.is_empty() && tables.is_empty() {
        return Ok(Vec::new());
    }
    let _alone = ALLOCATING.lock().unwrap_or_else(PoisonError::into_inner);
    let rules = list(netlink)?;
    if agrees(netlink, wanted, tables, &rules)? {
        return Ok(tables.to_vec());
    }
    remove(netlink, tables)?;
    let mut used: BTreeSet<u32> = list_routes(netlink)?.iter().map(table_of).collect();
    used.extend(list(netlink)?.iter().filter_map(table));
    let mut made = Vec::new();
    for policy in wanted {
        let free = (FIRST_TABLE..).find(|table| !used.contains(table)).unwrap_or(FIRST_TABLE);
        used.insert(free);
        made.push(free);
        if let Err(error) = add(netlink, index, policy, free) {
            // The caller does not learn of these tables, so nobody else could remove them.
            let _ = remove(netlink, &made);
            return Err(error);
        }
    }
    Ok(made)
}

/// Removes the rules that lead to these tables, and those whose tables lost their interface: leftovers of a forwarder that died. The
/// routes go with the interface, or here.
///
/// # Errors
/// FAILED_PRECONDITION, naming what the kernel refused.
pub fn remove(netlink: &mut Netlink, tables: &[u32]) -> Result<(), Status> {
    let routes = list_routes(netlink)?;
    let in_use: BTreeSet<u32> = routes.iter().map(table_of).collect();
    for rule in list(netlink)? {
        let leads_to = table(&rule).unwrap_or_default();
        let ours = rule.attributes.contains(&RuleAttribute::Protocol(PROTOCOL));
        if ours && (tables.contains(&leads_to) || !in_use.contains(&leads_to)) {
            let removed = netlink.ask(RouteNetlinkMessage::DelRule(rule), 0);
            removed.map_err(doing(format_args!("removing the rule that leads to table {leads_to}")))?;
        }
    }
    for route in routes.into_iter().filter(|route| tables.contains(&table_of(route))) {
        // It may have gone with its interface meanwhile.
        let _ = netlink.ask(RouteNetlinkMessage::DelRoute(route), 0);
    }
    Ok(())
}

fn list(netlink: &mut Netlink) -> Result<Vec<RuleMessage>, Status> {
    let mut rules = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut listing = RuleMessage::default();
        listing.header.family = family;
        let entries =
            netlink.dump(RouteNetlinkMessage::GetRule(listing)).map_err(doing("listing the rules"))?;
        rules.extend(entries.into_iter().filter_map(|entry| match entry {
            RouteNetlinkMessage::NewRule(rule) => Some(rule),
            _ => None,
        }));
    }
    Ok(rules)
}

fn table(rule: &RuleMessage) -> Option<u32> {
    let attribute = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.or(Some(rule.header.table.into())).filter(|table| *table != 0)
}

fn agrees(
    netlink: &mut Netlink,
    wanted: &[Policy],
    tables: &[u32],
    rules: &[RuleMessage],
) -> Result<bool, Status> {
    if wanted.len() != tables.len() {
        return Ok(false);
    }
    let routes = list_routes(netlink)?;
    Ok(wanted.iter().zip(tables).all(|(policy, number)| {
        let mut leading = rules.iter().filter(|rule| table(rule) == Some(*number));
        let is = |rule: &RuleMessage| {
            let expected = rule_of(policy, *number);
            rule.header.src_len == expected.header.src_len
                && expected.attributes.iter().all(|attribute| rule.attributes.contains(attribute))
        };
        let held = |wanted: &super::Route| {
            routes.iter().any(|route| table_of(route) == *number && route_of(route) == *wanted)
        };
        leading.next().is_some_and(is) && leading.next().is_none() && policy.routes.iter().all(held)
    }))
}

/// First the routes, so that no packet finds an empty table.
fn add(netlink: &mut Netlink, index: u32, policy: &Policy, table: u32) -> Result<(), Status> {
    for route in &policy.routes {
        let request = RouteNetlinkMessage::NewRoute(message(route, index, table));
        let added = netlink.ask(request, NLM_F_CREATE | NLM_F_EXCL);
        added.map_err(doing(format_args!("adding the route {} to table {table}", route.prefix)))?;
    }
    let rule = RouteNetlinkMessage::NewRule(rule_of(policy, table));
    netlink
        .ask(rule, NLM_F_CREATE | NLM_F_EXCL)
        .map_err(doing(format_args!("adding the rule that leads to table {table}")))
}

fn rule_of(policy: &Policy, table: u32) -> RuleMessage {
    let mut rule = RuleMessage::default();
    let example = policy.from.or(policy.routes.first().map(|route| route.prefix));
    rule.header.family = example.map_or(AddressFamily::Inet, |net| family(&net.addr()));
    rule.header.action = RuleAction::ToTable;
    rule.attributes.push(RuleAttribute::Table(table));
    rule.attributes.push(RuleAttribute::Protocol(PROTOCOL));
    if let Some(from) = policy.from {
        rule.header.src_len = from.prefix_len();
        if from.prefix_len() > 0 {
            rule.attributes.push(RuleAttribute::Source(from.addr()));
        }
    }
    if let Some(protocol) = policy.protocol {
        rule.attributes.push(RuleAttribute::IpProtocol(IpProtocol::from(i32::from(protocol))));
    }
    let range = |(start, end)| RulePortRange { start, end };
    rule.attributes.extend(policy.dst_port.map(range).map(RuleAttribute::DestinationPortRange));
    rule.attributes.extend(policy.src_port.map(range).map(RuleAttribute::SourcePortRange));
    rule
}
