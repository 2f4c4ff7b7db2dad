//! `vwire path CONNECTION`: hop by hop from the client to the endpoint.

use std::collections::BTreeMap;

use serde::Serialize;

use super::table::Table;
use super::{Output, VerbError, Where, from_now, print, print_json};
use crate::obs::{ConnectionView, Heal, HopView, MechanismView, Status};
use crate::transport::Target;

/// Hops put their counters in the path under these names, one set for each leg: as a server toward the client, as a client toward the
/// endpoint.
const SIDES: [&str; 2] = ["server_", "client_"];

/// `vwire path`
#[derive(Debug, Clone, clap::Args)]
pub struct PathArgs {
    /// The connection's id at the client or at any hop, or how it begins. All connections are listed if it is left out.
    connection: Option<String>,
    #[command(flatten)]
    place: Where,
    /// table or json.
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

/// A connection with what each of its hops on this machine says of it.
#[derive(Debug, Serialize)]
struct Whole {
    /// As the hop that knows the longest path says it.
    #[serde(flatten)]
    view: ConnectionView,
    /// By hop, of the roles that answered.
    legs: BTreeMap<usize, Vec<MechanismView>>,
    heals: BTreeMap<usize, Heal>,
    roles: BTreeMap<usize, String>,
}

impl PathArgs {
    /// Asks all roles for their view of the connection, and prints a line for each hop.
    ///
    /// # Errors
    /// [`VerbError`].
    pub async fn run(&self) -> Result<(), VerbError> {
        let (answers, processes) = tokio::join!(self.place.ask("/connections"), self.place.ask("/status"));
        let answers: Vec<(Target, Vec<ConnectionView>)> = answers?;
        let processes: Vec<(Target, Status)> = processes?;
        let identified = answers.into_iter().flat_map(|(target, views)| {
            let process = processes.iter().find(|(other, _)| *other == target);
            let id = process.and_then(|(_, status)| status.spiffe_id.clone());
            views.into_iter().map(move |view| identify(view, id.as_deref()))
        });
        let all = wholes(identified);
        let Some(wanted) = &self.connection else {
            return match self.output {
                Output::Json => print_json(&all),
                Output::Table => print(&list(&all)),
            };
        };
        let one = pick(all, wanted).map_err(|reason| {
            VerbError::Which(format!("{wanted}: {reason} (roles in {} were asked)", self.place.place()))
        })?;
        match self.output {
            Output::Json => print_json(&one),
            Output::Table => print(&hops(&one)),
        }
    }
}

/// A view that says who its hop is. (Tokens would, but roles keep those to themselves.)
fn identify(mut view: ConnectionView, id: Option<&str>) -> ConnectionView {
    let own = view.hops.iter_mut().find(|hop| hop.id == view.id);
    if let (Some(own), Some(id)) = (own, id) {
        own.spiffe_id = Some(id.to_owned());
    }
    view
}

/// Puts the views of one vWire together.
fn wholes(views: impl Iterator<Item = ConnectionView>) -> Vec<Whole> {
    let mut by_root: BTreeMap<String, Vec<ConnectionView>> = BTreeMap::new();
    for view in views {
        by_root.entry(view.root.clone()).or_default().push(view);
    }
    by_root.into_values().filter_map(whole).collect()
}

fn whole(views: Vec<ConnectionView>) -> Option<Whole> {
    // The client's own view comes with the answer, and so with the whole path; of equal ones the first hop's is the freshest.
    let best = views.iter().max_by_key(|view| (view.hops.len(), std::cmp::Reverse(view.index)))?;
    let mut whole =
        Whole { view: best.clone(), legs: BTreeMap::new(), heals: BTreeMap::new(), roles: BTreeMap::new() };
    for view in &views {
        let Some(hop) = whole.view.hops.iter().position(|hop| hop.id == view.id) else { continue };
        whole.legs.insert(hop, view.mechanisms.clone());
        whole.roles.insert(hop, view.role.clone());
        // What a hop says of itself is fresher than what the path has of it.
        if let Some(own) = view.hops.iter().find(|own| own.id == view.id) {
            whole.view.hops[hop].metrics.extend(own.metrics.clone());
            whole.view.hops[hop].spiffe_id.clone_from(&own.spiffe_id);
        }
        if let Some(heal) = &view.last_heal {
            whole.heals.insert(hop, heal.clone());
        }
    }
    Some(whole)
}

/// The one that `wanted` means.
fn pick(all: Vec<Whole>, wanted: &str) -> Result<Whole, String> {
    let ids = |whole: &Whole| -> Vec<String> {
        std::iter::once(whole.view.root.clone())
            .chain(whole.view.hops.iter().map(|hop| hop.id.clone()))
            .collect()
    };
    let count = all.len();
    let (exact, others): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|whole| ids(whole).iter().any(|id| id == wanted));
    if let Some(one) = exact.into_iter().next() {
        return Ok(one);
    }
    let mut found: Vec<_> =
        others.into_iter().filter(|whole| ids(whole).iter().any(|id| id.starts_with(wanted))).collect();
    match found.len() {
        0 => Err(format!("no connection of that id; there are {count}, which `vwire path` lists")),
        1 => Ok(found.remove(0)),
        more => Err(format!("{more} connections begin so")),
    }
}

