//! The functions `stream::*`: what is asked, who keeps it, what is answered.

use std::sync::Arc;

use engine_builtin::{
    Answer, Call, Engine, ErrorBody, Invocation, Raw, RegisterFunction, Trace, decode, encode, name, optional_name,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::to_raw_value;
use serde_json::{Value, json};

use crate::adapter::{AdapterError, Deleted, ItemKey, Ops, Place, Snapshot, Written, list};
use crate::event::{Change, Emitted, Event, Sent};

/// What each function is called with besides names, and what it is for.
const FUNCTIONS: [(&str, &[&str], &str); 8] = [
    ("set", &["stream_name", "group_id", "item_id", "data"], "Stores an item and tells those who watch it"),
    ("get", &["stream_name", "group_id", "item_id"], "An item"),
    ("delete", &["stream_name", "group_id", "item_id"], "Removes an item and tells those who watch it"),
    ("list", &["stream_name", "group_id"], "All items of a group"),
    ("list_groups", &["stream_name"], "The ids of a stream's groups"),
    ("list_all", &[], "All streams and their groups"),
    ("send", &["stream_name", "group_id", "type", "data"], "Tells those who watch a group, and stores nothing"),
    ("update", &["stream_name", "group_id", "item_id", "ops"], "Changes an item and tells those who watch it"),
];

/// Largest list that a subscription begins with.
pub(crate) const MAX_SYNC_BYTES: usize = 16 * 1024 * 1024;

/// Beside an [`ItemKey`].
#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    data: Raw,
}

/// Beside an [`ItemKey`].
#[derive(Deserialize)]
struct GivenOps {
    ops: Raw,
}

#[derive(Deserialize)]
struct Group {
    #[serde(deserialize_with = "name")]
    stream_name: String,
    #[serde(deserialize_with = "name")]
    group_id: String,
}

#[derive(Deserialize)]
struct StreamOnly {
    #[serde(deserialize_with = "name")]
    stream_name: String,
}

#[derive(Deserialize)]
struct Send {
    #[serde(deserialize_with = "name")]
    stream_name: String,
    #[serde(deserialize_with = "name")]
    group_id: String,
    #[serde(default, deserialize_with = "optional_name")]
    id: Option<String>,
    #[serde(rename = "type")]
    label: String,
    #[serde(default)]
    data: Raw,
}

#[derive(Serialize)]
struct Streams {
    stream: Vec<StreamGroups>,
    count: usize,
}

#[derive(Serialize)]
struct StreamGroups {
    id: String,
    groups: Vec<String>,
}

pub(crate) fn registrations() -> Vec<RegisterFunction> {
    FUNCTIONS.iter().map(|(name, fields, description)| registration(name, fields, description)).collect()
}

fn registration(name: &str, fields: &[&str], description: &str) -> RegisterFunction {
    let property = |field: &&str| {
        let schema = match *field {
            "data" => json!({}),
            "ops" => json!({ "type": "array", "items": { "type": "object" } }),
            _ => json!({ "type": "string" }),
        };
        ((*field).to_owned(), schema)
    };
    let properties: serde_json::Map<String, Value> = fields.iter().map(property).collect();
    let request = json!({ "type": "object", "required": fields, "properties": properties });
    RegisterFunction {
        id: format!("stream::{name}"),
        description: Some(description.to_owned()),
        request_format: to_raw_value(&request).ok(),
        response_format: None,
        metadata: None,
        invocation: None,
    }
}

/// One call, with the adapter that was in use when it came.
pub(crate) async fn call(engine: Engine, place: Arc<Place>, call: Call) -> Answer {
    let asked = Asked { engine: &engine, place: &place, call: &call };
    match call.function_id.as_str() {
        "stream::set" => asked.set().await,
        "stream::get" => asked.get().await,
        "stream::delete" => asked.delete().await,
        "stream::list" => asked.list().await,
        "stream::list_groups" => asked.list_groups().await,
        "stream::list_all" => asked.list_all().await,
        "stream::send" => asked.send().await,
        "stream::update" => asked.update().await,
        other => Err(ErrorBody::new("function_not_found", format!("{other} is no function of iii-stream"))),
    }
}

