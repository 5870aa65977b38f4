//! Trigger types, and the functions bound to them.

use std::collections::HashSet;

use engine_protocol::{
    ErrorBody, InvokeFunction, Message, RegisterTrigger, RegisterTriggerType, TriggerRegistrationResult,
    UnregisterTrigger,
};
use serde_json::json;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::limits::Weight;
use crate::router::{ConnId, Effect, Router};

/// Always there; their provider is the engine.
pub(crate) const WORKERS_AVAILABLE: &str = "engine::workers-available";
pub(crate) const FUNCTIONS_AVAILABLE: &str = "engine::functions-available";

/// Types of built-in workers, and the worker's name: for whoever binds one that is not in the configuration.
const OF_BUILTINS: [(&str, &str); 11] = [
    ("configuration", "configuration"),
    ("http", "iii-http"),
    ("state", "iii-state"),
    ("stream", "iii-stream"),
    ("stream:join", "iii-stream"),
    ("stream:leave", "iii-stream"),
    ("durable:subscriber", "iii-queue"),
    ("subscribe", "iii-pubsub"),
    ("cron", "iii-cron"),
    ("log", "iii-observability"),
    ("trace", "iii-observability"),
];

/// Bindings of one connection to what the engine tells of itself.
const MAX_NEWS: usize = 8;

/// A kind of event that a worker provides.
pub(crate) struct TriggerType {
    pub(crate) owner: ConnId,
    pub(crate) kind: RegisterTriggerType,
}

/// One binding. It is kept while its type has no provider, and handed to the next one.
pub(crate) struct Trigger {
    pub(crate) owner: ConnId,
    pub(crate) trigger: RegisterTrigger,
}

pub(crate) fn is_builtin(kind: &str) -> bool {
    kind == WORKERS_AVAILABLE || kind == FUNCTIONS_AVAILABLE
}

impl Router {
    /// The latest provider of a type serves it. Those before it serve again when it leaves; until then they are told that
    /// their bindings have gone, so that an event fires once.
    pub(crate) fn register_trigger_type(&mut self, conn: ConnId, kind: RegisterTriggerType) {
        if kind.id.starts_with("engine::") || kind.id.is_empty() || !self.may_register_trigger_types(conn) {
            return;
        }
        let id = kind.id.clone();
        if let Some(error) = self.refuse_trigger_type(conn, &id) {
            return self.refuse(conn, error);
        }
        let providers = self.trigger_types.get(&id).into_iter().flatten();
        let before = providers.clone().find(|known| known.owner == conn).map(|known| known.kind.bytes());
        let served = providers.last().map(|known| known.owner);
        if let Err(error) = self.make_room(conn, before, &kind) {
            return self.refuse(conn, error);
        }
        let providers = self.trigger_types.entry(id.clone()).or_default();
        providers.retain(|known| known.owner != conn);
        providers.push(TriggerType { owner: conn, kind });
        if let Some(served) = served.filter(|served| *served != conn) {
            for (trigger, _) in self.bound_to(&id) {
                self.tell_unbound(served, id.clone(), trigger.id);
            }
        }
        self.hand_over(&id);
    }

    pub(crate) fn unregister_trigger_type(&mut self, conn: ConnId, id: &str) {
        let Some(providers) = self.trigger_types.get_mut(id) else { return };
        let Some(at) = providers.iter().position(|known| known.owner == conn) else { return };
        let served = at + 1 == providers.len();
        let gone = providers.remove(at);
        if providers.is_empty() {
            self.trigger_types.remove(id);
        }
        self.give_back(conn, &gone.kind);
        if served {
            self.hand_over(id);
        }
    }

    /// Takes a connection out of every type's providers.
    pub(crate) fn leave_trigger_types(&mut self, conn: ConnId) {
        let known =
            self.trigger_types.iter().filter(|(_, providers)| providers.iter().any(|known| known.owner == conn));
        let left: Vec<String> = known.map(|(id, _)| id.clone()).collect();
        for id in left {
            self.unregister_trigger_type(conn, &id);
        }
    }

