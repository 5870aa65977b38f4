//! The adapter that keeps items at another engine, and tells of them over that engine's pub/sub.
//!
//! What is written here is seen here in the order of the writes; what others write comes as that engine's pub/sub
//! brings it, and what comes while the connection is down is lost.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Weak};
use std::time::Duration;

use engine_builtin::{BuiltinError, Raw, Trace};
use engine_client::{Call, CallError, Client, ClientConfig, FunctionSpec};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard};
use tracing::warn;
use uuid::Uuid;

use crate::adapter::{AdapterError, Deleted, ItemKey, Ops, Snapshot, Written};
use crate::event::{Change, Emitted, Event};
use crate::hub::Hub;

const TOPIC: &str = "stream.events";

/// Of our function over there. Not a built-in worker's name: engines keep those to their own.
const NAMESPACE: &str = "stream-bridge";

const CONNECTING: Duration = Duration::from_secs(10);
const CALLING: Duration = Duration::from_secs(30);

/// Writes to items that share one of these wait for each other.
const LANES: usize = 64;

pub(crate) struct Bridge {
    client: Client,
    hub: Arc<Hub>,
    /// By which our own events are known when they come back.
    origin: String,
    lanes: Vec<Mutex<()>>,
    hasher: RandomState,
}

/// What is written beside an event.
#[derive(Deserialize)]
struct Beside {
    origin: Option<String>,
}

#[derive(Deserialize)]
struct Streams {
    stream: Vec<Groups>,
}

#[derive(Deserialize)]
struct Groups {
    id: String,
    groups: Vec<String>,
}

impl Bridge {
    /// Connects, and subscribes to the other engine's events.
    ///
    /// # Errors
    /// Nobody answers.
    pub(crate) async fn connect(url: &str, hub: &Arc<Hub>) -> Result<Self, BuiltinError> {
        let description = Some("Streams of another engine".to_owned());
        let client = Client::connect(ClientConfig { url: url.to_owned(), name: crate::NAME.to_owned(), description });
        let origin = Uuid::new_v4().to_string();
        let function = FunctionSpec {
            id: format!("{NAMESPACE}::{origin}"),
            description: "Takes events of streams".into(),
            metadata: Some(json!({ "internal": true })),
            ..FunctionSpec::default()
        };
        client.register_trigger("subscribe", &function.id, &json!({ "topic": TOPIC }));
        let (told, ours) = (Arc::downgrade(hub), origin.clone());
        client.register(function, move |call: Call| {
            receive(&told, &ours, &call);
            async { Ok(None) }
        });
        client
            .connected(CONNECTING)
            .await
            .map_err(|error| BuiltinError::failed("could not connect the bridge of iii-stream", error))?;
        let lanes = (0..LANES).map(|_| Mutex::new(())).collect();
        Ok(Self { client, hub: Arc::clone(hub), origin, lanes, hasher: RandomState::new() })
    }

    async fn call<T: DeserializeOwned>(&self, function_id: &str, data: &impl Serialize) -> Result<T, AdapterError> {
        let answer = self.client.call(function_id, data, CALLING).await.map_err(|error| match error {
            CallError::Remote(error) => AdapterError::Remote(error),
            error => AdapterError::Bridge(error),
        })?;
        Ok(serde_json::from_str(answer.as_ref().map_or("null", |answer| answer.get()))?)
    }

