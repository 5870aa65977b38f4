//! Who may come in through a listener, and what is asked before their registrations take effect.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use axum::http::HeaderMap;
use engine_builtin::{Answer, BoxFuture, Invocation, Raw, Trace};
use engine_protocol::{ErrorBody, Message, RegisterFunction, RegisterTrigger, RegisterTriggerType, raw};
use engine_router::{ConnId, Policy, Session};
use futures_util::FutureExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::warn;

use crate::hub::{Hub, Request};
use crate::listener::{Listener, Rbac};

/// How long an authentication function or a hook may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Checks the `invocation` of a function, whose id comes first, that is an HTTP request.
pub(crate) type CheckRequest = Arc<dyn Fn(String, Raw) -> BoxFuture<'static, Result<Request, ErrorBody>> + Send + Sync>;

/// A request, and who found it allowed.
struct Checked {
    check: CheckRequest,
    request: Request,
}

/// Takes a telemetry frame.
pub(crate) type TakeTelemetry = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// What built-in workers do for connections; replaced as they come and go.
#[derive(Default)]
pub(crate) struct Services {
    telemetry: RwLock<Option<TakeTelemetry>>,
    requests: RwLock<Option<CheckRequest>>,
}

impl Services {
    pub(crate) fn set_telemetry(&self, take: Option<TakeTelemetry>) {
        *self.telemetry.write().unwrap_or_else(PoisonError::into_inner) = take;
    }

    pub(crate) fn set_requests(&self, check: Option<CheckRequest>) {
        *self.requests.write().unwrap_or_else(PoisonError::into_inner) = check;
    }

    pub(crate) fn telemetry(&self, frame: &[u8]) {
        let take = self.telemetry.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(take) = take {
            take(frame);
        }
    }

    fn requests(&self) -> Option<CheckRequest> {
        self.requests.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What a connection passes its messages through.
pub(crate) struct Access {
    services: Arc<Services>,
    rbac: Option<Arc<Rbac>>,
    context: Value,
}

/// What an authentication function answers.
#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Granted {
    allowed_functions: Option<HashSet<String>>,
    forbidden_functions: Option<HashSet<String>>,
    allowed_trigger_types: Option<HashSet<String>>,
    allow_trigger_type_registration: Option<bool>,
    allow_function_registration: Option<bool>,
    function_registration_prefix: Option<String>,
    context: Option<Value>,
}

impl Access {
    /// For listeners without rules.
    pub(crate) fn open(services: Arc<Services>) -> Self {
        Self { services, rbac: None, context: json!({}) }
    }

    /// Decides on a new connection.
    ///
    /// # Errors
    /// `AUTH_ERROR`: it is refused.
    pub(crate) async fn admit(
        hub: &Arc<Hub>,
        listener: &Listener,
        services: Arc<Services>,
        headers: &HeaderMap,
        query: &str,
        address: Option<&str>,
    ) -> Result<(Self, Session), ErrorBody> {
        let middleware = listener.middleware.clone();
        let Some(rbac) = &listener.rbac else {
            return Ok((Self::open(services), Session { policy: None, middleware }));
        };
        let granted = match &rbac.auth_function_id {
            Some(function_id) => {
                let request = json!({
                    "headers": header_map(headers), "query_params": query_map(query), "ip_address": address,
                });
                authenticate(hub, function_id, &request).await?
            }
            None => Granted { allow_trigger_type_registration: Some(true), ..Granted::default() },
        };
        let context = granted.context.unwrap_or_else(|| json!({}));
        let policy = Policy {
            allowed_functions: granted.allowed_functions.unwrap_or_default(),
            forbidden_functions: granted.forbidden_functions.unwrap_or_default(),
            expose: rbac.expose.clone(),
            allowed_trigger_types: granted.allowed_trigger_types,
            may_register_functions: granted.allow_function_registration.unwrap_or(true),
            may_register_trigger_types: granted.allow_trigger_type_registration.unwrap_or(false),
            prefix: granted.function_registration_prefix.filter(|prefix| !prefix.is_empty()),
            context: context.clone(),
        };
        let access = Self { services, rbac: Some(Arc::clone(rbac)), context };
        Ok((access, Session { policy: Some(Arc::new(policy)), middleware }))
    }

    pub(crate) fn telemetry(&self, frame: &[u8]) {
        self.services.telemetry(frame);
    }

