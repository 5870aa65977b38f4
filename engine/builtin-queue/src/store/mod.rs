//! The `builtin` adapter: messages in a file of this engine.
//!
//! ```text
//! publish, enqueue ─► tables ── synced ─► answered
//!                                 └─ stored ─► consumer (one per queue) ◄─► window ── deliver ─► function
//! ```
//! Who gets what is published: each function that is bound to the topic, and each that was within the last
//! [`ABSENCE`]. If there is none, the message is held under the topic itself, and the first function that subscribes
//! gets it. What waits for a function that has gone stays until it comes back. After a start, all that were bound within
//! the last [`MEMORY`] count as gone since then.

mod consumer;
mod tables;
mod topics;
mod window;

#[cfg(test)]
mod simulation;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use engine_builtin::{BoxFuture, Engine, LogLimit, Raw, Trace};
use engine_store::{Store, StoreError};
use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tracing::warn;

use crate::NAME;
use crate::broker::{Broker, DeadMessageRow, DeadTopicRow, Done, QueueError, Subscription, TopicRow, TopicStats};
use crate::delivery::Order;
use crate::message::{Message, QueueId, now_ms};
use crate::settings::{Place, QueueSettings};
use crate::store::consumer::{Consumer, Control, Wish};
use crate::store::topics::Topics;
use crate::store::window::Budget;

/// How long a function that has gone still gets copies of what is published.
const ABSENCE: Duration = Duration::from_secs(60 * 60);

/// How long a subscriber is known over restarts.
const MEMORY: Duration = Duration::from_secs(7 * 24 * 60 * 60);

const FILE: &str = "store.redb";

pub(crate) struct StoreBroker {
    shared: Arc<Shared>,
    remembering: JoinHandle<()>,
}

impl Drop for StoreBroker {
    fn drop(&mut self) {
        self.remembering.abort();
    }
}

struct Shared {
    engine: Engine,
    store: Store,
    runtime: Handle,
    topics: Mutex<Topics>,
    consumers: Mutex<Consumers>,
    budget: Budget,
    /// Of deliveries that fail.
    log: LogLimit,
}

#[derive(Default)]
struct Consumers {
    /// Before, they are not started; afterwards, no more.
    phase: Phase,
    running: HashMap<QueueId, (Arc<Control>, JoinHandle<()>)>,
    /// What each queue is to do, running or not.
    wanted: HashMap<QueueId, Subscription>,
    named: BTreeMap<String, QueueSettings>,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Prepared,
    Started,
    Stopped,
}

impl StoreBroker {
    /// # Errors
    /// The store cannot be opened.
    pub(crate) fn open(engine: Engine, place: &Place) -> Result<Self, QueueError> {
        let store = match place {
            Place::Memory => {
                warn!("the queues are in memory only (store_method `in_memory`): all messages go when the engine ends");
                Store::in_memory()?
            }
            Place::Folder(folder) => Store::open(&folder.join(FILE))?,
        };
        let oldest_ms = now_ms().saturating_sub(u64::try_from(MEMORY.as_millis()).unwrap_or(u64::MAX));
        let (remembered, old) = store.read(|reading| tables::subscribers(reading, oldest_ms))?;
        let topics = Mutex::new(Topics::new(remembered, std::time::Instant::now()));
        let (runtime, consumers, budget) = (Handle::current(), Mutex::default(), Budget::default());
        let log = LogLimit::new(NAME);
        let shared = Arc::new(Shared { engine, store, runtime, topics, consumers, budget, log });
        let old = old.into_iter().map(|(topic, receiver)| (topic, receiver.function_id)).collect();
        let remembering = shared.runtime.spawn(Shared::keep_remembering(Arc::downgrade(&shared), old));
        Ok(Self { shared, remembering })
    }
}

