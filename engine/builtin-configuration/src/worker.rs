//! The worker: its functions, and what the engine asks of it directly.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use engine_builtin::{
    Answer, Binding, BoxFuture, Builtin, BuiltinError, Call, Engine, ErrorBody, RegisterFunction, RegisterTriggerType,
    Reply, Settings, Trace, decode, encode,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::entry::{Entry, MAX_BYTES, check_id, expand};
use crate::events::{Bindings, Change};
use crate::folder::Folder;
use crate::remote::Remote;
use crate::schema as json_schema;

pub const NAME: &str = "configuration";

/// Entries at a time.
const MAX_ENTRIES: usize = 4096;

const DEFAULT_DIRECTORY: &str = "./data/configuration";
const DEFAULT_BRIDGE_URL: &str = "ws://localhost:49134";

const FUNCTIONS: [(&str, &str); 5] = [
    ("configuration::register", "Registers an entry: its schema, and a value if none is stored"),
    ("configuration::set", "Replaces an entry's value"),
    ("configuration::get", "Reads an entry's value"),
    ("configuration::list", "Lists entries, without their values"),
    ("configuration::schema", "Describes one entry"),
];

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    adapter: Option<Adapter>,
    ttl_seconds: u64,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "name", content = "config", rename_all = "lowercase")]
