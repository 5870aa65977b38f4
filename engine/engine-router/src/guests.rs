//! What a worker inside one of our VMs may not do: it runs code that nobody vouches for, and the daemons' functions
//! act on the host.

use engine_protocol::{ErrorBody, RegisterTrigger};

use serde_json::Value;

use crate::router::{ConnId, Router};

/// Functions of our daemons: a guest neither offers nor replaces them.
const DAEMONS: [&str; 3] = ["worker::", "sandbox::", "snapshot::"];

/// Of those that act on the host, what tells and changes nothing.
const HARMLESS: [&str; 6] = [
    "worker::list",
    "worker::status",
    "worker::schema",
    "configuration::get",
    "configuration::list",
    "configuration::schema",
];

/// Functions that run, change or reach what is not the guest's.
const ACTS_ON_HOST: [&str; 3] = ["worker::", "configuration::", "bridge."];

impl Router {
    pub(crate) fn is_guest(&self, conn: ConnId) -> bool {
        self.connections.get(&conn).is_some_and(|connection| connection.vm_worker.is_some())
    }

    /// `worker::add` reads any folder of the host, its kin start and stop others' workers, settings are everybody's, and
    /// a bridge speaks with the engine's own rights elsewhere.
    pub(crate) fn refuse_call(&self, conn: ConnId, function_id: &str) -> Option<ErrorBody> {
        let acts_on_host = ACTS_ON_HOST.iter().any(|prefix| function_id.starts_with(prefix));
        let acts_on_host = acts_on_host && !HARMLESS.contains(&function_id);
        (acts_on_host && self.is_guest(conn)).then(|| {
            let message = format!("`{function_id}` acts on the host: workers inside VMs may not call it");
            ErrorBody::new("FORBIDDEN", message)
        })
    }

    /// Else a guest would answer others' `sandbox::run` or `state::get`, with their code and data before it.
    pub(crate) fn refuse_registration(&self, conn: ConnId, function_id: &str) -> bool {
        let providers = self.functions.get(function_id).into_iter().flatten();
        let stands_in = providers.into_iter().any(|provider| self.is_builtin(provider.conn));
        (stands_in || DAEMONS.iter().any(|prefix| function_id.starts_with(prefix))) && self.is_guest(conn)
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
        let called = if self.is_guest(conn) { called_by(trigger) } else { Vec::new() };
        self.refuse_call(conn, function).or_else(|| called.iter().find_map(|called| self.refuse_call(conn, called)))
    }

    /// Whether a binding is out of this guest's reach.
    pub(crate) fn is_foreign_trigger(&self, conn: ConnId, id: &str) -> bool {
        self.triggers.get(id).is_some_and(|stored| self.is_foreign(conn, stored.owner))
    }

    /// Whether `conn` is a guest and `owner` somebody else. An older connection of the same VM is not: a worker that
    /// comes back registers everything again before the engine has noticed that it was gone.
    fn is_foreign(&self, conn: ConnId, owner: ConnId) -> bool {
        let vm = |conn| self.connections.get(&conn).and_then(|connection| connection.vm_worker.as_deref());
        conn != owner && self.is_guest(conn) && vm(conn) != vm(owner)
    }
}

/// The functions that a binding's configuration names.
fn called_by(trigger: &RegisterTrigger) -> Vec<String> {
    let config = trigger.config.as_ref().and_then(|config| serde_json::from_str(config.get()).ok());
    let config: Value = config.unwrap_or_default();
    let condition = config["condition_function_id"].as_str();
    let middleware = config["middleware_function_ids"].as_array().into_iter().flatten().filter_map(Value::as_str);
    condition.into_iter().chain(middleware).map(ToOwned::to_owned).collect()
}
