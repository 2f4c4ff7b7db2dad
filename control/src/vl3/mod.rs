//! A virtual layer-3 network between endpoints (vL3).
//!
//! | to find … | look in |
//! |---|---|
//! | other domains that shall be peers | [`remotes`] |

pub mod remotes;