enum Adapter {
    Fs(Option<FsOptions>),
    Bridge(Option<BridgeOptions>),
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FsOptions {
    directory: PathBuf,
}

impl Default for FsOptions {
    fn default() -> Self {
        Self { directory: DEFAULT_DIRECTORY.into() }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct BridgeOptions {
    bridge_url: String,
}

impl Default for BridgeOptions {
    fn default() -> Self {
        Self { bridge_url: DEFAULT_BRIDGE_URL.into() }
    }
}

/// What the settings of this worker look like.
#[must_use]
pub fn schema() -> Value {
    json!({
        "type": "object", "additionalProperties": false,
        "properties": {
            "adapter": { "description": "Where entries are kept", "oneOf": [
                { "type": "object", "required": ["name"], "additionalProperties": false, "properties": {
                    "name": { "const": "fs" },
                    "config": { "type": "object", "additionalProperties": false, "properties": {
                        "directory": { "type": "string", "default": DEFAULT_DIRECTORY } } } } },
                { "type": "object", "required": ["name"], "additionalProperties": false, "properties": {
                    "name": { "const": "bridge" },
                    "config": { "type": "object", "additionalProperties": false, "properties": {
                        "bridge_url": { "type": "string", "default": DEFAULT_BRIDGE_URL } } } } },
            ] },
            "ttl_seconds": { "type": "integer", "minimum": 0, "default": 0,
                "description": "Deletes an entry this long after its last own trigger has gone; 0: never" },
        },
    })
}

#[derive(Debug, Deserialize)]
struct Register {
    id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    schema: Value,
    initial_value: Option<Value>,
    metadata: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Set {
    id: String,
    #[serde(default)]
    value: Value,
}

#[derive(Debug, Deserialize)]
struct Get {
    id: String,
    raw: Option<bool>,
}

/// The two values of a change, as they are stored.
#[derive(Debug, Serialize)]
struct Changed {
    old_value: Value,
    new_value: Value,
}

/// Settings by id.
pub struct Configuration {
    me: Weak<Self>,
    engine: Engine,
    bindings: Bindings,
    ttl: Duration,
    stop: CancellationToken,
    changed: broadcast::Sender<String>,
    kept: Kept,
}

enum Kept {
    Here(Here),
    Elsewhere(Remote),
}

/// Entries of this engine. The lock is held while a file is written, so that file and memory tell the same.
struct Here {
    folder: Folder,
    entries: Mutex<BTreeMap<String, Entry>>,
    expiring: Mutex<HashMap<String, CancellationToken>>,
}

/// Reads what is stored.
///
/// # Errors
/// The settings do not fit, or the folder cannot be made.
pub async fn create(engine: Engine, settings: Settings) -> Result<Arc<Configuration>, BuiltinError> {
    let options: Option<Options> =
        serde_json::from_value(settings).map_err(|error| BuiltinError::Settings(error.to_string()))?;
    let options = options.unwrap_or_default();
    let kept = match options.adapter {
        Some(Adapter::Bridge(options)) => Kept::Elsewhere(Remote::connect(options.unwrap_or_default().bridge_url)),
        Some(Adapter::Fs(options)) => here(options.unwrap_or_default().directory)?,
        None => here(FsOptions::default().directory)?,
    };
    Ok(Arc::new_cyclic(|me| Configuration {
        me: me.clone(),
        engine,
        bindings: Bindings::new(),
        ttl: Duration::from_secs(options.ttl_seconds),
        stop: CancellationToken::new(),
        changed: broadcast::Sender::new(1024),
        kept,
    }))
}

fn here(directory: PathBuf) -> Result<Kept, BuiltinError> {
    let shown = directory.display().to_string();
    let folder = Folder::open(directory)
        .map_err(|error| BuiltinError::failed(format!("could not make the folder {shown}"), error))?;
    let entries = Mutex::new(folder.read_all());
    Ok(Kept::Here(Here { folder, entries, expiring: Mutex::default() }))
}

impl Configuration {
    /// The ids of entries whose value has changed, as they change.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<String> {
        self.changed.subscribe()
    }

    /// An entry's value with its variables expanded; `None` when there is no such entry.
    ///
    /// # Errors
    /// The other engine cannot be asked.
    pub async fn read(&self, id: &str) -> Result<Option<Value>, ErrorBody> {
        match &self.kept {
            Kept::Here(here) => Ok(here.lock().get(id).map(|entry| expanded(&entry.value))),
            Kept::Elsewhere(remote) => remote.read(id).await,
        }
    }

    /// Registers the settings of a built-in worker. `seed` is stored when nothing is.
    ///
    /// # Errors
    /// As `configuration::register`.
    pub async fn register_settings(
        &self,
        id: &str,
        description: &str,
        schema: Value,
        seed: Value,
    ) -> Result<(), ErrorBody> {
        let stored = self.read(id).await?.is_some_and(|value| !value.is_null());
        let register = Register {
            id: id.to_owned(),
            name: id.to_owned(),
            description: description.to_owned(),
            schema,
            initial_value: (!stored).then_some(seed),
            metadata: Some(json!({ "internal": true })),
        };
        match &self.kept {
            Kept::Here(here) => self.register(here, register, Trace::default()).map(|_| ()),
            Kept::Elsewhere(remote) => {
                let mut payload = json!({
                    "id": register.id, "name": register.name, "description": register.description,
                    "schema": register.schema, "metadata": register.metadata,
                });
                if let Some(seed) = register.initial_value {
                    payload["initial_value"] = seed;
                }
                remote.call("configuration::register", &payload).await.map(|_| ())
            }
        }
    }

    fn register(&self, here: &Here, asked: Register, trace: Trace) -> Answer {
        check_id(&asked.id)?;
        let mut entries = here.lock();
        let before = entries.get(&asked.id);
        if before.is_none() && entries.len() >= MAX_ENTRIES {
            return Err(ErrorBody::new("ADAPTER_ERROR", format!("{MAX_ENTRIES} entries are stored; no more fit")));
        }
        let old = before.map_or(Value::Null, |entry| entry.value.clone());
        let value = match asked.initial_value {
            Some(value) => {
                json_schema::check(&asked.schema, &expanded(&value))?;
                value
            }
            None => old.clone(),
        };
        let change = if before.is_some() { Change::Updated } else { Change::Registered };
        let unchanged = before.is_some_and(|entry| {
            entry.value == value
                && entry.schema == asked.schema
                && entry.name == asked.name
                && entry.description == asked.description
                && entry.metadata == asked.metadata
        });
        let entry = Entry {
            id: asked.id,
            name: asked.name,
            description: asked.description,
            schema: asked.schema,
            value,
            metadata: asked.metadata,
        };
        if !unchanged {
            here.store(&mut entries, entry.clone())?;
        }
        self.tell(change, &entry, &old, &entry.value, &trace);
        encode(&entry)
    }

    fn set(&self, here: &Here, asked: Set, trace: Trace) -> Answer {
        let mut entries = here.lock();
        let Some(entry) = entries.get(&asked.id) else {
            let message = format!("configuration `{}` is not registered", asked.id);
            return Err(ErrorBody::new("NOT_REGISTERED", message));
        };
        json_schema::check(&entry.schema, &expanded(&asked.value))?;
        let old = entry.value.clone();
        let entry = Entry { value: asked.value, ..entry.clone() };
        here.store(&mut entries, entry.clone())?;
        self.tell(Change::Updated, &entry, &old, &entry.value, &trace);
        encode(&Changed { old_value: old, new_value: entry.value })
    }

    /// Entries that are kept here are locked meanwhile, so that changes are told in the order they were made in.
    fn tell(&self, change: Change, entry: &Entry, old: &Value, new: &Value, trace: &Trace) {
        if change == Change::Updated {
            let _ = self.changed.send(entry.id.clone());
        }
        self.bindings.fire(&self.engine, change, entry, old, new, trace);
    }

    fn answer_here(&self, here: &Here, call: &Call) -> Answer {
        match call.function_id.as_str() {
            "configuration::register" => self.register(here, decode(call)?, call.trace.clone()),
            "configuration::set" => self.set(here, decode(call)?, call.trace.clone()),
            "configuration::get" => {
                let asked: Get = decode(call)?;
                let value = here.entry(&asked.id)?.value;
                let value = if asked.raw == Some(true) { value } else { expanded(&value) };
                encode(&json!({ "id": asked.id, "value": value }))
            }
            "configuration::list" => {
                let entries: Vec<Value> = here.lock().values().map(Entry::summary).collect();
                encode(&json!({ "configurations": entries }))
            }
            "configuration::schema" => {
                let asked: Get = decode(call)?;
                encode(&here.entry(&asked.id)?.summary())
            }
            other => Err(ErrorBody::new("function_not_found", format!("function `{other}` is not registered"))),
        }
    }

    /// Takes over what people have done to the files.
    fn reread(&self, here: &Here) {
        let mut told = Vec::new();
        // Locked first: else a `set` in between would be taken for an edit that undoes it.
        let mut entries = here.lock();
        let found = here.folder.read_all();
        for (id, entry) in &found {
            match entries.get(id) {
                Some(known) if known == entry => {}
                Some(known) => told.push((Change::Updated, entry.clone(), known.value.clone(), entry.value.clone())),
                None => told.push((Change::Registered, entry.clone(), Value::Null, entry.value.clone())),
            }
            if let Err(error) = json_schema::check(&entry.schema, &expanded(&entry.value)) {
                warn!(id, reason = error.message, "a configuration file's value is not what its schema asks for");
            }
        }
        // A file that cannot be read for the moment is not one that was deleted.
        for (_, entry) in entries.iter().filter(|(id, _)| !found.contains_key(*id) && !here.folder.has(id)) {
            told.push((Change::Deleted, entry.clone(), entry.value.clone(), Value::Null));
        }
        for (change, entry, ..) in &told {
            match change {
                Change::Deleted => drop(entries.remove(&entry.id)),
                Change::Registered | Change::Updated => drop(entries.insert(entry.id.clone(), entry.clone())),
            }
        }
        for (change, entry, old, new) in told {
            info!(id = entry.id, change = change.name(), "configuration edited by hand");
            self.tell(change, &entry, &old, &new, &Trace::default());
        }
    }

    fn expire(&self, here: &Here, id: &str) {
        let internal =
            here.entry(id).is_ok_and(|entry| entry.metadata.is_some_and(|metadata| metadata["internal"] == true));
        if internal || self.bindings.has_own(id) {
            return;
        }
        let mut entries = here.lock();
        let Some(entry) = entries.remove(id) else { return };
        if let Err(error) = here.folder.remove(id) {
            warn!(id, %error, "an expired configuration could not be removed");
            entries.insert(id.to_owned(), entry);
            return;
        }
        self.tell(Change::Deleted, &entry, &entry.value, &Value::Null, &Trace::default());
    }
}

impl Here {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, id: &str) -> Result<Entry, ErrorBody> {
        let missing = || ErrorBody::new("NOT_FOUND", format!("there is no configuration `{id}`"));
        self.lock().get(id).cloned().ok_or_else(missing)
    }

    /// On disk first, then in memory.
    fn store(&self, entries: &mut BTreeMap<String, Entry>, entry: Entry) -> Result<(), ErrorBody> {
        let bytes = serde_json::to_string(&entry).map_or(usize::MAX, |text| text.len());
        if bytes > MAX_BYTES {
            let message = format!("configuration `{}` has {bytes} bytes; at most {MAX_BYTES} are stored", entry.id);
            return Err(ErrorBody::new("ADAPTER_ERROR", message));
        }
        let failed = |error| ErrorBody::new("ADAPTER_ERROR", format!("could not store `{}`: {error}", entry.id));
        self.folder.write(&entry).map_err(failed)?;
        entries.insert(entry.id.clone(), entry);
        Ok(())
    }
}

impl Builtin for Configuration {
    fn name(&self) -> &'static str {
        NAME
    }

