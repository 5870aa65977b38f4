//! What a worker inside one of our VMs may not do: it runs code that nobody vouches for, and the daemons' functions
//! act on the host.

use engine_protocol::{ErrorBody, Payload, RegisterTrigger, is_builtin};
use serde::Deserialize;
use serde_json::Value;

use crate::invoke::refuse_private;
use crate::router::{ConnId, Router};

/// Functions of our daemons and built-in workers: a guest neither offers nor replaces them, whether or not they are there
/// at the moment. `stream::set(orders)` and its kin stand in for the storage of everybody's `orders`.
const OURS: [&str; 9] =
    ["worker::", "sandbox::", "snapshot::", "configuration::", "state::", "stream::", "iii::", "bridge.", "publish"];

/// Of those that act on the host, what tells and changes nothing.
const HARMLESS: [&str; 3] = ["worker::list", "worker::status", "worker::schema"];

/// Functions that run or reach what is not the guest's.
const ACTS_ON_HOST: [&str; 2] = ["worker::", "bridge."];

impl Router {
    pub(crate) fn is_guest(&self, conn: ConnId) -> bool {
        self.connections.get(&conn).is_some_and(|connection| connection.vm_worker.is_some())
    }

    /// `worker::add` reads any folder of the host, its kin start and stop others' workers, and a bridge speaks with the
    /// engine's own rights elsewhere.
    pub(crate) fn refuse_call(&self, conn: ConnId, function_id: &str) -> Option<ErrorBody> {
        let acts_on_host = ACTS_ON_HOST.iter().any(|prefix| function_id.starts_with(prefix));
        let acts_on_host = acts_on_host && !HARMLESS.contains(&function_id);
        (acts_on_host && self.is_guest(conn)).then(|| {
            let message = format!("`{function_id}` acts on the host: workers inside VMs may not call it");
            ErrorBody::new("FORBIDDEN", message)
        })
    }

    /// Settings of built-in workers have addresses and passwords in them, and say where the engine listens: a guest has
    /// entries of its own.
    pub(crate) fn refuse_settings(&self, conn: ConnId, function_id: &str, data: Option<&Payload>) -> Option<ErrorBody> {
        #[derive(Deserialize)]
        struct Named {
            id: Option<String>,
        }
        if !function_id.starts_with("configuration::") || !self.is_guest(conn) {
            return None;
        }
        let named =
            data.and_then(|data| serde_json::from_slice::<Named>(data.as_bytes()).ok()).and_then(|named| named.id);
        named.filter(|id| is_ours(id)).map(|id| {
            let message = format!("configuration `{id}` is the engine's: workers inside VMs may not use it");
            ErrorBody::new("FORBIDDEN", message)
        })
    }

    /// Else a guest would answer others' `sandbox::run` or `state::get`, with their code and data before it, or decide who
    /// may come in.
    pub(crate) fn refuse_registration(&self, conn: ConnId, function_id: &str) -> bool {
        let mut providers = self.functions.get(function_id).into_iter().flatten();
        self.is_guest(conn)
            && (OURS.iter().any(|prefix| function_id.starts_with(prefix))
                || self.protected.contains(function_id)
                || providers.any(|provider| !self.is_guest(provider.conn)))
    }

    /// Else a guest would be told what others have bound, secrets in it, and could refuse it.
    pub(crate) fn refuse_trigger_type(&self, conn: ConnId, id: &str) -> Option<ErrorBody> {
        let mut providers = self.trigger_types.get(id).into_iter().flatten();
        providers.any(|known| self.is_foreign(conn, known.owner)).then(|| {
            let message = format!("trigger type `{id}` has a provider: workers inside VMs may not replace it");
            ErrorBody::new("FORBIDDEN", message)
        })
    }

    /// A guest changes no binding but its own, and has nobody else call what it may not call itself: a provider calls
    /// in its own name, which the engine's functions go by.
    pub(crate) fn refuse_trigger(&self, conn: ConnId, trigger: &RegisterTrigger) -> Option<ErrorBody> {
        let forbidden = |message: String| Some(ErrorBody::new("FORBIDDEN", message));
        if self.is_foreign_trigger(conn, &trigger.id) {
            return forbidden(format!("trigger `{}` is another worker's", trigger.id));
        }
        let function = &trigger.function_id;
        if function.starts_with("engine::") && self.is_guest(conn) {
            return forbidden(format!("`{function}` is the engine's: workers inside VMs may not bind it"));
        }
        // Conditions and middleware are called as well.
        let called = called_by(trigger);
        let refusal = std::iter::once(function).chain(&called).find_map(|called| {
            refuse_private(called)
                .or_else(|| self.refuse_call(conn, called))
                .or_else(|| self.refuse_binding(conn, called))
        });
        if refusal.is_some() || trigger.trigger_type != "configuration" || !self.is_guest(conn) {
            return refusal;
        }
        let own = named(trigger, "configuration_id").is_some_and(|id| !id.is_empty() && !is_ours(&id));
        let message = "workers inside VMs follow one entry of their own: `configuration_id` names it".to_owned();
        if own { None } else { forbidden(message) }
    }

    /// Whether a binding is out of this worker's reach: a guest's, or one of a guarded listener.
    pub(crate) fn is_foreign_trigger(&self, conn: ConnId, id: &str) -> bool {
        self.triggers
            .get(id)
            .is_some_and(|stored| self.is_foreign(conn, stored.owner) || self.is_other_tenant(conn, stored.owner))
    }

    /// Whether `conn` is a guest and `owner` somebody else. An older connection of the same VM is not: a worker that
    /// comes back registers everything again before the engine has noticed that it was gone.
    pub(crate) fn is_foreign(&self, conn: ConnId, owner: ConnId) -> bool {
        let vm = |conn| self.connections.get(&conn).and_then(|connection| connection.vm_worker.as_deref());
        conn != owner && self.is_guest(conn) && vm(conn) != vm(owner)
    }
}

/// Whether an entry of `configuration` has a built-in worker's settings.
fn is_ours(id: &str) -> bool {
    id == "configuration" || is_builtin(id)
}

fn config(trigger: &RegisterTrigger) -> Value {
    let config = trigger.config.as_ref().and_then(|config| serde_json::from_str(config.get()).ok());
    config.unwrap_or_default()
}

fn named(trigger: &RegisterTrigger, key: &str) -> Option<String> {
    config(trigger)[key].as_str().map(ToOwned::to_owned)
}

/// The functions that a binding's configuration names.
fn called_by(trigger: &RegisterTrigger) -> Vec<String> {
    // Most name none, and need not be parsed to see that.
    let text = trigger.config.as_ref().map_or("", |config| config.get());
    if !text.contains("_function_id") && !text.contains('\\') {
        return Vec::new();
    }
    let config = config(trigger);
    let condition = config["condition_function_id"].as_str();
    let middleware = config["middleware_function_ids"].as_array().into_iter().flatten().filter_map(Value::as_str);
    condition.into_iter().chain(middleware).map(ToOwned::to_owned).collect()
}
