//! The engine's own functions: who is there, what can be called, what is bound.

use std::ops::Bound;

use engine_protocol::{ErrorBody, Payload, raw};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::router::{ConnId, Connection, Effect, Metadata, Provider, Router};
use crate::triggers::{FUNCTIONS_AVAILABLE, Trigger, TriggerType, WORKERS_AVAILABLE, is_builtin};

/// The name under which the engine's own functions are listed.
const BUILTIN_WORKER: &str = "iii-engine-functions";

/// Built-in workers that are not behind a connection: they are part of every engine.
const ALWAYS: [&str; 3] = [BUILTIN_WORKER, "iii-telemetry", "iii-worker-manager"];

/// The functions that [`Router::own`] answers.
const BUILTINS: [(&str, &str); 11] = [
    ("engine::channels::create", "Creates a data channel and returns its two ends"),
    ("engine::functions::list", "Lists functions"),
    ("engine::functions::info", "Describes one function"),
    ("engine::triggers::list", "Lists trigger types"),
    ("engine::trigger-types::list", "Lists trigger types (older name)"),
    ("engine::triggers::info", "Describes one trigger type"),
    ("engine::registered-triggers::list", "Lists triggers"),
    ("engine::registered-triggers::info", "Describes one trigger"),
    ("engine::workers::list", "Lists workers"),
    ("engine::workers::info", "Describes one worker and what it provides"),
    ("engine::workers::register", "Takes what a worker says about itself"),
];

/// Longest name or description that is kept, in characters.
const MAX_TEXT: usize = 280;

/// What `engine::*` functions are asked with; each uses some of it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Question {
    search: Option<String>,
    prefix: Option<String>,
    worker: Option<String>,
    include_internal: Option<bool>,
    function_id: Option<String>,
    trigger_type: Option<String>,
    id: Option<String>,
    name: Option<String>,
    runtime: Option<String>,
    status: Option<String>,
    buffer_size: Option<u64>,
}

/// Whether the engine itself answers calls of this function.
pub(crate) fn is_own(id: &str) -> bool {
    id.starts_with("engine::") && BUILTINS.iter().any(|(own, _)| *own == id)
}

/// A function as lists show it; written as it is, since there may be many.
#[derive(Serialize)]
struct FunctionSummary<'a> {
    function_id: &'a str,
    worker_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct FunctionList<'a> {
    functions: Vec<FunctionSummary<'a>>,
}

type Outcome = Result<Value, ErrorBody>;

