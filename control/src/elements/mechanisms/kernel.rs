//! KERNEL: an interface in a workload's namespace. The workload says which namespace and which name; the forwarder makes it.

use tonic::Status;

use super::{Ask, Kind, namespace};
use crate::api::connection::{Connection, Mechanism};
use crate::api::mechanism::{KERNEL, LOCAL, NAME};
use crate::dataplane::ends::{EndSpec, Make, Payload};
use crate::dataplane::kernel::Side;
use crate::dataplane::kernel::interface::{Interface, check_name};
use crate::dataplane::netns::Namespace;
use crate::dataplane::wanted::short;

/// The MTU of an interface whose connection says none, in bytes.
const USUAL_MTU: u32 = 1500;
/// The most that a tap takes.
const MAX_MTU: u32 = 65_521;

/// The mechanism.
pub struct Kernel;

/// The name that a workload asked for, or one that is the connection's alone.
fn name(ask: &Ask<'_>, mechanism: &Mechanism) -> Result<String, Status> {
    let name = match mechanism.parameters.get(NAME).map_or("", String::as_str) {
        "" => format!(
            "nsm-{}",
            short(ask.id).chars().filter(char::is_ascii_alphanumeric).take(8).collect::<String>()
        ),
        name => name.to_owned(),
    };
    check_name(&name)?;
    Ok(name)
}

fn refuse_vlan(mechanism: &Mechanism) -> Result<(), Status> {
    match mechanism.parameters.get("vlan").map_or("", String::as_str) {
        "" | "0" => Ok(()),
        vlan => Err(Status::invalid_argument(format!(
            "mechanism KERNEL: vlan {vlan:?}: this forwarder has no VLAN interfaces"
        ))),
    }
}

impl Kind for Kernel {
    fn name(&self) -> &'static str {
        KERNEL
    }

    fn class(&self) -> &'static str {
        LOCAL
    }

    fn accept(&self, ask: &Ask<'_>, offered: &Mechanism) -> Result<Mechanism, Status> {
        refuse_vlan(offered)?;
        namespace(ask, offered, Namespace::new)?;
        let mut accepted = Mechanism { cls: LOCAL.into(), r#type: KERNEL.into(), ..offered.clone() };
        accepted.parameters.insert(NAME.into(), name(ask, offered)?);
        Ok(accepted)
    }

    fn offer(&self, _: &Ask<'_>) -> Option<Mechanism> {
        Some(Mechanism { cls: LOCAL.into(), r#type: KERNEL.into(), ..Default::default() })
    }

    fn end(
        &self,
        ask: &Ask<'_>,
        side: Side,
        agreed: &Mechanism,
        answer: &Connection,
    ) -> Result<EndSpec, Status> {
        refuse_vlan(agreed)?;
        let (inode, namespace) = namespace(ask, agreed, Namespace::new)?;
        let ifname = name(ask, agreed)?;
        let mut wanted = Interface::of(answer, side)?;
        if ask.payload == Payload::Ip {
            // A tun has no hardware addresses.
            wanted.mac = None;
            wanted.neighbours.clear();
        }
        let mtu = wanted.mtu.unwrap_or(USUAL_MTU).min(MAX_MTU);
        let interface = namespace.clone().map(|namespace| (namespace, ifname.clone(), wanted));
        Ok(EndSpec {
            payload: ask.payload,
            make: Make::Kernel { ifname, mtu },
            namespace: Some((inode, namespace)),
            interface,
        })
    }
}