    fn functions(&self) -> Vec<RegisterFunction> {
        let function = |(id, description): (&str, &str)| RegisterFunction {
            id: id.to_owned(),
            description: Some(description.to_owned()),
            request_format: None,
            response_format: None,
            metadata: None,
            invocation: None,
        };
        FUNCTIONS.into_iter().map(function).collect()
    }

    fn trigger_types(&self) -> Vec<RegisterTriggerType> {
        vec![RegisterTriggerType {
            id: "configuration".to_owned(),
            description: Some("Fires when an entry is registered, updated or deleted".to_owned()),
            trigger_request_format: engine_builtin::encode(&json!({
                "type": "object", "properties": {
                    "configuration_id": { "type": "string" },
                    "event_types": { "type": "array", "items": { "enum": [
                        "configuration:registered", "configuration:updated", "configuration:deleted"] } },
                    "condition_function_id": { "type": "string" } },
            }))
            .ok()
            .flatten(),
            call_request_format: None,
        }]
    }

    fn call(&self, call: Call) -> Reply {
        let reads = !matches!(call.function_id.as_str(), "configuration::register" | "configuration::set");
        match (&self.kept, self.me.upgrade()) {
            (Kept::Here(here), _) if reads => Reply::Now(self.answer_here(here, &call)),
            (Kept::Here(_), Some(me)) => Reply::later(async move {
                // A file is written and synced.
                let answering = tokio::task::spawn_blocking(move || match &me.kept {
                    Kept::Here(here) => me.answer_here(here, &call),
                    Kept::Elsewhere(_) => Ok(None),
                });
                answering.await.unwrap_or_else(|error| Err(ErrorBody::new("ADAPTER_ERROR", error.to_string())))
            }),
            (Kept::Elsewhere(_), Some(me)) => Reply::later(async move {
                let Kept::Elsewhere(remote) = &me.kept else { return Ok(None) };
                remote.call(&call.function_id, &call.data).await
            }),
            (_, None) => Reply::Now(Ok(None)),
        }
    }

