//! What the examples share: arguments, one memif interface in either role, and smoltcp on top of it.
#![allow(dead_code)] // each example uses its part

mod device;
mod port;
mod signals;

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use memif::{Address, Mode, Secret};
use smoltcp::iface::{Config, Interface, PollResult, SocketSet};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};

use device::LinkDevice;
use port::Port;

/// Longest sleep while packets come; memif's interrupts may be lost, so that no sleep is longer than it may
/// be in vain.
const BUSY_NAP: Duration = Duration::from_millis(1);
/// Longest sleep when none came for a while.
const IDLE_NAP: Duration = Duration::from_millis(10);
/// What "a while" is.
const IDLE_AFTER: Duration = Duration::from_millis(200);

/// The side of memif to play.
#[derive(Clone, Copy, ValueEnum, PartialEq, Eq)]
pub enum RoleArg {
    /// Listen.
    Server,
    /// Connect, again and again.
    Client,
}

/// What the frames are.
#[derive(Clone, Copy, ValueEnum)]
pub enum ModeArg {
    /// Ethernet frames.
    Ethernet,
    /// IP packets.
    Ip,
}

/// The memif interface and its addresses.
#[derive(Args, Clone)]
pub struct Link {
    /// Listen on the socket, or connect to it.
    #[arg(long, value_enum)]
    pub role: RoleArg,
    /// The control socket: a path, or @name for an abstract one.
    #[arg(long)]
    pub socket: Address,
    /// The interface's id on that socket.
    #[arg(long, default_value_t = 0)]
    pub id: u32,
    /// What the frames are; the peer must have the same.
    #[arg(long, value_enum, default_value = "ethernet")]
    pub mode: ModeArg,
    /// The secret that a client must know.
    #[arg(long, default_value = "")]
    pub secret: Secret,
    /// Our address with its prefix length, such as 10.60.1.2/30; may be given for v4 and v6.
    #[arg(long = "address", required = true, value_parser = parse::<IpCidr>)]
    pub addresses: Vec<IpCidr>,
    /// The next hop for everything else.
    #[arg(long, value_parser = parse::<IpAddress>)]
    pub gateway: Option<IpAddress>,
    /// Our MAC address in ethernet mode; made from the first address if left out.
    #[arg(long, value_parser = parse::<EthernetAddress>)]
    pub mac: Option<EthernetAddress>,
    /// Longest IP packet.
    #[arg(long, default_value_t = 1500)]
    pub mtu: usize,
    /// Slots of each ring, as log2.
    #[arg(long, default_value_t = 10)]
    pub log2_ring: u8,
}

/// smoltcp's types parse without saying what is wrong.
pub fn parse<T: core::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| {
        format!("\"{text}\" is no {}", core::any::type_name::<T>().rsplit("::").next().unwrap_or("value"))
    })
}

impl Link {
    pub fn mode(&self) -> Mode {
        match self.mode {
            ModeArg::Ethernet => Mode::Ethernet,
            ModeArg::Ip => Mode::Ip,
        }
    }

    fn hardware(&self) -> HardwareAddress {
        match (self.mode(), self.mac) {
            (Mode::Ip, _) => HardwareAddress::Ip,
            (Mode::Ethernet, Some(mac)) => mac.into(),
            (Mode::Ethernet, None) => derived_mac(&self.addresses[0].address()).into(),
        }
    }
}

/// A locally administered MAC address that ends like the IP address, so that two ends of a link differ.
fn derived_mac(address: &IpAddress) -> EthernetAddress {
    let end = match address {
        IpAddress::Ipv4(v4) => v4.octets(),
        IpAddress::Ipv6(v6) => {
            let octets = v6.octets();
            [octets[12], octets[13], octets[14], octets[15]]
        }
    };
    EthernetAddress([0x02, 0xfe, end[0], end[1], end[2], end[3]])
}

/// A host: one memif interface and smoltcp's IP stack.
pub struct Host {
    port: Port,
    pub device: LinkDevice,
    pub interface: Interface,
    started: Instant,
    active: Instant,
}

impl Host {
    /// Opens the control socket; the link comes up while the host is [`turn`](Self::turn)ed.
    pub fn start(link: &Link, name: &str) -> Result<Self, Box<dyn std::error::Error>> {
        signals::install();
        let mut device = LinkDevice::new(link.mode(), link.mtu);
        let mut config = Config::new(link.hardware());
        config.random_seed = u64::from(std::process::id());
        let mut interface = Interface::new(config, &mut device, smoltcp::time::Instant::ZERO);
        for &address in &link.addresses {
            let mut added = Ok(());
            interface.update_ip_addrs(|addresses| added = addresses.push(address));
            added.map_err(|_| "at most 4 addresses fit")?;
        }
        match link.gateway {
            Some(IpAddress::Ipv4(hop)) => drop(interface.routes_mut().add_default_ipv4_route(hop)),
            Some(IpAddress::Ipv6(hop)) => drop(interface.routes_mut().add_default_ipv6_route(hop)),
            None => {}
        }
        let now = Instant::now();
        Ok(Self { port: Port::open(link, name)?, device, interface, started: now, active: now })
    }

    /// Moves packets and follows the control socket, then sleeps until there is more to do; never longer than
    /// `nap`.
    pub fn turn(&mut self, sockets: &mut SocketSet<'_>, nap: Duration) {
        self.port.follow(&mut self.device);
        if let Err(fault) = self.device.take_in() {
            eprintln!("link given up: {fault}");
            self.port.disconnect(&fault.to_string());
            self.device.unplug();
        }
        if self.device.has_frames() {
            self.active = Instant::now();
        }
        let now = smoltcp::time::Instant::from_micros(self.started.elapsed().as_micros() as i64);
        if self.interface.poll(now, &mut self.device, sockets) == PollResult::SocketStateChanged {
            // The caller may have something to receive, or room to send; and what it does now must not wait
            // for a nap.
            return;
        }
        let own_timer = self.interface.poll_delay(now, sockets).map_or(IDLE_NAP, Duration::from);
        let longest = if self.active.elapsed() < IDLE_AFTER { BUSY_NAP } else { IDLE_NAP };
        self.port.sleep(&self.device, nap.min(own_timer).min(longest));
    }

    /// True once SIGINT or SIGTERM has come.
    pub fn stopped(&self) -> bool {
        signals::stopped()
    }

    /// True while there is a peer.
    pub fn is_up(&self) -> bool {
        self.device.is_plugged()
    }
}
