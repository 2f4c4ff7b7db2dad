//! Routing: many ports in one routing domain, and the longest prefix decides where a packet goes.
//!
//! | file | its part |
//! |---|---|
//! | [`trie`] | longest prefix match, in versions that share what is the same |
//! | [`domain`] | what workers look at: prefixes, ports, neighbours |
//! | [`packet`] | a packet's header: read once, judged, rewritten |
//! | [`control`] | ARP, neighbour discovery and echo at the domain's own addresses |
//! | [`error`](mod@error) | ICMP errors |
//! | [`waiting`] | packets whose next hop has to be asked for |
//! | [`fragment`] | IPv4 packets in pieces |
//! | [`limit`] | how much of that a port may cause |
//! | [`counters`] | what is counted for a domain and for each route |
//!
//! The way of a burst through it is in `worker/route/`; what makes domains out of what is wanted, in `agent/domains.rs`.
//!
//! # Whose address is it?
//! The table alone says so: an address belongs to the port that the longest prefix leads to. So a packet may come by a port only if
//! its source is routed to that very port (strict reverse path, RFC 3704 §2.2; a port may be exempt), and ARP or neighbour discovery
//! may speak only for such addresses. A tenant can neither send as another nor take another's neighbour entry. What a neighbour says
//! goes to the agent, which publishes it with the next tables: workers share nothing that is written.
//!
//! # What a packet costs
//! Two lookups (destination and source), and a third for the hardware address where the port needs one; of a run of packets with the
//! same addresses only the first pays. Its first 142 bytes are copied twice, once to be looked at and once to the port; the rest once.

pub mod control;
pub mod counters;
pub mod domain;
pub mod error;
pub mod fragment;
pub mod limit;
pub mod packet;
pub mod trie;
pub mod waiting;