fn list(all: &[Whole]) -> String {
    if all.is_empty() {
        return "no connections\n".to_owned();
    }
    let mut table = Table::new(&["CONNECTION", "SERVICE", "ENDPOINT", "STATE", "HOPS", "PAYLOAD", "EXPIRES"]);
    for Whole { view, .. } in all {
        table.row([
            view.root.clone(),
            view.service.clone(),
            view.endpoint.clone(),
            view.state.clone(),
            view.hops.len().to_string(),
            view.payload.clone(),
            view.expires.map(from_now).unwrap_or_default(),
        ]);
    }
    table.text()
}

fn hops(whole: &Whole) -> String {
    let view = &whole.view;
    let mut text = format!(
        "connection {}  service {}  endpoint {}  payload {}  {}\nclient {}  endpoint {}\n\n",
        view.root,
        view.service,
        if view.endpoint.is_empty() { "-" } else { &view.endpoint },
        view.payload,
        view.state,
        joined(&view.client_addresses),
        joined(&view.endpoint_addresses),
    );
    let mut table = Table::new(&[
        "HOP",
        "NAME",
        "ROLE",
        "ID",
        "MECHANISM",
        "INTERFACE",
        "RX PACKETS",
        "TX PACKETS",
        "DROPS",
        "TOKEN ENDS",
        "LAST HEAL",
        "SPIFFE ID",
    ]);
    for (index, hop) in view.hops.iter().enumerate() {
        let legs = whole.legs.get(&index).map(Vec::as_slice).unwrap_or_default();
        table.row([
            index.to_string(),
            hop.name.clone(),
            whole.roles.get(&index).cloned().unwrap_or_default(),
            hop.id.clone(),
            legs.iter().map(mechanism).collect::<Vec<_>>().join(" → "),
            metric(hop, "interface").or_else(|| names(legs)).unwrap_or_default(),
            metric(hop, "rx_packets").unwrap_or_default(),
            metric(hop, "tx_packets").unwrap_or_default(),
            metric(hop, "drops").unwrap_or_default(),
            hop.expires.map(from_now).unwrap_or_default(),
            whole
                .heals
                .get(&index)
                .map(|heal| format!("{} ({})", from_now(heal.at), heal.reason))
                .unwrap_or_default(),
            hop.spiffe_id.clone().unwrap_or_default(),
        ]);
    }
    text += &table.text();
    text
}

fn joined(addresses: &[String]) -> String {
    if addresses.is_empty() { "-".to_owned() } else { addresses.join(",") }
}

