//! Consumes one queue of the broker.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::Channel;
use lapin::message::Delivery as Received;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::warn;

use crate::broker::{QueueError, Subscription};
use crate::delivery::{Order, deliver};
use crate::message::{DeadMessage, Message, QueueId, now_ms};
use crate::rabbitmq::link::{Connected, Target};
use crate::rabbitmq::{Shared, encoded, names};
use crate::subscribers::Wishes;

/// After the broker has gone, or has refused something.
const PAUSE: Duration = Duration::from_secs(1);

const TAG: &str = "iii";

/// Until nobody wants the queue's messages any more; over broken connections.
pub(super) async fn consume(shared: Arc<Shared>, queue: QueueId, mut wishes: Wishes) {
    let mut deliveries = JoinSet::new();
    let mut room = Arc::new(Semaphore::new(0));
    while wishes.has_changed().is_ok() {
        while deliveries.try_join_next().is_some() {}
        if deliveries.is_empty() {
            room = Arc::new(Semaphore::new(wishes.borrow().delivery.in_flight()));
        }
        if let Err(error) = consume_once(&shared, &queue, &mut wishes, &mut deliveries, &room).await {
            warn!(queue = queue.name(), %error, "the queue cannot be consumed now");
            tokio::select! {
                () = sleep(PAUSE) => {}
                _ = wishes.changed() => {}
            }
        }
    }
    while deliveries.join_next().await.is_some() {}
}

/// One channel's life: until there is another wish, or the channel breaks.
async fn consume_once(
    shared: &Arc<Shared>,
    queue: &QueueId,
    wishes: &mut Wishes,
    deliveries: &mut JoinSet<()>,
    room: &Arc<Semaphore>,
) -> Result<(), QueueError> {
    let wish = wishes.borrow_and_update().clone();
    let failed = |error: lapin::Error| shared.link.failed(&error);
    let connected = shared.link.connected().await?;
    connected.declare_queue(queue).await.map_err(failed)?;
    take_held(shared, &connected, queue).await?;
    let channel = connected.channel().await.map_err(failed)?;
    let prefetch = u16::try_from(wish.delivery.in_flight()).unwrap_or(u16::MAX);
    channel.basic_qos(prefetch, BasicQosOptions::default()).await.map_err(failed)?;
    // Of a fifo queue's consumers, also of other engines, one at a time.
    let exclusive = wish.delivery.order == Order::Fifo;
    let options = BasicConsumeOptions { exclusive, ..BasicConsumeOptions::default() };
    let name = names::queue(queue);
    let consuming = channel.basic_consume(name.into(), TAG.into(), options, FieldTable::default()).await;
    let mut consumer = consuming.map_err(failed)?;
    loop {
        tokio::select! {
            received = consumer.next() => match received {
                Some(Ok(received)) => {
                    let work = end(Arc::clone(shared), queue.clone(), wish.clone(), received);
                    let room = Arc::clone(room);
                    deliveries.spawn(async move {
                        // Those of a channel that broke are still in flight, though the broker delivers them again.
                        let _in_flight = room.acquire().await;
                        work.await;
                    });
                }
                Some(Err(error)) => return Err(failed(error)),
                None => return Err(shared.link.failed(&"the broker has ended the consumer")),
            },
            Some(_) = deliveries.join_next() => {}
            // Whatever the wish is now: what is in flight ends on this channel, the rest goes back with it.
            _ = wishes.changed() => break,
        }
    }
    channel.basic_cancel(TAG.into(), BasicCancelOptions::default()).await.map_err(failed)?;
    while deliveries.join_next().await.is_some() {}
    close(channel).await;
    Ok(())
}

async fn close(channel: Channel) {
    // It may be closed by now; what was not acked goes back either way.
    let _ = channel.close(200, "done".into()).await;
}

/// Delivers one message, and lets go of it when its end is kept.
async fn end(shared: Arc<Shared>, queue: QueueId, wish: Subscription, received: Received) {
    let Ok(mut message) = serde_json::from_slice::<Message>(&received.data) else {
        warn!(queue = queue.name(), "what is no message is thrown away");
        let _ = received.acker.ack(BasicAckOptions::default()).await;
        return;
    };
    if let QueueId::Subscriber { function_id, .. } = &queue {
        message.function_id.clone_from(function_id);
    }
    if let Err(error) = settle(&shared, &queue, &wish, message).await {
        // Not acked: the broker delivers it again when the channel is closed, which this does.
        warn!(queue = queue.name(), %error, "the end of a delivery could not be kept");
        let _ = received.acker.nack(lapin::options::BasicNackOptions { requeue: true, multiple: false }).await;
        return;
    }
    if let Err(error) = received.acker.ack(BasicAckOptions::default()).await {
        warn!(queue = queue.name(), %error, "a message that was delivered may be delivered again");
    }
}

async fn settle(shared: &Shared, queue: &QueueId, wish: &Subscription, mut message: Message) -> Result<(), QueueError> {
    let delivery = &wish.delivery;
    let waits_here = delivery.order == Order::Fifo;
    if delivery.delay_ms > 0 && message.due_ms == 0 {
        message.due_ms = now_ms().saturating_add(delivery.delay_ms);
        if !waits_here {
            return retry(shared, queue, &message, delivery.delay_ms).await;
        }
        sleep(Duration::from_millis(delivery.delay_ms)).await;
    }
    loop {
        let ended = deliver(&shared.engine, wish.condition.as_deref(), delivery.timeout_ms, &message).await;
        let Err(error) = ended else { return Ok(()) };
        shared.log.line(|| warn!(queue = queue.name(), error, "a delivery failed"));
        message.attempts = message.attempts.saturating_add(1);
        match delivery.pause_ms(message.attempts) {
            Some(pause_ms) if waits_here => sleep(Duration::from_millis(pause_ms)).await,
            Some(pause_ms) => return retry(shared, queue, &message, pause_ms).await,
            None => {
                let dead = DeadMessage { queue: queue.clone(), error, failed_at_ms: now_ms(), message };
                return shared.link.publish(&Target::Dead(queue.name().to_owned()), &encoded(&dead)).await;
            }
        }
    }
}

async fn retry(shared: &Shared, queue: &QueueId, message: &Message, pause_ms: u64) -> Result<(), QueueError> {
    shared.link.publish(&Target::Retry { queue: queue.clone(), pause_ms }, &encoded(message)).await
}

/// Gives a function what was published to its topic while nobody subscribed.
async fn take_held(shared: &Shared, connected: &Connected, queue: &QueueId) -> Result<(), QueueError> {
    let QueueId::Subscriber { topic, .. } = queue else { return Ok(()) };
    let failed = |error: lapin::Error| shared.link.failed(&error);
    let held = names::queue(&QueueId::Held(topic.clone()));
    let channel = connected.channel().await.map_err(failed)?;
    while let Some(got) = channel.basic_get(held.as_str().into(), BasicGetOptions::default()).await.map_err(failed)? {
        shared.link.publish(&Target::Queue(queue.clone()), &got.delivery.data).await?;
        got.delivery.acker.ack(BasicAckOptions::default()).await.map_err(failed)?;
    }
    close(channel).await;
    Ok(())
}
