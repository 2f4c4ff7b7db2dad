//! `[[underlay]]`: a port that carries tunnels. The keys are the API's fields, and `exception`, which is a cross-connect there.

use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de::Error};

use crate::model::{Invalid, Mac, PortName, Prefix, UnderlayMtu, UnderlaySpec, Xconnect};

/// One `[[underlay]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Underlay {
    port: PortName,
    addresses: Vec<Prefix>,
    #[serde(default)]
    gateways: Vec<IpAddr>,
    #[serde(default)]
    mtu: UnderlayMtu,
    #[serde(default, deserialize_with = "mac")]
    mac: Option<Mac>,
    exception: Option<PortName>,
}

fn mac<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Mac>, D::Error> {
    Mac::from_str(&String::deserialize(from)?).map(Some).map_err(D::Error::custom)
}

impl Underlay {
    /// The port, what it is as an underlay, and the cross-connect with its exception port.
    pub fn into_parts(self) -> Result<(PortName, UnderlaySpec, Option<Xconnect>), Invalid> {
        let Self { port, addresses, gateways, mtu, mac, exception } = self;
        let exception = exception.map(|exception| Xconnect::new(port.clone(), exception)).transpose();
        let exception = exception.map_err(|Invalid(why)| Invalid(format!("exception: {why}")))?;
        Ok((port, UnderlaySpec { addresses, gateways, mtu, mac }.checked()?, exception))
    }
}
