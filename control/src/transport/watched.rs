//! A connection's bytes, with a way to end it and a sign that it has ended.
//!
//! hyper keeps a connection alive in a task of its own as long as it has streams, out of our hands; its bytes are not.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

/// A stream that breaks when it is cut.
pub(super) struct Watched<S> {
    stream: S,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Says that the stream is gone.
    _ended: DropGuard,
}

impl<S> Watched<S> {
    /// Breaks after `cut`; cancels `ended` when it is dropped.
    pub fn new(stream: S, cut: &CancellationToken, ended: &CancellationToken) -> Self {
        Self { stream, cut: Box::pin(cut.clone().cancelled_owned()), _ended: ended.clone().drop_guard() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // HTTP/2 always waits to read, so this is what wakes it.
        if self.cut.as_mut().poll(cx).is_ready() {
            let reason = "given up: the peer gave no sign of life, or we ended it";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, reason)));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
