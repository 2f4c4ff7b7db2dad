//! Registries over real mutual TLS, with tokens and the default policies.

mod exchanges;
mod keeping;
mod managers;
mod metadata;
mod policies;
mod support;