    fn bind(&self, binding: Binding) -> Result<(), ErrorBody> {
        let id = binding.config["configuration_id"].as_str().map(ToOwned::to_owned);
        self.bindings.bind(binding)?;
        if let (Kept::Here(here), Some(id)) = (&self.kept, id)
            && let Some(expiring) = here.expiring.lock().unwrap_or_else(PoisonError::into_inner).remove(&id)
        {
            expiring.cancel();
        }
        Ok(())
    }

    fn unbind(&self, _: &str, id: &str) {
        let Some(entry) = self.bindings.unbind(id) else { return };
        let (Kept::Here(here), Some(me), false) = (&self.kept, self.me.upgrade(), self.ttl.is_zero()) else { return };
        if here.entry(&entry).is_err() {
            return;
        }
        let expiring = self.stop.child_token();
        here.expiring.lock().unwrap_or_else(PoisonError::into_inner).insert(entry.clone(), expiring.clone());
        tokio::spawn(async move {
            let waited = expiring.run_until_cancelled(tokio::time::sleep(me.ttl)).await.is_some();
            if waited && let Kept::Here(here) = &me.kept {
                me.expire(here, &entry);
            }
        });
    }

    fn start(&self) -> BoxFuture<'_, Result<(), BuiltinError>> {
        Box::pin(async {
            let Some(me) = self.me.upgrade() else { return Ok(()) };
            let following = self.me.clone();
            match &self.kept {
                Kept::Here(here) => {
                    let mut watch = here
                        .folder
                        .watch()
                        .map_err(|error| BuiltinError::failed("could not watch the folder of configurations", error))?;
                    tokio::spawn(async move {
                        while me.stop.run_until_cancelled(watch.settled()).await.is_some() {
                            if let Kept::Here(here) = &me.kept {
                                me.reread(here);
                            }
                        }
                    });
                }
                Kept::Elsewhere(remote) => remote.follow(move |event| {
                    let Some(me) = following.upgrade().filter(|me| !me.stop.is_cancelled()) else { return };
                    let kind = serde_json::from_value::<Change>(event["event_type"].clone());
                    let (Ok(change), Ok(entry)) = (kind, serde_json::from_value::<Entry>(event.clone())) else {
                        return;
                    };
                    me.tell(change, &entry, &event["old_value"], &event["new_value"], &Trace::default());
                }),
            }
            Ok(())
        })
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        self.stop.cancel();
        Box::pin(async {})
    }
}

fn expanded(value: &Value) -> Value {
    expand(value, &|name| std::env::var(name).ok())
}