impl Shared {
    fn topics(&self) -> MutexGuard<'_, Topics> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn consumers(&self) -> MutexGuard<'_, Consumers> {
        self.consumers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something was stored in these queues.
    fn wake(&self, queues: &[QueueId]) {
        let consumers = self.consumers();
        for queue in queues {
            if let Some((control, _)) = consumers.running.get(queue) {
                control.stored.notify_one();
            }
        }
    }

    /// From now on this is how the queue's messages are wanted.
    fn want(self: &Arc<Self>, queue: QueueId, subscription: Option<Subscription>) {
        let mut consumers = self.consumers();
        let Some(subscription) = subscription else {
            consumers.wanted.remove(&queue);
            if let Some((control, _)) = consumers.running.get(&queue) {
                control.wish.send_replace(Wish::Rest);
            }
            return;
        };
        let wish = Wish::Deliver(subscription.clone());
        consumers.wanted.insert(queue.clone(), subscription.clone());
        match consumers.running.get(&queue) {
            // The same wish again changes nothing, but for a consumer that was resting.
            Some((control, _)) => {
                control.wish.send_if_modified(|now| {
                    let changes = *now != wish;
                    *now = wish;
                    changes
                });
            }
            None if consumers.phase == Phase::Started => self.run(&mut consumers, queue, subscription),
            None => {}
        }
    }

    fn run(self: &Arc<Self>, consumers: &mut Consumers, queue: QueueId, subscription: Subscription) {
        let control = Control::new(Wish::Deliver(subscription.clone()));
        let consumer = Consumer {
            queue: queue.clone(),
            engine: Arc::clone(&self.engine),
            store: self.store.clone(),
            control: Arc::clone(&control),
            subscription,
            budget: self.budget.clone(),
            log: self.log.clone(),
        };
        let (shared, resting) = (Arc::clone(self), queue.clone());
        let task = self.runtime.spawn(async move { consumer.run(|| shared.leave(&resting)).await });
        consumers.running.insert(queue, (control, task));
    }

    /// A resting consumer leaves, unless it is wanted again by now.
    fn leave(&self, queue: &QueueId) -> bool {
        let mut consumers = self.consumers();
        if consumers.phase == Phase::Started && consumers.wanted.contains_key(queue) {
            return false;
        }
        if consumers.phase == Phase::Started {
            consumers.running.remove(queue);
        }
        true
    }

    /// Forgets these and, every hour, who has been gone for too long; keeps the others' rows fresh.
    async fn keep_remembering(weak: Weak<Self>, mut old: Vec<(String, String)>) {
        while let Some(shared) = weak.upgrade() {
            if let Err(error) = shared.remember(std::mem::take(&mut old)).await {
                warn!(%error, "subscribers cannot be written down now");
            }
            // The store's file is free while this sleeps.
            drop(shared);
            tokio::time::sleep(ABSENCE).await;
        }
    }

    async fn remember(self: &Arc<Self>, old: Vec<(String, String)>) -> Result<(), StoreError> {
        let shared = Arc::clone(self);
        let work = self.store.write(move |writing| {
            // Decided here, where changes are one after another.
            let (forgotten, bound) = {
                let mut topics = shared.topics();
                (topics.prune(std::time::Instant::now()), topics.bound())
            };
            for (topic, function_id) in old.iter().chain(&forgotten) {
                tables::forget_subscriber(writing, topic, function_id)?;
            }
            for (topic, receiver) in &bound {
                tables::remember_subscriber(writing, topic, receiver, now_ms())?;
            }
            Ok(())
        });
        work.await
    }

    /// Forgets who has been gone for longest, where too many have.
    async fn uncrowd(self: Arc<Self>) {
        let shared = Arc::clone(&self);
        let pruned = self.store.write(move |writing| {
            let forgotten = shared.topics().prune(std::time::Instant::now());
            forgotten.iter().try_for_each(|(topic, function_id)| tables::forget_subscriber(writing, topic, function_id))
        });
        if let Err(error) = pruned.await {
            warn!(%error, "subscribers cannot be forgotten now");
        }
    }

    /// Remembers a new subscriber, and gives it what was held for its topic.
    async fn adopt(&self, topic: String, function_id: String) {
        let held = QueueId::Held(topic.clone());
        let queue = QueueId::Subscriber { topic: topic.clone(), function_id: function_id.clone() };
        loop {
            let (from, to) = (held.clone(), queue.clone());
            let (topic, function_id) = (topic.clone(), function_id.clone());
            let Some(receiver) = self.topics().receiver(&topic, &function_id) else { return };
            let moved = self.store.write(move |writing| {
                tables::remember_subscriber(writing, &topic, &receiver, now_ms())?;
                tables::adopt(writing, &from, &to, |message| {
                    message.function_id.clone_from(&function_id);
                    message.group = (receiver.order == Order::Fifo).then(String::new);
                })
            });
            match moved.await {
                Ok(true) => self.wake(std::slice::from_ref(&queue)),
                Ok(false) => return,
                Err(error) => {
                    warn!(%error, queue = queue.name(), "what was held for a new subscriber stays for the next one");
                    return;
                }
            }
        }
    }

    async fn publish(self: Arc<Self>, topic: String, data: Raw, trace: Trace) -> Result<(), QueueError> {
        let shared = Arc::clone(&self);
        let queues = self.store.write(move |writing| {
            // Decided here, where changes are one after another: a subscriber that comes meanwhile finds it held.
            let (receivers, forgotten) = shared.topics().receivers(&topic, std::time::Instant::now());
            for function_id in forgotten {
                tables::forget_subscriber(writing, &topic, &function_id)?;
            }
            if receivers.is_empty() {
                let held = QueueId::Held(topic);
                tables::push(writing, &held, &Message::new("", data, trace))?;
                return Ok(vec![held]);
            }
            let mut queues = Vec::with_capacity(receivers.len());
            for receiver in receivers {
                let mut message = Message::new(receiver.function_id.clone(), data.clone(), trace.clone());
                message.group = (receiver.order == Order::Fifo).then(String::new);
                message.due_ms = if receiver.delay_ms == 0 { 0 } else { now_ms().saturating_add(receiver.delay_ms) };
                let queue = QueueId::Subscriber { topic: topic.clone(), function_id: receiver.function_id };
                tables::push(writing, &queue, &message)?;
                queues.push(queue);
            }
            Ok(queues)
        });
        let queues = queues.await?;
        self.wake(&queues);
        Ok(())
    }

    async fn redrive(&self, name: String) -> Result<u64, QueueError> {
        let Some(until) = self.store.read(|reading| tables::newest_dead(reading, &name))? else { return Ok(0) };
        let mut redriven = 0;
        loop {
            let name = name.clone();
            let queues = self.store.write(move |writing| tables::redrive(writing, &name, until)).await?;
            if queues.is_empty() {
                return Ok(redriven);
            }
            redriven += queues.len() as u64;
            self.wake(&queues);
        }
    }

    fn topic_rows(&self) -> Result<Vec<TopicRow>, QueueError> {
        let mut topics = self.topics().counts();
        for (queue, _) in self.store.read(tables::queues)? {
            if let QueueId::Held(topic) | QueueId::Subscriber { topic, .. } = queue {
                topics.entry(topic).or_insert(0);
            }
        }
        let row = |(name, subscriber_count)| TopicRow { name, broker_type: "builtin".into(), subscriber_count };
        let mut rows: Vec<TopicRow> = topics.into_iter().map(row).collect();
        rows.extend(self.consumers().named.iter().map(|(name, queue)| TopicRow {
            name: name.clone(),
            broker_type: "function_queue".into(),
            subscriber_count: queue.delivery.concurrency as u64,
        }));
        Ok(rows)
    }

    fn stats(&self, name: &str) -> Result<TopicStats, QueueError> {
        let consumer_count = self.topics().counts().get(name).copied().unwrap_or_default();
        let mut stats = TopicStats { consumer_count, ..TopicStats::default() };
        let queue = self.consumers().named.get(name).cloned();
        if let Some(queue) = &queue {
            stats.consumer_count += queue.delivery.concurrency as u64;
            stats.config = queue.shown.clone();
        }
        self.store.read(|reading| {
            stats.depth = tables::depth(reading, name)?;
            stats.dlq_depth = tables::dead_count(reading, name)?;
            Ok(())
        })?;
        Ok(stats)
    }
}

impl Broker for StoreBroker {
    fn start(&self) -> Done<'_, ()> {
        let mut consumers = self.shared.consumers();
        consumers.phase = Phase::Started;
        for (queue, subscription) in consumers.wanted.clone() {
            self.shared.run(&mut consumers, queue, subscription);
        }
        async { Ok(()) }.boxed()
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        let running = {
            let mut consumers = self.shared.consumers();
            consumers.phase = Phase::Stopped;
            consumers.wanted.clear();
            std::mem::take(&mut consumers.running)
        };
        async move {
            for (control, _) in running.values() {
                control.wish.send_replace(Wish::Stop);
            }
            for (_, (_, task)) in running {
                if let Err(error) = task.await {
                    warn!(%error, "a consumer panicked");
                }
            }
        }
        .boxed()
    }

