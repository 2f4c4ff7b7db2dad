//! memif's control sockets in a workload's namespace. An abstract socket belongs to the namespace it was made in, whoever uses it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tonic::Status;

use super::netns::Namespace;
use crate::transport::SharedFd;

/// Connections that may wait; a workload makes one, and another when that broke.
const BACKLOG: i32 = 5;
/// Between attempts to reach a listener that is not there yet.
const PAUSE: Duration = Duration::from_millis(10);

/// The abstract name in a socket's parameter, which begins with `@`.
fn address(name: &str) -> Result<SocketAddrUnix, Status> {
    let bad = |why: &str| {
        let shown: String = name.chars().take(120).collect();
        Status::invalid_argument(format!(
            "mechanism parameter `socketfile`: {shown:?} {why}; an abstract socket such as @/tmp/memif/ID/memif.socket is needed"
        ))
    };
    let plain = name.strip_prefix('@').ok_or_else(|| bad("does not begin with '@'"))?;
    if plain.is_empty() || plain.len() > 107 {
        return Err(bad("must have 1 to 107 bytes after the '@'"));
    }
    if plain.bytes().any(|byte| byte == 0 || byte.is_ascii_control()) {
        return Err(bad("contains a control character"));
    }
    SocketAddrUnix::new_abstract_name(plain.as_bytes()).map_err(|error| bad(&error.to_string()))
}

/// Whether a socket's parameter will do.
///
/// # Errors
/// INVALID_ARGUMENT, saying what an abstract name is.
pub fn check(name: &str) -> Result<(), Status> {
    address(name).map(drop)
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// A socket that listens in the namespace.
///
/// # Errors
/// INVALID_ARGUMENT if the name will not do; ALREADY_EXISTS if another process listens there.
pub async fn listen(namespace: &Namespace, name: &str) -> Result<SharedFd, Status> {
    let address = address(name)?;
    let shown = name.to_owned();
    namespace
        .run(move || {
            let bound = socket().and_then(|socket| {
                rustix::net::bind(&socket, &address)?;
                rustix::net::listen(&socket, BACKLOG)?;
                Ok(Arc::new(socket))
            });
            bound.map_err(|error| match error.kind() {
                io::ErrorKind::AddrInUse => {
                    Status::already_exists(format!("memif socket {shown}: another process listens there"))
                }
                _ => Status::failed_precondition(format!("memif socket {shown}: {error}")),
            })
        })
        .await
}

/// A connection to the socket in the namespace, waiting for its listener until the deadline.
///
/// # Errors
/// INVALID_ARGUMENT if the name will not do; UNAVAILABLE if nobody listens there.
pub async fn connect(namespace: &Namespace, name: &str, deadline: Instant) -> Result<SharedFd, Status> {
    let address = address(name)?;
    loop {
        let (to, shown) = (address.clone(), name.to_owned());
        let connected = namespace
            .run(move || {
                let connected = socket().and_then(|socket| {
                    rustix::net::connect(&socket, &to)?;
                    Ok(Arc::new(socket))
                });
                connected.map_err(|error| Status::unavailable(format!("memif socket {shown}: {error}")))
            })
            .await;
        match connected {
            // Nobody listens yet, or too many wait.
            Err(status) if status.code() == tonic::Code::Unavailable && Instant::now() + PAUSE < deadline => {
                tokio::time::sleep(PAUSE).await;
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_abstract_and_short_enough() {
        address("@/tmp/memif/5a/memif.socket").unwrap();
        address(&format!("@{}", "x".repeat(107))).unwrap();
        for bad in ["", "@", "/tmp/memif.socket", "@a\0b", &format!("@{}", "x".repeat(108))] {
            let refused = address(bad).unwrap_err();
            assert!(refused.message().contains("`socketfile`"), "{bad}: {refused}");
        }
    }
}
