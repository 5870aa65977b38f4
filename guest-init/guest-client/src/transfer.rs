//! Files on their way in and out.

use bytes::Bytes;
use guest_protocol::Reply;

use crate::connection::{GuestError, Stream, StreamHandle};
use crate::queue::Arrived;

/// A file's content on its way out of a guest.
pub struct FileReader {
    stream: Stream,
    /// Bytes, when it was opened.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Seconds since 1970.
    pub mtime: i64,
}

/// A file's content on its way into a guest. Dropped before [`FileWriter::finish`], it leaves nothing behind.
pub struct FileWriter {
    stream: Stream,
    input: StreamHandle,
}

impl FileReader {
    pub(crate) fn new(stream: Stream, size: u64, mode: u32, mtime: i64) -> Self {
        Self { stream, size, mode, mtime }
    }

    /// The next piece; `None` at the end. Cancel safe.
    ///
    /// # Errors
    /// The guest could not read on, or the channel ended.
    pub async fn next(&mut self) -> Result<Option<Bytes>, GuestError> {
        match self.stream.next().await? {
            Arrived::Data(_, bytes) => Ok(Some(bytes)),
            Arrived::Reply { reply: Reply::Failed(failure), .. } => Err(failure.into()),
            Arrived::Reply { .. } => Ok(None),
        }
    }
}

impl FileWriter {
    pub(crate) fn new(stream: Stream) -> Self {
        let input = stream.handle();
        Self { stream, input }
    }

    /// Sends a piece, as fast as the guest takes it.
    ///
    /// # Errors
    /// The guest's answer when it has refused the file, or the channel's end.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), GuestError> {
        match self.input.input(bytes).await {
            // The stream has ended early: its answer says why.
            Err(GuestError::Closed) => match self.stream.reply().await {
                Err(error) => Err(error),
                Ok(_) => Err(GuestError::Closed),
            },
            other => other,
        }
    }

    /// Ends the content and returns its length once the file is in place.
    ///
    /// # Errors
    /// The guest's answer; the target is unchanged then.
    pub async fn finish(mut self) -> Result<u64, GuestError> {
        self.input.end_input().await?;
        match self.stream.reply().await? {
            Reply::Written { bytes } => Ok(bytes),
            other => Err(GuestError::Broken(format!("an answer to another question: {other:?}"))),
        }
    }
}
