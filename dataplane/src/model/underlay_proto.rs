//! Between the API's messages and underlays. Errors name the field as the caller wrote it.

use std::collections::BTreeSet;

use vwire_proto::dataplane::v1 as pb;

use super::proto::{FieldError, InField, split};
use super::value::shown;
use super::{PortName, UnderlaySpec};

/// The port and what it is as an underlay.
pub(super) fn underlay(raw: &pb::Underlay) -> Result<(PortName, UnderlaySpec), FieldError> {
    let port = raw.port.parse().field("port")?;
    let address = |(i, text): (usize, &String)| text.parse().field(&format!("addresses[{i}]"));
    let gateway = |(i, text): (usize, &String)| {
        let wrong =
            |_| FieldError::new(format!("gateways[{i}]"), format!("{} is not an IP address", shown(text)));
        text.parse().map_err(wrong)
    };
    let spec = UnderlaySpec {
        addresses: raw.addresses.iter().enumerate().map(address).collect::<Result<_, _>>()?,
        gateways: raw.gateways.iter().enumerate().map(gateway).collect::<Result<_, _>>()?,
        mtu: match raw.mtu {
            0 => Default::default(),
            mtu => i64::from(mtu).try_into().field("mtu")?,
        },
        mac: if raw.mac.is_empty() { None } else { Some(raw.mac.parse().field("mac")?) },
    };
    Ok((port, spec.checked().map_err(split)?))
}

/// All underlays of a state.
pub(super) fn underlay_ops(raw: &[pb::Underlay]) -> Result<Vec<(PortName, UnderlaySpec)>, FieldError> {
    let (mut names, mut all) = (BTreeSet::new(), Vec::new());
    for (i, raw) in raw.iter().enumerate() {
        let (port, spec) = underlay(raw).map_err(|error| error.inside(format!("state.underlays[{i}]")))?;
        if !names.insert(port.clone()) {
            let twice = format!("port {port} has two underlays; give one of them all addresses");
            return Err(FieldError::new(format!("state.underlays[{i}].port"), twice));
        }
        all.push((port, spec));
    }
    Ok(all)
}

/// The message that describes an underlay.
pub(super) fn underlay_to_proto((port, spec): (&PortName, &UnderlaySpec)) -> pb::Underlay {
    pb::Underlay {
        port: port.to_string(),
        addresses: spec.addresses.iter().map(ToString::to_string).collect(),
        gateways: spec.gateways.iter().map(ToString::to_string).collect(),
        mtu: spec.mtu.get().into(),
        mac: spec.mac.map(|mac| mac.to_string()).unwrap_or_default(),
    }
}
