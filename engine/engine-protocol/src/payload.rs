//! A payload on its way: JSON that is passed on as it is, where it lies in the frame it came in if it is large.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::known::known;
use crate::message::Raw;

/// From this size on a payload is not copied when it goes out, nor when it comes in a frame that it can keep.
pub(crate) const LARGE_BYTES: usize = 16 * 1024;

/// The `data` of a call or the `result` of an answer.
#[derive(Clone)]
pub struct Payload {
    text: Text,
    /// Whether a member of it may tell of a caller: that has to be looked for.
    may_name_caller: bool,
}

#[derive(Clone)]
enum Text {
    Own(Raw),
    /// Of a frame that was found to be UTF-8, and this to be JSON.
    Part(Bytes),
}

impl Payload {
    /// `json` is one JSON value without space around it, and lies in `frame` if that is given. `None` from a `serde_json`
    /// that would read it again. A frame that is mostly something else is not kept for it: nobody would account for that.
    pub(crate) fn found(json: &str, frame: Option<&Bytes>, may_name_caller: bool) -> Option<Self> {
        let text = match frame {
            Some(frame) if json.len() >= LARGE_BYTES.max(frame.len() / 2) => {
                Text::Part(frame.slice_ref(json.as_bytes()))
            }
            _ => Text::Own(known(json.to_owned())?),
        };
        Some(Self { text, may_name_caller })
    }

    /// A large one is looked through again for UTF-8: [`as_bytes`](Self::as_bytes) costs nothing.
    #[must_use]
    pub fn text(&self) -> &str {
        match &self.text {
            Text::Own(raw) => raw.get(),
            // It is a part of a text, between quotes, brackets or commas: there is no way for it not to be one.
            Text::Part(bytes) => str::from_utf8(bytes).unwrap_or("null"),
        }
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.text {
            Text::Own(raw) => raw.get().as_bytes(),
            Text::Part(bytes) => bytes,
        }
    }

    pub(crate) fn may_name_caller(&self) -> bool {
        self.may_name_caller
    }

    /// As a text of its own; a large one is copied.
    #[must_use]
    pub fn into_raw(self) -> Raw {
        match self.text {
            Text::Own(raw) => raw,
            Text::Part(bytes) => {
                // As in `text`.
                let text = String::from_utf8(bytes.into()).ok();
                text.and_then(known).unwrap_or_else(|| RawValue::NULL.to_owned())
            }
        }
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, into: &mut fmt::Formatter<'_>) -> fmt::Result {
        into.debug_tuple("Payload").field(&self.text()).finish()
    }
}

impl From<Raw> for Payload {
    fn from(raw: Raw) -> Self {
        Self { text: Text::Own(raw), may_name_caller: true }
    }
}

impl From<Payload> for Raw {
    fn from(payload: Payload) -> Self {
        payload.into_raw()
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.text {
            Text::Own(raw) => raw.serialize(serializer),
            Text::Part(_) => self.clone().into_raw().serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Raw::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_payload_stays_in_its_frame_and_a_small_one_does_not_keep_it() {
        let large = format!("[{}1]", "1,".repeat(LARGE_BYTES));
        let more = " ".repeat(2 * large.len());
        for (json, rest, is_part) in [("[1]", "", false), (&large, "", true), (&large, &more, false)] {
            let frame = Bytes::from(format!("{{{json}{rest}}}"));
            let text = str::from_utf8(&frame).expect("text");
            let payload = Payload::found(&text[1..=json.len()], Some(&frame), true).expect("a payload");
            assert_eq!(payload.as_bytes(), json.as_bytes());
            assert_eq!(matches!(payload.text, Text::Part(_)), is_part);
            assert_eq!(serde_json::to_string(&payload).expect("JSON"), json);
            assert_eq!(payload.into_raw().get(), json);
        }
    }
}
