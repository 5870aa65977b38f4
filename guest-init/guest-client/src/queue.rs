//! What has arrived on one stream and was not taken yet; bounded by the credit that the guest was given.
//!
//! ```text
//! guest ── output, within its credit ──► queue ── taken ──► owed ── one Credit frame ──► guest
//! ```

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use guest_protocol::{INITIAL_CREDIT, Kind, MAX_BODY_BYTES, Reply};
use tokio::sync::{Notify, Semaphore};

/// Replies cost no credit; a guest that sends more of them than anybody takes is broken.
const MAX_REPLIES: usize = 4096;
const MAX_REPLY_BYTES: usize = 2 * MAX_BODY_BYTES as usize;

/// Pieces of output that could not be joined.
const MAX_PIECES: usize = 64 * 1024;

/// Credit is given back in lumps of this size: a frame for each small piece would cost both sides more than it is worth.
const CREDIT_LUMP: u64 = INITIAL_CREDIT as u64 / 8;

/// One thing that a guest said on a stream.
#[derive(Debug)]
pub(crate) enum Arrived {
    Data(Kind, Bytes),
    Reply { reply: Reply, last: bool },
}

/// One stream, as the host sees it.
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    arrived: Notify,
    /// Bytes of input the guest has room for.
    pub(crate) input_credit: Semaphore,
}

#[derive(Default)]
struct Inner {
    items: VecDeque<Item>,
    /// Bytes the guest may still send.
    credit: u64,
    /// Bytes that were taken, and not given back to the guest yet.
    owed: u64,
    /// Somebody waits to give them back.
    giving_back: bool,
    replies: usize,
    reply_bytes: usize,
    closed: bool,
}

enum Item {
    Data(Kind, BytesMut),
    Reply { reply: Reply, last: bool, bytes: usize },
}

impl Queue {
    pub(crate) fn new() -> Self {
        Self {
            inner: Mutex::new(Inner { credit: u64::from(INITIAL_CREDIT), ..Inner::default() }),
            arrived: Notify::new(),
            input_credit: Semaphore::new(INITIAL_CREDIT as usize),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds output; neighbours of one kind become one piece, so that many small frames cost no more than few.
    pub(crate) fn push_data(&self, kind: Kind, bytes: &[u8]) -> Result<(), &'static str> {
        let mut inner = self.lock();
        inner.credit = inner.credit.checked_sub(bytes.len() as u64).ok_or("output beyond the credit")?;
        match inner.items.back_mut() {
            Some(Item::Data(last, piece)) if *last == kind => piece.extend_from_slice(bytes),
            _ => inner.items.push_back(Item::Data(kind, BytesMut::from(bytes))),
        }
        if inner.items.len() > MAX_REPLIES + MAX_PIECES {
            return Err("too many small pieces of output");
        }
        drop(inner);
        self.arrived.notify_one();
        Ok(())
    }

    /// `bytes` is what the reply took on the wire.
    pub(crate) fn push_reply(&self, reply: Reply, last: bool, bytes: usize) -> Result<(), &'static str> {
        let mut inner = self.lock();
        inner.replies += 1;
        inner.reply_bytes += bytes;
        if inner.replies > MAX_REPLIES || inner.reply_bytes > MAX_REPLY_BYTES {
            return Err("more replies than anybody asked for");
        }
        inner.items.push_back(Item::Reply { reply, last, bytes });
        inner.closed |= last;
        drop(inner);
        if last {
            self.input_credit.close();
        }
        self.arrived.notify_one();
        Ok(())
    }

    /// The connection is gone: what has arrived can still be taken, then there is nothing more.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.input_credit.close();
        self.arrived.notify_one();
    }

    /// Notes that `bytes` were taken. Says whether it is time to call [`Queue::settle`], which only one caller hears.
    pub(crate) fn owe(&self, bytes: u64) -> bool {
        let mut inner = self.lock();
        inner.owed = inner.owed.saturating_add(bytes);
        inner.owed >= CREDIT_LUMP && !std::mem::replace(&mut inner.giving_back, true)
    }

    /// All that is owed, now the guest's to use again: call it when the frame that says so is sure to leave.
    pub(crate) fn settle(&self) -> u32 {
        let mut inner = self.lock();
        let lump = u32::try_from(inner.owed).unwrap_or(u32::MAX);
        inner.owed -= u64::from(lump);
        inner.credit = inner.credit.saturating_add(u64::from(lump));
        inner.giving_back = false;
        lump
    }

    /// `None` once the stream is closed and everything was taken. Cancel safe.
    pub(crate) async fn next(&self) -> Option<Arrived> {
        loop {
            let arrived = self.arrived.notified();
            {
                let mut inner = self.lock();
                match inner.items.pop_front() {
                    Some(Item::Data(kind, piece)) => return Some(Arrived::Data(kind, piece.freeze())),
                    Some(Item::Reply { reply, last, bytes }) => {
                        inner.replies -= 1;
                        inner.reply_bytes -= bytes;
                        return Some(Arrived::Reply { reply, last });
                    }
                    None if inner.closed => return None,
                    None => {}
                }
            }
            arrived.await;
        }
    }
}
