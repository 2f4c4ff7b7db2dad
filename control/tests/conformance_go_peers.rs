//! The cases of conformance with Go peers in the mesh, in place of one role or more.

mod cases;
mod peers;

use peers::Kind;
use peers::mesh::Plan;

/// The registry is Go's.
mod go_registry {
    use super::*;

    conformance!([] Plan { registry: Kind::Go, ..Plan::of(Kind::Vwire) });
}

/// The nsmgrs are Go's.
mod go_nsmgr {
    use super::*;

    conformance!([] Plan { nsmgr: Kind::Go, ..Plan::of(Kind::Vwire) });
}

/// The registry and the nsmgrs are Go's.
mod go_registry_and_nsmgr {
    use super::*;

    conformance!([] Plan { registry: Kind::Go, nsmgr: Kind::Go, ..Plan::of(Kind::Vwire) });
}

/// The workloads are Go's: client and endpoint.
mod go_workloads {
    use super::*;

    conformance!([] Plan { nsc: Kind::Go, nse: Kind::Go, ..Plan::of(Kind::Vwire) });
}

/// Everything but the workloads is Go's: registry, nsmgr and forwarder, all at once.
mod go_all_but_workloads {
    use super::*;

    conformance!([] Plan { nsc: Kind::Vwire, nse: Kind::Vwire, ..Plan::of(Kind::Go) });
}
