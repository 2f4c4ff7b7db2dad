//! The cases themselves, tried on the Go implementation: what it does not do is no case. Run with `--ignored`.

mod cases;
mod peers;

use peers::Kind;
use peers::mesh::Plan;

conformance!([#[ignore = "tries the cases, not vwire"]] Plan::of(Kind::Go));
