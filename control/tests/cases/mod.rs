//! Cases of conformance that concern one domain, each a function over a plan of who plays which role. Their numbers are those of
//! the list they come from; names say what is asserted.
#![allow(dead_code)] // each test binary uses its own part

pub mod basic;
pub mod chains;
pub mod context;
pub mod expiry;
pub mod heal;
pub mod selection;

use serde_json::{Value, json};

use crate::peers::mesh::Mesh;
use crate::peers::observer::segments;
use crate::peers::registry::RegistryClient;

/// What clients ask for where a case does not say.
pub const SERVICE: &str = "kernel://icmp-responder/nsm-1";

/// The names of a connection's path.
pub fn names(connection: &Value) -> Vec<String> {
    segments(connection).into_iter().map(|(name, _)| name).collect()
}

/// The first address of the other end.
pub fn far_address(connection: &Value) -> String {
    let address =
        connection.pointer("/context/ipContext/dstIpAddrs/0").and_then(Value::as_str).unwrap_or_default();
    address.split('/').next().unwrap_or_default().to_owned()
}

/// Registers the network service, with its matches, as its owner.
pub fn register_service(owner: &mut RegistryClient, matches: Value) {
    let service = json!({"name": "icmp-responder", "payload": "ETHERNET", "matches": matches});
    owner.call("register", "ns", &service).unwrap();
}

/// Segments of a path between nodes, or on one.
pub fn path_length(mesh: &Mesh) -> usize {
    if mesh.nodes.len() > 1 { 6 } else { 4 }
}

/// The cases as tests, for one plan; the attributes before it go to each test. `@` before them, and parts with their cases after the
/// plan: those alone.
#[macro_export]
macro_rules! conformance {
    ([$($attribute:tt)*] $plan:expr) => {
        conformance!(@ [$($attribute)*] [$plan]
            basic: c01_request_refresh_close, c02_between_nodes, c03_request_before_the_endpoint, c04_endpoint_that_answers_late,
                c15_unix_sockets_only, c16_descriptors_after_a_refusal;
            chains: c08_chain_of_seven_on_one_node;
            context: c19_another_client_lowers_the_mtu, c20_name_servers_of_the_endpoint,
                c20_names_resolve_through_the_client;
            selection: c05_endpoints_that_refuse, c07_matches_edited, c11_node_name_template, c11_zones_by_labels, c12_forwarder_labels,
                c14_endpoint_made_on_request;
            expiry: c06_endpoint_killed_refresh_fails, c17_client_dies_tokens_end, c17_short_tokens_are_refreshed_in_time, c18_endpoint_dies_registration_ends, c18_short_tokens_are_renewed_in_time,
                c33_registry_dead_close_arrives;
            heal: c22_registry_and_forwarder_restart, c24_endpoint_dies_another_takes_over, c25_data_plane_broken,
                c26_control_of_endpoint_dead_data_healthy, c27_forwarder_dies_another_registers, c28_nsmgr_restarts, c28_client_and_nsmgr_restart,
                c28_client_nsmgr_and_forwarder_restart, c28_client_and_forwarder_restart, c28_remote_node_dies,
                c29_registry_restarts_empty, c30_endpoint_gone_close_while_healing;
        );
    };
    (@ $attributes:tt $plan:tt $($part:ident: $($case:ident),+;)+) => {
        $(conformance!(% $attributes $plan $part: $($case)+);)+
    };
    (% $attributes:tt $plan:tt $part:ident: $($case:ident)+) => {
        $(conformance!(& $attributes $plan $part $case);)+
    };
    (& [$($attribute:tt)*] [$plan:expr] $part:ident $case:ident) => {
        #[test]
        $($attribute)*
        fn $case() {
            $crate::cases::$part::$case($plan);
        }
    };
}
