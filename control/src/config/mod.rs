//! Settings: NSM's environment variables, flags and a file.
