//! The body of an answer: known as a whole, or streamed from its worker.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use hyper::body::{Body, Frame, SizeHint};
use tokio_util::sync::DropGuard;

pub(crate) type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, BrokenOff>> + Send>>;

/// The worker did not finish what it had begun: the client must not take it for whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the worker broke off its answer")]
pub(crate) struct BrokenOff;

pub(crate) struct ResponseBody {
    content: Content,
    /// Ends the upload when the answer has been sent.
    upload: Option<DropGuard>,
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

    pub(crate) fn ends(&mut self, upload: Option<DropGuard>) {
        self.upload = upload;
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
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
