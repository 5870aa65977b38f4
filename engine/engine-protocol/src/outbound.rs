//! A message as it goes out: what is around the payload is written, a large payload is taken along as it is.

use uuid::Uuid;

use crate::caller::begin;
use crate::json::first_special;
use crate::message::{InvocationResult, InvokeFunction, Message};
use crate::payload::{LARGE_BYTES, Payload};

/// The names, quotes and ids around a call's or an answer's texts, at most.
const AROUND_BYTES: usize = 120;

/// What tells a handler who calls.
const CALLER_BYTES: usize = 64;

/// A text frame in up to three pieces, to be written one behind the other.
#[derive(Debug)]
pub struct Outbound {
    head: String,
    payload: Option<Payload>,
    /// Bytes of the payload that stand in the head already.
    skipped: usize,
    tail: String,
}

impl Outbound {
    #[must_use]
    pub fn pieces(&self) -> [&[u8]; 3] {
        let payload = self.payload.as_ref().and_then(|payload| payload.as_bytes().get(self.skipped..));
        [self.head.as_bytes(), payload.unwrap_or_default(), self.tail.as_bytes()]
    }

    /// In bytes, all pieces together.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pieces().iter().map(|piece| piece.len()).sum()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// For [`Message::into_outbound`] of the next one.
    #[must_use]
    pub fn into_buffer(self) -> String {
        self.head
    }
}

impl From<String> for Outbound {
    fn from(head: String) -> Self {
        Self { head, payload: None, skipped: 0, tail: String::new() }
    }
}

impl Message {
    /// What [`Message::encode`] writes, without a copy of a large payload. A call tells its handler of `caller`, as
    /// [`with_caller`](crate::with_caller) has it. `buffer` is used again; what is in it is lost.
    #[must_use]
    pub fn into_outbound(self, caller: Option<Uuid>, mut buffer: String) -> Outbound {
        buffer.clear();
        match (self, caller) {
            (Self::InvokeFunction(call), Some(caller)) => call.into_outbound_from(caller, buffer),
            (Self::InvokeFunction(call), None) => call.into_outbound(buffer),
            (Self::InvocationResult(result), _) => result.into_outbound(buffer),
            (other, _) => other.encode().into(),
        }
    }
}

impl InvokeFunction {
    fn into_outbound_from(mut self, caller: Uuid, mut head: String) -> Outbound {
        let bytes = self.data.as_ref().map_or(0, |data| data.as_bytes().len());
        let copied = if bytes < LARGE_BYTES { bytes } else { 0 };
        head.reserve(AROUND_BYTES + self.texts() + CALLER_BYTES + copied);
        self.head(&mut head);
        if let Some(data) = self.data.take() {
            match begin(&mut head, data, caller.hyphenated().encode_lower(&mut Uuid::encode_buffer())) {
                Ok((payload, skipped)) if bytes >= LARGE_BYTES => {
                    let mut tail = String::new();
                    self.tail(&mut tail);
                    return Outbound { head, payload: Some(payload), skipped, tail };
                }
                Ok((payload, skipped)) => head.push_str(payload.text().get(skipped..).unwrap_or_default()),
                // Data was JSON when it arrived: it has a caller put in, or needs none.
                Err(_) => head.push_str("null"),
            }
        }
        self.tail(&mut head);
        head.into()
    }
}

/// The two messages with a payload of any size.
pub(crate) trait Carrier: Sized {
    /// All before the payload.
    fn head(&self, into: &mut String);
    fn payload(&self) -> Option<&Payload>;
    fn take_payload(&mut self) -> Option<Payload>;
    /// All behind it.
    fn tail(&self, into: &mut String);
    /// The texts of head and tail, in bytes; escapes may make them longer.
    fn texts(&self) -> usize;

