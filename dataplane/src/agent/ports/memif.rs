//! Opening memifs and relays: the control sockets do the rest.

use super::super::open_error::OpenError;
use super::super::{Link, SentFds, sent};
use super::{Backing, Ports};
use crate::model::{ControlSocket, MemifSpec, PortName, PortSpec, RelaySpec};

impl Ports {
    pub(super) fn open_memif(
        &mut self,
        port: &PortName,
        spec: &MemifSpec,
        fds: &SentFds,
    ) -> Result<(Backing, Link), OpenError> {
        let handed_over = match &spec.socket {
            ControlSocket::Sent(inode) => Some(sent::copy(fds, *inode)?),
            _ => None,
        };
        if let Some(source) = self.sockets.open(port, spec, fds)?
            && let Some(fd) = self.sockets.fd(&source)
            && let Err(error) = self.watched.add(fd, source)
        {
            self.sockets.close(port, spec);
            return Err(error);
        }
        let link = Link { reason: "no peer yet".into(), ..Link::default() };
        Ok((Backing::Memif { spec: spec.clone(), handed_over }, link))
    }

    pub(super) fn open_relay(
        &mut self,
        name: &PortName,
        spec: &RelaySpec,
        fds: &SentFds,
    ) -> Result<(Backing, Link), OpenError> {
        let made_of = PortSpec::Relay(spec.clone())
            .needs()
            .map(|inode| Ok((inode, sent::copy(fds, inode)?)))
            .collect::<Result<_, OpenError>>()?;
        let source = self.sockets.open_relay(name, spec, fds)?;
        if let Some(fd) = self.sockets.fd(&source)
            && let Err(error) = self.watched.add(fd, source)
        {
            self.sockets.close_relay(name);
            return Err(error);
        }
        let link = Link { reason: "no client yet".into(), ..Link::default() };
        Ok((Backing::Relay(made_of), link))
    }
}
