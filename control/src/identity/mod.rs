//! Who we are and whom we believe: SPIFFE IDs, SVIDs, tokens, policies.

pub mod issuer;
pub mod jwt;
mod leaf;
pub mod policy;
mod source;
mod token;
mod trust;
mod workload;

pub use leaf::{BadSvid, Leaf};
pub use source::{Bundles, Identity, Svid};
pub use spiffe::{SpiffeId, TrustDomain};
pub use token::{Token, TokenSource};
pub use trust::{Accepted, Distrust, Trust};
pub use workload::WorkloadError;

#[cfg(test)]
mod tests;
