//! Names for a vL3's clients (sdk, `connectioncontext/dnscontext/vl3dns`).
//!
//! Each client has a name of each template (`NSM_DNS_TEMPLATES`), from its first Request to its Close or its end: A, AAAA and PTR. The
//! endpoint answers for its own clients; for other names it asks the endpoints that it is a peer of, and each of those answers for its own.
//!
//! | file | what it does |
//! |---|---|
//! | `template` | names from connections |
//! | `records` | names and addresses, by connection |
//! | `directory` | what is known, and what it makes of a question |
//! | `fan_out` | asking peers |
//! | `server` | UDP and TCP at our address, wherever it moves |
//! | `element` | what a Request adds to all that, and what it is told |
//! | `follow` | what goes on beside Requests |
//!
//! Where this differs from the Go endpoint: names that are not there are denied (NXDOMAIN, or an empty answer if the name has records of other
//! types) instead of SERVFAIL, and names that nobody in the network is responsible for are REFUSED, so that stub resolvers go on to
//! their next server; two clients of one name both have it; no question is passed on twice; a client without the label `podName` has its own
//! name; answers may be remembered for a minute instead of an hour. Whose name servers are asked is for `peers` to say: it
//! has judged who is one.

mod directory;
mod element;
mod fan_out;
mod follow;
pub mod records;
mod server;
pub mod template;

pub use directory::{Directory, MAX_PEERS, Naming};
pub use element::Vl3Dns;
pub use follow::{follow_peers, tell_clients};
pub use records::Records;
pub use server::{Server, Setup};
pub use template::Template;

pub use crate::dns::PORT;

use std::net::{IpAddr, Ipv4Addr};

use crate::dns::question::{Read, read};

/// How long answers may be remembered unless the setting says otherwise.
pub const TTL: std::time::Duration = std::time::Duration::from_secs(60);

/// What a stranger's message gets as its answer by UDP from `directory` alone; none where silence is right. For the fuzz target.
pub fn answer_datagram(directory: &Directory, bytes: &[u8]) -> Option<Vec<u8>> {
    let from = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let reply = match read(bytes) {
        Read::Silence => return None,
        Read::Refused(reply) => reply,
        Read::Question(query) => match directory.step(&query, from, None) {
            directory::Step::Answer(reply) | directory::Step::Ask(reply) => reply,
        },
    };
    reply.datagram()
}
