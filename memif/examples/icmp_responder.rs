//! A host on a memif interface that answers ARP, neighbour solicitations and pings, in either role and both
//! modes.
//!
//! ```text
//! icmp_responder --role server --socket /tmp/m.sock --address 10.60.1.2/30 --address fd60::2/64
//! ```

mod support;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use smoltcp::iface::SocketSet;

/// Answers pings over memif until SIGINT or SIGTERM.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    link: support::Link,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match support::Host::start(&arguments.link, "icmp-responder") {
        Ok(host) => respond(host),
        Err(error) => {
            eprintln!("icmp_responder: {error}");
            ExitCode::FAILURE
        }
    }
}

fn respond(mut host: support::Host) -> ExitCode {
    // smoltcp answers echo requests by itself; there is nothing else to serve.
    let mut sockets = SocketSet::new(Vec::new());
    while !host.stopped() {
        host.turn(&mut sockets, Duration::MAX);
    }
    ExitCode::SUCCESS
}