struct Asked<'a> {
    engine: &'a Engine,
    place: &'a Place,
    call: &'a Call,
}

impl Asked<'_> {
    async fn set(self) -> Answer {
        let key: ItemKey = decode(self.call)?;
        let Data { data } = decode(self.call)?;
        if let Some(written) = self.custom::<Written>("set", &key.stream_name).await? {
            return self.written(&key, &written).await;
        }
        let written = self.place.adapter.set(key, data, self.trace()).await;
        encode(&written.map_err(failed("STREAM_SET_ERROR"))?)
    }

    async fn update(self) -> Answer {
        let key: ItemKey = decode(self.call)?;
        let GivenOps { ops: raw } = decode(self.call)?;
        if let Some(written) = self.custom::<Written>("update", &key.stream_name).await? {
            return self.written(&key, &written).await;
        }
        let ops = serde_json::from_str(raw.get())
            .map_err(|error| ErrorBody::new("deserialization_error", format!("stream::update: ops: {error}")))?;
        let written = self.place.adapter.update(key, Ops { ops, raw }, self.trace()).await;
        encode(&written.map_err(failed("STREAM_UPDATE_ERROR"))?)
    }

    /// A function of a worker has written: those who watch are told all the same.
    async fn written(&self, key: &ItemKey, written: &Written) -> Answer {
        self.changed(key, &Change::written(written.old_value.is_some(), &written.new_value)).await;
        encode(written)
    }

    async fn delete(self) -> Answer {
        let key: ItemKey = decode(self.call)?;
        if let Some(deleted) = self.custom::<Deleted>("delete", &key.stream_name).await? {
            if let Some(data) = &deleted.old_value {
                self.changed(&key, &Change::Delete { data }).await;
            }
            return encode(&deleted);
        }
        let deleted = self.place.adapter.delete(key, self.trace()).await;
        encode(&deleted.map_err(failed("STREAM_DELETE_ERROR"))?)
    }

    async fn get(self) -> Answer {
        let key: ItemKey = decode(self.call)?;
        if let Some(answer) = self.custom_raw("get", &key.stream_name).await? {
            return Ok(answer);
        }
        self.place.adapter.get(&key).await.map_err(failed("STREAM_GET_ERROR"))
    }

    async fn list(self) -> Answer {
        let Group { stream_name, group_id } = decode(self.call)?;
        if let Some(values) = self.custom::<Vec<Raw>>("list", &stream_name).await? {
            return encode(&values);
        }
        self.place.adapter.list(&stream_name, &group_id).await.map(Some).map_err(failed("STREAM_GET_GROUP_ERROR"))
    }

    async fn list_groups(self) -> Answer {
        let StreamOnly { stream_name } = decode(self.call)?;
        if let Some(groups) = self.custom::<Vec<String>>("list_groups", &stream_name).await? {
            return encode(&groups);
        }
        encode(&self.place.adapter.list_groups(&stream_name).await.map_err(failed("STREAM_LIST_GROUPS_ERROR"))?)
    }

    async fn list_all(self) -> Answer {
        let streams = self.place.adapter.list_all().await.map_err(failed("STREAM_LIST_ALL_ERROR"))?;
        let stream: Vec<_> = streams.into_iter().map(|(id, groups)| StreamGroups { id, groups }).collect();
        encode(&Streams { count: stream.len(), stream })
    }

    async fn send(self) -> Answer {
        let Send { stream_name, group_id, id, label, data } = decode(self.call)?;
        let change = Change::Event { event: Sent { label: &label, data: &data } };
        let event = Event::new(&stream_name, &group_id, id.as_deref(), &change);
        let emitted = Emitted { event, write: None, trace: self.trace() };
        self.place.adapter.emit(emitted).await.map_err(failed("STREAM_SEND_ERROR"))?;
        encode(&())
    }

    fn trace(&self) -> Trace {
        self.call.trace.clone()
    }

    /// What a worker's function wrote cannot be taken back when nobody can be told of it.
    async fn changed(&self, key: &ItemKey, change: &Change<'_>) {
        let event = Event::new(&key.stream_name, &key.group_id, Some(&key.item_id), change);
        let emitted = Emitted { event, write: None, trace: self.trace() };
        if let Err(error) = self.place.adapter.emit(emitted).await {
            let stream = &key.stream_name;
            self.place.hub.log().line(|| tracing::warn!(%error, stream, "an event is lost"));
        }
    }

    async fn custom<T: DeserializeOwned>(&self, op: &str, stream_name: &str) -> Result<Option<T>, ErrorBody> {
        let Some(answer) = self.custom_raw(op, stream_name).await? else { return Ok(None) };
        shaped(op, stream_name, answer.as_ref()).map(Some)
    }

    /// Asks the function of a worker that keeps this stream, if there is one.
    async fn custom_raw(&self, op: &str, stream_name: &str) -> Result<Option<Option<Raw>>, ErrorBody> {
        let data = self.call.data.clone().unwrap_or_default();
        ask(self.engine, op, stream_name, data, self.trace()).await
    }
}

