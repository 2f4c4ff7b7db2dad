//! A client's connections: made, refreshed, healed and closed.
