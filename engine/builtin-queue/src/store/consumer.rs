//! The task that delivers one queue's messages.

use std::sync::Arc;
use std::time::Duration;

use engine_builtin::{Engine, LogLimit};
use engine_store::{Store, StoreError};
use futures_util::future::{BoxFuture, FutureExt, OptionFuture};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::warn;

use crate::broker::Subscription;
use crate::delivery::deliver;
use crate::message::{QueueId, now_ms};
use crate::store::tables;
use crate::store::window::{Budget, Window};

/// After the store has failed.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// While other consumers have all the memory there is for payloads.
const BUDGET_PAUSE: Duration = Duration::from_millis(100);

/// What deliveries in flight have to end when the consumer is to.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// Longest sleep: the wall clock may be set meanwhile.
const MAX_SLEEP: Duration = Duration::from_secs(60);

/// What a consumer is to do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Wish {
    Deliver(Subscription),
    /// Nobody wants the messages now: they stay in the store.
    Rest,
    Stop,
}

/// What the others have of a consumer.
pub(crate) struct Control {
    pub(crate) wish: watch::Sender<Wish>,
    /// Something was stored in its queue.
    pub(crate) stored: Notify,
}

impl Control {
    pub(crate) fn new(wish: Wish) -> Arc<Self> {
        Arc::new(Self { wish: watch::Sender::new(wish), stored: Notify::new() })
    }
}

pub(crate) struct Consumer {
    pub(crate) queue: QueueId,
    pub(crate) engine: Engine,
    pub(crate) store: Store,
    pub(crate) control: Arc<Control>,
    pub(crate) subscription: Subscription,
    pub(crate) budget: Budget,
    pub(crate) log: LogLimit,
}

impl Consumer {
    /// Delivers until it is to stop, or to rest and `may_leave`.
    pub(crate) async fn run(self, may_leave: impl Fn() -> bool) {
        let mut subscription = self.subscription.clone();
        let mut wishes = self.control.wish.subscribe();
        // It may be another one by now.
        wishes.mark_changed();
        let mut window = Window::new(subscription.delivery.clone(), self.budget.clone());
        let mut calls: JoinSet<(u64, Result<(), String>)> = JoinSet::new();
        let mut write: Option<BoxFuture<'static, Result<(), StoreError>>> = None;
        let mut delivering = true;
        let mut stop_at: Option<Instant> = None;
        loop {
            let mut look_again = None;
            if delivering {
                let now_ms = now_ms();
                if let Err(error) = self.load(&mut window, now_ms) {
                    warn!(queue = self.queue.name(), %error, "messages cannot be read");
                    look_again = Some(Instant::now() + STORE_PAUSE);
                }
                while let Some((seq, message)) = window.next() {
                    let engine = Arc::clone(&self.engine);
                    let condition = subscription.condition.clone();
                    let timeout_ms = subscription.delivery.timeout_ms;
                    calls.spawn(
                        async move { (seq, deliver(&engine, condition.as_deref(), timeout_ms, &message).await) },
                    );
                }
                // What is due by now waits for room, which an end makes.
                if let Some(due_ms) = window.next_due_ms().filter(|due_ms| *due_ms > now_ms) {
                    let pause = Duration::from_millis(due_ms - now_ms).min(MAX_SLEEP);
                    let due = Instant::now() + pause;
                    look_again = Some(look_again.map_or(due, |at: Instant| at.min(due)));
                }
            }
            if delivering && window.is_short() {
                let again = Instant::now() + BUDGET_PAUSE;
                look_again = Some(look_again.map_or(again, |at: Instant| at.min(again)));
            }
            if write.is_none()
                && let Some(batch) = window.batch()
            {
                let (store, queue) = (self.store.clone(), self.queue.clone());
                let writing = async move { store.write(move |writing| tables::settle(writing, &queue, &batch)).await };
                write = Some(writing.boxed());
            }
            if !delivering && window.is_settled() && may_leave() {
                return;
            }
            let never = Instant::now() + MAX_SLEEP;
            tokio::select! {
                // Cancel safe, all of them: what is not ready stays where it is.
                Some(ended) = calls.join_next() => {
                    // Only an aborted call has no end; its message stays.
                    let mut ended = Some(ended);
                    while let Some(call) = ended.take() {
                        if let Ok((seq, result)) = call {
                            self.note(&result);
                            window.ended(now_ms(), seq, result);
                        }
                        ended = calls.try_join_next();
                    }
                }
                Some(written) = OptionFuture::from(write.as_mut()) => {
                    write = None;
                    match written {
                        Ok(()) => window.written(),
                        Err(error) => {
                            warn!(queue = self.queue.name(), %error, "ends of deliveries cannot be written yet");
                            window.not_written();
                            if stop_at.is_some() {
                                return;
                            }
                            sleep(STORE_PAUSE).await;
                        }
                    }
                }
                () = self.control.stored.notified() => window.wake(),
                changed = wishes.changed() => {
                    let wish = wishes.borrow_and_update().clone();
                    match wish {
                        _ if changed.is_err() => return,
                        Wish::Deliver(wanted) => {
                            window.set_delivery(wanted.delivery.clone());
                            window.wake();
                            subscription = wanted;
                            delivering = true;
                        }
                        Wish::Rest => delivering = false,
                        Wish::Stop => {
                            delivering = false;
                            stop_at = Some(Instant::now() + STOP_GRACE);
                        }
                    }
                }
                () = sleep_until(look_again.unwrap_or(never)), if look_again.is_some() => {}
                () = sleep_until(stop_at.unwrap_or(never)), if stop_at.is_some() => {
                    // What the others were about is delivered again.
                    calls.abort_all();
                    if let Some(write) = write
                        && write.await.is_ok()
                    {
                        window.written();
                    }
                    if let Some(batch) = window.batch() {
                        let queue = self.queue.clone();
                        let _ = self.store.write(move |writing| tables::settle(writing, &queue, &batch)).await;
                    }
                    return;
                }
            }
        }
    }

    fn load(&self, window: &mut Window, now_ms: u64) -> Result<(), StoreError> {
        let Some(room) = window.room(now_ms) else { return Ok(()) };
        let groups = window.open_groups();
        let loaded = self.store.read(|reading| {
            let known = |seq| window.is_known(seq);
            tables::load(reading, &self.queue, &known, &groups, window.ready_from(), now_ms, room)
        })?;
        window.load(loaded);
        Ok(())
    }

    fn note(&self, result: &Result<(), String>) {
        if let Err(error) = result {
            self.log.line(|| warn!(queue = self.queue.name(), error, "a delivery failed"));
        }
    }
}
