//! MEMIF: shared memory. The server of a leg listens on an abstract socket; we make ours inside the client's namespace, and connect to
//! the endpoint's inside its own.

use tonic::Status;

use super::{Ask, Kind, namespace};
use crate::api::connection::{Connection, Mechanism};
use crate::api::mechanism::{INODE_URL, LOCAL, MEMIF, SOCKET_FILE};
use crate::dataplane::ends::{EndSpec, Make};
use crate::dataplane::kernel::Side;
use crate::dataplane::netns::Namespace;
use crate::dataplane::wanted::short;

/// The mechanism.
pub struct Memif;

impl Kind for Memif {
    fn name(&self) -> &'static str {
        MEMIF
    }

    fn class(&self) -> &'static str {
        LOCAL
    }

    fn accept(&self, ask: &Ask<'_>, offered: &Mechanism) -> Result<Mechanism, Status> {
        namespace(ask, offered, Namespace::even_ours)?;
        let mut accepted = Mechanism { cls: LOCAL.into(), r#type: MEMIF.into(), ..offered.clone() };
        // What a client says here is what it was told before, or its guess; whose namespace it is matters, not the name.
        let socket = format!("@/tmp/memif/{}/memif.socket", short(ask.id));
        accepted.parameters.insert(SOCKET_FILE.into(), socket);
        Ok(accepted)
    }

    fn offer(&self, _: &Ask<'_>) -> Option<Mechanism> {
        // Go's endpoints are used to an empty URL, and put their own in its place.
        let parameters = [(INODE_URL.to_owned(), String::new())].into();
        Some(Mechanism { cls: LOCAL.into(), r#type: MEMIF.into(), parameters })
    }

    fn end(&self, ask: &Ask<'_>, side: Side, agreed: &Mechanism, _: &Connection) -> Result<EndSpec, Status> {
        let namespace = namespace(ask, agreed, Namespace::even_ours)?;
        let socket = agreed.parameters.get(SOCKET_FILE).cloned().unwrap_or_default();
        let make = match side {
            Side::Server => Make::MemifServer { socket },
            Side::Client => Make::MemifClient { socket },
        };
        Ok(EndSpec { payload: ask.payload, make, namespace: Some(namespace), interface: None })
    }
}
