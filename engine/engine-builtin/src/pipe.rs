//! The engine's ends of a data channel: bounded, in order, and closed by whoever drops its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// What may lie in a channel ahead of its reader, in bytes. An item that is larger has the channel for itself.
const MAX_BUFFERED_BYTES: usize = 4 * 1024 * 1024;

/// One message on a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    Binary(Bytes),
    Text(String),
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Self::Binary(bytes) => bytes.len(),
            Self::Text(text) => text.len(),
        }
    }
}

/// The reader has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the channel's reader has gone")]
pub struct ReaderGone;

/// The end that items go into.
pub struct PipeWriter {
    items: mpsc::Sender<(Item, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
    finished: Arc<AtomicBool>,
}

/// The end that items come out of.
pub struct PipeReader {
    items: mpsc::Receiver<(Item, OwnedSemaphorePermit)>,
    finished: Arc<AtomicBool>,
}

/// A channel with room for this many items.
#[must_use]
pub fn pipe(items: usize) -> (PipeWriter, PipeReader) {
    let (sender, receiver) = mpsc::channel(items.max(1));
    let finished = Arc::new(AtomicBool::new(false));
    let room = Arc::new(Semaphore::new(MAX_BUFFERED_BYTES));
    (PipeWriter { items: sender, room, finished: Arc::clone(&finished) }, PipeReader { items: receiver, finished })
}

impl PipeWriter {
    /// Waits for room. Dropping the future before it is done sends nothing.
    ///
    /// # Errors
    /// [`ReaderGone`].
    pub async fn send(&self, item: Item) -> Result<(), ReaderGone> {
        let size = u32::try_from(item.bytes().min(MAX_BUFFERED_BYTES)).unwrap_or(u32::MAX);
        let room = tokio::select! {
            room = Arc::clone(&self.room).acquire_many_owned(size) => room.map_err(|_| ReaderGone)?,
            () = self.items.closed() => return Err(ReaderGone),
        };
        self.items.send((item, room)).await.map_err(|_| ReaderGone)
    }

    /// There is no more: a writer that is dropped without has broken off.
    pub fn finish(self) {
        self.finished.store(true, Ordering::Release);
    }

    /// Waits until the reader has gone.
    pub async fn reader_gone(&self) {
        self.items.closed().await;
    }
}

impl PipeReader {
    /// The next item; `None` when the writer has gone and everything was read.
    pub async fn next(&mut self) -> Option<Item> {
        self.items.recv().await.map(|(item, _)| item)
    }

    /// Items that lie in the channel.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.items.len()
    }

    /// After the last item: whether the writer said that it was the last one.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn items_come_in_order_and_the_end_is_told() {
        let (writer, mut reader) = pipe(1);
        let writing = async {
            for number in 0..10 {
                writer.send(Item::Text(number.to_string())).await.expect("a reader");
            }
            writer.finish();
        };
        let reading = async {
            let mut seen = Vec::new();
            while let Some(Item::Text(text)) = reader.next().await {
                seen.push(text);
            }
            (seen, reader.is_whole())
        };
        let ((), (seen, whole)) = tokio::join!(writing, reading);
        assert_eq!(seen, (0..10).map(|number| number.to_string()).collect::<Vec<_>>());
        assert!(whole);
    }

    #[tokio::test]
    async fn a_writer_that_breaks_off_is_not_whole_and_a_reader_that_goes_is_noticed() {
        let (writer, mut reader) = pipe(4);
        writer.send(Item::Binary(Bytes::from_static(b"half"))).await.expect("a reader");
        drop(writer);
        assert!(reader.next().await.is_some());
        assert!(reader.next().await.is_none());
        assert!(!reader.is_whole());
        let (writer, reader) = pipe(1);
        drop(reader);
        writer.reader_gone().await;
        assert_eq!(writer.send(Item::Text(String::new())).await, Err(ReaderGone));
    }

    /// Bytes are bounded, not only items; one item over the bound passes alone.
    #[tokio::test]
    async fn a_large_item_fills_the_channel() {
        let (writer, mut reader) = pipe(64);
        let large = Item::Binary(Bytes::from(vec![0; 2 * MAX_BUFFERED_BYTES]));
        writer.send(large).await.expect("a reader");
        let next = writer.send(Item::Text("x".into()));
        tokio::pin!(next);
        tokio::select! {
            biased;
            sent = &mut next => panic!("sent though the channel is full: {sent:?}"),
            () = async {} => {}
        }
        reader.next().await.expect("the large one");
        next.await.expect("room again");
    }
}
