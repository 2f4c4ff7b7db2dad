//! Between the API's messages and the model. Errors name the field as the caller wrote it.

use std::net::IpAddr;

use vwire_proto::dataplane::v1 as pb;

use super::routing_proto::{domains_to_proto, routing_op, routing_ops};
use super::underlay_proto::{underlay, underlay_ops, underlay_to_proto};
use super::value::{Invalid, shown};
use super::{
    AfXdpSpec, CopyMode, DpdkSpec, KernelSpec, MemifSpec, Mode, Note, Op, PipeSpec, PortName, PortSpec,
    RelaySpec, Role, State, StateError, VxlanSpec, Xconnect,
};

/// A field of a request that won't do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct FieldError {
    /// Where it is, like `state.ports[2].vxlan.vni`.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

impl FieldError {
    pub(super) fn new(field: impl Into<String>, reason: impl ToString) -> Self {
        Self { field: field.into(), reason: reason.to_string() }
    }

    /// The same error of a field that is inside `outer`.
    pub(super) fn inside(mut self, outer: impl AsRef<str>) -> Self {
        self.field = format!("{}.{}", outer.as_ref(), self.field);
        self
    }
}

/// Names the field that a value came from.
pub(super) trait InField<T> {
    fn field(self, name: &str) -> Result<T, FieldError>;
}

impl<T> InField<T> for Result<T, Invalid> {
    fn field(self, name: &str) -> Result<T, FieldError> {
        self.map_err(|invalid| FieldError::new(name, invalid))
    }
}

/// A number, or its default if it is 0.
fn number<T: TryFrom<i64, Error = Invalid> + Default>(raw: u32, name: &str) -> Result<T, FieldError> {
    if raw == 0 { Ok(T::default()) } else { T::try_from(i64::from(raw)).field(name) }
}

fn mode(raw: i32) -> Result<Mode, FieldError> {
    match pb::Mode::try_from(raw) {
        Ok(pb::Mode::Unspecified | pb::Mode::Ethernet) => Ok(Mode::Ethernet),
        Ok(pb::Mode::Ip) => Ok(Mode::Ip),
        Err(_) => Err(FieldError::new("mode", format!("there is no mode {raw}"))),
    }
}

fn memif(raw: &pb::Memif) -> Result<MemifSpec, FieldError> {
    let role = match pb::memif::Role::try_from(raw.role) {
        Ok(pb::memif::Role::Server) => Role::Server,
        Ok(pb::memif::Role::Client) => Role::Client,
        _ => return Err(FieldError::new("role", "is needed: ROLE_SERVER or ROLE_CLIENT")),
    };
    Ok(MemifSpec {
        role,
        socket: raw.socket.parse().field("socket")?,
        id: raw.id,
        mode: mode(raw.mode)?,
        secret: raw.secret.parse().field("secret")?,
        queues: number(raw.queues, "queues")?,
        ring_size: number(raw.ring_size, "ring_size")?,
        buffer_size: number(raw.buffer_size, "buffer_size")?,
    })
}

fn kernel(raw: &pb::Kernel) -> Result<KernelSpec, FieldError> {
    let netns = if raw.netns.is_empty() { None } else { Some(raw.netns.parse().field("netns")?) };
    let address = |(i, text): (usize, &String)| text.parse().field(&format!("addresses[{i}]"));
    let spec = KernelSpec {
        ifname: raw.ifname.parse().field("ifname")?,
        netns,
        addresses: raw.addresses.iter().enumerate().map(address).collect::<Result<_, _>>()?,
        mtu: number(raw.mtu, "mtu")?,
        mode: mode(raw.mode)?,
        queues: number(raw.queues, "queues")?,
        device: if raw.device.is_empty() { None } else { Some(raw.device.parse().field("device")?) },
    };
    spec.checked().map_err(split)
}

