//! Registries over real mutual TLS, with tokens and the default policies.

mod exchanges;
mod foreign;
mod keeping;
mod managers;
mod metadata;
mod mirror;
mod old;
mod policies;
mod support;
