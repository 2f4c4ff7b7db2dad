//! File descriptors beside a byte stream, as NSM's components pass them: a sender attaches each descriptor to
//! one ordinary byte of the unix connection, a receiver collects them by identity (`st_dev`, `st_ino`), and
//! messages name them `inode://<st_dev>/<st_ino>`. Neither side adds a byte to the stream.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{Notify, OwnedSemaphorePermit};

use crate::model::Inode;

/// Most descriptors on one message; a sender that attaches more loses its connection.
pub const MAX_PER_MESSAGE: usize = 64;
/// Most descriptors kept for one connection; for each one more the oldest that nobody took is closed.
pub const MAX_HELD: usize = 256;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every operation leaves the table consistent, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The identity of an open file.
///
/// # Errors
/// The kernel's, from `fstat`.
pub fn identify(fd: impl AsFd) -> io::Result<Inode> {
    let stat = rustix::fs::fstat(fd)?;
    Ok(Inode { dev: stat.st_dev, ino: stat.st_ino })
}

/// A descriptor that was received, and how many times its file was sent and not taken yet.
struct Held {
    fd: OwnedFd,
    sent: usize,
    /// When it was last sent.
    since: Instant,
}

/// The descriptors that came with one connection and that no request has taken yet. Closed with the
/// connection.
#[derive(Default)]
pub struct FdTable {
    held: Mutex<HashMap<Inode, Held>>,
    arrived: Notify,
}

impl FdTable {
    /// Keeps a descriptor, unless its file is held already. A full table makes room by closing the oldest: what a failed
    /// request left behind must not clog a connection that lives for days.
    fn keep(&self, fd: OwnedFd) {
        let Ok(inode) = identify(&fd) else { return };
        let now = Instant::now();
        let mut held = lock(&self.held);
        let full = held.len() >= MAX_HELD;
        match held.get_mut(&inode) {
            Some(known) => (known.sent, known.since) = (known.sent + 1, now),
            None => {
                let oldest = held.iter().min_by_key(|(_, held)| held.since).map(|(inode, _)| *inode);
                if let Some(oldest) = oldest.filter(|_| full) {
                    tracing::warn!(%oldest, "closed a descriptor that nobody took: {MAX_HELD} wait on this connection");
                    held.remove(&oldest);
                }
                held.insert(inode, Held { fd, sent: 1, since: now });
            }
        }
        drop(held);
        self.arrived.notify_waiters();
    }

    /// Takes the descriptor of this file, if it is here.
    pub fn take(&self, inode: Inode) -> Option<OwnedFd> {
        let mut held = lock(&self.held);
        let known = held.get_mut(&inode)?;
        // Sent for another request too: that one gets the original, this one a copy.
        if known.sent > 1
            && let Ok(copy) = rustix::io::fcntl_dupfd_cloexec(&known.fd, 0)
        {
            known.sent -= 1;
            return Some(copy);
        }
        held.remove(&inode).map(|known| known.fd)
    }

    /// Takes the descriptor of this file, waiting for it if needed; cancel it to stop waiting.
    pub async fn wait(&self, inode: Inode) -> OwnedFd {
        loop {
            let arrival = self.arrived.notified();
            tokio::pin!(arrival);
            // Listening begins before the look, so that an arrival in between is not missed.
            arrival.as_mut().enable();
            if let Some(fd) = self.take(inode) {
                return fd;
            }
            arrival.await;
        }
    }

    /// Closes what nobody has taken for this long: it would keep a namespace alive that is long gone.
    pub fn close_older(&self, age: Duration) {
        lock(&self.held).retain(|_, held| held.since.elapsed() < age);
    }

    /// How many files are held.
    pub fn len(&self) -> usize {
        lock(&self.held).len()
    }

