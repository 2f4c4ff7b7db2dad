//! What name servers of ours share: the sockets that questions come by, and questions to other servers.
//!
//! A client's server ([`client::dns`](crate::client::dns)) and that of a vL3 endpoint ([`vl3::dns`](crate::vl3::dns)) differ in what they
//! know. Messages are read and written by hickory-proto; hickory's own server starts a task for each datagram, however many there are,
//! where these are strangers' questions: here all that is under way at one time is bounded, in all and for each of those who ask.

pub(crate) mod ask;
pub(crate) mod question;
pub(crate) mod serve;

/// Where name servers listen.
pub const PORT: u16 = 53;
