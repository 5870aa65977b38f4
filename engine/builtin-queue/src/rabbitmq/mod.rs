//! The `rabbitmq` adapter.
//!
//! ```text
//! publish ─► iii/topic/T (fanout) ─┬─► iii/subscriber/T/F ─► deliver ─► ack
//!                │ no queue bound  └─► ..      ▲    │ failed
//!                └─► iii/held/T                │    ├─► iii/retry/MS/.. (TTL) ─┐
//! enqueue ─► iii/queue/Q ─► deliver            └────│──────────────────────────┘
//!                                                   └─► iii/dead/NAME, when attempts are used up
//! ```
//! Everything is durable, every publish confirmed, every ack sent after the end of the delivery, or after the copy in a
//! retry or dead queue is confirmed. A function's queue stays bound when the function has gone, and collects.
//!
//! A fifo queue is consumed by one consumer, one message at a time; failed ones are tried again where they are, since
//! whatever goes through a retry queue comes back behind its successors. Their attempts begin anew after a restart.

mod consumer;
mod dead;
mod link;
mod names;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use engine_builtin::{BoxFuture, Engine, LogLimit, Raw, Trace};
use futures_util::FutureExt;

use crate::NAME;
use crate::broker::{Broker, DeadMessageRow, DeadTopicRow, Done, QueueError, Subscription, TopicRow, TopicStats};
use crate::message::{Message, QueueId};
use crate::rabbitmq::link::{Link, Target};
use crate::settings::QueueSettings;
use crate::subscribers::Subscribers;

/// Names that dead letters are counted for, at most.
const MAX_NAMES: usize = 1000;

pub(crate) struct RabbitMqBroker {
    shared: Arc<Shared>,
    subscribers: Subscribers,
    queues: Mutex<BTreeMap<String, QueueSettings>>,
}

struct Shared {
    engine: Engine,
    link: Link,
    /// Dead letters are looked at by one at a time: what one has in hand, another does not see.
    dead: tokio::sync::Mutex<()>,
    /// Of deliveries that fail.
    log: LogLimit,
}

impl RabbitMqBroker {
    /// # Errors
    /// The broker cannot be reached.
    pub(crate) async fn connect(engine: Engine, url: &str) -> Result<Self, QueueError> {
        let (link, log) = (Link::open(url).await?, LogLimit::new(NAME));
        let shared = Shared { engine, link, dead: tokio::sync::Mutex::default(), log };
        Ok(Self { shared: Arc::new(shared), subscribers: Subscribers::new(), queues: Mutex::default() })
    }

    fn queues(&self) -> BTreeMap<String, QueueSettings> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn consume(&self, queue: QueueId, wish: Option<Subscription>) {
        let shared = Arc::clone(&self.shared);
        self.subscribers.set(queue, wish, |queue, wishes| consumer::consume(shared, queue, wishes));
    }
}

pub(crate) fn encoded(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("messages are strings and numbers, which JSON can say")
}

impl Broker for RabbitMqBroker {
    fn start(&self) -> Done<'_, ()> {
        self.subscribers.start(|queue, wishes| consumer::consume(Arc::clone(&self.shared), queue, wishes));
        async { Ok(()) }.boxed()
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        async {
            self.subscribers.stop().await;
            self.shared.link.close().await;
        }
        .boxed()
    }

    fn publish(&self, topic: String, data: Raw, trace: Trace) -> Done<'_, ()> {
        async move {
            let body = encoded(&Message::new("", data, trace));
            self.shared.link.publish(&Target::Topic(topic), &body).await
        }
        .boxed()
    }

    fn enqueue(&self, queue: String, message: Message) -> Done<'_, String> {
        async move {
            self.shared.link.publish(&Target::Queue(QueueId::Named(queue)), &encoded(&message)).await?;
            Ok(message.id)
        }
        .boxed()
    }

    fn subscribe(&self, topic: &str, function_id: &str, subscription: Option<Subscription>) {
        let queue = QueueId::Subscriber { topic: topic.to_owned(), function_id: function_id.to_owned() };
        self.consume(queue, subscription);
    }

    fn set_queues(&self, queues: &BTreeMap<String, QueueSettings>) {
        let before =
            std::mem::replace(&mut *self.queues.lock().unwrap_or_else(PoisonError::into_inner), queues.clone());
        for name in before.keys().filter(|name| !queues.contains_key(*name)) {
            self.consume(QueueId::Named(name.clone()), None);
        }
        for (name, queue) in queues {
            let delivery = queue.delivery.clone();
            let subscription = Subscription { condition: None, delivery, queue_config: None };
            self.consume(QueueId::Named(name.clone()), Some(subscription));
        }
    }

    fn redrive(&self, name: String) -> Done<'_, u64> {
        async move { self.shared.redrive(&name).await }.boxed()
    }

    fn redrive_message(&self, name: String, id: String) -> Done<'_, bool> {
        async move { self.shared.take_dead(&name, &id, true).await }.boxed()
    }

    fn discard_message(&self, name: String, id: String) -> Done<'_, bool> {
        async move { self.shared.take_dead(&name, &id, false).await }.boxed()
    }

    fn topics(&self) -> Done<'_, Vec<TopicRow>> {
        let row = |(name, subscriber_count)| TopicRow { name, broker_type: "rabbitmq".into(), subscriber_count };
        let mut rows: Vec<TopicRow> = self.subscribers.topics().into_iter().map(row).collect();
        rows.extend(self.queues().into_iter().map(|(name, queue)| TopicRow {
            name,
            broker_type: "function_queue".into(),
            subscriber_count: queue.delivery.concurrency as u64,
        }));
        async { Ok(rows) }.boxed()
    }

    fn stats(&self, name: String) -> Done<'_, TopicStats> {
        async move {
            let mut stats = TopicStats::default();
            let mut queues = self.subscribers.queues_of(&name);
            stats.consumer_count = queues.len() as u64;
            if let Some(queue) = self.queues().get(&name) {
                stats.consumer_count += queue.delivery.concurrency as u64;
                stats.config = queue.shown.clone();
                queues.push(QueueId::Named(name.clone()));
            }
            queues.push(QueueId::Held(name.clone()));
            let failed = |error: lapin::Error| self.shared.link.failed(&error);
            let connected = self.shared.link.connected().await?;
            for queue in queues {
                let waiting = connected.messages(&names::queue(&queue)).await.map_err(failed)?;
                stats.depth += u64::from(waiting);
            }
            stats.dlq_depth = u64::from(connected.messages(&names::dead(&name)).await.map_err(failed)?);
            Ok(stats)
        }
        .boxed()
    }

    fn dead_topics(&self) -> Done<'_, Vec<DeadTopicRow>> {
        async move {
            let names = self.subscribers.topics().into_keys().chain(self.queues().into_keys());
            let connected = self.shared.link.connected().await?;
            let mut rows = Vec::new();
            for topic in names.take(MAX_NAMES) {
                let count = connected.messages(&names::dead(&topic)).await;
                let count = count.map_err(|error| self.shared.link.failed(&error))?;
                if count > 0 {
                    rows.push(DeadTopicRow { topic, broker_type: "rabbitmq".into(), message_count: count.into() });
                }
            }
            Ok(rows)
        }
        .boxed()
    }

    fn dead_messages(&self, name: String, offset: usize, limit: usize) -> Done<'_, Vec<DeadMessageRow>> {
        async move { self.shared.dead_messages(&name, offset, limit).await }.boxed()
    }
}