    /// Held over a write and its event, so that they are in one order.
    async fn lane(&self, key: &ItemKey) -> MutexGuard<'_, ()> {
        let hash = self.hasher.hash_one((&key.stream_name, &key.group_id, &key.item_id));
        let lane = usize::try_from(hash % LANES as u64).unwrap_or_default();
        self.lanes[lane].lock().await
    }

    pub(crate) async fn set(&self, key: ItemKey, data: Raw, trace: Trace) -> Result<Written, AdapterError> {
        let _lane = self.lane(&key).await;
        let ItemKey { stream_name, group_id, item_id } = &key;
        let request = json!({ "stream_name": stream_name, "group_id": group_id, "item_id": item_id, "data": data });
        self.written(&key, self.call("stream::set", &request).await?, trace).await
    }

    pub(crate) async fn update(&self, key: ItemKey, ops: Ops, trace: Trace) -> Result<Written, AdapterError> {
        let _lane = self.lane(&key).await;
        let ItemKey { stream_name, group_id, item_id } = &key;
        let request = json!({ "stream_name": stream_name, "group_id": group_id, "item_id": item_id, "ops": ops.raw });
        self.written(&key, self.call("stream::update", &request).await?, trace).await
    }

    async fn written(&self, key: &ItemKey, written: Written, trace: Trace) -> Result<Written, AdapterError> {
        self.changed(key, &Change::written(written.old_value.is_some(), &written.new_value), trace).await;
        Ok(written)
    }

    pub(crate) async fn delete(&self, key: ItemKey, trace: Trace) -> Result<Deleted, AdapterError> {
        let _lane = self.lane(&key).await;
        let deleted: Deleted = self.call("stream::delete", &key).await?;
        if let Some(data) = &deleted.old_value {
            self.changed(&key, &Change::Delete { data }, trace).await;
        }
        Ok(deleted)
    }

    async fn changed(&self, key: &ItemKey, change: &Change<'_>, trace: Trace) {
        let event = Event::new(&key.stream_name, &key.group_id, Some(&key.item_id), change);
        self.emit(Emitted { event, write: None, trace }).await;
    }

    pub(crate) async fn get(&self, key: &ItemKey) -> Result<Option<Raw>, AdapterError> {
        self.call("stream::get", key).await
    }

    pub(crate) async fn snapshot(
        &self,
        stream_name: &str,
        group_id: &str,
        item_id: Option<&str>,
    ) -> Result<Snapshot, AdapterError> {
        let data: Raw = match item_id {
            Some(item_id) => {
                let key = json!({ "stream_name": stream_name, "group_id": group_id, "item_id": item_id });
                self.call("stream::get", &key).await?
            }
            None => self.call("stream::list", &json!({ "stream_name": stream_name, "group_id": group_id })).await?,
        };
        Ok(Snapshot { data, write: 0 })
    }

    pub(crate) async fn list_groups(&self, stream_name: &str) -> Result<Vec<String>, AdapterError> {
        self.call("stream::list_groups", &json!({ "stream_name": stream_name })).await
    }

    pub(crate) async fn list_all(&self) -> Result<BTreeMap<String, Vec<String>>, AdapterError> {
        let streams: Streams = self.call("stream::list_all", &json!({})).await?;
        Ok(streams.stream.into_iter().map(|stream| (stream.id, stream.groups)).collect())
    }

    /// Here at once; elsewhere as the other engine brings it.
    pub(crate) async fn emit(&self, emitted: Emitted) {
        self.hub.emit(&emitted);
        let mut message = json!(emitted.event);
        message["origin"] = json!(self.origin);
        if let Err(error) = self.client.call_void("publish", &json!({ "topic": TOPIC, "data": message })).await {
            self.hub.log().line(|| warn!(%error, "other engines are not told of an event"));
        }
    }
}

fn receive(hub: &Weak<Hub>, ours: &str, call: &Call) {
    let parsed = serde_json::from_str::<Event>(call.data.get())
        .and_then(|event| Ok((event, serde_json::from_str::<Beside>(call.data.get())?)));
    match (parsed, hub.upgrade()) {
        (Ok((event, beside)), Some(hub)) if beside.origin.as_deref() != Some(ours) => {
            hub.emit(&Emitted { event, write: None, trace: Trace::default() });
        }
        (Err(error), Some(hub)) => {
            hub.log().line(|| warn!(%error, "what the other engine published is no event"));
        }
        (Ok(_) | Err(_), _) => {}
    }
}
