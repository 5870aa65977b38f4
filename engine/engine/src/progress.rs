//! Whether a peer still takes what is written to it: a socket that notes each write, and a wait that looks at the notes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::vms::Seat;

/// When a socket last took bytes.
#[derive(Clone)]
pub(crate) struct Progress(Arc<Mutex<Instant>>);

/// The peer has taken nothing for as long as it may.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stalled;

impl Progress {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn last(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for `writing`, for as long as the peer takes something every `patience`: a large message on a slow line may
    /// need many times that.
    pub(crate) async fn wait<T>(&self, patience: Duration, writing: impl Future<Output = T>) -> Result<T, Stalled> {
        let begun = Instant::now();
        tokio::pin!(writing);
        loop {
            let deadline = self.last().max(begun) + patience;
            tokio::select! {
                biased;
                written = &mut writing => return Ok(written),
                () = tokio::time::sleep_until(deadline) => {
                    if self.last() + patience <= deadline {
                        return Err(Stalled);
                    }
                }
            }
        }
    }
}

/// A socket that notes when it took bytes.
pub(crate) struct Noting<S> {
    socket: S,
    progress: Progress,
    /// Held for as long as the socket is there, whoever holds that.
    _seat: Option<Seat>,
}

impl<S> Noting<S> {
    pub(crate) fn new(socket: S, progress: Progress, seat: Option<Seat>) -> Self {
        Self { socket, progress, _seat: seat }
    }

    fn noted(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let written = ready!(written)?;
        if written > 0 {
            self.progress.note();
        }
        Poll::Ready(Ok(written))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Noting<S> {
    fn poll_read(mut self: Pin<&mut Self>, task: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(task, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noting<S> {
    fn poll_write(mut self: Pin<&mut Self>, task: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(task, bytes);
        self.noted(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(task, slices);
        self.noted(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    const PATIENCE: Duration = Duration::from_secs(60);

    fn socket() -> (Noting<DuplexStream>, Progress, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(4);
        let progress = Progress::new();
        (Noting::new(ours, progress.clone(), None), progress, theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_has_stalled() {
        let (mut socket, progress, _theirs) = socket();
        // It took nothing before either, since there was nothing: that does not count.
        tokio::time::advance(10 * PATIENCE).await;
        let begun = Instant::now();
        assert_eq!(progress.wait(PATIENCE, socket.write_all(&[0; 100])).await.err(), Some(Stalled));
        assert_eq!(begun.elapsed().as_secs(), PATIENCE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_little_at_a_time_has_not() {
        let (mut socket, progress, mut theirs) = socket();
        let begun = Instant::now();
        let reading = async {
            for _ in 0..100 {
                tokio::time::sleep(PATIENCE / 2).await;
                theirs.read_u8().await.expect("a byte");
            }
        };
        let (written, ()) = tokio::join!(progress.wait(PATIENCE, socket.write_all(&[0; 100])), reading);
        written.expect("not stalled").expect("written");
        assert!(begun.elapsed() > 10 * PATIENCE);
    }
}
