//! A request's body, on its way to the worker through the `request_body` channel.
//!
//! An upload ends with its answer: what the client still sends after it is read for a moment and thrown away, so that
//! the client gets to read the answer, and no longer.

use std::time::Duration;

use bytes::Bytes;
use engine_builtin::{Item, PipeWriter};
use futures_util::FutureExt;
use http_body_util::BodyExt;
use hyper::body::Body;
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

use crate::payload::MAX_JSON_BYTES;
use crate::refusal::Refusal;

/// Items in each of a request's channels ahead of their reader.
pub(crate) const CHANNEL_ITEMS: usize = 64;

/// What a body that we hold already is cut into.
const CHUNK_BYTES: usize = 64 * 1024;

/// How long we listen to a client that goes on sending after its answer.
const LINGER: Duration = Duration::from_secs(2);

/// A request's body, as a connection or a test has it.
pub(crate) trait RequestBody: Body<Data = Bytes, Error: Send> + Send + Unpin + 'static {}

impl<B: Body<Data = Bytes, Error: Send> + Send + Unpin + 'static> RequestBody for B {}

/// Reads a body that is to be parsed.
pub(crate) async fn read_whole(body: &mut impl RequestBody) -> Result<Bytes, Refusal> {
    if body.size_hint().lower() > MAX_JSON_BYTES as u64 {
        return Err(Refusal::TooLarge);
    }
    let mut whole: Vec<u8> = Vec::new();
    let mut first = Bytes::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Refusal::BrokenBody)?.into_data() else { continue };
        if first.len() + whole.len() + data.len() > MAX_JSON_BYTES {
            return Err(Refusal::TooLarge);
        }
        // Most bodies are one piece, and need not be copied.
        if first.is_empty() && whole.is_empty() {
            first = data;
        } else {
            whole.extend_from_slice(&std::mem::take(&mut first));
            whole.extend_from_slice(&data);
        }
    }
    Ok(if whole.is_empty() { first } else { whole.into() })
}

/// A body on its way. It belongs to the answer, and ends with it.
pub(crate) struct Upload {
    _over: DropGuard,
    /// Nobody else hears of it: a connection waits for its answer, whatever becomes of its body.
    client_left: CancellationToken,
}

impl Upload {
    /// Done when the client has left in the middle of its body.
    pub(crate) fn client_left(&self) -> WaitForCancellationFutureOwned {
        self.client_left.clone().cancelled_owned()
    }

    fn begin<W>(work: impl FnOnce(CancellationToken, CancellationToken) -> W) -> Option<Self>
    where
        W: Future<Output = ()> + Send + 'static,
    {
        let (over, client_left) = (CancellationToken::new(), CancellationToken::new());
        let upload = Self { _over: over.clone().drop_guard(), client_left: client_left.clone() };
        let goes_on = in_background_if_it_waits(work(over, client_left));
        (goes_on || upload.client_left.is_cancelled()).then_some(upload)
    }
}

/// Hands over a body that was read already.
pub(crate) fn hand_over(body: Bytes, channel: PipeWriter) -> Option<Upload> {
    Upload::begin(|over, _| async move {
        over.run_until_cancelled(send_all(body, channel)).await;
    })
}

/// Passes a body on as it arrives.
pub(crate) fn stream(mut body: impl RequestBody, channel: PipeWriter) -> Option<Upload> {
    if body.is_end_stream() {
        channel.finish();
        return None;
    }
    Upload::begin(|over, client_left| async move {
        let passed = over.run_until_cancelled(pass_on(&mut body, channel)).await;
        let ended = async {
            over.cancelled().await;
            tokio::time::sleep(LINGER).await;
            Passed::Everything
        };
        let passed = match passed {
            Some(Passed::Everything) => return,
            Some(Passed::ClientLeft) => Passed::ClientLeft,
            Some(Passed::WorkerLeft) | None => tokio::select! {
                passed = discard(&mut body) => passed,
                passed = ended => passed,
            },
        };
        if passed == Passed::ClientLeft {
            client_left.cancel();
        }
    })
}

/// Lets a client that was refused finish sending, within reason.
pub(crate) fn linger(mut body: impl RequestBody) {
    if !body.is_end_stream() {
        tokio::spawn(async move { drop(tokio::time::timeout(LINGER, discard(&mut body)).await) });
    }
}

/// Whether it had to wait.
fn in_background_if_it_waits(work: impl Future<Output = ()> + Send + 'static) -> bool {
    let mut work = Box::pin(work);
    let waits = work.as_mut().now_or_never().is_none();
    if waits {
        tokio::spawn(work);
    }
    waits
}

#[derive(PartialEq, Eq)]
enum Passed {
    Everything,
    ClientLeft,
    WorkerLeft,
}

async fn pass_on(body: &mut impl RequestBody, channel: PipeWriter) -> Passed {
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Passed::ClientLeft };
        let Ok(data) = frame.into_data() else { continue };
        if channel.send(Item::Binary(data)).await.is_err() {
            return Passed::WorkerLeft;
        }
    }
    channel.finish();
    Passed::Everything
}

async fn send_all(mut body: Bytes, channel: PipeWriter) {
    while !body.is_empty() {
        let chunk = body.split_to(body.len().min(CHUNK_BYTES));
        if channel.send(Item::Binary(chunk)).await.is_err() {
            return;
        }
    }
    channel.finish();
}

async fn discard(body: &mut impl RequestBody) -> Passed {
    while let Some(frame) = body.frame().await {
        if frame.is_err() {
            return Passed::ClientLeft;
        }
    }
    Passed::Everything
}

#[cfg(test)]
mod tests {
    use engine_builtin::pipe;
    use http_body_util::Full;

    use super::*;

    #[tokio::test]
    async fn a_body_without_bytes_ends_its_channel_at_once() {
        let (writer, mut reader) = pipe(CHANNEL_ITEMS);
        assert!(stream(Full::new(Bytes::new()), writer).is_none());
        assert!(reader.next().await.is_none() && reader.is_whole());
    }

    #[tokio::test]
    async fn a_large_body_is_handed_over_in_chunks_as_it_is_read() {
        let (writer, mut reader) = pipe(CHANNEL_ITEMS);
        let guard = hand_over(Bytes::from(vec![7; MAX_JSON_BYTES]), writer).expect("more than fits");
        let mut total = 0;
        while let Some(Item::Binary(bytes)) = reader.next().await {
            total += bytes.len();
        }
        assert!(reader.is_whole());
        assert_eq!(total, MAX_JSON_BYTES);
        drop(guard);
    }

    #[tokio::test]
    async fn what_is_not_handed_over_when_the_answer_is_sent_breaks_off() {
        let (writer, mut reader) = pipe(CHANNEL_ITEMS);
        drop(hand_over(Bytes::from(vec![7; MAX_JSON_BYTES]), writer));
        while reader.next().await.is_some() {}
        assert!(!reader.is_whole());
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_to_parse_is_not_read_to_its_end() {
        let mut body = Full::new(Bytes::from(vec![b' '; MAX_JSON_BYTES + 1]));
        assert!(matches!(read_whole(&mut body).await, Err(Refusal::TooLarge)));
        let mut body = Full::new(Bytes::from(vec![b' '; MAX_JSON_BYTES]));
        assert_eq!(read_whole(&mut body).await.expect("a body").len(), MAX_JSON_BYTES);
    }
}
