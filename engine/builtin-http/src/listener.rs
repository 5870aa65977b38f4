//! An address that is listened on, and the connections that came by it.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::exchange::Shared;

/// How long a client may take for a request's head, the time before its first byte included: an idle connection is
/// closed then.
const HEAD_PATIENCE: Duration = Duration::from_secs(75);

/// A request's head and what is read of its body at a time have to fit.
const READ_BUFFER_BYTES: usize = 64 * 1024;

/// More wait in the system's queue.
const MAX_CONNECTIONS: usize = 16 * 1024;

/// After a failed `accept`. Out of descriptors, most likely: they come back when somebody leaves.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(crate) struct Listening {
    pub(crate) address: SocketAddr,
    closing: CancellationToken,
    accepting: JoinHandle<JoinSet<()>>,
}

impl Listening {
    /// # Errors
    /// The socket has no address: the system's failure.
    pub(crate) fn begin(listener: TcpListener, shared: Arc<Shared>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let closing = CancellationToken::new();
        let accepting = tokio::spawn(accept(listener, shared, closing.clone()));
        Ok(Self { address, closing, accepting })
    }

    /// Frees the address. What is left are connections that finish the request they are in.
    ///
    /// # Errors
    /// The task that accepts has panicked.
    pub(crate) async fn close(self) -> Result<JoinSet<()>, JoinError> {
        self.closing.cancel();
        self.accepting.await
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, closing: CancellationToken) -> JoinSet<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = closing.cancelled() => return connections,
            Some(_) = connections.join_next() => {}
            // Cancel safe: dropping an `accept` loses no connection.
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((socket, _)) => {
                    let _ = socket.set_nodelay(true);
                    connections.spawn(serve(socket, Arc::clone(&shared), closing.clone()));
                }
                Err(error) => {
                    warn!(%error, "could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

pub(crate) async fn serve(
    socket: impl AsyncRead + AsyncWrite + Unpin,
    shared: Arc<Shared>,
    closing: CancellationToken,
) {
    let service = service_fn(|request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(shared.respond(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(READ_BUFFER_BYTES)
        .serve_connection(TokioIo::new(socket), service);
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        debug!(%error, "an HTTP connection broke");
    }
}