fn af_xdp(raw: &pb::AfXdpPort) -> Result<AfXdpSpec, FieldError> {
    let netns = if raw.netns.is_empty() { None } else { Some(raw.netns.parse().field("netns")?) };
    let queue = |(i, raw): (usize, &u32)| i64::from(*raw).try_into().field(&format!("queues[{i}]"));
    let mode = match pb::af_xdp_port::CopyMode::try_from(raw.mode) {
        Ok(pb::af_xdp_port::CopyMode::Unspecified | pb::af_xdp_port::CopyMode::Auto) => CopyMode::Auto,
        Ok(pb::af_xdp_port::CopyMode::ZeroCopy) => CopyMode::ZeroCopy,
        Ok(pb::af_xdp_port::CopyMode::Copy) => CopyMode::Copy,
        Ok(pb::af_xdp_port::CopyMode::Generic) => CopyMode::Generic,
        Err(_) => return Err(FieldError::new("mode", format!("there is no mode {}", raw.mode))),
    };
    let spec = AfXdpSpec {
        ifname: raw.ifname.parse().field("ifname")?,
        netns,
        queues: raw.queues.iter().enumerate().map(queue).collect::<Result<_, _>>()?,
        workers: number(raw.workers, "workers")?,
        frame_size: number(raw.frame_size, "frame_size")?,
        ring_size: number(raw.ring_size, "ring_size")?,
        mode,
        busy_poll: raw.busy_poll,
    };
    spec.checked().map_err(split)
}

fn vxlan(raw: &pb::Vxlan) -> Result<VxlanSpec, FieldError> {
    let address = |text: &str, name: &str| -> Result<IpAddr, FieldError> {
        text.parse().map_err(|_| FieldError::new(name, format!("{} is not an IP address", shown(text))))
    };
    let spec = VxlanSpec {
        vni: i64::from(raw.vni).try_into().field("vni")?,
        local: address(&raw.local, "local")?,
        remote: address(&raw.remote, "remote")?,
        port: number(raw.port, "port")?,
        underlay_mtu: match raw.underlay_mtu {
            0 => None,
            mtu => Some(i64::from(mtu).try_into().field("underlay_mtu")?),
        },
        mode: mode(raw.mode)?,
        underlay: if raw.underlay.is_empty() { None } else { Some(raw.underlay.parse().field("underlay")?) },
    };
    spec.checked().map_err(split)
}

fn dpdk(raw: &pb::DpdkPort) -> Result<DpdkSpec, FieldError> {
    let spec = DpdkSpec {
        device: raw.device.parse().field("device")?,
        queues: number(raw.queues, "queues")?,
        workers: number(raw.workers, "workers")?,
        rx_descriptors: number(raw.rx_descriptors, "rx_descriptors")?,
        tx_descriptors: number(raw.tx_descriptors, "tx_descriptors")?,
        mtu: number(raw.mtu, "mtu")?,
        promiscuous: !raw.not_promiscuous,
        buffers: match raw.buffers {
            0 => None,
            buffers => Some(i64::from(buffers).try_into().field("buffers")?),
        },
    };
    spec.checked().map_err(split)
}

/// The checks across fields begin their reason with the field's name.
pub(super) fn split(Invalid(reason): Invalid) -> FieldError {
    match reason.split_once(": ") {
        Some((field, reason)) => FieldError::new(field, reason),
        None => FieldError::new("kind", reason),
    }
}

fn port(raw: &pb::Port) -> Result<(PortName, PortSpec, Note), FieldError> {
    let name = raw.name.parse().field("name")?;
    let spec = match &raw.kind {
        Some(pb::port::Kind::Memif(raw)) => PortSpec::Memif(memif(raw).map_err(|e| e.inside("memif"))?),
        Some(pb::port::Kind::Kernel(raw)) => PortSpec::Kernel(kernel(raw).map_err(|e| e.inside("kernel"))?),
        Some(pb::port::Kind::AfXdp(raw)) => PortSpec::AfXdp(af_xdp(raw).map_err(|e| e.inside("af_xdp"))?),
        Some(pb::port::Kind::Vxlan(raw)) => PortSpec::Vxlan(vxlan(raw).map_err(|e| e.inside("vxlan"))?),
        Some(pb::port::Kind::Pipe(raw)) => {
            PortSpec::Pipe(PipeSpec { pipe: raw.pipe.parse().field("pipe.pipe")? })
        }
        Some(pb::port::Kind::Dpdk(raw)) => PortSpec::Dpdk(dpdk(raw).map_err(|e| e.inside("dpdk"))?),
        None => return Err(FieldError::new("kind", "is needed: memif, kernel, af_xdp, vxlan, pipe or dpdk")),
    };
    Ok((name, spec, Note::try_from(&raw.note[..]).field("note")?))
}

fn relay(raw: &pb::Relay) -> Result<(PortName, PortSpec, Note), FieldError> {
    let name = raw.name.parse().field("name")?;
    let listen = raw.listen.parse().field("listen")?;
    let netns = if raw.netns.is_empty() { None } else { Some(raw.netns.parse().field("netns")?) };
    let spec = RelaySpec::new(listen, netns, &raw.socket).field("socket")?;
    Ok((name, PortSpec::Relay(spec), Note::try_from(&raw.note[..]).field("note")?))
}

