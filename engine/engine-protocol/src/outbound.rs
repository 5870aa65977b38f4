//! A message as it goes out: what is around the payload is written, a large payload is taken along as it is.

use serde_json::value::RawValue;
use uuid::Uuid;

use crate::caller::begin;
use crate::message::{InvocationResult, InvokeFunction, Message, Raw};

/// From this size on a payload is not copied.
const LARGE_BYTES: usize = 16 * 1024;

/// The names, quotes and ids around a call's or an answer's texts, at most.
const AROUND_BYTES: usize = 120;

/// What tells a handler who calls.
const CALLER_BYTES: usize = 64;

/// A text frame in up to three pieces, to be written one behind the other.
#[derive(Debug)]
pub struct Outbound {
    head: String,
    payload: Option<Raw>,
    /// Bytes of the payload that stand in the head already.
    skipped: usize,
    tail: String,
}

impl Outbound {
    #[must_use]
    pub fn pieces(&self) -> [&[u8]; 3] {
        let payload = self.payload.as_ref().and_then(|payload| payload.get().as_bytes().get(self.skipped..));
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
}

impl From<String> for Outbound {
    fn from(head: String) -> Self {
        Self { head, payload: None, skipped: 0, tail: String::new() }
    }
}

impl Message {
    /// What [`Message::encode`] writes, without a copy of a large payload.
    #[must_use]
    pub fn into_outbound(self) -> Outbound {
        match self {
            Self::InvokeFunction(call) => call.into_outbound(),
            Self::InvocationResult(result) => result.into_outbound(),
            other => other.encode().into(),
        }
    }
}

impl InvokeFunction {
    /// A call as its handler gets it: as [`with_caller`](crate::with_caller) has it, without a copy of a large payload.
    #[must_use]
    pub fn into_outbound_from(mut self, caller: Uuid) -> Outbound {
        let bytes = self.data.as_ref().map_or(0, |data| data.get().len());
        let copied = if bytes < LARGE_BYTES { bytes } else { 0 };
        let mut head = String::with_capacity(AROUND_BYTES + self.texts() + CALLER_BYTES + copied);
        self.head(&mut head);
        if let Some(data) = self.data.take() {
            match begin(&mut head, data, caller.hyphenated().encode_lower(&mut Uuid::encode_buffer())) {
                Ok((payload, skipped)) if bytes >= LARGE_BYTES => {
                    let mut tail = String::new();
                    self.tail(&mut tail);
                    return Outbound { head, payload: Some(payload), skipped, tail };
                }
                Ok((payload, skipped)) => head.push_str(payload.get().get(skipped..).unwrap_or_default()),
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
    fn payload(&self) -> Option<&RawValue>;
    fn take_payload(&mut self) -> Option<Raw>;
    /// All behind it.
    fn tail(&self, into: &mut String);
    /// The texts of head and tail, in bytes; escapes may make them longer.
    fn texts(&self) -> usize;

    /// In one piece.
    fn text(&self) -> String {
        let payload = self.payload().map_or("", RawValue::get);
        let mut text = String::with_capacity(AROUND_BYTES + self.texts() + payload.len());
        self.head(&mut text);
        text.push_str(payload);
        self.tail(&mut text);
        text
    }

    fn into_outbound(mut self) -> Outbound {
        if self.payload().is_none_or(|payload| payload.get().len() < LARGE_BYTES) {
            return self.text().into();
        }
        let (mut head, mut tail) = (String::with_capacity(AROUND_BYTES + self.texts()), String::new());
        self.head(&mut head);
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

    fn payload(&self) -> Option<&RawValue> {
        self.data.as_deref()
    }

    fn take_payload(&mut self) -> Option<Raw> {
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

    fn payload(&self) -> Option<&RawValue> {
        self.result.as_deref()
    }

    fn take_payload(&mut self) -> Option<Raw> {
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
    if text.bytes().any(|byte| byte < 0x20 || matches!(byte, b'"' | b'\\')) {
        return into.push_str(&serde_json::Value::from(text).to_string());
    }
    into.push('"');
    into.push_str(text);
    into.push('"');
}

#[cfg(test)]
mod tests;
