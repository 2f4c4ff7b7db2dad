//! How connections of callers end, and what is worth a line.

use std::error::Error;
use std::io::{self, ErrorKind};

use super::PeerAddress;
use crate::obs::Ration;

/// Says how a connection ended: in a whisper if the caller just left, as every Go client does after each call without a word of
/// farewell; aloud, but not without end, if the handshake failed or HTTP/2 was abused.
pub(super) fn tell(at: &str, address: &PeerAddress, ended: io::Result<()>) {
    static LINES: Ration = Ration::new();
    match ended {
        Ok(()) => tracing::debug!(%at, ?address, "a connection ended"),
        Err(error) if is_leave(&error) => tracing::debug!(%at, ?address, %error, "the caller left"),
        Err(error) => {
            if let Some(withheld) = LINES.take() {
                tracing::info!(%at, ?address, %error, withheld, "a connection was refused or broke");
            }
        }
    }
}

/// True if the other end closed, or its process ended.
fn is_leave(error: &io::Error) -> bool {
    let kinds = [
        ErrorKind::UnexpectedEof,
        ErrorKind::ConnectionReset,
        ErrorKind::ConnectionAborted,
        ErrorKind::BrokenPipe,
        ErrorKind::NotConnected,
    ];
    let closed = |cause: &(dyn Error + 'static)| {
        let io = cause.downcast_ref::<io::Error>().is_some_and(|error| kinds.contains(&error.kind()));
        let hyper = cause.downcast_ref::<hyper::Error>();
        io || hyper
            .is_some_and(|error| error.is_incomplete_message() || error.is_closed() || error.is_canceled())
    };
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    // An io::Error's source is its inner error's source: the inner one has to be looked at, too.
    while let Some(error) = cause {
        let inner = error.downcast_ref::<io::Error>().and_then(|error| error.get_ref());
        if closed(error) || inner.is_some_and(|inner| closed(inner)) {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leaves_without_a_word_is_no_fault() {
        for kind in [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe] {
            assert!(is_leave(&kind.into()));
            assert!(is_leave(&io::Error::other(io::Error::from(kind))), "also as the cause");
        }
        for fault in [
            io::Error::new(
                ErrorKind::InvalidData,
                "the peer's certificate: of a trust domain without a bundle",
            ),
            io::Error::new(ErrorKind::TimedOut, "the TLS handshake was not finished in time"),
            io::Error::other("frame with invalid size"),
        ] {
            assert!(!is_leave(&fault), "{fault}");
        }
    }
}
