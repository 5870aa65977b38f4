//! What happened to an item, as subscribers and handlers are told.

use std::time::{SystemTime, UNIX_EPOCH};

use engine_builtin::{Raw, Trace};
use serde::{Deserialize, Serialize};
use serde_json::value::to_raw_value;

/// The object on the wire, camelCase. `id` is always there, `null` for what concerns a group.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Event {
    #[serde(rename = "type", default)]
    kind: Kind,
    timestamp: u64,
    pub(crate) stream_name: String,
    pub(crate) group_id: String,
    #[serde(default)]
    pub(crate) id: Option<String>,
    event: Raw,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    #[default]
    Stream,
}

/// The event's `event`.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum Change<'a> {
    Create {
        data: &'a Raw,
    },
    Update {
        data: &'a Raw,
    },
    /// The data that was there.
    Delete {
        data: &'a Raw,
    },
    /// An item, or all of a group.
    Sync {
        data: &'a Raw,
    },
    Unauthorized,
    /// What `stream::send` sends.
    Event {
        event: Sent<'a>,
    },
}

#[derive(Debug, Serialize)]
pub(crate) struct Sent<'a> {
    #[serde(rename = "type")]
    pub(crate) label: &'a str,
    pub(crate) data: &'a Raw,
}

impl<'a> Change<'a> {
    pub(crate) fn written(existed: bool, data: &'a Raw) -> Self {
        if existed { Self::Update { data } } else { Self::Create { data } }
    }
}

impl Event {
    /// Of now.
    pub(crate) fn new(stream_name: &str, group_id: &str, id: Option<&str>, change: &Change<'_>) -> Self {
        Self {
            kind: Kind::Stream,
            timestamp: now_ms(),
            stream_name: stream_name.to_owned(),
            group_id: group_id.to_owned(),
            id: id.map(str::to_owned),
            event: json(change),
        }
    }

    /// As it is sent.
    pub(crate) fn text(&self) -> Raw {
        json(self)
    }
}

/// An event on its way to those who want to see it.
#[derive(Debug, Clone)]
pub(crate) struct Emitted {
    pub(crate) event: Event,
    /// The number of its write, where the adapter has numbers: a `sync` up to that number contains it.
    pub(crate) write: Option<u64>,
    /// Of the writer.
    pub(crate) trace: Trace,
}

/// Our own types: strings, numbers and JSON.
fn json(value: &impl Serialize) -> Raw {
    to_raw_value(value).expect("no map with keys that are no strings")
}

pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(change: &Change<'_>, wanted: &Value) {
        let text = Event::new("chat", "room-4", Some("msg-1"), change).text();
        let mut event: Value = serde_json::from_str(text.get()).expect("JSON");
        assert!(event["timestamp"].take().is_u64());
        let whole = json!({
            "type": "stream", "timestamp": null, "streamName": "chat", "groupId": "room-4", "id": "msg-1",
            "event": wanted
        });
        assert_eq!(event, whole);
    }

    #[test]
    fn each_event_looks_as_published() {
        let data = &super::json(&json!({ "text": "hi" }));
        check(&Change::written(false, data), &json!({ "type": "create", "data": { "text": "hi" } }));
        check(&Change::written(true, data), &json!({ "type": "update", "data": { "text": "hi" } }));
        check(&Change::Delete { data }, &json!({ "type": "delete", "data": { "text": "hi" } }));
        check(&Change::Sync { data }, &json!({ "type": "sync", "data": { "text": "hi" } }));
        check(&Change::Unauthorized, &json!({ "type": "unauthorized" }));
        let sent = Change::Event { event: Sent { label: "typing", data } };
        check(&sent, &json!({ "type": "event", "event": { "type": "typing", "data": { "text": "hi" } } }));
        let group = Event::new("chat", "room-4", None, &Change::Unauthorized).text();
        assert!(group.get().contains(r#""id":null"#));
    }
}