async fn ask(
    engine: &Engine,
    op: &str,
    stream_name: &str,
    data: Raw,
    trace: Trace,
) -> Result<Option<Option<Raw>>, ErrorBody> {
    let function_id = format!("stream::{op}({stream_name})");
    if !engine.knows(&function_id) {
        return Ok(None);
    }
    engine.call(Invocation { function_id, data, trace }).await.map(Some)
}

fn shaped<T: DeserializeOwned>(op: &str, stream_name: &str, answer: Option<&Raw>) -> Result<T, ErrorBody> {
    serde_json::from_str(answer.map_or("null", |answer| answer.get()))
        .map_err(|error| ErrorBody::new("JSON_ERROR", format!("stream::{op}({stream_name}) answered: {error}")))
}

/// What a subscription begins with, from whoever keeps the stream.
pub(crate) async fn snapshot(
    engine: &Engine,
    place: &Place,
    stream_name: &str,
    group_id: &str,
    item_id: Option<&str>,
) -> Result<Snapshot, ErrorBody> {
    let (op, request) = match item_id {
        Some(item_id) => ("get", json!({ "stream_name": stream_name, "group_id": group_id, "item_id": item_id })),
        None => ("list", json!({ "stream_name": stream_name, "group_id": group_id })),
    };
    let request = to_raw_value(&request).expect("strings");
    let Some(answer) = ask(engine, op, stream_name, request, Trace::default()).await? else {
        let kept = place.adapter.snapshot(stream_name, group_id, item_id, MAX_SYNC_BYTES).await;
        return kept.map_err(failed("STREAM_GET_GROUP_ERROR"));
    };
    let data = match item_id {
        Some(_) => answer.unwrap_or_default(),
        None => list(&shaped::<Vec<Raw>>(op, stream_name, answer.as_ref())?).map_err(failed("JSON_ERROR"))?,
    };
    if data.get().len() > MAX_SYNC_BYTES {
        return Err(failed("STREAM_GET_GROUP_ERROR")(AdapterError::TooMuch));
    }
    Ok(Snapshot { data, write: 0 })
}

/// The other engine's own words stay as they are.
fn failed(code: &'static str) -> impl Fn(AdapterError) -> ErrorBody {
    move |error| match error {
        AdapterError::Remote(error) => error,
        AdapterError::Store(_)
        | AdapterError::Redis(_)
        | AdapterError::Bridge(_)
        | AdapterError::Damaged(_)
        | AdapterError::Contended
        | AdapterError::TooLarge { .. }
        | AdapterError::TooMuch
        | AdapterError::Colon
        | AdapterError::Ended => ErrorBody::new(code, error.to_string()),
    }
}
