//! The control plane of vwire: Network Service Mesh (NSM v1) in Rust.
//!
//! A *role* (`roles/`) is a process or a part of one: a list of *elements* (`elements/`) that each do one thing to a Request on
//! its way to the next hop and to the answer on its way back. What all of them share is in `chain/`.
//!
//! | to find … | look in |
//! |---|---|
//! | what a role is made of, in order | [`roles`] |
//! | one step of a Request | `elements`, one file each, by NSM's name |
//! | NSM's messages with a type for what their strings mean | `api` |
//! | who may talk to whom: SVIDs, tokens, policies | `identity` |
//! | sockets, TLS, descriptors beside gRPC, connections kept open | `transport` |
//! | what is registered, and watching it | `registry` |
//! | names of other domains | `domain` |
//! | where another domain's registry and proxy are | `discovery` |
//! | what the packet engine shall hold | `dataplane` |
//! | prefixes for the endpoints of a virtual network | [`ipam`] |
//! | the virtual network itself | [`vl3`] |
//! | arithmetic on prefixes | `prefixes` |
#![forbid(unsafe_code)]

pub mod api;
pub mod chain;
pub mod cli;
pub mod client;
pub mod config;
pub mod dataplane;
pub mod discovery;
mod dns;
pub mod domain;
pub mod elements;
pub mod endpoint;
pub mod identity;
pub mod ipam;
pub mod lab;
pub mod obs;
mod prefixes;
pub mod registry;
pub mod roles;
pub mod transport;
pub mod vl3;
