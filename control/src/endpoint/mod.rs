//! What endpoints need: addresses to give out, and an answer to pings.
