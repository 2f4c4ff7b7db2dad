//! What is outside of the engine, by its path or by a descriptor: control sockets and network namespaces.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use super::{Invalid, invalid, shown};

/// A file that came as a descriptor beside a request, by the identity that `fstat` gives:
/// `inode://<st_dev>/<st_ino>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Inode {
    /// `st_dev`, the raw device number.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
}

impl FromStr for Inode {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let digits =
            |part: &str| part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok()).flatten();
        let parts = text.strip_prefix("inode://").and_then(|rest| rest.split_once('/'));
        match parts.and_then(|(dev, ino)| Some((digits(dev)?, digits(ino)?))) {
            Some((dev, ino)) => Ok(Self { dev, ino }),
            None => invalid(format!("{} is not inode://<st_dev>/<st_ino> with decimal numbers", shown(text))),
        }
    }
}

impl fmt::Display for Inode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode://{}/{}", self.dev, self.ino)
    }
}

/// Where a memif control socket is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub enum ControlSocket {
    /// A socket file, by its absolute path.
    Path(String),
    /// A name in the abstract namespace, written `@name`.
    Abstract(String),
    /// A socket that comes beside the request.
    Sent(Inode),
    /// A descriptor that this process was started with, written `fd:3`.
    Inherited(i32),
}

impl ControlSocket {
    /// Bytes of a path or an abstract name that fit into `sockaddr_un`.
    pub const MAX: usize = 107;
}

impl FromStr for ControlSocket {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.starts_with("inode://") {
            return text.parse().map(Self::Sent);
        }
        if let Some(number) = text.strip_prefix("fd:") {
            return match number.parse::<i32>() {
                Ok(fd) if fd > 2 => Ok(Self::Inherited(fd)),
                _ => invalid(format!("{} is not fd:<number> with a number above 2", shown(text))),
            };
        }
        let (name, path) = (text.strip_prefix('@'), text.strip_prefix('/'));
        let len = name.map_or(text.len(), str::len);
        match (name, path) {
            _ if len > Self::MAX => {
                invalid(format!("a socket's path or name has at most 107 bytes; {} has {len}", shown(text)))
            }
            _ if text.contains('\0') => invalid(format!("{} contains a NUL", shown(text))),
            (Some(name), _) if !name.is_empty() => Ok(Self::Abstract(name.to_owned())),
            (_, Some(path)) if !path.is_empty() && !has_dot_dot(text) => Ok(Self::Path(text.to_owned())),
            _ => invalid(format!(
                "a socket is an absolute path without \"..\", @name, fd:<number> or inode://<dev>/<ino>; {} is none of them",
                shown(text)
            )),
        }
    }
}
from_text!(ControlSocket);

impl fmt::Display for ControlSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.write_str(path),
            Self::Abstract(name) => write!(f, "@{name}"),
            Self::Sent(inode) => inode.fmt(f),
            Self::Inherited(fd) => write!(f, "fd:{fd}"),
        }
    }
}

fn has_dot_dot(path: &str) -> bool {
    path.split('/').any(|part| part == "..")
}

/// A network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub enum Netns {
    /// By an absolute path, as `ip netns` keeps them under /run/netns.
    Path(String),
    /// By a descriptor that comes beside the request.
    Sent(Inode),
}

impl FromStr for Netns {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.starts_with("inode://") {
            return text.parse().map(Self::Sent);
        }
        if !text.starts_with('/') || has_dot_dot(text) || text.contains('\0') || text.len() > 4095 {
            let said = shown(text);
            return invalid(format!(
                "a netns is an absolute path without \"..\", or inode://<dev>/<ino>; {said} is neither"
            ));
        }
        Ok(Self::Path(text.to_owned()))
    }
}
from_text!(Netns);

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.write_str(path),
            Self::Sent(inode) => inode.fmt(f),
        }
    }
}
