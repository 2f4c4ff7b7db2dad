//! What two vwire processes must agree on, and only that.
