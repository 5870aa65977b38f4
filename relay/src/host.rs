//! The host's end of a connection: a task that makes it, and carries data between its socket and two short queues.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt::Linger};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::tcp::{Attempt, Event};

/// Pieces that wait between stack and host socket, each way.
pub(crate) const QUEUE_PIECES: usize = 8;
pub(crate) const PIECE_BYTES: usize = 64 * 1024;

pub(crate) const CONNECT_PATIENCE: Duration = Duration::from_secs(20);

/// How long the host's socket is still read after it could not be written.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How a TCP socket of the host closes, whoever closes it and however (`SO_LINGER`, socket(7)): with a reset, so that
/// its peer does not take the part of an upload for the whole, until both directions have ended in order.
const WITH_A_RESET: linger = linger { l_onoff: 1, l_linger: 0 };
const IN_ORDER: linger = linger { l_onoff: 0, l_linger: 0 };

/// The stack's ends of a connection's queues.
pub(crate) struct Queues {
    pub(crate) to_host: ToHost,
    pub(crate) from_host: mpsc::Receiver<FromHost>,
}

/// What the guest sends.
pub(crate) struct ToHost {
    pub(crate) pieces: mpsc::Sender<Bytes>,
    /// What is left when the guest has sent all. It needs no room in the queue: the task can finish by itself, and the
    /// stack forget the connection. Dropped unsent, the connection was reset.
    pub(crate) last: oneshot::Sender<Bytes>,
}

pub(crate) struct FromStack {
    pub(crate) pieces: mpsc::Receiver<Bytes>,
    pub(crate) last: oneshot::Receiver<Bytes>,
}

pub(crate) enum FromHost {
    Data(Bytes),
    /// The host's peer will send no more.
    End,
    Reset,
}

pub(crate) enum Target {
    Address(SocketAddr),
    Unix(PathBuf, String),
}

pub(crate) struct HostSide {
    pub(crate) attempt: Attempt,
    pub(crate) from_stack: FromStack,
    pub(crate) to_stack: mpsc::Sender<FromHost>,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) wake: Arc<Notify>,
}

impl HostSide {
    pub(crate) async fn run(self, target: Target) {
        let connecting = async {
            match target {
                Target::Address(address) => Self::tcp(address).await,
                Target::Unix(path, preface) => Self::unix(&path, &preface).await,
            }
        };
        let connected = tokio::time::timeout(CONNECT_PATIENCE, connecting).await.ok().and_then(Result::ok);
        match connected {
            // Borrowed halves: an owned one ends its direction in order when it is dropped.
            Some(Socketed::Tcp(mut stream)) => {
                let (reader, writer) = stream.split();
                if self.carry(reader, writer).await.is_ok() {
                    let _ = setsockopt(&stream, Linger, &IN_ORDER);
                }
            }
            Some(Socketed::Unix(mut stream)) => {
                let (reader, writer) = stream.split();
                let _ = self.carry(reader, writer).await;
            }
            None => {
                let _ = self.events.send(Event::Refused(self.attempt)).await;
            }
        }
    }

    async fn tcp(address: SocketAddr) -> io::Result<Socketed> {
        let stream = TcpStream::connect(address).await?;
        let _ = stream.set_nodelay(true);
        setsockopt(&stream, Linger, &WITH_A_RESET)?;
        Ok(Socketed::Tcp(stream))
    }

    async fn unix(path: &Path, preface: &str) -> io::Result<Socketed> {
        let mut stream = UnixStream::connect(path).await?;
        stream.write_all(preface.as_bytes()).await?;
        Ok(Socketed::Unix(stream))
    }

    /// Returns when both directions have ended in order, or one of them has not.
    async fn carry(self, reader: impl AsyncRead + Unpin, writer: impl AsyncWrite + Unpin) -> Result<(), Broken> {
        self.events.send(Event::Connected(self.attempt)).await.map_err(|_| Broken)?;
        let Self { from_stack, to_stack, wake, .. } = self;
        let reading = read_host(reader, to_stack, &wake);
        let writing = async {
            let written = write_host(writer, from_stack, &wake).await;
            if written.is_err() {
                // The closed queue says so. What the peer said before may still be on its way to the guest.
                wake.notify_one();
                tokio::time::sleep(LAST_WORDS).await;
            }
            written
        };
        // A failure of one direction ends the other, and with it their queues.
        let ended = tokio::try_join!(reading, writing);
        wake.notify_one();
        ended.map(|_| ())
    }
}

enum Socketed {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A direction ended before its end was said.
struct Broken;

async fn read_host(
    mut reader: impl AsyncRead + Unpin,
    to_stack: mpsc::Sender<FromHost>,
    wake: &Notify,
) -> Result<(), Broken> {
    loop {
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        let said = match reader.read_buf(&mut piece).await {
            Ok(0) => FromHost::End,
            Ok(_) => FromHost::Data(piece.freeze()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => FromHost::Reset,
        };
        let ended = match said {
            FromHost::Data(_) => None,
            FromHost::End => Some(Ok(())),
            FromHost::Reset => Some(Err(Broken)),
        };
        to_stack.send(said).await.map_err(|_| Broken)?;
        wake.notify_one();
        if let Some(ended) = ended {
            return ended;
        }
    }
}

async fn write_host(
    mut writer: impl AsyncWrite + Unpin,
    mut from_stack: FromStack,
    wake: &Notify,
) -> Result<(), Broken> {
    while let Some(piece) = from_stack.pieces.recv().await {
        // There is room in the queue again.
        wake.notify_one();
        writer.write_all(&piece).await.map_err(|_| Broken)?;
    }
    let last = from_stack.last.await.map_err(|_| Broken)?;
    writer.write_all(&last).await.map_err(|_| Broken)?;
    writer.shutdown().await.map_err(|_| Broken)
}
