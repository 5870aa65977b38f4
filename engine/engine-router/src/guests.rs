//! What a worker inside one of our VMs may not do: it runs code that nobody vouches for, and the daemons' functions
//! act on the host.

use engine_protocol::ErrorBody;

use crate::router::{ConnId, Router};

/// Functions of our daemons: a guest neither offers nor replaces them.
const DAEMONS: [&str; 2] = ["worker::", "sandbox::"];

/// Of `worker::*`, what tells and changes nothing.
const HARMLESS: [&str; 3] = ["worker::list", "worker::status", "worker::schema"];

impl Router {
    pub(crate) fn is_guest(&self, conn: ConnId) -> bool {
        self.connections.get(&conn).is_some_and(|connection| connection.vm_worker.is_some())
    }

    /// `worker::add` reads any folder of the host, and its kin start and stop others' workers.
    pub(crate) fn refuse_call(&self, conn: ConnId, function_id: &str) -> Option<ErrorBody> {
        let acts_on_host = function_id.starts_with("worker::") && !HARMLESS.contains(&function_id);
        (acts_on_host && self.is_guest(conn)).then(|| {
            let message = format!("`{function_id}` acts on the host: workers inside VMs may not call it");
            ErrorBody::new("FORBIDDEN", message)
        })
    }

    /// Else a guest would answer others' `sandbox::run`, with their code and data before it.
    pub(crate) fn refuse_registration(&self, conn: ConnId, function_id: &str) -> bool {
        DAEMONS.iter().any(|prefix| function_id.starts_with(prefix)) && self.is_guest(conn)
    }

    /// A guest changes no binding but its own.
    pub(crate) fn refuse_trigger(&self, conn: ConnId, trigger: &str) -> bool {
        self.triggers.get(trigger).is_some_and(|stored| stored.owner != conn) && self.is_guest(conn)
    }
}
