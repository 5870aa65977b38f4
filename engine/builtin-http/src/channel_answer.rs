//! An answer that a worker writes into the `response` channel: commands as text, then the body as binary items.

use std::borrow::Cow;

use bytes::Bytes;
use engine_builtin::{Answer, BoxFuture, Item, PipeReader};
use futures_util::stream;
use hyper::{HeaderMap, Method, Response, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;
use tracing::debug;

use crate::headers;
use crate::response::{BrokenOff, ResponseBody};

/// Status and headers, as far as the worker has set them.
#[derive(Default)]
pub(crate) struct Head {
    status: StatusCode,
    headers: HeaderMap,
    /// Whether it has set anything.
    pub(crate) begun: bool,
}

/// One struct for all: a tagged enum cannot hold raw JSON.
#[derive(Deserialize)]
struct Command<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    status_code: Option<&'a RawValue>,
    #[serde(borrow)]
    headers: Option<&'a RawValue>,
}

impl Head {
    /// Follows a command; what is none is passed over.
    pub(crate) fn follow(&mut self, text: &str) {
        match serde_json::from_str(text) {
            Ok(Command { kind, status_code: Some(code), .. }) if kind == "set_status" => self.set_status(code),
            Ok(Command { kind, headers: Some(headers), .. }) if kind == "set_headers" => {
                headers::set(&mut self.headers, headers);
                self.begun = true;
            }
            _ => debug!(text, "a text in a response channel is no command"),
        }
    }

    fn set_status(&mut self, code: &RawValue) {
        match crate::answer::status(code.get()) {
            Some(status) => {
                self.status = status;
                self.begun = true;
            }
            None => debug!(%code, "a response channel's status cannot be sent"),
        }
    }

    /// The answer if there is nothing after the commands.
    pub(crate) fn without_body(mut self, method: &Method) -> Response<ResponseBody> {
        headers::settle_length(&mut self.headers, method);
        self.with(ResponseBody::whole(""))
    }

    /// The answer whose body begins with `first`. `call` is the handler's, if it still runs; it is forgotten with the
    /// body.
    pub(crate) fn with_body(
        mut self,
        first: Bytes,
        channel: PipeReader,
        call: Option<BoxFuture<'static, Answer>>,
    ) -> Response<ResponseBody> {
        headers::keep_usable_length(&mut self.headers);
        let rest = Rest { first: Some(first), channel, call };
        let chunks = stream::try_unfold(rest, |mut rest| async move {
            let chunk = rest.next().await?;
            Ok(chunk.map(|chunk| (chunk, rest)))
        });
        self.with(ResponseBody::stream(Box::pin(chunks)))
    }

    fn with(self, body: ResponseBody) -> Response<ResponseBody> {
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

struct Rest {
    first: Option<Bytes>,
    channel: PipeReader,
    call: Option<BoxFuture<'static, Answer>>,
}

impl Rest {
    async fn next(&mut self) -> Result<Option<Bytes>, BrokenOff> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        loop {
            tokio::select! {
                biased;
                item = self.channel.next() => match item {
                    Some(Item::Binary(bytes)) => return Ok(Some(bytes)),
                    // Too late: status and headers have gone out.
                    Some(Item::Text(text)) => debug!(text, "a command after the response began"),
                    None if self.channel.is_whole() => return Ok(None),
                    None => return Err(BrokenOff),
                },
                // Its value would come too late as well, its failure does not.
                answer = finish(&mut self.call), if self.call.is_some() => answer?,
            }
        }
    }
}

async fn finish(call: &mut Option<BoxFuture<'static, Answer>>) -> Result<(), BrokenOff> {
    if let Some(running) = call {
        let answer = running.await;
        *call = None;
        answer.map_err(|_| BrokenOff)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use engine_builtin::{ErrorBody, pipe};
    use futures_util::FutureExt;
    use http_body_util::BodyExt;

    use super::*;

    #[test]
    fn commands_set_the_head_and_nonsense_is_passed_over() {
        let mut head = Head::default();
        for nonsense in ["", "{}", "7", r#"{"type":"set_status","status_code":99}"#, r#"{"type":"set_status"}"#] {
            head.follow(nonsense);
        }
        assert!(!head.begun);
        head.follow(r#"{"type":"set_headers","headers":{"x":"1"}}"#);
        head.follow(r#"{"type":"set_headers","headers":{"x":"2","y":"3"}}"#);
        head.follow(r#"{"type":"set_status","status_code":206}"#);
        let response = head.without_body(&Method::GET);
        assert_eq!((response.status().as_u16(), response.headers().len()), (206, 2));
        assert_eq!(response.headers()["x"], "2");
    }

    #[tokio::test]
    async fn a_body_is_whole_only_if_its_writer_says_so() {
        for whole in [true, false] {
            let (writer, reader) = pipe(4);
            writer.send(Item::Binary(Bytes::from_static(b"b"))).await.expect("a reader");
            writer.send(Item::Text("late".into())).await.expect("a reader");
            if whole {
                writer.finish()
            } else {
                drop(writer)
            }
            let body = Head::default().with_body(Bytes::from_static(b"a"), reader, None).into_body();
            let collected = body.collect().await.map(|body| body.to_bytes());
            assert_eq!(collected, if whole { Ok(Bytes::from_static(b"ab")) } else { Err(BrokenOff) });
        }
    }

    #[tokio::test]
    async fn a_handler_that_fails_breaks_its_answer_off_and_one_that_returns_does_not() {
        let (writer, reader) = pipe(4);
        let call = async { Err(ErrorBody::new("oh", "no")) }.boxed();
        let body = Head::default().with_body(Bytes::from_static(b"a"), reader, Some(call)).into_body();
        assert_eq!(body.collect().await.map(|_| ()), Err(BrokenOff));
        assert!(writer.reader_gone().now_or_never().is_some());

        let (writer, reader) = pipe(4);
        let call = async { Ok(None) }.boxed();
        let body = Head::default().with_body(Bytes::from_static(b"a"), reader, Some(call)).into_body();
        let collecting = body.collect();
        let writing = async {
            tokio::task::yield_now().await;
            writer.finish();
        };
        let (collected, ()) = tokio::join!(collecting, writing);
        assert_eq!(collected.map(|body| body.to_bytes()), Ok(Bytes::from_static(b"a")));
    }
}
