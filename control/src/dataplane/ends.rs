//! One end of a vWire as a mechanism wants it, and the port that is made of it.

use std::time::{Duration, Instant};

use tonic::Status;
use vwire_dataplane::fdpass::identify;
use vwire_proto::dataplane::v1 as pb;

use super::client::Client;
use super::kernel::{Interface, Side};
use super::memif_socket;
use super::netns::Namespace;
use super::wanted::{End, Redial, port_name};
use crate::transport::{Inode, SharedFd};

/// How long a listener may take to appear.
pub const DIAL_TIME: Duration = Duration::from_secs(3);

/// What frames begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// An Ethernet header.
    Ethernet,
    /// An IP header.
    Ip,
}

impl Payload {
    /// As the engine is told.
    pub fn mode(self) -> i32 {
        match self {
            Self::Ethernet => pb::Mode::Ethernet.into(),
            Self::Ip => pb::Mode::Ip.into(),
        }
    }
}

/// What an end is made of.
#[derive(Clone)]
pub enum Make {
    /// An interface in a namespace.
    Kernel {
        /// Its name.
        ifname: String,
        /// Bytes.
        mtu: u32,
    },
    /// A memif that we serve.
    MemifServer {
        /// Its abstract socket.
        socket: String,
    },
    /// A memif that we connect to.
    MemifClient {
        /// Its abstract socket.
        socket: String,
    },
    /// A tunnel.
    Vxlan(pb::Vxlan),
    /// A memif that is handed through, both ends at once.
    Relay {
        /// The abstract socket that we serve.
        socket: String,
        /// The endpoint's namespace.
        endpoint: Option<(Inode, Option<Namespace>)>,
        /// Its abstract socket there.
        to: String,
    },
}

/// One end as it shall be.
#[derive(Clone)]
pub struct EndSpec {
    /// What the frames are.
    pub payload: Payload,
    /// What it is.
    pub make: Make,
    /// The workload's namespace, by identity and, if it came with this Request, by descriptor.
    pub namespace: Option<(Inode, Option<Namespace>)>,
    /// The interface's configuration, if it is one and its namespace came along.
    pub interface: Option<(Namespace, String, Interface)>,
}

/// An end, ready for the transaction.
pub struct Prepared {
    /// What is kept of it.
    pub end: End,
    /// True if its port has to be made.
    pub fresh: bool,
    /// Descriptors that the engine needs to make it.
    pub fds: Vec<SharedFd>,
    /// Where to connect it to when it is made. It is up only when its peer has answered, and the Request has to wait for that.
    pub dial: Option<Redial>,
}

impl EndSpec {
    /// What makes it the same as before.
    pub fn key(&self) -> String {
        let place = self.namespace.as_ref().map(|(inode, _)| inode.to_string()).unwrap_or_default();
        let what = match &self.make {
            Make::Kernel { ifname, .. } => format!("KERNEL {ifname}"),
            Make::MemifServer { socket } => format!("MEMIF server {socket}"),
            Make::MemifClient { socket } => format!("MEMIF client {socket}"),
            Make::Vxlan(tunnel) => {
                format!("VXLAN {} {}:{} {}", tunnel.local, tunnel.remote, tunnel.port, tunnel.vni)
            }
            Make::Relay { socket, endpoint, to } => {
                let there = endpoint.as_ref().map(|(inode, _)| inode.to_string()).unwrap_or_default();
                format!("MEMIF relay {socket} {there} {to}")
            }
        };
        format!("{what} {place} {:?}", self.payload)
    }

    /// Finds the end as it is, or gathers what is needed to make it.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if the namespace's descriptor is missing; else what stands against a socket in it.
    pub async fn prepare(
        self,
        engine: &Client,
        id: &str,
        side: Side,
        before: Option<&End>,
        deadline: Instant,
    ) -> Result<Prepared, Status> {
        let key = self.key();
        if let Some(before) = before.filter(|before| before.key == key && self.works(engine, before)) {
            let mut end = before.clone();
            end.interface = self.interface.map(|(_, ifname, wanted)| (ifname, wanted)).or(end.interface);
            return Ok(Prepared { end, fresh: false, fds: Vec::new(), dial: None });
        }
        let held =
            before.filter(|before| before.key == key).map(|before| before.fds.clone()).unwrap_or_default();
        let name = port_name(id, side, before.map(|end| end.port.name.as_str()));
        let mut prepared = Prepared {
            end: End {
                key,
                port: pb::Port { name, ..Default::default() },
                relay: None,
                fds: Vec::new(),
                redial: None,
                interface: self.interface.clone().map(|(_, ifname, wanted)| (ifname, wanted)),
            },
            fresh: true,
            fds: Vec::new(),
            dial: None,
        };
        match &self.make {
            Make::Relay { socket, endpoint, to } => {
                self.relay(&mut prepared, held, (socket, endpoint.as_ref(), to), deadline).await?;
            }
            _ => prepared.end.port.kind = Some(self.kind(&mut prepared, held).await?),
        }
        Ok(prepared)
    }

