//! Pings over a memif interface, in either role and both modes.
//!
//! ```text
//! ping --role client --socket /tmp/m.sock --address 10.60.1.1/30 --count 5 10.60.1.2
//! ```
//! Ends with 0 if every ping was answered, 1 if some were lost, 2 if there was no link.

mod support;

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device};
use smoltcp::socket::icmp;
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress};

/// Pings over memif.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    link: support::Link,
    /// Whom to ping.
    #[arg(value_parser = support::parse::<IpAddress>)]
    target: IpAddress,
    /// How many pings.
    #[arg(long, default_value_t = 4)]
    count: u16,
    /// Seconds from one ping to the next; 0 sends each when the one before was answered.
    #[arg(long, default_value_t = 1.0)]
    interval: f64,
    /// Bytes of data in each.
    #[arg(long, default_value_t = 56)]
    size: usize,
    /// Seconds after which a ping counts as lost.
    #[arg(long, default_value_t = 2.0)]
    timeout: f64,
    /// Seconds to wait for a link.
    #[arg(long, default_value_t = 10.0)]
    wait: f64,
    /// Print the summary only.
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(statistics) => statistics.summary(&arguments),
        Err(error) => {
            eprintln!("ping: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<Statistics, Box<dyn std::error::Error>> {
    let headers = if matches!(arguments.target, IpAddress::Ipv4(_)) { 20 + 8 } else { 40 + 8 };
    let most = arguments.link.mtu.saturating_sub(headers);
    if arguments.size > most {
        return Err(format!(
            "--size {} does not fit --mtu {}: {most} bytes do",
            arguments.size, arguments.link.mtu
        )
        .into());
    }
    let mut host = support::Host::start(&arguments.link, "ping")?;
    let mut sockets = SocketSet::new(Vec::new());
    let socket = sockets.add(socket(arguments.size + 64));
    sockets.get_mut::<icmp::Socket>(socket).bind(icmp::Endpoint::Ident(ident()))?;
    wait_for_link(&mut host, &mut sockets, Duration::from_secs_f64(arguments.wait))?;
    let mut pinger =
        Pinger { host, sockets, socket, arguments, waiting: HashMap::new(), next: Instant::now() };
    Ok(pinger.ping())
}

fn wait_for_link(
    host: &mut support::Host,
    sockets: &mut SocketSet<'_>,
    limit: Duration,
) -> Result<(), String> {
    let end = Instant::now() + limit;
    while !host.is_up() {
        if host.stopped() {
            return Err("stopped before there was a link".into());
        }
        if Instant::now() >= end {
            return Err(format!("no link within {limit:?}"));
        }
        host.turn(sockets, end - Instant::now());
    }
    Ok(())
}

fn socket(packet: usize) -> icmp::Socket<'static> {
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 16], vec![0; 16 * packet]);
    icmp::Socket::new(buffer(), buffer())
}

fn ident() -> u16 {
    std::process::id() as u16
}

#[derive(Default)]
struct Statistics {
    sent: u16,
    round_trips: Vec<Duration>,
}

struct Pinger<'a> {
    host: support::Host,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    arguments: &'a Arguments,
    waiting: HashMap<u16, Instant>,
    next: Instant,
}

