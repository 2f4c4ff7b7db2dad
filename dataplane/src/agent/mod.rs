//! The agent.
pub mod placement;
pub mod plan;