    /// A message as the router is to see it; `None` when it is refused without a word, as the protocol has it.
    pub(crate) async fn pass(&self, hub: &Arc<Hub>, conn: ConnId, message: Message) -> Option<Message> {
        match message {
            Message::RegisterFunction(function) => self.function(hub, conn, *function).await,
            Message::RegisterTrigger(trigger) => self.trigger(hub, conn, *trigger).await,
            Message::RegisterTriggerType(kind) => self.trigger_type(hub, conn, kind).await,
            Message::UnregisterFunction(function) => {
                hub.set_request(conn, &function.id, None);
                Some(Message::UnregisterFunction(function))
            }
            other => Some(other),
        }
    }

    async fn function(&self, hub: &Arc<Hub>, conn: ConnId, mut function: RegisterFunction) -> Option<Message> {
        #[derive(Deserialize)]
        struct Hooked {
            function_id: Option<String>,
            description: Option<String>,
            metadata: Option<Raw>,
        }
        if let Some(hook) = self.rbac.as_ref().and_then(|rbac| rbac.on_function.as_ref()) {
            let asked = json!({
                "function_id": function.id, "description": function.description, "metadata": function.metadata,
                "context": self.context,
            });
            let said: Hooked = ask(hub, conn, hook, &asked).await?;
            function.id = said.function_id.unwrap_or(function.id);
            function.description = said.description.or(function.description);
            function.metadata = said.metadata.or(function.metadata);
        }
        let refused = |code: Option<&str>, reason: &str| {
            hub.log(conn, || warn!(conn = conn.0, function = function.id, code, reason, "not registered"));
        };
        match &function.invocation {
            None => hub.set_request(conn, &function.id, None),
            // It would speak from the host's address, with secrets of the engine's environment.
            Some(_) if hub.is_guest(conn) => {
                refused(None, "workers inside VMs have no HTTP functions");
                return None;
            }
            Some(invocation) => {
                let Some(check) = self.services.requests() else {
                    refused(None, "worker `iii-http-functions` is not in config.yaml");
                    return None;
                };
                match check(function.id.clone(), invocation.clone()).await {
                    Ok(request) => {
                        let checked = Checked { check, request };
                        let request = by_present_rules(Arc::clone(&self.services), checked, &function.id, invocation);
                        hub.set_request(conn, &function.id, Some(request));
                    }
                    Err(error) => {
                        refused(Some(&error.code), &error.message);
                        return None;
                    }
                }
            }
        }
        Some(Message::from(function))
    }

    async fn trigger(&self, hub: &Arc<Hub>, conn: ConnId, mut trigger: RegisterTrigger) -> Option<Message> {
        #[derive(Deserialize)]
        struct Hooked {
            trigger_id: Option<String>,
            trigger_type: Option<String>,
            function_id: Option<String>,
            config: Option<Raw>,
        }
        if let Some(hook) = self.rbac.as_ref().and_then(|rbac| rbac.on_trigger.as_ref()) {
            let asked = json!({
                "trigger_id": trigger.id, "trigger_type": trigger.trigger_type, "function_id": trigger.function_id,
                "config": trigger.config, "metadata": trigger.metadata, "context": self.context,
            });
            let said: Hooked = ask(hub, conn, hook, &asked).await?;
            trigger.id = said.trigger_id.unwrap_or(trigger.id);
            trigger.trigger_type = said.trigger_type.unwrap_or(trigger.trigger_type);
            trigger.function_id = said.function_id.unwrap_or(trigger.function_id);
            trigger.config = said.config.or(trigger.config);
        }
        Some(Message::from(trigger))
    }

