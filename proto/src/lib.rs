//! What two vwire processes must agree on, and only that: the layout of the statistics segment and the names of drop reasons.

pub mod stats;
