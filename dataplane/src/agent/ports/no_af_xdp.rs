//! AF_XDP ports in a build without them.

use super::super::open_error::{Cause, OpenError};
use super::super::{Link, SentFds};
use super::{Backing, Ports};
use crate::model::{AfXdpSpec, PortName};
use crate::port::PortIndex;
use crate::tables::WorkerId;

impl Ports {
    pub(super) fn open_af_xdp(
        &mut self,
        _: &PortName,
        spec: &AfXdpSpec,
        _: PortIndex,
        _: WorkerId,
        _: &SentFds,
    ) -> Result<(Backing, Link), OpenError> {
        let ifname = spec.ifname.as_str();
        Err(OpenError::new(
            Cause::System,
            format!(
                "AF_XDP on {ifname}: this engine was built without the feature af_xdp; build it with that, or use kind = \"kernel\" and the kernel-UDP underlay"
            ),
        ))
    }

    pub(in crate::agent) fn nic_changed(&mut self, _: &PortName) {}

    pub(in crate::agent) fn nic_fault(&mut self, _: &PortName) {}
}
