//! The tasks of an adapter that is not this engine's: one for each queue that is consumed.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::Subscription;
use crate::message::QueueId;

/// What deliveries in flight have to end when all is to stop.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// How a queue is to be consumed, as it changes; its end is the end of consuming.
pub(crate) type Wishes = watch::Receiver<Subscription>;

pub(crate) struct Subscribers {
    runtime: Handle,
    table: Mutex<Table>,
    tasks: TaskTracker,
    ended: CancellationToken,
}

#[derive(Default)]
struct Table {
    started: bool,
    queues: BTreeMap<QueueId, (Subscription, Option<watch::Sender<Subscription>>)>,
}

impl Subscribers {
    /// Must be called inside a runtime.
    pub(crate) fn new() -> Self {
        let (tasks, ended) = (TaskTracker::new(), CancellationToken::new());
        Self { runtime: Handle::current(), table: Mutex::default(), tasks, ended }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on a queue is consumed like this; `None`: not any more.
    pub(crate) fn set<F>(&self, queue: QueueId, wish: Option<Subscription>, consume: impl FnOnce(QueueId, Wishes) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut table = self.table();
        let Some(wish) = wish else {
            table.queues.remove(&queue);
            return;
        };
        if let Some((now, Some(sender))) = table.queues.get_mut(&queue) {
            if *now != wish {
                now.clone_from(&wish);
                sender.send_replace(wish);
            }
            return;
        }
        let sender = table.started.then(|| self.spawn(queue.clone(), &wish, consume));
        table.queues.insert(queue, (wish, sender));
    }

    pub(crate) fn start<F>(&self, consume: impl Fn(QueueId, Wishes) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut table = self.table();
        table.started = true;
        for (queue, (wish, sender)) in &mut table.queues {
            if sender.is_none() {
                *sender = Some(self.spawn(queue.clone(), wish, &consume));
            }
        }
    }

    fn spawn<F>(
        &self,
        queue: QueueId,
        wish: &Subscription,
        consume: impl FnOnce(QueueId, Wishes) -> F,
    ) -> watch::Sender<Subscription>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (sender, wishes) = watch::channel(wish.clone());
        let (work, ended) = (consume(queue, wishes), self.ended.clone());
        self.tasks.spawn_on(
            async move {
                // What is cut short was not acknowledged: it is delivered again.
                tokio::select! {
                    () = work => {}
                    () = ended.cancelled() => {}
                }
            },
            &self.runtime,
        );
        sender
    }

    /// Whether functions subscribe to a topic, and how many.
    pub(crate) fn topics(&self) -> BTreeMap<String, u64> {
        let mut topics = BTreeMap::new();
        for queue in self.table().queues.keys() {
            if let QueueId::Subscriber { topic, .. } = queue {
                *topics.entry(topic.clone()).or_insert(0) += 1;
            }
        }
        topics
    }

    /// The queues of a topic's functions.
    pub(crate) fn queues_of(&self, name: &str) -> Vec<QueueId> {
        let is_ours = |queue: &&QueueId| matches!(queue, QueueId::Subscriber { topic, .. } if topic == name);
        self.table().queues.keys().filter(is_ours).cloned().collect()
    }

    /// Ends every task; those that take too long are cut short.
    pub(crate) async fn stop(&self) {
        self.table().queues.clear();
        self.tasks.close();
        if timeout(STOP_GRACE, self.tasks.wait()).await.is_err() {
            self.ended.cancel();
            self.tasks.wait().await;
        }
    }
}