    fn publish(&self, topic: String, data: Raw, trace: Trace) -> Done<'_, ()> {
        Arc::clone(&self.shared).publish(topic, data, trace).boxed()
    }

    fn enqueue(&self, queue: String, message: Message) -> Done<'_, String> {
        let (queue, id) = (QueueId::Named(queue), message.id.clone());
        async move {
            let to = queue.clone();
            self.shared.store.write(move |writing| tables::push(writing, &to, &message)).await?;
            self.shared.wake(&[queue]);
            Ok(id)
        }
        .boxed()
    }

    fn subscribe(&self, topic: &str, function_id: &str, subscription: Option<Subscription>) {
        let (is_new, is_crowded) = {
            let mut topics = self.shared.topics();
            let is_new = topics.set(topic, function_id, subscription.as_ref().map(|it| &it.delivery));
            (is_new, topics.is_crowded(topic))
        };
        if is_crowded {
            self.shared.runtime.spawn(Arc::clone(&self.shared).uncrowd());
        }
        let queue = QueueId::Subscriber { topic: topic.to_owned(), function_id: function_id.to_owned() };
        self.shared.want(queue, subscription);
        if is_new {
            let (shared, topic, function_id) = (Arc::clone(&self.shared), topic.to_owned(), function_id.to_owned());
            self.shared.runtime.spawn(async move { shared.adopt(topic, function_id).await });
        }
    }

    fn set_queues(&self, queues: &BTreeMap<String, QueueSettings>) {
        let before = std::mem::replace(&mut self.shared.consumers().named, queues.clone());
        for name in before.keys().filter(|name| !queues.contains_key(*name)) {
            self.shared.want(QueueId::Named(name.clone()), None);
        }
        for (name, queue) in queues.iter().filter(|(name, queue)| before.get(*name) != Some(*queue)) {
            let delivery = queue.delivery.clone();
            let subscription = Subscription { condition: None, delivery, queue_config: None };
            self.shared.want(QueueId::Named(name.clone()), Some(subscription));
        }
    }

    fn redrive(&self, name: String) -> Done<'_, u64> {
        self.shared.redrive(name).boxed()
    }

    fn redrive_message(&self, name: String, id: String) -> Done<'_, bool> {
        async move {
            let queue = self.shared.store.write(move |writing| tables::redrive_message(writing, &name, &id)).await?;
            self.shared.wake(queue.as_slice());
            Ok(queue.is_some())
        }
        .boxed()
    }

    fn discard_message(&self, name: String, id: String) -> Done<'_, bool> {
        let discarded = self.shared.store.write(move |writing| tables::discard_message(writing, &name, &id));
        async move { Ok(discarded.await?) }.boxed()
    }

    fn topics(&self) -> Done<'_, Vec<TopicRow>> {
        async { self.shared.topic_rows() }.boxed()
    }

    fn stats(&self, name: String) -> Done<'_, TopicStats> {
        async move { self.shared.stats(&name) }.boxed()
    }

    fn dead_topics(&self) -> Done<'_, Vec<DeadTopicRow>> {
        async {
            let counts = self.shared.store.read(tables::dead_counts)?;
            let row = |(topic, message_count)| DeadTopicRow { topic, broker_type: "builtin".into(), message_count };
            Ok(counts.into_iter().map(row).collect())
        }
        .boxed()
    }

    fn dead_messages(&self, name: String, offset: usize, limit: usize) -> Done<'_, Vec<DeadMessageRow>> {
        async move {
            let dead = self.shared.store.read(|reading| tables::dead_messages(reading, &name, offset, limit))?;
            Ok(dead.into_iter().map(DeadMessageRow::from).collect())
        }
        .boxed()
    }
}
