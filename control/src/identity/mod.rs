//! Who we are and whom we believe: SPIFFE IDs, SVIDs, tokens, policies.

mod source;
mod token;

pub use source::{Identity, Svid};
pub use spiffe::{SpiffeId, TrustDomain};
pub use token::{Token, TokenSource};