fn note(raw: &pb::SetNote) -> Result<Op, FieldError> {
    Ok(Op::SetNote(raw.port.parse().field("port")?, Note::try_from(&raw.note[..]).field("note")?))
}

fn xconnect(raw: &pb::Xconnect) -> Result<Xconnect, FieldError> {
    Xconnect::new(raw.a.parse().field("a")?, raw.b.parse().field("b")?).field("b")
}

/// The operation that a message describes; `i` is its place in the request.
///
/// # Errors
/// [`FieldError`] with the field that won't do.
pub fn op_from_proto(i: usize, raw: &pb::Op) -> Result<Op, FieldError> {
    use pb::op::Op as Raw;
    let (field, op) = match &raw.op {
        Some(Raw::SetPort(raw)) => {
            ("set_port", port(raw).map(|(name, spec, note)| Op::SetPort(name, spec, note)))
        }
        Some(Raw::RemovePort(raw)) => {
            return raw.parse().map(Op::RemovePort).field(&format!("ops[{i}].remove_port"));
        }
        Some(Raw::AddXconnect(raw)) => ("add_xconnect", xconnect(raw).map(Op::AddXconnect)),
        Some(Raw::RemoveXconnect(raw)) => ("remove_xconnect", xconnect(raw).map(Op::RemoveXconnect)),
        Some(Raw::SetNote(raw)) => ("set_note", note(raw)),
        Some(Raw::SetRelay(raw)) => {
            ("set_relay", relay(raw).map(|(name, spec, note)| Op::SetPort(name, spec, note)))
        }
        Some(Raw::RemoveRelay(raw)) => {
            return raw.parse().map(Op::RemoveRelay).field(&format!("ops[{i}].remove_relay"));
        }
        Some(Raw::SetUnderlay(raw)) => {
            ("set_underlay", underlay(raw).map(|(port, spec)| Op::SetUnderlay(port, spec)))
        }
        Some(Raw::RemoveUnderlay(raw)) => {
            return raw.parse().map(Op::RemoveUnderlay).field(&format!("ops[{i}].remove_underlay"));
        }
        Some(routing) => return routing_op(i, routing),
        None => return Err(FieldError::new(format!("ops[{i}]"), "says nothing to do")),
    };
    op.map_err(|error| error.inside(format!("ops[{i}].{field}")))
}

/// The state that a message describes.
///
/// # Errors
/// [`FieldError`] with the field that won't do, or with `state` if its parts don't fit together.
pub fn state_from_proto(raw: &pb::State) -> Result<State, FieldError> {
    let mut ports = Vec::with_capacity(raw.ports.len().min(State::MAX_PORTS));
    let mut notes = Vec::new();
    for (i, raw) in raw.ports.iter().enumerate() {
        let (name, spec, note) = port(raw).map_err(|error| error.inside(format!("state.ports[{i}]")))?;
        notes.push((name.clone(), note));
        ports.push((name, spec));
    }
    for (i, raw) in raw.relays.iter().enumerate() {
        let (name, spec, note) = relay(raw).map_err(|error| error.inside(format!("state.relays[{i}]")))?;
        notes.push((name.clone(), note));
        ports.push((name, spec));
    }
    let mut xconnects = Vec::with_capacity(raw.xconnects.len().min(State::MAX_PORTS));
    for (i, raw) in raw.xconnects.iter().enumerate() {
        xconnects.push(xconnect(raw).map_err(|error| error.inside(format!("state.xconnects[{i}]")))?);
    }
    let routing = routing_ops(&raw.domains)?;
    let underlays = underlay_ops(&raw.underlays)?;
    let state = State::with_underlays(ports, underlays, xconnects).and_then(|state| state.with_notes(notes));
    let state = state.and_then(|mut state| state.edit(routing).map(|_| state));
    state.map_err(|error: StateError| FieldError::new("state", error))
}

/// The message that describes `state`. Secrets are left out.
pub fn state_to_proto(state: &State) -> pb::State {
    let note = |name: &PortName| state.notes().get(name).bytes().to_vec();
    let (mut ports, mut relays) = (Vec::new(), Vec::new());
    for (name, spec) in state.ports() {
        match spec {
            PortSpec::Relay(relay) => relays.push(relay_to_proto(name, relay, note(name))),
            _ => ports.push(pb::Port { name: name.to_string(), kind: kind_to_proto(spec), note: note(name) }),
        }
    }
    let xconnect = |xconnect: &Xconnect| {
        let [a, b] = xconnect.ends().map(PortName::to_string);
        pb::Xconnect { a, b }
    };
    let xconnects = state.xconnects().iter().map(xconnect).collect();
    pb::State {
        ports,
        xconnects,
        relays,
        domains: domains_to_proto(state),
        underlays: state.underlays().iter().map(underlay_to_proto).collect(),
    }
}

