//! The `bridge` adapter: topics of another engine.
//!
//! A subscription is a trigger over there, on a function of ours that calls the local one: retries, dead letters and
//! what waits are the other engine's. Its id is the same after a restart, so that what waits for it is not lost.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine_builtin::{BoxFuture, Engine, ErrorBody, Raw, Trace};
use engine_client::{Call, CallError, Client, ClientConfig, FunctionSpec};
use futures_util::FutureExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::broker::{Broker, DeadMessageRow, DeadTopicRow, Done, QueueError, Subscription, TopicRow, TopicStats};
use crate::delivery::deliver;
use crate::message::{Message, QueueId};
use crate::settings::QueueSettings;
use crate::subscribers::{Subscribers, Wishes};

/// Of our functions over there. Not a built-in worker's name: engines keep those to their own.
const NAMESPACE: &str = "bridge::queue";

/// What the other engine has to answer.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct BridgeBroker {
    shared: Arc<Shared>,
    subscribers: Subscribers,
}

struct Shared {
    engine: Engine,
    url: String,
    client: Mutex<Option<Client>>,
}

impl BridgeBroker {
    /// Connects in the background, and again whenever it has to.
    pub(crate) fn connect(engine: Engine, url: &str) -> Self {
        let client = Mutex::new(Some(client(url)));
        let shared = Arc::new(Shared { engine, url: url.to_owned(), client });
        Self { shared, subscribers: Subscribers::new() }
    }

    /// Lets the other engine answer one of the queue's functions.
    fn ask<T: DeserializeOwned + Send>(
        &self,
        function_id: &'static str,
        payload: impl Serialize + Send + Sync + 'static,
    ) -> Done<'_, T> {
        async move {
            let failed = |reason: String| self.shared.failed(reason);
            let client = self.shared.client.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let client = client.ok_or_else(|| failed("the bridge has been taken down".to_owned()))?;
            client.connected(PATIENCE).await.map_err(|error| failed(error.to_string()))?;
            let answer: Result<_, CallError> = client.call(function_id, &payload, PATIENCE).await;
            let answer = answer.map_err(|error| failed(error.to_string()))?;
            let text = answer.as_ref().map_or("null", |answer| answer.get());
            serde_json::from_str(text).map_err(|error| failed(format!("`{function_id}` answered: {error}")))
        }
        .boxed()
    }
}

impl Shared {
    fn failed(&self, reason: String) -> QueueError {
        QueueError::Remote { broker: "the other engine", url: self.url.clone(), reason }
    }

    /// Subscribes over there, until nobody subscribes here.
    async fn consume(self: Arc<Self>, queue: QueueId, mut wishes: Wishes) {
        let QueueId::Subscriber { topic, function_id } = queue else { return };
        loop {
            let wish = wishes.borrow_and_update().clone();
            let client = client(&self.url);
            let id = format!("{NAMESPACE}::{topic}::{function_id}");
            let mut config = json!({ "topic": topic });
            if let Some(queue_config) = &wish.queue_config {
                config["queue_config"] = queue_config.clone();
            }
            let (engine, condition, target) = (Arc::clone(&self.engine), wish.condition, function_id.clone());
            let description = format!("`{function_id}` of another engine, for topic `{topic}`");
            let spec = FunctionSpec { id: id.clone(), description, ..FunctionSpec::default() };
            client.register(spec, move |call: Call| {
                let (engine, condition) = (Arc::clone(&engine), condition.clone());
                let message = Message::new(target.clone(), call.data, Trace::default());
                async move {
                    let ended = deliver(&engine, condition.as_deref(), None, &message).await;
                    ended.map(|()| None).map_err(|error| ErrorBody::new("invocation_failed", error))
                }
            });
            client.register_trigger("durable:subscriber", &id, &config);
            let changed = wishes.changed().await;
            client.shutdown().await;
            if changed.is_err() {
                return;
            }
        }
    }
}

fn client(url: &str) -> Client {
    let description = Some("topics of another engine".to_owned());
    Client::connect(ClientConfig { url: url.to_owned(), name: "iii-queue".to_owned(), description })
}

impl Broker for BridgeBroker {
    fn start(&self) -> Done<'_, ()> {
        self.subscribers.start(|queue, wishes| Arc::clone(&self.shared).consume(queue, wishes));
        async { Ok(()) }.boxed()
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        async {
            self.subscribers.stop().await;
            let client = self.shared.client.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(client) = client {
                client.shutdown().await;
            }
        }
        .boxed()
    }

    fn publish(&self, topic: String, data: Raw, _trace: Trace) -> Done<'_, ()> {
        #[derive(Serialize)]
        struct Publish {
            topic: String,
            data: Raw,
        }
        self.ask("iii::durable::publish", Publish { topic, data })
    }

    fn enqueue(&self, _queue: String, _message: Message) -> Done<'_, String> {
        async { Err(QueueError::Unsupported { adapter: "bridge", what: "named queues" }) }.boxed()
    }

    fn subscribe(&self, topic: &str, function_id: &str, subscription: Option<Subscription>) {
        let queue = QueueId::Subscriber { topic: topic.to_owned(), function_id: function_id.to_owned() };
        let shared = Arc::clone(&self.shared);
        self.subscribers.set(queue, subscription, |queue, wishes| shared.consume(queue, wishes));
    }

    fn set_queues(&self, _queues: &BTreeMap<String, QueueSettings>) {}

    fn redrive(&self, name: String) -> Done<'_, u64> {
        #[derive(serde::Deserialize)]
        struct Redriven {
            redriven: u64,
        }
        let answer = self.ask("iii::queue::redrive", json!({ "queue": name }));
        async { answer.await.map(|Redriven { redriven }| redriven) }.boxed()
    }

    fn redrive_message(&self, name: String, id: String) -> Done<'_, bool> {
        self.one_message("iii::queue::redrive_message", name, id)
    }

    fn discard_message(&self, name: String, id: String) -> Done<'_, bool> {
        self.one_message("iii::queue::discard_message", name, id)
    }

    fn topics(&self) -> Done<'_, Vec<TopicRow>> {
        self.ask("engine::queue::list_topics", json!({}))
    }

    fn stats(&self, name: String) -> Done<'_, TopicStats> {
        self.ask("engine::queue::topic_stats", json!({ "topic": name }))
    }

    fn dead_topics(&self) -> Done<'_, Vec<DeadTopicRow>> {
        self.ask("engine::queue::dlq_topics", json!({}))
    }

    fn dead_messages(&self, name: String, offset: usize, limit: usize) -> Done<'_, Vec<DeadMessageRow>> {
        self.ask("engine::queue::dlq_messages", json!({ "topic": name, "offset": offset, "limit": limit }))
    }
}

impl BridgeBroker {
    fn one_message(&self, function_id: &'static str, name: String, id: String) -> Done<'_, bool> {
        #[derive(serde::Deserialize)]
        struct Redriven {
            redriven: u8,
        }
        let answer = self.ask(function_id, json!({ "queue": name, "message_id": id }));
        async { answer.await.map(|Redriven { redriven }| redriven == 1) }.boxed()
    }
}