    /// In one piece.
    fn text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        text
    }

    fn write(&self, into: &mut String) {
        let payload = self.payload().map_or("", Payload::text);
        into.reserve(AROUND_BYTES + self.texts() + payload.len());
        self.head(into);
        into.push_str(payload);
        self.tail(into);
    }

    fn into_outbound(mut self, mut head: String) -> Outbound {
        if self.payload().is_none_or(|payload| payload.as_bytes().len() < LARGE_BYTES) {
            self.write(&mut head);
            return head.into();
        }
        head.reserve(AROUND_BYTES + self.texts());
        self.head(&mut head);
        let mut tail = String::new();
        self.tail(&mut tail);
        Outbound { head, payload: self.take_payload(), skipped: 0, tail }
    }
}

impl Carrier for InvokeFunction {
    fn head(&self, into: &mut String) {
        into.push_str(r#"{"type":"invokefunction""#);
        if let Some(id) = &self.invocation_id {
            member(into, "invocation_id", id.hyphenated().encode_lower(&mut Uuid::encode_buffer()));
        }
        member(into, "function_id", &self.function_id);
        // Always there: the Rust SDK cannot decode a call without.
        into.push_str(if self.data.is_some() { r#","data":"# } else { r#","data":null"# });
    }

    fn payload(&self) -> Option<&Payload> {
        self.data.as_ref()
    }

    fn take_payload(&mut self) -> Option<Payload> {
        self.data.take()
    }

    fn tail(&self, into: &mut String) {
        trace(into, self.traceparent.as_deref(), self.baggage.as_deref());
        if let Some(action) = &self.action {
            json_member(into, "action", action);
        }
        if let Some(metadata) = &self.metadata {
            json_member(into, "metadata", metadata);
        }
        into.push('}');
    }

    fn texts(&self) -> usize {
        self.function_id.len()
            + length(self.traceparent.as_deref())
            + length(self.baggage.as_deref())
            + length(self.metadata.as_ref().map(|metadata| metadata.get()))
    }
}

impl Carrier for InvocationResult {
    fn head(&self, into: &mut String) {
        into.push_str(r#"{"type":"invocationresult""#);
        member(into, "invocation_id", self.invocation_id.hyphenated().encode_lower(&mut Uuid::encode_buffer()));
        member(into, "function_id", &self.function_id);
        if self.result.is_some() {
            into.push_str(r#","result":"#);
        }
    }

    fn payload(&self) -> Option<&Payload> {
        self.result.as_ref()
    }

    fn take_payload(&mut self) -> Option<Payload> {
        self.result.take()
    }

    fn tail(&self, into: &mut String) {
        if let Some(error) = &self.error {
            json_member(into, "error", error);
        }
        trace(into, self.traceparent.as_deref(), self.baggage.as_deref());
        into.push('}');
    }

    fn texts(&self) -> usize {
        self.function_id.len() + length(self.traceparent.as_deref()) + length(self.baggage.as_deref())
    }
}

fn length(text: Option<&str>) -> usize {
    // With the member's name.
    text.map_or(0, |text| text.len() + 16)
}

fn trace(into: &mut String, traceparent: Option<&str>, baggage: Option<&str>) {
    if let Some(traceparent) = traceparent {
        member(into, "traceparent", traceparent);
    }
    if let Some(baggage) = baggage {
        member(into, "baggage", baggage);
    }
}

fn member(into: &mut String, name: &str, text: &str) {
    push_name(into, name);
    push_string(into, text);
}

fn json_member(into: &mut String, name: &str, value: &impl serde::Serialize) {
    push_name(into, name);
    // Strings and JSON that was parsed once: there is nothing in them that cannot be written.
    into.push_str(&serde_json::to_string(value).unwrap_or_else(|_| "null".into()));
}

fn push_name(into: &mut String, name: &str) {
    into.push_str(",\"");
    into.push_str(name);
    into.push_str("\":");
}

/// `text` as a JSON string.
pub(crate) fn push_string(into: &mut String, text: &str) {
    if first_special(text.as_bytes()).is_some() {
        return into.push_str(&serde_json::Value::from(text).to_string());
    }
    into.push('"');
    into.push_str(text);
    into.push('"');
}

#[cfg(test)]
mod tests;