fn relay_to_proto(name: &PortName, relay: &RelaySpec, note: Vec<u8>) -> pb::Relay {
    pb::Relay {
        name: name.to_string(),
        listen: relay.listen.to_string(),
        netns: relay.netns.as_ref().map(ToString::to_string).unwrap_or_default(),
        socket: format!("@{}", relay.socket),
        note,
    }
}

fn mode_to_proto(mode: Mode) -> i32 {
    match mode {
        Mode::Ethernet => pb::Mode::Ethernet.into(),
        Mode::Ip => pb::Mode::Ip.into(),
    }
}

/// What kind of port it is; `None` for a relay, which is none.
fn kind_to_proto(spec: &PortSpec) -> Option<pb::port::Kind> {
    Some(match spec {
        PortSpec::Memif(memif) => pb::port::Kind::Memif(pb::Memif {
            role: match memif.role {
                Role::Server => pb::memif::Role::Server.into(),
                Role::Client => pb::memif::Role::Client.into(),
            },
            socket: memif.socket.to_string(),
            id: memif.id,
            mode: mode_to_proto(memif.mode),
            secret: String::new(),
            queues: memif.queues.get().into(),
            ring_size: memif.ring_size.get(),
            buffer_size: memif.buffer_size.get(),
        }),
        PortSpec::Kernel(kernel) => pb::port::Kind::Kernel(pb::Kernel {
            ifname: kernel.ifname.as_str().to_owned(),
            netns: kernel.netns.as_ref().map(ToString::to_string).unwrap_or_default(),
            addresses: kernel.addresses.iter().map(ToString::to_string).collect(),
            mtu: kernel.mtu.get().into(),
            mode: mode_to_proto(kernel.mode),
            queues: kernel.queues.get().into(),
            device: kernel.device.map(|inode| inode.to_string()).unwrap_or_default(),
        }),
        PortSpec::AfXdp(nic) => pb::port::Kind::AfXdp(pb::AfXdpPort {
            ifname: nic.ifname.as_str().to_owned(),
            netns: nic.netns.as_ref().map(ToString::to_string).unwrap_or_default(),
            queues: nic.queues.iter().map(|queue| queue.get().into()).collect(),
            workers: nic.workers.get().into(),
            frame_size: nic.frame_size.get(),
            ring_size: nic.ring_size.get(),
            mode: match nic.mode {
                CopyMode::Auto => pb::af_xdp_port::CopyMode::Auto.into(),
                CopyMode::ZeroCopy => pb::af_xdp_port::CopyMode::ZeroCopy.into(),
                CopyMode::Copy => pb::af_xdp_port::CopyMode::Copy.into(),
                CopyMode::Generic => pb::af_xdp_port::CopyMode::Generic.into(),
            },
            busy_poll: nic.busy_poll,
        }),
        PortSpec::Vxlan(vxlan) => pb::port::Kind::Vxlan(pb::Vxlan {
            vni: vxlan.vni.get(),
            local: vxlan.local.to_string(),
            remote: vxlan.remote.to_string(),
            port: vxlan.port.get().into(),
            underlay_mtu: vxlan.underlay_mtu.map_or(0, |mtu| mtu.get().into()),
            mode: mode_to_proto(vxlan.mode),
            underlay: vxlan.underlay.as_ref().map(ToString::to_string).unwrap_or_default(),
        }),
        PortSpec::Pipe(pipe) => pb::port::Kind::Pipe(pb::Pipe { pipe: pipe.pipe.to_string() }),
        PortSpec::Dpdk(dpdk) => pb::port::Kind::Dpdk(pb::DpdkPort {
            device: dpdk.device.to_string(),
            queues: dpdk.queues.get().into(),
            workers: dpdk.workers.get().into(),
            rx_descriptors: dpdk.rx_descriptors.get().into(),
            tx_descriptors: dpdk.tx_descriptors.get().into(),
            mtu: dpdk.mtu.get().into(),
            not_promiscuous: !dpdk.promiscuous,
            buffers: dpdk.buffers.map_or(0, |buffers| buffers.get()),
        }),
        PortSpec::Relay(_) => return None,
    })
}
