//! The built-in issuer: an authority of one trust domain, for labs, single hosts and tests, where there is no SPIRE.

mod authority;

pub use authority::{Authority, IssuerError};
