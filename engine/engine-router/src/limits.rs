//! How much one connection may register: what it leaves here stays for as long as it is connected.

use engine_protocol::{ErrorBody, RegisterFunction, RegisterTrigger, RegisterTriggerType};
use serde_json::value::RawValue;

use crate::router::{ConnId, Effect, Router};

/// Largest registration: id, description, schemas and configuration together.
const MAX_REGISTRATION_BYTES: usize = 1024 * 1024;

struct Limits {
    functions: usize,
    trigger_types: usize,
    triggers: usize,
    /// Of all registrations together.
    bytes: usize,
}

/// So generous that only a program in a loop meets them.
const HOST: Limits = Limits { functions: 16_384, trigger_types: 4096, triggers: 65_536, bytes: 256 * 1024 * 1024 };

/// A guest may mean harm.
const GUEST: Limits = Limits { functions: 512, trigger_types: 64, triggers: 1024, bytes: 16 * 1024 * 1024 };

/// What a connection has registered.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    functions: usize,
    trigger_types: usize,
    triggers: usize,
    bytes: usize,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Thing {
    Function,
    TriggerType,
    Trigger,
}

/// How much memory a registration takes, about.
pub(crate) trait Weight {
    const THING: Thing;
    fn bytes(&self) -> usize;
}

impl Weight for RegisterFunction {
    const THING: Thing = Thing::Function;

    fn bytes(&self) -> usize {
        let Self { id, description, request_format, response_format, metadata, invocation } = self;
        let payloads = [request_format, response_format, metadata, invocation];
        id.len()
            + text(description.as_deref())
            + payloads.into_iter().map(|payload| raw(payload.as_deref())).sum::<usize>()
    }
}

impl Weight for RegisterTriggerType {
    const THING: Thing = Thing::TriggerType;

    fn bytes(&self) -> usize {
        let Self { id, description, trigger_request_format, call_request_format } = self;
        let formats = raw(trigger_request_format.as_deref()) + raw(call_request_format.as_deref());
        id.len() + text(description.as_deref()) + formats
    }
}

impl Weight for RegisterTrigger {
    const THING: Thing = Thing::Trigger;

    fn bytes(&self) -> usize {
        let Self { id, trigger_type, function_id, config, metadata } = self;
        id.len() + trigger_type.len() + function_id.len() + raw(config.as_deref()) + raw(metadata.as_deref())
    }
}

fn text(text: Option<&str>) -> usize {
    text.map_or(0, str::len)
}

fn raw(payload: Option<&RawValue>) -> usize {
    payload.map_or(0, |payload| payload.get().len())
}

impl Held {
    fn count(&mut self, thing: Thing) -> &mut usize {
        match thing {
            Thing::Function => &mut self.functions,
            Thing::TriggerType => &mut self.trigger_types,
            Thing::Trigger => &mut self.triggers,
        }
    }

    fn add(&mut self, thing: Thing, bytes: usize) {
        *self.count(thing) += 1;
        self.bytes += bytes;
    }

    fn take(&mut self, thing: Thing, bytes: usize) {
        let count = self.count(thing);
        *count = count.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// What of the limits is exceeded, if anything.
    fn exceeds(&self, limits: &Limits) -> Option<String> {
        [
            (self.functions, limits.functions, "functions"),
            (self.trigger_types, limits.trigger_types, "trigger types"),
            (self.triggers, limits.triggers, "triggers"),
            (self.bytes, limits.bytes, "bytes of registrations"),
        ]
        .into_iter()
        .find(|(held, limit, _)| held > limit)
        .map(|(_, limit, what)| format!("a connection may hold {limit} {what}"))
    }
}

impl Router {
    /// Counts a registration for `conn`, in place of its own `before`. When there is no room nothing has changed.
    pub(crate) fn make_room<T: Weight>(
        &mut self,
        conn: ConnId,
        before: Option<usize>,
        registration: &T,
    ) -> Result<(), ErrorBody> {
        let limits = if self.is_guest(conn) { GUEST } else { HOST };
        let refusal = |message| ErrorBody::new("limit_reached", message);
        let bytes = registration.bytes();
        if bytes > MAX_REGISTRATION_BYTES {
            let message = format!("a registration may have {MAX_REGISTRATION_BYTES} bytes, this one has {bytes}");
            return Err(refusal(message));
        }
        let Some(connection) = self.connections.get_mut(&conn) else { return Ok(()) };
        let mut held = connection.held.clone();
        if let Some(before) = before {
            held.take(T::THING, before);
        }
        held.add(T::THING, bytes);
        if let Some(message) = held.exceeds(&limits) {
            return Err(refusal(message));
        }
        connection.held = held;
        Ok(())
    }

    /// A registration that was counted has gone.
    pub(crate) fn give_back<T: Weight>(&mut self, conn: ConnId, registration: &T) {
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.held.take(T::THING, registration.bytes());
        }
    }

    /// For registrations to which the protocol has no answer.
    pub(crate) fn refuse(&mut self, conn: ConnId, error: ErrorBody) {
        self.effects.push(Effect::Refused { conn, error });
    }
}

#[cfg(test)]
mod tests;