fn not_found(what: &str, name: &str) -> ErrorBody {
    ErrorBody::new("NOT_FOUND", format!("there is no {what} `{name}`"))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unwritable(error: serde_json::Error) -> ErrorBody {
    ErrorBody::new("serialization_error", error.to_string())
}

fn needed<'a>(field: &'static str, value: Option<&'a String>) -> Result<&'a str, ErrorBody> {
    let missing = || ErrorBody::new("deserialization_error", format!("field `{field}` is missing"));
    value.map(String::as_str).ok_or_else(missing)
}

impl Router {
    /// Answers a call of one of the engine's own functions.
    pub(crate) fn own(&mut self, conn: ConnId, answer_to: Option<Uuid>, id: &str, data: Option<&Payload>) {
        let text = data.map_or("{}", Payload::text);
        if id == "engine::workers::register" {
            let result = self.register_worker(conn, text);
            return self.answer_value(conn, answer_to, id, result);
        }
        let question: Result<Option<Question>, _> = serde_json::from_str(text);
        let question = match question {
            Ok(question) => question.unwrap_or_default(),
            Err(error) => {
                let error = ErrorBody::new("deserialization_error", format!("{id}: {error}"));
                return self.answer(conn, answer_to, id, Err(error));
            }
        };
        let result = match id {
            "engine::channels::create" => {
                let buffer = usize::try_from(question.buffer_size.unwrap_or(64).clamp(1, 1024)).unwrap_or(64);
                return self.effects.push(Effect::CreateChannel { conn, invocation: answer_to, buffer });
            }
            "engine::functions::list" => {
                let list = raw(&self.list_functions(conn, &question)).map(Some).map_err(unwritable);
                return self.answer(conn, answer_to, id, list);
            }
            "engine::functions::info" => self.function_info(conn, &question),
            "engine::triggers::list" | "engine::trigger-types::list" => Ok(self.list_trigger_types(&question)),
            "engine::triggers::info" => self.trigger_type_info(&question),
            "engine::registered-triggers::list" => Ok(self.list_triggers(conn, &question)),
            "engine::registered-triggers::info" => self.trigger_info(conn, &question),
            "engine::workers::list" => Ok(self.list_workers(&question)),
            "engine::workers::info" => self.worker_info(&question),
            _ => Err(ErrorBody::new("function_not_found", format!("function `{id}` is not registered"))),
        };
        self.answer_value(conn, answer_to, id, result);
    }

    fn answer_value(&mut self, conn: ConnId, answer_to: Option<Uuid>, id: &str, result: Outcome) {
        let result = result.and_then(|value| raw(&value).map(Some).map_err(unwritable));
        self.answer(conn, answer_to, id, result);
    }

    fn register_worker(&mut self, conn: ConnId, text: &str) -> Outcome {
        #[derive(Deserialize)]
        struct Said {
            name: Option<String>,
            description: Option<String>,
            runtime: Option<String>,
            version: Option<String>,
            os: Option<String>,
            pid: Option<u64>,
            isolation: Option<String>,
        }
        let said: Said = serde_json::from_str(text)
            .map_err(|error| ErrorBody::new("deserialization_error", format!("engine::workers::register: {error}")))?;
        let Some(connection) = self.connections.get_mut(&conn) else { return Ok(Value::Null) };
        let before = connection.metadata.take().unwrap_or_default();
        connection.metadata = Some(Metadata {
            name: said.name.and_then(|name| clean(&name)).or(before.name),
            description: said.description.and_then(|text| clean(&text)).or(before.description),
            runtime: said.runtime.and_then(|text| clean(&text)),
            version: said.version.and_then(|text| clean(&text)),
            os: said.os.and_then(|text| clean(&text)).or(before.os),
            pid: said.pid.or(before.pid),
            isolation: said.isolation.and_then(|text| clean(&text)).or(before.isolation),
        });
        let worker = connection.worker;
        self.announce_worker("worker_metadata_updated", worker);
        Ok(json!({ "success": true }))
    }

    fn worker_name(&self, conn: ConnId) -> Option<String> {
        self.connections.get(&conn).and_then(Connection::name)
    }

    fn provider_name(&self, provider: &Provider) -> String {
        self.worker_name(provider.conn).unwrap_or_else(|| before_colons(&provider.function.id))
    }

    fn listed<'a>(&self, provider: &'a Provider) -> FunctionSummary<'a> {
        FunctionSummary {
            function_id: &provider.function.id,
            worker_name: self.provider_name(provider),
            description: provider.function.description.as_deref(),
            metadata: provider.function.metadata.as_deref(),
        }
    }

    fn function_summary(&self, provider: &Provider) -> Value {
        // Strings and JSON that was parsed once.
        serde_json::to_value(self.listed(provider)).unwrap_or_default()
    }

    /// Of all functions, ours and internal ones included.
    pub(crate) fn function_summaries(&self) -> Vec<Value> {
        let live = self.functions.values().filter_map(|providers| providers.last());
        BUILTINS.iter().map(builtin_summary).chain(live.map(|provider| self.function_summary(provider))).collect()
    }

    /// Looks only at ids with the prefix, and summarises only what is asked for.
    fn list_functions(&self, conn: ConnId, question: &Question) -> FunctionList<'_> {
        let internal = question.include_internal.unwrap_or(false);
        let prefix = question.prefix.as_deref().unwrap_or_default();
        let search = question.search.as_ref().map(|search| search.to_lowercase());
        let found = |text: &str| search.as_ref().is_none_or(|search| text.to_lowercase().contains(search));
        let fits = |id: &str, description: Option<&str>| {
            id.starts_with(prefix) && (found(id) || description.is_some_and(found))
        };
        let of_worker = |name: &str| question.worker.as_ref().is_none_or(|worker| worker == name);
        let builtin = BUILTINS.iter().filter(|_| internal && of_worker(BUILTIN_WORKER));
        let builtin = builtin.filter(|(id, description)| fits(id, Some(description)) && self.may_call(conn, id));
        let live = self.functions.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        let live = live.take_while(|(id, _)| id.starts_with(prefix)).filter_map(|(_, providers)| providers.last());
        let live = live.filter(|provider| {
            fits(&provider.function.id, provider.function.description.as_deref())
                && (internal || !is_internal(provider))
                && self.may_call(conn, &provider.function.id)
                && (question.worker.is_none() || of_worker(&self.provider_name(provider)))
        });
        let builtin = builtin.map(|(id, description)| FunctionSummary {
            function_id: id,
            worker_name: BUILTIN_WORKER.to_owned(),
            description: Some(description),
            metadata: None,
        });
        let mut functions: Vec<_> = builtin.chain(live.map(|provider| self.listed(provider))).collect();
        functions.sort_by_key(|summary| summary.function_id);
        FunctionList { functions }
    }

    fn function_info(&self, conn: ConnId, question: &Question) -> Outcome {
        let id = needed("function_id", question.function_id.as_ref())?;
        if let Some(refusal) = self.refuse_by_policy(conn, id) {
            return Err(refusal);
        }
        self.function_detail(id).ok_or_else(|| not_found("function", id))
    }

    fn function_detail(&self, id: &str) -> Option<Value> {
        let bound: Vec<Value> = self
            .triggers
            .values()
            .filter(|stored| stored.trigger.function_id == id)
            .map(|stored| {
                let trigger = &stored.trigger;
                json!({ "id": trigger.id, "trigger_type": trigger.trigger_type, "config": trigger.config })
            })
            .collect();
        let mut detail = match self.functions.get(id).and_then(|providers| providers.last()) {
            Some(provider) => {
                let mut detail = self.function_summary(provider);
                set(&mut detail, "request_schema", provider.function.request_format.as_ref());
                set(&mut detail, "response_schema", provider.function.response_format.as_ref());
                detail
            }
            None => builtin_summary(BUILTINS.iter().find(|(builtin, _)| *builtin == id)?),
        };
        detail["registered_triggers"] = bound.into();
        Some(detail)
    }

    fn trigger_type_detail(&self, id: &str) -> Option<Value> {
        let count = self.triggers.values().filter(|stored| stored.trigger.trigger_type == id).count();
        if is_builtin(id) {
            return Some(json!({
                "id": id, "worker_name": BUILTIN_WORKER,
                "description": "Fires when what the engine knows changes", "instance_count": count,
            }));
        }
        let known = self.trigger_types.get(id)?.last()?;
        let mut detail = json!({
            "id": id,
            "worker_name": self.worker_name(known.owner).unwrap_or_else(|| before_colons(id)),
            "description": known.kind.description.clone().unwrap_or_default(),
            "instance_count": count,
        });
        set(&mut detail, "configuration_schema", known.kind.trigger_request_format.as_ref());
        set(&mut detail, "request_schema", known.kind.call_request_format.as_ref());
        Some(detail)
    }

    fn list_trigger_types(&self, question: &Question) -> Value {
        let internal = question.include_internal.unwrap_or(false);
        let builtin = [FUNCTIONS_AVAILABLE, WORKERS_AVAILABLE].into_iter().filter(|_| internal);
        let triggers: Vec<Value> = builtin
            .chain(self.trigger_types.keys().map(String::as_str))
            .filter_map(|id| self.trigger_type_detail(id))
            .filter(|detail| {
                matches(question.search.as_ref(), &[&detail["id"], &detail["description"]])
                    && starts(question.prefix.as_ref(), &detail["id"])
                    && equals(question.worker.as_ref(), &detail["worker_name"])
            })
            .map(|detail| {
                json!({
                    "id": detail["id"], "worker_name": detail["worker_name"], "description": detail["description"],
                })
            })
            .collect();
        json!({ "triggers": triggers })
    }

    fn trigger_type_info(&self, question: &Question) -> Outcome {
        let id = needed("id", question.id.as_ref())?;
        self.trigger_type_detail(id).ok_or_else(|| not_found("trigger type", id))
    }

    fn trigger_summary(&self, stored: &Trigger) -> Value {
        let trigger = &stored.trigger;
        let config = trigger.config.as_ref().map_or("null", |config| config.get());
        let mut summary: String = config.chars().take(80).collect();
        if summary.len() < config.len() {
            summary.push('…');
        }
        let worker = self.worker_name(stored.owner).unwrap_or_else(|| before_colons(&trigger.function_id));
        json!({
            "id": trigger.id, "trigger_type": trigger.trigger_type, "function_id": trigger.function_id,
            "worker_name": worker, "config": trigger.config, "config_summary": summary,
        })
    }

    /// Others' bindings may have secrets in their configuration: a guest does not see it.
    fn trigger_as_seen(&self, conn: ConnId, stored: &Trigger) -> Value {
        let mut summary = self.trigger_summary(stored);
        if self.is_foreign(conn, stored.owner) {
            summary["config"] = Value::Null;
            summary["config_summary"] = "".into();
        }
        summary
    }

    fn list_triggers(&self, conn: ConnId, question: &Question) -> Value {
        let internal = question.include_internal.unwrap_or(false);
        let triggers: Vec<Value> = self
            .triggers
            .values()
            .filter(|stored| internal || !stored.trigger.function_id.starts_with("engine::"))
            .map(|stored| self.trigger_as_seen(conn, stored))
            .filter(|summary| {
                matches(question.search.as_ref(), &[&summary["id"], &summary["function_id"]])
                    && equals(question.trigger_type.as_ref(), &summary["trigger_type"])
                    && equals(question.function_id.as_ref(), &summary["function_id"])
                    && equals(question.worker.as_ref(), &summary["worker_name"])
            })
            .collect();
        json!({ "registered_triggers": triggers })
    }

    fn trigger_info(&self, conn: ConnId, question: &Question) -> Outcome {
        let id = needed("id", question.id.as_ref())?;
        let stored = self.triggers.get(id).ok_or_else(|| not_found("trigger", id))?;
        let mut detail = self.trigger_as_seen(conn, stored);
        if let Some(object) = detail.as_object_mut() {
            object.remove("config_summary");
        }
        set(&mut detail, "metadata", stored.trigger.metadata.as_ref());
        detail["trigger"] = self.trigger_type_detail(&stored.trigger.trigger_type).into();
        detail["function"] = self.function_detail(&stored.trigger.function_id).into();
        Ok(detail)
    }

    fn worker_summary(&self, conn: ConnId, connection: &Connection) -> Value {
        let metadata = connection.metadata.clone().unwrap_or_default();
        let functions = self.functions.values().flatten().filter(|provider| provider.conn == conn).count();
        let active = self.pending.values().filter(|pending| pending.executor == conn).count();
        if let Some(name) = connection.builtin {
            return self.builtin_worker(name, functions, active);
        }
        json!({
            "name": connection.name(), "description": metadata.description, "version": metadata.version,
            "id": connection.worker, "runtime": metadata.runtime.unwrap_or_else(|| "unknown".into()),
            "os": metadata.os, "status": "connected", "function_count": functions,
            "connected_at_ms": connection.connected_at_ms, "active_invocations": active,
            "isolation": connection.isolation.clone().or(metadata.isolation), "ip_address": connection.address,
        })
    }

    fn builtin_worker(&self, name: &str, functions: usize, active: usize) -> Value {
        json!({
            "name": name, "description": Value::Null, "version": self.version, "id": name, "runtime": "engine",
            "os": Value::Null, "status": "available", "function_count": functions, "connected_at_ms": Value::Null,
            "active_invocations": active, "isolation": "in-process", "ip_address": Value::Null,
        })
    }

    /// A built-in worker that is not behind a connection.
    fn always(&self, name: &str) -> Value {
        self.builtin_worker(name, if name == BUILTIN_WORKER { BUILTINS.len() } else { 0 }, 0)
    }

    fn list_workers(&self, question: &Question) -> Value {
        let connected = self
            .connections
            .iter()
            .filter(|(_, connection)| {
                let metadata = connection.metadata.as_ref();
                connection.builtin.is_some() || metadata.is_some_and(|metadata| metadata.pid.is_some())
            })
            .map(|(conn, connection)| self.worker_summary(*conn, connection));
        let mut workers: Vec<Value> = connected
            .chain(ALWAYS.iter().map(|name| self.always(name)))
            .filter(|summary| {
                matches(question.search.as_ref(), &[&summary["name"], &summary["description"]])
                    && equals(question.runtime.as_ref(), &summary["runtime"])
                    && equals(question.status.as_ref(), &summary["status"])
            })
            .collect();
        let key = |worker: &Value| (worker["name"].to_string(), worker["id"].to_string());
        workers.sort_by_key(key);
        json!({ "workers": workers })
    }

    fn worker_info(&self, question: &Question) -> Outcome {
        let name = needed("name", question.name.as_ref())?;
        if ALWAYS.contains(&name) {
            let functions = BUILTINS.iter().filter(|_| name == BUILTIN_WORKER);
            let functions: Vec<Value> = functions.map(builtin_summary).collect();
            return Ok(json!({
                "worker": self.always(name), "functions": functions,
                "trigger_types": [], "registered_triggers": [],
            }));
        }
        // The newest connection of that name: an older one may be on its way out. Built-in workers come first.
        let named =
            || self.connections.iter().rev().filter(|(_, connection)| connection.name().as_deref() == Some(name));
        let found = named().find(|(_, connection)| connection.builtin.is_some()).or_else(|| named().next());
        let (conn, connection) = found.ok_or_else(|| not_found("worker", name))?;
        let mut worker = self.worker_summary(*conn, connection);
        worker["internal"] = connection.builtin.is_some().into();
        let gauges = self.gauges.as_ref().and_then(|gauges| gauges(connection.worker));
        set(&mut worker, "latest_metrics", gauges.as_ref());
        set(&mut worker, "pid", connection.metadata.as_ref().and_then(|metadata| metadata.pid).as_ref());
        let functions: Vec<Value> = self
            .functions
            .values()
            .flatten()
            .filter(|provider| provider.conn == *conn)
            .map(|provider| self.function_summary(provider))
            .collect();
        let serves = |providers: &[TriggerType]| providers.last().is_some_and(|known| known.owner == *conn);
        let kinds = self.trigger_types.iter().filter(|(_, providers)| serves(providers));
        let kinds: Vec<Value> = kinds.filter_map(|(id, _)| self.trigger_type_detail(id)).collect();
        let triggers = self.triggers.values().filter(|stored| stored.owner == *conn);
        let triggers: Vec<Value> = triggers.map(|stored| self.trigger_summary(stored)).collect();
        Ok(json!({
            "worker": worker, "functions": functions, "trigger_types": kinds, "registered_triggers": triggers,
        }))
    }
}