    /// True if none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Queues descriptors that go out with the next bytes of a connection.
#[derive(Clone, Default)]
pub struct FdSender(Arc<Mutex<VecDeque<OwnedFd>>>);

impl FdSender {
    /// Queues a copy of `fd`; call it before sending the message that names the file by what is returned.
    ///
    /// # Errors
    /// The kernel's, if the descriptor can't be copied.
    pub fn send(&self, fd: impl AsFd) -> io::Result<Inode> {
        let copy = rustix::io::fcntl_dupfd_cloexec(&fd, 0)?;
        let inode = identify(&copy)?;
        lock(&self.0).push_back(copy);
        Ok(inode)
    }
}

/// A unix connection that passes descriptors both ways.
pub struct FdStream {
    stream: UnixStream,
    received: Arc<FdTable>,
    to_send: FdSender,
    /// A place among the connections that may be open at one time, free again when this is gone.
    _permit: Option<OwnedSemaphorePermit>,
}

impl FdStream {
    /// Wraps a connection.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, received: Arc::default(), to_send: FdSender::default(), _permit: None }
    }

    /// Wraps a connection that takes up a place for as long as it lasts.
    pub fn with_permit(stream: UnixStream, permit: OwnedSemaphorePermit) -> Self {
        Self { _permit: Some(permit), ..Self::new(stream) }
    }

    /// What has come.
    pub fn received(&self) -> Arc<FdTable> {
        Arc::clone(&self.received)
    }

    /// Where to put what shall go.
    pub fn sender(&self) -> FdSender {
        self.to_send.clone()
    }

    fn receive(&self, space: &mut [u8]) -> io::Result<usize> {
        let mut control_space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PER_MESSAGE))];
        let mut control = RecvAncillaryBuffer::new(&mut control_space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let got = rustix::net::recvmsg(&self.stream, &mut [IoSliceMut::new(space)], &mut control, flags)?;
        let fds = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let fds: Vec<OwnedFd> = fds.flatten().collect();
        // What did not fit into the space was closed by the kernel; alignment may leave room for one more
        // than asked for. Which request misses which can't be told, so none goes on.
        if got.flags.contains(ReturnFlags::CTRUNC) || fds.len() > MAX_PER_MESSAGE {
            let reason = format!("more than {MAX_PER_MESSAGE} file descriptors came on one message");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        fds.into_iter().for_each(|fd| self.received.keep(fd));
        Ok(got.bytes)
    }

    /// Sends the first byte with the oldest descriptor, or all bytes if none waits.
    fn transmit(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut queue = lock(&self.to_send.0);
        let (bytes, fd) = match queue.front() {
            Some(fd) => (&bytes[..1], std::slice::from_ref(fd)),
            None => (bytes, &[][..]),
        };
        let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = rustix::net::sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, flags)?;
        drop(fds);
        queue.pop_front();
        Ok(sent)
    }
}

