//! A virtual layer-3 network between endpoints (vL3).
//!
//! | to find … | look in |
//! |---|---|
//! | links between the endpoints of a service | [`peers`] |
//! | other domains that shall be peers | [`remotes`] |

pub mod peers;
pub mod remotes;
