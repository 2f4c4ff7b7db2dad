//! `vwire`: the roles of the mesh, and the operator's verbs.

fn main() {}
