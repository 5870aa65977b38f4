//! Reads the two messages that calls are made of in one pass: their members are found, their payloads checked and not understood.

use bytes::Bytes;
use serde::Deserialize;
use uuid::Uuid;

use crate::caller;
use crate::json::{self, expect, skip_name, skip_space, skip_string, skip_value};
use crate::known::known;
use crate::message::{InvocationResult, InvokeFunction, Message, Raw};
use crate::payload::Payload;

/// The message, if it is a call or an answer in the usual spelling. `None` says nothing about the text: whoever wants to know reads it
/// in the thorough way. `frame` is what the text lies in, if its payloads may keep that.
pub(crate) fn read(text: &str, frame: Option<&Bytes>) -> Option<Message> {
    let parts = parts(text)?;
    match parts.kind? {
        "\"invokefunction\"" => Some(Message::from(InvokeFunction {
            invocation_id: optional(parts.invocation_id, id)?,
            function_id: plain(parts.function_id?)?.to_owned(),
            data: optional(parts.data, |json| Payload::found(json, frame, parts.may_name_caller))?,
            traceparent: optional(parts.traceparent, owned)?,
            baggage: optional(parts.baggage, owned)?,
            action: optional(parts.action, parsed)?,
            metadata: optional(parts.metadata, raw)?,
        })),
        "\"invocationresult\"" => Some(Message::from(InvocationResult {
            invocation_id: id(parts.invocation_id?)?,
            function_id: parts.function_id.map_or(Some(""), plain)?.to_owned(),
            result: optional(parts.result, |json| Payload::found(json, frame, true))?,
            error: optional(parts.error, parsed)?,
            traceparent: optional(parts.traceparent, owned)?,
            baggage: optional(parts.baggage, owned)?,
        })),
        _ => None,
    }
}

/// Each as the JSON that it is.
#[derive(Default)]
struct Parts<'a> {
    kind: Option<&'a str>,
    invocation_id: Option<&'a str>,
    function_id: Option<&'a str>,
    data: Option<&'a str>,
    /// Whether a member of `data` may tell of a caller.
    may_name_caller: bool,
    result: Option<&'a str>,
    error: Option<&'a str>,
    traceparent: Option<&'a str>,
    baggage: Option<&'a str>,
    action: Option<&'a str>,
    metadata: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn named(&mut self, name: &str) -> Option<&mut Option<&'a str>> {
        Some(match name {
            "type" => &mut self.kind,
            "invocation_id" => &mut self.invocation_id,
            "function_id" => &mut self.function_id,
            "data" => &mut self.data,
            "result" => &mut self.result,
            "error" => &mut self.error,
            "traceparent" => &mut self.traceparent,
            "baggage" => &mut self.baggage,
            "action" => &mut self.action,
            "metadata" => &mut self.metadata,
            _ => return None,
        })
    }
}

/// `None` for what is no JSON object, and for names with escapes or given twice.
fn parts(text: &str) -> Option<Parts<'_>> {
    let bytes = text.as_bytes();
    let mut parts = Parts::default();
    let mut at = expect(bytes, skip_space(bytes, 0), b'{')?;
    loop {
        let name = skip_space(bytes, at);
        // Without its quotes.
        let name_text = text.get(name + 1..skip_string(bytes, name)? - 1)?;
        let value = skip_name(bytes, name)?;
        let end = if name_text == "data" {
            let (end, may_name_caller) = caller::skip_data(bytes, value)?;
            parts.may_name_caller = may_name_caller;
            end
        } else {
            skip_value(bytes, value)?
        };
        if has_escape(name_text) {
            return None;
        }
        if let Some(part) = parts.named(name_text)
            && part.replace(text.get(value..end)?).is_some()
        {
            return None;
        }
        at = skip_space(bytes, end);
        match bytes.get(at)? {
            b',' => at += 1,
            b'}' => return (skip_space(bytes, at + 1) == bytes.len()).then_some(parts),
            _ => return None,
        }
    }
}

/// Absent and `null` are the same; what `read` cannot read is neither.
#[expect(clippy::option_option, reason = "the outer one is a failure")]
fn optional<'a, T>(json: Option<&'a str>, read: impl Fn(&'a str) -> Option<T>) -> Option<Option<T>> {
    match json {
        None | Some("null") => Some(None),
        Some(json) => read(json).map(Some),
    }
}

/// A string without escapes, from what is JSON.
fn plain(json: &str) -> Option<&str> {
    json.strip_prefix('"')?.strip_suffix('"').filter(|text| !has_escape(text))
}

/// Of the inside of a JSON string: all that it cannot have as it is, it has as escapes.
fn has_escape(text: &str) -> bool {
    json::first_special(text.as_bytes()).is_some()
}

fn owned(json: &str) -> Option<String> {
    plain(json).map(str::to_owned)
}

fn id(json: &str) -> Option<Uuid> {
    Uuid::try_parse(plain(json)?).ok()
}

fn parsed<'a, T: Deserialize<'a>>(json: &'a str) -> Option<T> {
    serde_json::from_str(json).ok()
}

fn raw(json: &str) -> Option<Raw> {
    known(json.to_owned())
}
