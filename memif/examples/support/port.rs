//! One memif interface in either role.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use memif::{Dialer, DialerConfig, Event, InterfaceConfig, Link, Listener, ListenerConfig};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::RoleArg;
use super::device::LinkDevice;

/// The control side of the interface.
pub enum Port {
    Server(Listener, u32),
    Client(Dialer),
}

impl Port {
    pub fn open(link: &super::Link, name: &str) -> Result<Self, Box<dyn std::error::Error>> {
        let (mode, name) = (link.mode(), name.parse()?);
        match link.role {
            RoleArg::Server => {
                let mut listener = Listener::bind(&link.socket, ListenerConfig::default())?;
                let secret = link.secret.clone();
                listener
                    .add_interface(link.id, InterfaceConfig { secret, ..InterfaceConfig::new(mode, name) });
                Ok(Self::Server(listener, link.id))
            }
            RoleArg::Client => {
                let mut config = DialerConfig::new(link.id, mode, name);
                config.secret = link.secret.clone();
                config.log2_ring = link.log2_ring;
                Ok(Self::Client(Dialer::new(link.socket.clone(), config)?))
            }
        }
    }

    /// Plugs links into the device and out again as peers come and go.
    pub fn follow(&mut self, device: &mut LinkDevice) {
        let events = match self {
            Self::Server(listener, _) => listener.process(),
            Self::Client(dialer) => dialer.process(),
        };
        for event in events {
            match event {
                Event::Connected { link, .. } => {
                    announce(&link);
                    device.plug(link);
                }
                Event::Disconnected { reason, .. } => {
                    eprintln!("link down: {reason}");
                    device.unplug();
                }
                Event::Refused { reason, .. } => eprintln!("no link: {reason}"),
            }
        }
    }

    pub fn disconnect(&mut self, reason: &str) {
        match self {
            Self::Server(listener, id) => listener.disconnect(*id, reason),
            Self::Client(dialer) => dialer.disconnect(reason),
        };
    }

    /// Sleeps until the control socket or the peer has something, at most for `limit`.
    pub fn sleep(&self, device: &LinkDevice, limit: Duration) {
        if !device.may_sleep() {
            return;
        }
        let control: BorrowedFd<'_> = match self {
            Self::Server(listener, _) => listener.as_fd(),
            Self::Client(dialer) => dialer.as_fd(),
        };
        let mut fds: Vec<_> = core::iter::once(control)
            .chain(device.event_fds())
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
        // Interrupted or not: the caller looks at everything anyway.
        let _ = rustix::event::poll(&mut fds, Some(&limit));
        device.drain_events();
    }
}

fn announce(link: &Link) {
    eprintln!(
        "link up: {} mode with \"{}\" (interface \"{}\", pid {}, uid {}), {} + {} rings",
        link.mode,
        link.peer_program,
        link.peer_interface,
        link.peer.pid,
        link.peer.uid,
        link.rx.len(),
        link.tx.len(),
    );
}