    /// Gives a type's bindings to the provider that serves it now.
    fn hand_over(&mut self, id: &str) {
        let Some(provider) = self.provider(id) else { return };
        for (trigger, owner) in self.bound_to(id) {
            self.tell_bound(provider, trigger, owner);
        }
    }

    fn bound_to(&self, id: &str) -> Vec<(RegisterTrigger, ConnId)> {
        let bound = self.triggers.values().filter(|stored| stored.trigger.trigger_type == id);
        bound.map(|stored| (stored.trigger.clone(), stored.owner)).collect()
    }

    fn tell_bound(&mut self, provider: ConnId, trigger: RegisterTrigger, owner: ConnId) {
        if self.is_builtin(provider) {
            let owner = self.connections.get(&owner);
            let vm = owner.and_then(|connection| connection.vm_worker.clone());
            let owner = owner.map(|connection| connection.worker);
            self.effects.push(Effect::Bind { conn: provider, trigger, owner, vm });
        } else {
            self.send(provider, Message::from(trigger));
        }
    }

    fn tell_unbound(&mut self, provider: ConnId, trigger_type: String, id: String) {
        if self.is_builtin(provider) {
            self.effects.push(Effect::Unbind { conn: provider, trigger_type, id });
        } else {
            let message = UnregisterTrigger { id, trigger_type: Some(trigger_type) };
            self.send(provider, Message::UnregisterTrigger(message));
        }
    }

    /// Who serves a type.
    fn provider(&self, id: &str) -> Option<ConnId> {
        self.trigger_types.get(id).and_then(|providers| providers.last()).map(|known| known.owner)
    }

    pub(crate) fn register_trigger(&mut self, conn: ConnId, mut trigger: RegisterTrigger) {
        if !self.may_bind(conn, &trigger.trigger_type) {
            return;
        }
        trigger.function_id = self.prefixed(conn, trigger.function_id);
        let refusal = self.refuse_trigger(conn, &trigger).or_else(|| self.refuse_more_news(conn, &trigger));
        if let Some(error) = refusal {
            return self.answer_binding(conn, &trigger, error);
        }
        let kind = trigger.trigger_type.clone();
        let before = self.triggers.get(&trigger.id).filter(|stored| stored.owner == conn);
        if let Err(error) = self.make_room(conn, before.map(|stored| stored.trigger.bytes()), &trigger) {
            let error = ErrorBody::new("trigger_registration_failed", error.message);
            return self.answer_binding(conn, &trigger, error);
        }
        if let Some(provider) = self.provider(&kind) {
            self.tell_bound(provider, trigger.clone(), conn);
        } else if !is_builtin(&kind) {
            let message = match OF_BUILTINS.iter().find(|(known, _)| *known == kind) {
                Some((_, worker)) => {
                    format!("trigger type `{kind}` belongs to worker `{worker}`: add it to `workers` in config.yaml")
                }
                None => format!("no worker provides trigger type `{kind}`; it is bound when one does"),
            };
            self.answer_binding(conn, &trigger, ErrorBody::new("trigger_type_not_found", message));
        }
        if let Some(old) = self.triggers.insert(trigger.id.clone(), Trigger { owner: conn, trigger }) {
            if old.owner != conn {
                self.give_back(old.owner, &old.trigger);
            }
            // An id that moves to another type is not bound to the first any more.
            if old.trigger.trigger_type != kind
                && let Some(provider) = self.provider(&old.trigger.trigger_type)
            {
                self.tell_unbound(provider, old.trigger.trigger_type, old.trigger.id);
            }
        }
    }