    async fn trigger_type(&self, hub: &Arc<Hub>, conn: ConnId, mut kind: RegisterTriggerType) -> Option<Message> {
        #[derive(Deserialize)]
        struct Hooked {
            trigger_type_id: Option<String>,
            description: Option<String>,
        }
        if let Some(hook) = self.rbac.as_ref().and_then(|rbac| rbac.on_trigger_type.as_ref()) {
            let asked = json!({
                "trigger_type_id": kind.id, "description": kind.description, "context": self.context,
            });
            let said: Hooked = ask(hub, conn, hook, &asked).await?;
            kind.id = said.trigger_type_id.unwrap_or(kind.id);
            kind.description = said.description.or(kind.description);
        }
        Some(Message::RegisterTriggerType(kind))
    }
}

async fn authenticate(hub: &Arc<Hub>, function_id: &str, request: &Value) -> Result<Granted, ErrorBody> {
    let refused = |message: String| ErrorBody::new("AUTH_ERROR", message);
    let answer = call(hub, function_id, request).await.map_err(|error| refused(error.message))?;
    let answer = answer.filter(|answer| answer.get().starts_with('{'));
    let answer = answer.ok_or_else(|| refused("the authentication function returned no object".to_owned()))?;
    serde_json::from_str(answer.get())
        .map_err(|error| refused(format!("the authentication function's answer is not understood: {error}")))
}

/// Asks a hook about a registration of `conn`. Anything but an object refuses.
async fn ask<T: for<'a> Deserialize<'a>>(hub: &Arc<Hub>, conn: ConnId, hook: &str, asked: &Value) -> Option<T> {
    let reason = match call(hub, hook, asked).await {
        Ok(Some(answer)) if answer.get().starts_with('{') => match serde_json::from_str(answer.get()) {
            Ok(said) => return Some(said),
            Err(error) => error.to_string(),
        },
        Ok(_) => "it returned no object".to_owned(),
        Err(error) => error.message,
    };
    hub.log(conn, || warn!(conn = conn.0, hook, reason, "registration refused by its hook"));
    None
}

async fn call(hub: &Arc<Hub>, function_id: &str, payload: &Value) -> Answer {
    let data = raw(payload).map_err(|error| ErrorBody::new("serialization_error", error.to_string()))?;
    let invocation = Invocation { function_id: function_id.to_owned(), data, trace: Trace::default() };
    let slow =
        |_| Err(ErrorBody::new("TIMEOUT", format!("`{function_id}` did not answer within {} s", PATIENCE.as_secs())));
    tokio::time::timeout(PATIENCE, Arc::clone(hub).call(invocation)).await.unwrap_or_else(slow)
}

/// Names are in lower case already; values that are no text are left out.
fn header_map(headers: &HeaderMap) -> HashMap<&str, &str> {
    headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?))).collect()
}

/// Each key with all its values, as they are written.
fn query_map(query: &str) -> HashMap<&str, Vec<&str>> {
    let mut map: HashMap<&str, Vec<&str>> = HashMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        map.entry(key).or_default().push(value);
    }
    map
}

/// A request that obeys the rules that hold when it is called, not those that held when it was registered.
fn by_present_rules(services: Arc<Services>, checked: Checked, function_id: &str, invocation: &Raw) -> Request {
    let (function_id, invocation) = (function_id.to_owned(), invocation.clone());
    let checked = Arc::new(Mutex::new(checked));
    Arc::new(move |call| {
        let Some(check) = services.requests() else {
            let message =
                format!("`{function_id}` is an HTTP request, and `iii-http-functions` is not in config.yaml any more");
            return std::future::ready(Err(ErrorBody::new("function_not_found", message))).boxed();
        };
        {
            let checked = checked.lock().unwrap_or_else(PoisonError::into_inner);
            if Arc::ptr_eq(&checked.check, &check) {
                return (checked.request)(call);
            }
        }
        let checking = check(function_id.clone(), invocation.clone());
        let checked = Arc::clone(&checked);
        async move {
            let request = checking.await?;
            let answer = request(call);
            *checked.lock().unwrap_or_else(PoisonError::into_inner) = Checked { check, request };
            answer.await
        }
        .boxed()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_maps_each_key_to_its_values() {
        let map = query_map("tenant=blue&tag=a&tag=b%20c&flag&=x&&");
        assert_eq!(map["tenant"], ["blue"]);
        assert_eq!(map["tag"], ["a", "b%20c"]);
        assert_eq!(map["flag"], [""]);
        assert_eq!(map[""], ["x"]);
    }

    #[test]
    fn what_an_authentication_leaves_out_or_null_is_not_given() {
        let text = r#"{"allowed_functions":null,"context":null,"more":1}"#;
        let granted: Granted = serde_json::from_str(text).expect("an object");
        assert!(granted.allowed_functions.is_none() && granted.allow_function_registration.is_none());
        assert!(serde_json::from_str::<Granted>(r#"{"allowed_functions":"x"}"#).is_err());
    }
}
