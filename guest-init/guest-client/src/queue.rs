//! What has arrived on one stream and was not taken yet; bounded by the credit that the guest was given.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use guest_protocol::{INITIAL_CREDIT, Kind, Reply};
use tokio::sync::{Notify, Semaphore};

/// Replies cost no credit; a guest that sends more of them than anybody takes is broken.
const MAX_REPLIES: usize = 4096;

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
    replies: usize,
    closed: bool,
}

enum Item {
    Data(Kind, BytesMut),
    Reply { reply: Reply, last: bool },
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
        if inner.items.len() > MAX_REPLIES + 64 * 1024 {
            return Err("too many small pieces of output");
        }
        drop(inner);
        self.arrived.notify_one();
        Ok(())
    }

    pub(crate) fn push_reply(&self, reply: Reply, last: bool) -> Result<(), &'static str> {
        let mut inner = self.lock();
        inner.replies += 1;
        if inner.replies > MAX_REPLIES {
            return Err("more replies than anybody asked for");
        }
        inner.items.push_back(Item::Reply { reply, last });
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

    pub(crate) fn add_credit(&self, bytes: u64) {
        let mut inner = self.lock();
        inner.credit = inner.credit.saturating_add(bytes);
    }

    /// `None` once the stream is closed and everything was taken. Cancel safe.
    pub(crate) async fn next(&self) -> Option<Arrived> {
        loop {
            let arrived = self.arrived.notified();
            {
                let mut inner = self.lock();
                match inner.items.pop_front() {
                    Some(Item::Data(kind, piece)) => return Some(Arrived::Data(kind, piece.freeze())),
                    Some(Item::Reply { reply, last }) => {
                        inner.replies -= 1;
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