    /// What the engine tells of itself has the whole list of functions in it, for each binding.
    fn refuse_more_news(&self, conn: ConnId, trigger: &RegisterTrigger) -> Option<ErrorBody> {
        if !is_builtin(&trigger.trigger_type) {
            return None;
        }
        let others = self.triggers.values().filter(|stored| {
            stored.owner == conn && is_builtin(&stored.trigger.trigger_type) && stored.trigger.id != trigger.id
        });
        (others.count() >= MAX_NEWS).then(|| {
            let message = format!("a connection may bind {MAX_NEWS} functions to `engine::*` events");
            ErrorBody::new("trigger_registration_failed", message)
        })
    }

    /// Only errors are answered.
    pub(crate) fn answer_binding(&mut self, conn: ConnId, trigger: &RegisterTrigger, error: ErrorBody) {
        let result = TriggerRegistrationResult {
            id: trigger.id.clone(),
            trigger_type: Some(trigger.trigger_type.clone()),
            function_id: Some(trigger.function_id.clone()),
            error: Some(error),
        };
        self.send(conn, Message::from(result));
    }

    pub(crate) fn unregister_trigger(&mut self, conn: ConnId, id: &str) {
        if !self.is_foreign_trigger(conn, id) {
            self.remove_trigger(id);
        }
    }

    pub(crate) fn remove_trigger(&mut self, id: &str) {
        let Some(stored) = self.triggers.remove(id) else { return };
        self.give_back(stored.owner, &stored.trigger);
        let kind = stored.trigger.trigger_type;
        if let Some(provider) = self.provider(&kind)
            && self.connections.contains_key(&provider)
        {
            self.tell_unbound(provider, kind, id.to_owned());
        }
    }

    /// What a provider says of a binding: only a refusal matters, and only from the provider.
    pub(crate) fn trigger_result(&mut self, conn: ConnId, result: TriggerRegistrationResult) {
        let Some(stored) = self.triggers.get(&result.id) else { return };
        let kind = &stored.trigger.trigger_type;
        if self.provider(kind) != Some(conn) || result.error.is_none() {
            return;
        }
        let (Some(error), Some(stored)) = (result.error, self.triggers.remove(&result.id)) else { return };
        self.give_back(stored.owner, &stored.trigger);
        // It may have had another binding of this id before.
        if self.is_builtin(conn) {
            self.tell_unbound(conn, stored.trigger.trigger_type.clone(), stored.trigger.id.clone());
        }
        if self.connections.contains_key(&stored.owner) {
            self.answer_binding(stored.owner, &stored.trigger, error);
        }
    }

    pub(crate) fn announce_worker(&mut self, event: &str, worker: Uuid) {
        self.fire(WORKERS_AVAILABLE, &json!({ "event": event, "worker_id": worker }));
    }

    /// Tells of the function list when it is another than the last one that was told.
    pub(crate) fn announce_functions(&mut self) {
        if !std::mem::take(&mut self.functions_changed) {
            return;
        }
        let now: HashSet<String> = self.functions.keys().cloned().collect();
        if now == self.announced {
            return;
        }
        self.announced = now;
        if self.triggers.values().any(|stored| stored.trigger.trigger_type == FUNCTIONS_AVAILABLE) {
            let functions = self.function_summaries();
            self.fire(FUNCTIONS_AVAILABLE, &json!({ "event": "functions_changed", "functions": functions }));
        }
    }

    fn fire(&mut self, kind: &str, payload: &serde_json::Value) {
        let bound: Vec<String> = self
            .triggers
            .values()
            .filter(|stored| stored.trigger.trigger_type == kind)
            .map(|stored| stored.trigger.function_id.clone())
            .collect();
        let Ok(payload) = RawValue::from_string(payload.to_string()) else { return };
        for function in bound {
            let call = InvokeFunction {
                invocation_id: None,
                function_id: function,
                data: Some(payload.clone().into()),
                traceparent: None,
                baggage: None,
                action: None,
                metadata: None,
            };
            self.call(Box::new(call), None);
        }
    }
}
