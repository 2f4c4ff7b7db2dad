//! After a restart, ours or the engine's, and when links break.
