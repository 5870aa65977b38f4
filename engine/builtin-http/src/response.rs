//! The body of an answer: known as a whole, or streamed from its worker.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use hyper::body::{Body, Frame, SizeHint};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::upload::Upload;

pub(crate) type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, BrokenOff>> + Send>>;

/// The worker did not finish what it had begun, and the client must not take it for whole; or there is no client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer was broken off")]
pub(crate) struct BrokenOff;

pub(crate) struct ResponseBody {
    content: Content,
    upload: Option<Sending>,
}

/// The request's body, which is still being sent. It ends when the answer has gone out.
struct Sending {
    _upload: Upload,
    client_left: Pin<Box<WaitForCancellationFutureOwned>>,
}

enum Content {
    Whole(Bytes),
    Stream(Chunks),
}

impl ResponseBody {
    pub(crate) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self { content: Content::Whole(bytes.into()), upload: None }
    }

    pub(crate) fn stream(chunks: Chunks) -> Self {
        Self { content: Content::Stream(chunks), upload: None }
    }

    /// From now on the upload lasts as long as the answer, and the answer no longer than its client.
    pub(crate) fn hold(&mut self, upload: Upload) {
        self.upload = Some(Sending { client_left: Box::pin(upload.client_left()), _upload: upload });
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let left = |sending: &mut Sending| sending.client_left.as_mut().poll(context).is_ready();
        if self.upload.as_mut().is_some_and(left) {
            return Poll::Ready(Some(Err(BrokenOff)));
        }
        match &mut self.content {
            Content::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Content::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Content::Stream(chunks) => {
                chunks.as_mut().poll_next(context).map(|chunk| chunk.map(|bytes| bytes.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.content, Content::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Stream(_) => SizeHint::default(),
        }
    }
}
