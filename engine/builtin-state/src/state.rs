//! The worker: calls in, answers out.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use engine_builtin::{
    Answer, Binding, BoxFuture, Builtin, BuiltinError, Call, Engine, ErrorBody, Raw, RegisterFunction,
    RegisterTriggerType, Reply, Settings, decode, encode,
};
use futures_util::FutureExt;
use tracing::warn;

use crate::NAME;
use crate::adapter::{Adapter, AdapterError, Write, Written};
use crate::events::Events;
use crate::functions::{
    self, Changed, DELETE, GET, Groups, LIST, LIST_GROUPS, ListRequest, Place, SET, SetRequest, UPDATE, UpdateRequest,
    failure,
};
use crate::settings::{AdapterConfig, Config};

/// Opens what keeps the values.
///
/// # Errors
/// The settings do not fit, the file cannot be opened, or Redis does not answer.
pub async fn create(engine: Engine, settings: Settings) -> Result<Arc<dyn Builtin>, BuiltinError> {
    let config = Config::parse(settings)?;
    let adapter = Adapter::open(&config.adapter).await?;
    let state = State {
        adapter: Arc::new(adapter),
        in_use: config.adapter,
        events: Events::new(engine, config.triggers_enabled),
        max_value_bytes: AtomicUsize::new(config.max_value_bytes),
        warned_of: Mutex::default(),
    };
    Ok(Arc::new(state))
}

struct State {
    adapter: Arc<Adapter>,
    in_use: AdapterConfig,
    events: Arc<Events>,
    max_value_bytes: AtomicUsize,
    /// The adapter that was asked for last and is not used before the engine is restarted.
    warned_of: Mutex<Option<AdapterConfig>>,
}

impl Builtin for State {
    fn name(&self) -> &'static str {
        NAME
    }

    fn functions(&self) -> Vec<RegisterFunction> {
        functions::all()
    }

    fn trigger_types(&self) -> Vec<RegisterTriggerType> {
        vec![functions::trigger_type()]
    }

    fn call(&self, call: Call) -> Reply {
        match call.function_id.as_str() {
            SET => self.set(&call),
            GET => self.get(&call),
            DELETE => self.delete(&call),
            UPDATE => self.update(&call),
            LIST => self.list(&call),
            LIST_GROUPS => self.list_groups(),
            other => Reply::Now(Err(ErrorBody::new("function_not_found", format!("{NAME} has no `{other}`")))),
        }
    }

    fn bind(&self, binding: Binding) -> Result<(), ErrorBody> {
        self.events.bind(binding)
    }

    fn unbind(&self, _trigger_type: &str, id: &str) {
        self.events.unbind(id);
    }

    fn apply(&self, settings: Settings) -> BoxFuture<'_, Result<(), BuiltinError>> {
        async {
            let config = Config::parse(settings)?;
            self.events.enable(config.triggers_enabled);
            self.max_value_bytes.store(config.max_value_bytes, Ordering::Relaxed);
            self.warn_of_another(config.adapter);
            Ok(())
        }
        .boxed()
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        self.events.stop().boxed()
    }
}

impl State {
    fn set(&self, call: &Call) -> Reply {
        let SetRequest { scope, key, value } = match decode(call) {
            Ok(request) => request,
            Err(error) => return Reply::Now(Err(error)),
        };
        let (bytes, limit) = (value.get().len(), self.max_value_bytes.load(Ordering::Relaxed));
        if bytes > limit {
            let message = format!("the value has {bytes} bytes, and at most {limit} are allowed (`max_value_bytes`)");
            return Reply::Now(Err(ErrorBody::new("VALUE_TOO_LARGE", message)));
        }
        let (adapter, write) = self.write(Place { scope, key }, call);
        Reply::later(async move { changed(adapter.set(write, value).await, "SET_ERROR") })
    }

    fn update(&self, call: &Call) -> Reply {
        let UpdateRequest { scope, key, ops } = match decode(call) {
            Ok(request) => request,
            Err(error) => return Reply::Now(Err(error)),
        };
        let limit = self.max_value_bytes.load(Ordering::Relaxed);
        let (adapter, write) = self.write(Place { scope, key }, call);
        Reply::later(async move { changed(adapter.update(write, ops, limit).await, "UPDATE_ERROR") })
    }

    fn delete(&self, call: &Call) -> Reply {
        let place = match decode(call) {
            Ok(place) => place,
            Err(error) => return Reply::Now(Err(error)),
        };
        let (adapter, write) = self.write(place, call);
        Reply::later(async move {
            let mut written = adapter.delete(write).await.map_err(|error| failure("DELETE_ERROR", &error))?;
            written.fire();
            Ok(written.old)
        })
    }

    fn get(&self, call: &Call) -> Reply {
        let place = match decode(call) {
            Ok(place) => place,
            Err(error) => return Reply::Now(Err(error)),
        };
        let found = |found: Result<Option<Raw>, AdapterError>| found.map_err(|error| failure("GET_ERROR", &error));
        match self.adapter.get_now(&place) {
            Some(answer) => Reply::Now(found(answer)),
            None => {
                let adapter = Arc::clone(&self.adapter);
                Reply::later(async move { found(adapter.get(place).await) })
            }
        }
    }

    fn list(&self, call: &Call) -> Reply {
        let ListRequest { scope } = match decode(call) {
            Ok(request) => request,
            Err(error) => return Reply::Now(Err(error)),
        };
        let adapter = Arc::clone(&self.adapter);
        Reply::later(async move { adapter.list(scope).await.map(Some).map_err(|error| failure("LIST_ERROR", &error)) })
    }

    fn list_groups(&self) -> Reply {
        let adapter = Arc::clone(&self.adapter);
        Reply::later(async move {
            let groups = adapter.list_groups().await.map_err(|error| failure("LIST_GROUPS_ERROR", &error))?;
            encode(&Groups { groups })
        })
    }

    fn write(&self, place: Place, call: &Call) -> (Arc<Adapter>, Write) {
        let write = Write { place: Arc::new(place), trace: call.trace.clone(), events: Arc::clone(&self.events) };
        (Arc::clone(&self.adapter), write)
    }

    fn warn_of_another(&self, adapter: AdapterConfig) {
        let mut warned_of = self.warned_of.lock().unwrap_or_else(PoisonError::into_inner);
        if adapter == self.in_use {
            *warned_of = None;
        } else if warned_of.as_ref() != Some(&adapter) {
            warn!("the new `adapter` of {NAME} is used when the engine is restarted");
            *warned_of = Some(adapter);
        }
    }
}

/// Tells the handlers and the caller what was written.
fn changed(written: Result<Written, AdapterError>, code: &str) -> Answer {
    let mut written = written.map_err(|error| failure(code, &error))?;
    written.fire();
    let Written { old, new, errors, .. } = &written;
    encode(&Changed { old_value: old.as_deref(), new_value: new.as_deref(), errors: errors.as_deref() })
}
