//! What goes when a connection goes.

use engine_protocol::{ErrorBody, Reattach};

use crate::router::{ConnId, Effect, Router};

impl Router {
    /// Steps in the order of the protocol's section 9: nobody sees the worker gone before its things are.
    pub(crate) fn leave(&mut self, conn: ConnId) {
        let Some(connection) = self.connections.remove(&conn) else { return };
        self.functions_changed = true;
        self.functions.retain(|_, providers| {
            providers.retain(|provider| provider.conn != conn);
            !providers.is_empty()
        });
        let executed: Vec<_> =
            self.pending.iter().filter(|(_, pending)| pending.executor == conn).map(|(id, _)| *id).collect();
        for id in executed {
            let Some(pending) = self.pending.remove(&id) else { continue };
            self.landed(pending.from);
            self.counts.ended(false, self.now_us.saturating_sub(pending.since_us));
            let error = ErrorBody::new("invocation_stopped", "Invocation stopped");
            self.answer_caller(pending.caller, &pending.function_id, Err(error));
        }
        self.forgotten.left(conn);
        self.forget_calls(|pending| pending.from == Some(conn));
        let bound: Vec<String> =
            self.triggers.iter().filter(|(_, trigger)| trigger.owner == conn).map(|(id, _)| id.clone()).collect();
        for id in bound {
            self.remove_trigger(&id);
        }
        self.leave_trigger_types(conn);
        if connection.builtin.is_none() {
            self.counts.workers_left += 1;
            self.announce_worker("worker_disconnected", connection.worker);
        }
    }

    /// Retires the connection that a worker has lost, before anything else of its new one is handled. Ids are public,
    /// so nothing happens without the token.
    pub(crate) fn reattach(&mut self, conn: ConnId, reattach: &Reattach) {
        let Some(token) = &reattach.reattach_token else { return };
        let previous = self.connections.iter().find(|(id, old)| {
            **id != conn
                && old.builtin.is_none()
                && old.worker == reattach.previous_worker_id
                && old.reattach_token == *token
        });
        if let Some((previous, _)) = previous {
            let previous = *previous;
            // What it was asked on the old connection it may answer on the new one.
            let begun = self.pending.iter().filter(|(_, pending)| pending.executor == previous);
            let begun: Vec<_> = begun.map(|(id, _)| *id).collect();
            self.forgotten.moved(previous, conn);
            self.leave(previous);
            begun.into_iter().for_each(|id| self.forgotten.add(conn, id));
            self.effects.push(Effect::Close { conn: previous });
        }
    }
}