    /// A memif that is handed through. That the endpoint listens is tried first: the client learns it from the Request, then.
    async fn relay(
        &self,
        prepared: &mut Prepared,
        held: Vec<SharedFd>,
        (socket, endpoint, to): (&str, Option<&(Inode, Option<Namespace>)>, &str),
        deadline: Instant,
    ) -> Result<(), Status> {
        let endpoint = open(endpoint)?;
        drop(memif_socket::connect(endpoint, to, deadline.min(Instant::now() + DIAL_TIME)).await?);
        let listening = match held.into_iter().next() {
            Some(held) => held,
            None => memif_socket::listen(open(self.namespace.as_ref())?, socket).await?,
        };
        prepared.end.relay = Some(pb::Relay {
            name: prepared.end.port.name.clone(),
            listen: identify(&listening)?.to_string(),
            netns: endpoint.inode().to_string(),
            socket: to.to_owned(),
            note: Vec::new(),
        });
        prepared.end.redial = Some(Redial { namespace: endpoint.clone(), socket: to.to_owned() });
        // The engine holds the endpoint's namespace, too.
        prepared.end.fds = vec![listening, endpoint.fd().clone()];
        prepared.fds.clone_from(&prepared.end.fds);
        Ok(())
    }

    /// True if the port is there and in order. A memif that we serve is in order without a peer.
    fn works(&self, engine: &Client, before: &End) -> bool {
        let waits = matches!(self.make, Make::MemifServer { .. } | Make::Relay { .. });
        engine.link(&before.port.name).is_some_and(|link| link.up || waits)
    }

    async fn kind(&self, prepared: &mut Prepared, held: Vec<SharedFd>) -> Result<pb::port::Kind, Status> {
        let mode = self.payload.mode();
        Ok(match &self.make {
            Make::Vxlan(tunnel) => pb::port::Kind::Vxlan(pb::Vxlan { mode, ..tunnel.clone() }),
            Make::Relay { .. } => return Err(Status::internal("a relay is no port")),
            Make::Kernel { ifname, mtu } => {
                let namespace = self.namespace()?;
                prepared.fds.push(namespace.fd().clone());
                let (ifname, netns) = (ifname.clone(), namespace.inode().to_string());
                pb::port::Kind::Kernel(pb::Kernel { ifname, netns, mtu: *mtu, mode, ..Default::default() })
            }
            Make::MemifServer { socket } => {
                let listening = match held.into_iter().next() {
                    Some(held) => held,
                    None => memif_socket::listen(self.namespace()?, socket).await?,
                };
                let socket = identify(&listening)?.to_string();
                prepared.end.fds.push(listening.clone());
                prepared.fds.push(listening);
                let role = pb::memif::Role::Server.into();
                pb::port::Kind::Memif(pb::Memif { role, socket, mode, ..Default::default() })
            }
            Make::MemifClient { socket } => {
                memif_socket::check(socket)?;
                let redial = Redial { namespace: self.namespace()?.clone(), socket: socket.clone() };
                prepared.dial = Some(redial.clone());
                prepared.end.redial = Some(redial);
                let role = pb::memif::Role::Client.into();
                pb::port::Kind::Memif(pb::Memif { role, mode, ..Default::default() })
            }
        })
    }

    fn namespace(&self) -> Result<&Namespace, Status> {
        open(self.namespace.as_ref())
    }
}

/// A namespace that came along.
fn open(namespace: Option<&(Inode, Option<Namespace>)>) -> Result<&Namespace, Status> {
    match namespace {
        Some((_, Some(namespace))) => Ok(namespace),
        Some((inode, None)) => Err(Status::failed_precondition(format!(
            "the descriptor of inodeURL {inode} did not come with the Request; send it on the same connection"
        ))),
        None => Err(Status::invalid_argument("mechanism parameter `inodeURL`: missing")),
    }
}