impl Connection {
    /// The VM's name for a VM's worker, whatever the worker says; else what it says.
    pub(crate) fn name(&self) -> Option<String> {
        let ours = self.builtin.map(ToOwned::to_owned).or_else(|| self.vm_worker.clone());
        ours.or_else(|| self.metadata.as_ref().and_then(|metadata| metadata.name.clone()))
    }
}

fn before_colons(id: &str) -> String {
    id.split("::").next().unwrap_or(id).to_owned()
}

fn builtin_summary((id, description): &(&str, &str)) -> Value {
    json!({ "function_id": id, "worker_name": BUILTIN_WORKER, "description": description })
}

fn is_internal(provider: &Provider) -> bool {
    let id = &provider.function.id;
    if id.starts_with("engine::") && !id.starts_with("engine::queue::") {
        return true;
    }
    let Some(metadata) = provider.function.metadata.as_ref().map(|metadata| metadata.get()) else { return false };
    // Most say nothing of it, and need not be parsed to see that.
    let said = metadata.contains("internal") || metadata.contains('\\');
    said && serde_json::from_str::<Value>(metadata).is_ok_and(|metadata| metadata["internal"] == true)
}

fn set(object: &mut Value, key: &str, value: Option<&impl serde::Serialize>) {
    if let Some(value) = value
        && let Ok(value) = serde_json::to_value(value)
    {
        object[key] = value;
    }
}

fn matches(search: Option<&String>, fields: &[&Value]) -> bool {
    let Some(search) = search.map(|search| search.to_lowercase()) else { return true };
    fields.iter().any(|field| field.as_str().is_some_and(|text| text.to_lowercase().contains(&search)))
}

fn starts(prefix: Option<&String>, field: &Value) -> bool {
    prefix.is_none_or(|prefix| field.as_str().is_some_and(|text| text.starts_with(prefix)))
}

fn equals(wanted: Option<&String>, field: &Value) -> bool {
    wanted.is_none_or(|wanted| field.as_str() == Some(wanted))
}

/// Text that will be shown to people: no control characters, no direction overrides, of bounded length.
fn clean(text: &str) -> Option<String> {
    let harmless = |c: &char| {
        !c.is_control() && !matches!(*c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
    };
    let cleaned: String = text.chars().filter(harmless).take(MAX_TEXT).collect();
    let trimmed = cleaned.trim();
    (!trimmed.is_empty()).then(|| trimmed.to_owned())
}