/// A leg in a word: `KERNEL`, `VXLAN 10.0.0.1→10.0.0.2 vni 7`.
fn mechanism(leg: &MechanismView) -> String {
    let parameter = |key: &str| leg.parameters.get(key).map(String::as_str);
    match (parameter("src_ip"), parameter("dst_ip"), parameter("vni")) {
        (Some(from), Some(to), Some(vni)) => format!("{} {from}→{to} vni {vni}", leg.kind),
        _ => leg.kind.clone(),
    }
}

fn names(legs: &[MechanismView]) -> Option<String> {
    let names: Vec<&str> =
        legs.iter().filter_map(|leg| leg.parameters.get("name")).map(String::as_str).collect();
    (!names.is_empty()).then(|| names.join(" → "))
}

/// A figure of a hop for both of its legs.
fn metric(hop: &HopView, name: &str) -> Option<String> {
    let of = |prefix: &&str| hop.metrics.get(&format!("{prefix}{name}")).cloned();
    let both: Vec<String> = SIDES.iter().filter_map(of).collect();
    (!both.is_empty()).then(|| both.join(" / "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(role: &str, index: usize, known: usize) -> ConnectionView {
        let hop =
            |at: usize| HopView { name: format!("hop-{at}"), id: format!("id-{at}"), ..HopView::default() };
        ConnectionView {
            role: role.to_owned(),
            id: format!("id-{index}"),
            root: "id-0".to_owned(),
            index: u32::try_from(index).unwrap(),
            hops: (0..known).map(hop).collect(),
            mechanisms: vec![MechanismView {
                side: "client".into(),
                kind: format!("M{index}"),
                ..Default::default()
            }],
            state: "UP".to_owned(),
            ..ConnectionView::default()
        }
    }

    #[test]
    fn views_of_hops_make_one_path() {
        let mut forwarder = view("forwarder", 2, 4);
        forwarder.hops[2].metrics.insert("client_rx_packets".into(), "77".into());
        forwarder = identify(forwarder, Some("spiffe://d/fwd"));
        forwarder.last_heal = Some(Heal { at: 0, reason: "endpoint gone".into(), seconds: 0.5 });
        let all = wholes([view("nse", 3, 4), forwarder, view("nsc", 0, 4), view("nsmgr", 1, 2)].into_iter());
        assert_eq!(all.len(), 1);
        let text = hops(&all[0]);
        let lines: Vec<&str> = text.lines().skip(4).collect();
        assert_eq!(lines.len(), 4, "{text}");
        for (line, (role, leg)) in
            lines.iter().zip([("nsc", "M0"), ("nsmgr", "M1"), ("forwarder", "M2"), ("nse", "M3")])
        {
            assert!(line.contains(role) && line.contains(leg), "{line}");
        }
        assert!(
            lines[2].contains("endpoint gone")
                && lines[2].contains("77")
                && lines[2].contains("spiffe://d/fwd")
        );
    }

    #[test]
    fn a_connection_is_found_by_any_hops_id_and_by_how_it_begins() {
        let all = || {
            let mut other = view("nsc", 0, 1);
            (other.id, other.root, other.hops[0].id) = ("ix".into(), "ix".into(), "ix".into());
            wholes([view("nsc", 0, 3), other].into_iter())
        };
        assert_eq!(pick(all(), "id-2").unwrap().view.root, "id-0");
        assert_eq!(pick(all(), "ix").unwrap().view.root, "ix");
        assert_eq!(pick(all(), "id").unwrap().view.root, "id-0");
        assert!(pick(all(), "i").unwrap_err().contains("2 connections"));
        assert!(pick(all(), "z").unwrap_err().contains("there are 2"));
    }

    #[test]
    fn counters_of_both_legs_are_shown() {
        let metrics = [("server_rx_packets", "5"), ("client_rx_packets", "6")];
        let metrics = metrics.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let hop = HopView { metrics, ..HopView::default() };
        assert_eq!(metric(&hop, "rx_packets").as_deref(), Some("5 / 6"));
        assert_eq!(metric(&hop, "drops"), None);
    }
}
