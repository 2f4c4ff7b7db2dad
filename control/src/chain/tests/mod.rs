//! Chains against each other in one process, over TLS on unix sockets: a client, a manager, forwarders, endpoints.

mod descriptors;
mod domain;
mod domains;
mod foreign;
mod mesh;
mod monitors;
mod requests;
mod role;
