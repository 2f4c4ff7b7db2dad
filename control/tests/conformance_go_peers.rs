//! The cases of conformance with Go peers in the mesh.

mod cases;
mod peers;

use peers::Kind;
use peers::mesh::Plan;

/// The cases themselves, tried on the Go implementation: not run in CI.
mod all_go {
    use super::*;

    conformance!(Plan::of(Kind::Go));
}
