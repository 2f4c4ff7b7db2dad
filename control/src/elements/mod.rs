//! The elements: one step of a Request each, one file each, by NSM's name.
