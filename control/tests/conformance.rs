//! The cases of conformance in meshes where every role is `vwire`.

mod cases;
mod peers;

use peers::Kind;
use peers::mesh::Plan;

conformance!([] Plan::of(Kind::Vwire));
conformance!(@ [] [Plan::of(Kind::Vwire)] chains: c09_chain_of_seven_over_seven_nodes;);
