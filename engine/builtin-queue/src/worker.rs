//! The worker: its functions, its bindings, and the adapter in use.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine_builtin::{
    Binding, BoxFuture, Builtin, BuiltinError, Call, Engine, ErrorBody, RegisterFunction, RegisterTriggerType, Reply,
    Settings,
};
use futures_util::FutureExt;
use serde_json::Value;

use crate::NAME;
use crate::bridge::BridgeBroker;
use crate::broker::{Broker, QueueError};
use crate::functions;
use crate::message::MAX_NAME_BYTES;
use crate::rabbitmq::RabbitMqBroker;
use crate::redis::RedisBroker;
use crate::settings::{Adapter, QueueSettings, QueueWorkerSettings, SettingsError, parse_trigger};
use crate::store::StoreBroker;

pub(crate) struct QueueWorker {
    engine: Engine,
    state: Mutex<State>,
}

struct State {
    settings: QueueWorkerSettings,
    broker: Arc<dyn Broker>,
    bindings: Bindings,
    started: bool,
}

#[derive(Default)]
struct Bindings {
    by_id: BTreeMap<String, Bound>,
    /// Grows with every binding: of several of one function, the last one counts.
    last: u64,
}

struct Bound {
    number: u64,
    topic: String,
    function_id: String,
    config: Value,
}

impl QueueWorker {
    /// # Errors
    /// Settings that do not fit, or an adapter that cannot be reached.
    pub(crate) async fn create(engine: Engine, settings: &Settings) -> Result<Arc<Self>, BuiltinError> {
        let settings = QueueWorkerSettings::parse(settings).map_err(|error| refused(&error))?;
        let broker = broker(&engine, &settings.adapter).await?;
        broker.set_queues(&settings.queues);
        let state = State { settings, broker, bindings: Bindings::default(), started: false };
        Ok(Arc::new(Self { engine, state: Mutex::new(state) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The adapter in use, and a named queue's settings.
    pub(crate) fn queue(&self, name: &str) -> (Arc<dyn Broker>, Option<QueueSettings>) {
        let state = self.state();
        (Arc::clone(&state.broker), state.settings.queues.get(name).cloned())
    }

    pub(crate) fn broker(&self) -> Arc<dyn Broker> {
        Arc::clone(&self.state().broker)
    }
}

impl State {
    /// Tells the adapter how a function wants a topic's messages now.
    fn resubscribe(&self, topic: &str, function_id: &str) {
        let ours = self.bindings.by_id.values().filter(|it| it.topic == topic && it.function_id == function_id);
        let subscription = ours.max_by_key(|bound| bound.number).and_then(|bound| {
            // It was read when it was bound; only defaults are others now.
            parse_trigger(&bound.config, &self.settings.subscriptions).ok().map(|(_, subscription)| subscription)
        });
        self.broker.subscribe(topic, function_id, subscription);
    }

    fn resubscribe_all(&self) {
        let pairs = self.bindings.by_id.values().map(|bound| (bound.topic.as_str(), bound.function_id.as_str()));
        for (topic, function_id) in pairs.collect::<std::collections::BTreeSet<_>>() {
            self.resubscribe(topic, function_id);
        }
    }
}

impl Builtin for QueueWorker {
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
        functions::call(self, call)
    }

    fn bind(&self, binding: Binding) -> Result<(), ErrorBody> {
        let mut state = self.state();
        let state = &mut *state;
        let failed = |error: &dyn std::fmt::Display| ErrorBody::new("trigger_registration_failed", error.to_string());
        let parsed = parse_trigger(&binding.config, &state.settings.subscriptions);
        let (topic, _) = parsed.map_err(|error| failed(&error))?;
        let bytes = binding.function_id.len();
        if bytes > MAX_NAME_BYTES {
            return Err(failed(&QueueError::NameTooLong { what: "the function's id", bytes, limit: MAX_NAME_BYTES }));
        }
        let (function_id, config) = (binding.function_id, binding.config);
        state.bindings.last += 1;
        let bound = Bound { number: state.bindings.last, topic, function_id, config };
        let now = (bound.topic.clone(), bound.function_id.clone());
        let before = state.bindings.by_id.insert(binding.id, bound);
        let before = before.map(|before| (before.topic, before.function_id)).filter(|before| *before != now);
        // An empty topic never fires.
        for (topic, function_id) in [Some(now), before].into_iter().flatten().filter(|(topic, _)| !topic.is_empty()) {
            state.resubscribe(&topic, &function_id);
        }
        Ok(())
    }

    fn unbind(&self, _trigger_type: &str, id: &str) {
        let mut state = self.state();
        if let Some(bound) = state.bindings.by_id.remove(id)
            && !bound.topic.is_empty()
        {
            state.resubscribe(&bound.topic, &bound.function_id);
        }
    }

    fn start(&self) -> BoxFuture<'_, Result<(), BuiltinError>> {
        let broker = {
            let mut state = self.state();
            state.started = true;
            Arc::clone(&state.broker)
        };
        async move { broker.start().await.map_err(|error| BuiltinError::failed("the queues could not start", error)) }
            .boxed()
    }

    fn apply(&self, settings: Settings) -> BoxFuture<'_, Result<(), BuiltinError>> {
        async move {
            let settings = QueueWorkerSettings::parse(&settings).map_err(|error| refused(&error))?;
            let same_adapter = self.state().settings.adapter == settings.adapter;
            if same_adapter {
                let mut state = self.state();
                state.broker.set_queues(&settings.queues);
                let defaults = state.settings.subscriptions != settings.subscriptions;
                state.settings = settings;
                if defaults {
                    state.resubscribe_all();
                }
                return Ok(());
            }
            let new = broker(&self.engine, &settings.adapter).await?;
            new.set_queues(&settings.queues);
            let (old, started) = {
                let mut state = self.state();
                state.settings = settings;
                let old = std::mem::replace(&mut state.broker, Arc::clone(&new));
                state.resubscribe_all();
                (old, state.started)
            };
            if started {
                new.start().await.map_err(|error| BuiltinError::failed("the new adapter could not start", error))?;
            }
            old.stop().await;
            Ok(())
        }
        .boxed()
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        let broker = {
            let mut state = self.state();
            state.started = false;
            Arc::clone(&state.broker)
        };
        async move { broker.stop().await }.boxed()
    }
}

async fn broker(engine: &Engine, adapter: &Adapter) -> Result<Arc<dyn Broker>, BuiltinError> {
    let engine = Arc::clone(engine);
    let built: Result<Arc<dyn Broker>, QueueError> = match adapter {
        Adapter::Builtin(place) => StoreBroker::open(engine, place).map(|it| Arc::new(it) as _),
        Adapter::Redis { url } => RedisBroker::connect(engine, url).await.map(|it| Arc::new(it) as _),
        Adapter::RabbitMq { url } => RabbitMqBroker::connect(engine, url).await.map(|it| Arc::new(it) as _),
        Adapter::Bridge { url } => Ok(Arc::new(BridgeBroker::connect(engine, url))),
    };
    built.map_err(|error| BuiltinError::failed("the adapter of the queues cannot be used", error))
}

fn refused(error: &SettingsError) -> BuiltinError {
    BuiltinError::Settings(error.to_string())
}
