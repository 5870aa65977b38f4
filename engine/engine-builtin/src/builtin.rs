//! The trait of built-in workers.

use engine_protocol::{ErrorBody, RegisterFunction, RegisterTriggerType};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Value;
use uuid::Uuid;

use crate::call::{Call, Reply, no_function};

/// A worker's settings: its block of config.yaml, or what the `configuration` worker has stored since.
pub type Settings = Value;

/// One function bound to a trigger type.
#[derive(Debug, Clone)]
pub struct Binding {
    /// The binding's id; the same one again replaces it.
    pub id: String,
    pub trigger_type: String,
    /// What is to be called when it fires. It need not exist yet.
    pub function_id: String,
    /// `null` where none was given.
    pub config: Value,
    /// The worker that asked for it; none for the engine itself.
    pub owner: Option<Uuid>,
    /// The VM it runs in, by the name that we have given it. What it costs is counted for all connections of a VM together.
    pub vm: Option<String>,
}

/// Why a built-in worker does not start, or does not take new settings. The engine says whose error it is.
#[derive(Debug, thiserror::Error)]
pub enum BuiltinError {
    #[error("{0}")]
    Settings(String),
    #[error("{what}")]
    Failed { what: String, source: Box<dyn std::error::Error + Send + Sync> },
}

impl BuiltinError {
    pub fn failed(what: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Failed { what: what.into(), source: source.into() }
    }
}

/// A worker in the engine's own process.
///
/// Its crate has `create(engine, settings)`, which opens what must be there before it can answer, and `schema()`, what
/// its settings look like.
pub trait Builtin: Send + Sync + 'static {
    /// As in config.yaml.
    fn name(&self) -> &'static str;

    fn functions(&self) -> Vec<RegisterFunction> {
        Vec::new()
    }

    fn trigger_types(&self) -> Vec<RegisterTriggerType> {
        Vec::new()
    }

    /// Answers a call of one of its functions. Runs where the call arrived: what waits is returned as [`Reply::Later`].
    fn call(&self, call: Call) -> Reply {
        Reply::Now(Err(no_function(self.name(), &call.function_id)))
    }

    /// A function was bound to one of its trigger types. Under the router's lock: see the crate's front page.
    ///
    /// # Errors
    /// Why not, `trigger_registration_failed` as a rule; the binding is then forgotten, and its worker told.
    fn bind(&self, binding: Binding) -> Result<(), ErrorBody> {
        let _ = binding;
        Ok(())
    }

    /// A binding has gone; it may be one that was refused. Under the router's lock, too.
    fn unbind(&self, trigger_type: &str, id: &str) {
        let _ = (trigger_type, id);
    }

    /// Begins what goes on by itself: listeners, consumers. Its functions can be called by now.
    fn start(&self) -> BoxFuture<'_, Result<(), BuiltinError>> {
        async { Ok(()) }.boxed()
    }

    /// Takes new settings; one at a time. On an error the ones before stay in use.
    fn apply(&self, settings: Settings) -> BoxFuture<'_, Result<(), BuiltinError>> {
        let _ = settings;
        async { Ok(()) }.boxed()
    }

    /// Ends everything [`start`](Self::start) began, and writes what is not yet written.
    fn stop(&self) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Trace;

    struct Idle;

    impl Builtin for Idle {
        fn name(&self) -> &'static str {
            "iii-idle"
        }
    }

    #[test]
    fn a_worker_without_functions_says_so_when_it_is_called() {
        assert!(Idle.functions().is_empty());
        let call = Call { function_id: "x".into(), data: None, trace: Trace::default(), caller: None };
        let Reply::Now(Err(error)) = Idle.call(call) else { panic!("an error, at once") };
        assert_eq!(
            (error.code.as_str(), error.message.as_str()),
            ("function_not_found", "iii-idle has no function `x`")
        );
    }
}