impl Pinger<'_> {
    fn ping(&mut self) -> Statistics {
        let mut statistics = Statistics::default();
        let timeout = Duration::from_secs_f64(self.arguments.timeout);
        while !self.host.stopped() {
            let now = Instant::now();
            self.waiting.retain(|_, sent| now - *sent < timeout);
            if statistics.sent == self.arguments.count && self.waiting.is_empty() {
                break;
            }
            if statistics.sent < self.arguments.count && self.is_due(now) && self.send(statistics.sent) {
                self.waiting.insert(statistics.sent, now);
                statistics.sent += 1;
                self.next = now + Duration::from_secs_f64(self.arguments.interval);
            }
            self.host.turn(
                &mut self.sockets,
                self.next.saturating_duration_since(now).max(Duration::from_micros(1)),
            );
            self.receive(&mut statistics);
        }
        statistics
    }

    fn is_due(&self, now: Instant) -> bool {
        now >= self.next && (self.arguments.interval > 0.0 || self.waiting.is_empty())
    }

    fn send(&mut self, sequence: u16) -> bool {
        let data = vec![0xa5; self.arguments.size];
        let checksums = self.host.device.capabilities().checksum;
        let socket = self.sockets.get_mut::<icmp::Socket<'_>>(self.socket);
        match self.arguments.target {
            IpAddress::Ipv4(_) => {
                let echo = Icmpv4Repr::EchoRequest { ident: ident(), seq_no: sequence, data: &data };
                let Ok(bytes) = socket.send(echo.buffer_len(), self.arguments.target) else { return false };
                echo.emit(&mut Icmpv4Packet::new_unchecked(bytes), &checksums);
            }
            IpAddress::Ipv6(target) => {
                let source = self.host.interface.get_source_address_ipv6(&target);
                let echo = Icmpv6Repr::EchoRequest { ident: ident(), seq_no: sequence, data: &data };
                let Ok(bytes) = socket.send(echo.buffer_len(), self.arguments.target) else { return false };
                echo.emit(&source, &target, &mut Icmpv6Packet::new_unchecked(bytes), &checksums);
            }
        }
        true
    }

    fn receive(&mut self, statistics: &mut Statistics) {
        while let Some((sequence, bytes, from)) = self.receive_one() {
            let Some(sent) = self.waiting.remove(&sequence) else { continue };
            let took = sent.elapsed();
            statistics.round_trips.push(took);
            if !self.arguments.quiet {
                println!("{bytes} bytes from {from}: icmp_seq={sequence} time={:.3} ms", milliseconds(took));
            }
        }
    }

    /// The next echo reply: sequence number, bytes of data, sender. Everything else is skipped.
    fn receive_one(&mut self) -> Option<(u16, usize, IpAddress)> {
        let socket = self.sockets.get_mut::<icmp::Socket<'_>>(self.socket);
        while socket.can_recv() {
            let (payload, from) = socket.recv().ok()?;
            if let Some((sequence, bytes)) = echo_reply(payload, from, &self.host.interface) {
                return Some((sequence, bytes, from));
            }
        }
        None
    }
}

fn echo_reply(
    payload: &[u8],
    from: IpAddress,
    interface: &smoltcp::iface::Interface,
) -> Option<(u16, usize)> {
    let checksums = ChecksumCapabilities::default();
    match from {
        IpAddress::Ipv4(_) => {
            match Icmpv4Repr::parse(&Icmpv4Packet::new_checked(payload).ok()?, &checksums).ok()? {
                Icmpv4Repr::EchoReply { seq_no, data, .. } => Some((seq_no, data.len())),
                _ => None,
            }
        }
        IpAddress::Ipv6(from) => {
            let ours = interface.get_source_address_ipv6(&from);
            let packet = Icmpv6Packet::new_checked(payload).ok()?;
            match Icmpv6Repr::parse(&from, &ours, &packet, &checksums).ok()? {
                Icmpv6Repr::EchoReply { seq_no, data, .. } => Some((seq_no, data.len())),
                _ => None,
            }
        }
    }
}

impl Statistics {
    /// Prints what ping(8) prints, down to the wording.
    fn summary(&self, arguments: &Arguments) -> ExitCode {
        let (sent, received) = (usize::from(self.sent), self.round_trips.len());
        let loss = ((sent - received) as f64 * 1000.0 / sent.max(1) as f64).round() / 10.0;
        println!("--- {} ping statistics ---", arguments.target);
        println!("{sent} packets transmitted, {received} received, {loss}% packet loss");
        if let (Some(min), Some(max)) = (self.round_trips.iter().min(), self.round_trips.iter().max()) {
            let average = self.round_trips.iter().sum::<Duration>() / received as u32;
            let [min, average, max] = [*min, average, *max].map(milliseconds);
            println!("rtt min/avg/max = {min:.3}/{average:.3}/{max:.3} ms");
        }
        if received == sent && sent > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
