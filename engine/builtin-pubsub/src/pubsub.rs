//! The worker: its function, its trigger type, and what each message sets off.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine_builtin::{
    Answer, Binding, BoxFuture, Builtin, BuiltinError, Call, Deliveries, Engine, ErrorBody, Event, LogLimit,
    Overloaded, Raw, RegisterFunction, RegisterTriggerType, Reply, Settings, Trace, decode, name,
};
use futures_util::FutureExt;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::to_raw_value;
use tokio::sync::watch;

use crate::redis::Redis;
use crate::settings::{self, AdapterSettings};
use crate::subscriptions::Subscriptions;

pub(crate) struct PubSub {
    shared: Arc<Shared>,
    current: Mutex<Current>,
}

struct Current {
    settings: AdapterSettings,
    adapter: Adapter,
}

#[derive(Clone)]
enum Adapter {
    Local,
    Redis(Arc<Redis>),
}

/// What adapters deliver to.
pub(crate) struct Shared {
    engine: Engine,
    deliveries: Deliveries,
    subscriptions: Mutex<Subscriptions>,
    changes: watch::Sender<()>,
    log: LogLimit,
}

#[derive(Deserialize)]
struct Publish {
    #[serde(deserialize_with = "name")]
    topic: String,
    #[serde(default)]
    data: Option<Raw>,
}

impl PubSub {
    pub(crate) async fn create(engine: Engine, settings: Settings) -> Result<Self, BuiltinError> {
        let settings = settings::parse(settings)?;
        let shared = Arc::new(Shared {
            engine,
            deliveries: Deliveries::new(),
            subscriptions: Mutex::default(),
            changes: watch::Sender::new(()),
            log: LogLimit::new(crate::NAME),
        });
        let adapter = Adapter::open(&settings, &shared).await?;
        adapter.activate();
        Ok(Self { shared, current: Mutex::new(Current { settings, adapter }) })
    }

    fn publish(&self, call: Call) -> Reply {
        let Publish { topic, data } = match decode(&call) {
            Ok(publish) => publish,
            Err(error) => return Reply::Now(Err(error)),
        };
        if topic.is_empty() {
            return Reply::Now(Err(ErrorBody::new("topic_not_set", "publish: `topic` is empty")));
        }
        let data = data.unwrap_or_default();
        let adapter = lock(&self.current).adapter.clone();
        match adapter {
            Adapter::Local => Reply::Now(self.shared.deliver(&topic, data, &call.trace).map(|()| None).map_err(failed)),
            Adapter::Redis(redis) => Reply::later(async move { published(redis.publish(&topic, &data).await) }),
        }
    }
}

fn published(result: ::redis::RedisResult<()>) -> Answer {
    result.map(|()| None).map_err(failed)
}

fn failed(error: impl std::fmt::Display) -> ErrorBody {
    ErrorBody::new("publish_failed", format!("publish: {error}"))
}

impl Adapter {
    async fn open(settings: &AdapterSettings, shared: &Arc<Shared>) -> Result<Self, BuiltinError> {
        match settings {
            AdapterSettings::Local => Ok(Self::Local),
            AdapterSettings::Redis { url } => Ok(Self::Redis(Arc::new(Redis::connect(url, shared).await?))),
        }
    }

    fn activate(&self) {
        if let Self::Redis(redis) = self {
            redis.activate();
        }
    }

    fn deactivate(&self) {
        if let Self::Redis(redis) = self {
            redis.deactivate();
        }
    }
}

impl Shared {
    /// Hands a message to every subscription of its topic; to those that have too many waiting it is not delivered, and
    /// the log says so.
    ///
    /// # Errors
    /// There is no room for the message: nobody gets it.
    pub(crate) fn deliver(&self, topic: &str, data: Raw, trace: &Trace) -> Result<(), Overloaded> {
        let subscriptions = lock(&self.subscriptions).of(topic);
        if subscriptions.is_empty() {
            return Ok(());
        }
        let room = self.deliveries.room(data.get().len() + trace.bytes())?;
        let data = Arc::new(data);
        for subscription in subscriptions {
            let to = subscription.to.clone();
            let (engine, log) = (Arc::clone(&self.engine), self.log.clone());
            let (data, trace) = (Arc::clone(&data), trace.clone());
            let delivery = async move {
                let event = Event {
                    trigger_type: crate::TRIGGER_TYPE,
                    function_id: subscription.to.function_id(),
                    condition: subscription.condition.as_deref(),
                    data: &data,
                    trace: &trace,
                };
                event.tell(&engine, &log).await;
            };
            let _ = self.deliveries.begin(&to, None, room.clone(), delivery.boxed());
        }
        Ok(())
    }

    /// Tells of each change of the set of topics.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    pub(crate) fn version(&self) -> u64 {
        lock(&self.subscriptions).version()
    }

    /// The topics that somebody listens to, and their version.
    pub(crate) fn topics(&self) -> (u64, std::collections::BTreeSet<String>) {
        let subscriptions = lock(&self.subscriptions);
        (subscriptions.version(), subscriptions.topics())
    }
}

impl Builtin for PubSub {
    fn name(&self) -> &'static str {
        crate::NAME
    }

    fn functions(&self) -> Vec<RegisterFunction> {
        let request = json!({
            "type": "object",
            "required": ["topic"],
            "properties": { "topic": { "type": "string", "minLength": 1 }, "data": {} }
        });
        vec![RegisterFunction {
            id: "publish".into(),
            description: Some("Sends a message to everybody who is subscribed to its topic now".into()),
            request_format: to_raw_value(&request).ok(),
            response_format: None,
            metadata: None,
            invocation: None,
        }]
    }

    fn trigger_types(&self) -> Vec<RegisterTriggerType> {
        let config = json!({
            "type": "object",
            "required": ["topic"],
            "properties": { "topic": { "type": "string" }, "condition_function_id": { "type": "string" } }
        });
        vec![RegisterTriggerType {
            id: crate::TRIGGER_TYPE.into(),
            description: Some("Fires for each message that is published to a topic".into()),
            trigger_request_format: to_raw_value(&config).ok(),
            call_request_format: None,
        }]
    }

    fn call(&self, call: Call) -> Reply {
        match call.function_id.as_str() {
            "publish" => self.publish(call),
            other => {
                Reply::Now(Err(ErrorBody::new("function_not_found", format!("{other} is no function of iii-pubsub"))))
            }
        }
    }

    fn bind(&self, binding: Binding) -> Result<(), ErrorBody> {
        lock(&self.shared.subscriptions).add(binding)?;
        self.shared.changes.send_replace(());
        Ok(())
    }

    fn unbind(&self, _trigger_type: &str, id: &str) {
        lock(&self.shared.subscriptions).remove(id);
        self.shared.changes.send_replace(());
    }

    fn apply(&self, settings: Settings) -> BoxFuture<'_, Result<(), BuiltinError>> {
        async move {
            let settings = settings::parse(settings)?;
            if lock(&self.current).settings == settings {
                return Ok(());
            }
            let adapter = Adapter::open(&settings, &self.shared).await?;
            let mut current = lock(&self.current);
            // One of them delivers, never both: they may listen at the same server.
            current.adapter.deactivate();
            adapter.activate();
            *current = Current { settings, adapter };
            Ok(())
        }
        .boxed()
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        async move {
            let mut current = lock(&self.current);
            current.adapter.deactivate();
            current.adapter = Adapter::Local;
        }
        .boxed()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves tables that are still whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
