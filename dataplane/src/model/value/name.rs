//! Names: of ports, and of the kernel's interfaces.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use super::{Invalid, invalid, shown};

/// The name of a port: 1 to 63 bytes of `A-Z a-z 0-9 . _ -`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct PortName(String);

impl PortName {
    /// Most bytes of a name; so many fit into the statistics segment with their end.
    pub const MAX: usize = 63;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PortName {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let fits = (1..=Self::MAX).contains(&text.len());
        if !fits || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
            let said = shown(text);
            return invalid(format!("a port's name has 1 to 63 bytes of A-Z a-z 0-9 . _ -; {said} does not"));
        }
        Ok(Self(text.to_owned()))
    }
}
from_text!(PortName);

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a kernel interface, by the kernel's rules.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct IfName(String);

impl IfName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IfName {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        // `all` and `default` are possible names, but their sysctls would be everyone's. A `%d` is the
        // kernel's to fill in.
        let special = [".", "..", "all", "default"].contains(&text);
        let plain = text.bytes().all(|b| b.is_ascii_graphic() && !b"/:%".contains(&b));
        if special || !plain || !(1..=15).contains(&text.len()) {
            let said = shown(text);
            return invalid(format!(
                "an interface name has 1 to 15 printable bytes without / : %, and is none of . .. all default; {said} won't do"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}
from_text!(IfName);