impl AsyncRead for FdStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            let space = buf.initialize_unfilled();
            match self.stream.try_io(Interest::READABLE, || self.receive(space)) {
                Ok(read) => {
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for FdStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_io(Interest::WRITABLE, || self.transmit(bytes)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What a request's handler may know of its connection.
#[derive(Clone)]
pub struct Connection {
    /// The descriptors that came with it.
    pub fds: Arc<FdTable>,
}

impl tonic::transport::server::Connected for FdStream {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        Connection { fds: self.received() }
    }
}

/// Connects to a gRPC server's unix socket. Descriptors put into the sender go out before whatever is called
/// after.
///
/// # Errors
/// [`tonic::transport::Error`] if nobody listens there.
pub async fn connect(
    socket: &Path,
) -> Result<(tonic::transport::Channel, FdSender), tonic::transport::Error> {
    let sender = FdSender::default();
    let (socket, for_stream) = (socket.to_owned(), sender.clone());
    let connector = tower::service_fn(move |_| {
        let (socket, to_send) = (socket.clone(), for_stream.clone());
        async move {
            let stream = UnixStream::connect(socket).await?;
            let stream = FdStream { to_send, ..FdStream::new(stream) };
            Ok::<_, io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    // The address is never resolved; it becomes the requests' :authority.
    let channel =
        tonic::transport::Endpoint::from_static("http://dataplane").connect_with_connector(connector).await?;
    Ok((channel, sender))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn file(text: &str) -> File {
        use std::io::{Seek, Write};
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.rewind().unwrap();
        file
    }

    fn pair() -> (FdStream, FdStream) {
        let (a, b) = UnixStream::pair().unwrap();
        (FdStream::new(a), FdStream::new(b))
    }

    fn text(fd: OwnedFd) -> String {
        let mut text = String::new();
        File::from(fd).read_to_string(&mut text).unwrap();
        text
    }

    #[tokio::test]
    async fn descriptors_come_before_the_bytes_that_follow_them_and_add_none() {
        let (mut a, mut b) = pair();
        let one = a.sender().send(file("one")).unwrap();
        let two = a.sender().send(file("two")).unwrap();
        a.write_all(b"hello").await.unwrap();
        let mut bytes = [0; 5];
        b.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"hello");
        assert_eq!(b.received().len(), 2);
        assert_eq!(text(b.received().take(two).unwrap()), "two");
        assert_eq!(text(b.received().take(one).unwrap()), "one");
        assert!(b.received().take(one).is_none(), "what is taken is gone");
    }

    #[tokio::test]
    async fn a_file_sent_twice_is_held_once_and_serves_two_requests() {
        let (mut a, mut b) = pair();
        let twice = file("x");
        let inode = a.sender().send(&twice).unwrap();
        a.sender().send(&twice).unwrap();
        a.write_all(b"..").await.unwrap();
        b.read_exact(&mut [0; 2]).await.unwrap();
        assert_eq!(b.received().len(), 1);
        assert!(b.received().take(inode).is_some() && b.received().take(inode).is_some());
        assert!(b.received().take(inode).is_none());
    }

    #[tokio::test]
    async fn a_request_can_wait_for_a_descriptor() {
        let (mut a, mut b) = pair();
        let table = b.received();
        let inode = a.sender().send(file("late")).unwrap();
        let waiting = tokio::spawn(async move { text(table.wait(inode).await) });
        a.write_all(b".").await.unwrap();
        b.read_exact(&mut [0; 1]).await.unwrap();
        assert_eq!(waiting.await.unwrap(), "late");
    }

    fn send_at_once(stream: &UnixStream, fds: &[File]) {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(128))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        rustix::net::sendmsg(stream, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
    }

    #[tokio::test]
    async fn sixty_four_on_one_message_are_taken_and_sixty_five_end_the_connection() {
        let (a, mut b) = pair();
        let files: Vec<File> = (0..65).map(|i| file(&i.to_string())).collect();
        send_at_once(&a.stream, &files[..64]);
        b.read_exact(&mut [0; 1]).await.unwrap();
        assert_eq!(b.received().len(), 64);
        send_at_once(&a.stream, &files);
        let error = b.read_exact(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.to_string(), "more than 64 file descriptors came on one message");
        assert_eq!(b.received().len(), 64, "nothing of that message is kept");
    }

    #[tokio::test]
    async fn no_more_than_the_limit_are_held() {
        let (a, mut b) = pair();
        let files: Vec<File> = (0..MAX_HELD + 20).map(|_| file("")).collect();
        for some in files.chunks(MAX_PER_MESSAGE) {
            send_at_once(&a.stream, some);
            b.read_exact(&mut [0; 1]).await.unwrap();
        }
        assert_eq!(b.received().len(), MAX_HELD);
        assert!(b.received().take(identify(&files[0]).unwrap()).is_none(), "the oldest went");
        assert!(b.received().take(identify(files.last().unwrap()).unwrap()).is_some());
    }

    #[tokio::test]
    async fn what_nobody_takes_is_closed_in_time() {
        let (mut a, mut b) = pair();
        a.sender().send(file("")).unwrap();
        a.write_all(b".").await.unwrap();
        b.read_exact(&mut [0; 1]).await.unwrap();
        b.received().close_older(Duration::from_secs(3600));
        assert_eq!(b.received().len(), 1);
        b.received().close_older(Duration::ZERO);
        assert!(b.received().is_empty());
    }
}
