//! The connection to the broker: made again when it is lost; what is published on it is confirmed.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use tokio::time::{Instant, sleep, timeout};

use crate::broker::{QueueError, without_password};
use crate::message::QueueId;
use crate::rabbitmq::names;

/// What connecting, or publishing over all its attempts, may take.
const PATIENCE: Duration = Duration::from_secs(10);

const PAUSE: Duration = Duration::from_millis(250);

/// A retry queue that nobody has written to for this long, after its messages have left it, is deleted by the broker.
const LEASE_MS: u64 = 60_000;

/// Stored on disk by the broker.
const PERSISTENT: u8 = 2;

/// What is known to be on the broker, at most; then it is declared again.
const MAX_DECLARED: usize = 10_000;

pub(crate) struct Link {
    url: String,
    connected: tokio::sync::Mutex<Option<Arc<Connected>>>,
}

/// One connection's life.
pub(crate) struct Connected {
    connection: Connection,
    publisher: Channel,
    declared: Mutex<HashSet<String>>,
}

/// Where a message is published to.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    Topic(String),
    Queue(QueueId),
    /// To the same queue, after a pause.
    Retry {
        queue: QueueId,
        pause_ms: u64,
    },
    Dead(String),
}

impl Link {
    /// # Errors
    /// Nobody answers there.
    pub(crate) async fn open(url: &str) -> Result<Self, QueueError> {
        let link = Self { url: url.to_owned(), connected: tokio::sync::Mutex::default() };
        link.connected().await?;
        Ok(link)
    }

    /// The connection; a new one if it was lost.
    ///
    /// # Errors
    /// Nobody answers.
    pub(crate) async fn connected(&self) -> Result<Arc<Connected>, QueueError> {
        let mut place = self.connected.lock().await;
        if let Some(connected) = &*place
            && connected.is_alive()
        {
            return Ok(Arc::clone(connected));
        }
        *place = None;
        let connecting = timeout(PATIENCE, Connected::open(&self.url)).await;
        let connected = match connecting {
            Ok(connected) => connected.map_err(|error| self.failed(&error))?,
            Err(_) => return Err(self.failed(&format_args!("no connection within {} s", PATIENCE.as_secs()))),
        };
        let connected = Arc::new(connected);
        *place = Some(Arc::clone(&connected));
        Ok(connected)
    }

    /// Publishes, and returns when the broker has it; over a restart of the broker, too. It may be there twice then.
    ///
    /// # Errors
    /// The broker has not confirmed it.
    pub(crate) async fn publish(&self, target: &Target, body: &[u8]) -> Result<(), QueueError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let attempt = async {
                let connected = self.connected().await?;
                connected.publish(target, body).await.map_err(|error| self.failed(&error))
            };
            let remaining = deadline.saturating_duration_since(Instant::now());
            match timeout(remaining.max(PAUSE), attempt).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) if Instant::now() >= deadline => return Err(error),
                Err(_) => return Err(self.failed(&format_args!("not confirmed within {} s", PATIENCE.as_secs()))),
                Ok(Err(_)) => sleep(PAUSE).await,
            }
        }
    }

    pub(crate) fn failed(&self, reason: &dyn std::fmt::Display) -> QueueError {
        let url = without_password(&self.url);
        QueueError::Remote { broker: "RabbitMQ", url, reason: reason.to_string() }
    }

    pub(crate) async fn close(&self) {
        if let Some(connected) = self.connected.lock().await.take() {
            let _ = timeout(PATIENCE, connected.connection.close(200, "the engine stops".into())).await;
        }
    }
}

impl Connected {
    async fn open(url: &str) -> Result<Self, lapin::Error> {
        let properties = ConnectionProperties::default().with_connection_name("iii-queue".into());
        let connection = Connection::connect(url, properties).await?;
        let publisher = connection.create_channel().await?;
        publisher.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { connection, publisher, declared: Mutex::default() })
    }

    fn is_alive(&self) -> bool {
        self.connection.status().connected() && self.publisher.status().connected()
    }

    pub(crate) async fn channel(&self) -> Result<Channel, lapin::Error> {
        self.connection.create_channel().await
    }

    async fn publish(&self, target: &Target, body: &[u8]) -> Result<(), lapin::Error> {
        let (exchange, key) = match target {
            Target::Topic(topic) => {
                self.declare_topic(topic).await?;
                (names::exchange(topic), String::new())
            }
            Target::Queue(queue) => {
                self.declare_queue(queue).await?;
                (String::new(), names::queue(queue))
            }
            Target::Retry { queue, pause_ms } => (String::new(), self.declare_retry(queue, *pause_ms).await?),
            Target::Dead(name) => {
                self.declare_dead(name).await?;
                (String::new(), names::dead(name))
            }
        };
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
        let sent = self.publisher.basic_publish(exchange.into(), key.into(), options, body, properties).await?;
        let confirmation = sent.await?;
        let refused = !confirmation.is_ack() || confirmation.take_message().is_some();
        if refused {
            // Somebody has deleted its queue: all are declared again.
            self.declared.lock().unwrap_or_else(PoisonError::into_inner).clear();
            return Err(std::io::Error::other("the broker has not taken the message").into());
        }
        Ok(())
    }

    /// A topic's exchange, and what takes the messages that no function's queue is bound for.
    pub(crate) async fn declare_topic(&self, topic: &str) -> Result<(), lapin::Error> {
        let exchange = names::exchange(topic);
        if self.is_declared(&exchange) {
            return Ok(());
        }
        let (held, held_queue) = (names::held_exchange(topic), names::queue(&QueueId::Held(topic.to_owned())));
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let none = FieldTable::default;
        self.publisher.exchange_declare(held.as_str().into(), ExchangeKind::Fanout, durable, none()).await?;
        self.publisher.queue_declare(held_queue.as_str().into(), QueueDeclareOptions::durable(), none()).await?;
        let options = QueueBindOptions::default();
        self.publisher.queue_bind(held_queue.into(), held.as_str().into(), "".into(), options, none()).await?;
        let mut alternate = FieldTable::default();
        alternate.insert("alternate-exchange".into(), AMQPValue::LongString(held.into()));
        self.publisher.exchange_declare(exchange.as_str().into(), ExchangeKind::Fanout, durable, alternate).await?;
        self.note_declared(exchange);
        Ok(())
    }

    /// A queue; a function's is bound to its topic from now on.
    pub(crate) async fn declare_queue(&self, queue: &QueueId) -> Result<(), lapin::Error> {
        let name = names::queue(queue);
        if self.is_declared(&name) {
            return Ok(());
        }
        let none = FieldTable::default;
        self.publisher.queue_declare(name.as_str().into(), QueueDeclareOptions::durable(), none()).await?;
        if let QueueId::Subscriber { topic, .. } = queue {
            self.declare_topic(topic).await?;
            let exchange = names::exchange(topic).into();
            let options = QueueBindOptions::default();
            self.publisher.queue_bind(name.as_str().into(), exchange, "".into(), options, none()).await?;
        }
        self.note_declared(name);
        Ok(())
    }

    /// Messages leave it for their queue by themselves. Declaring it renews its lease, so it is never left out.
    async fn declare_retry(&self, queue: &QueueId, pause_ms: u64) -> Result<String, lapin::Error> {
        let target = names::queue(queue);
        let name = names::retry(&target, pause_ms);
        let number = |ms: u64| AMQPValue::LongLongInt(i64::try_from(ms).unwrap_or(i64::MAX));
        let mut arguments = FieldTable::default();
        arguments.insert("x-message-ttl".into(), number(pause_ms));
        arguments.insert("x-expires".into(), number(pause_ms.saturating_add(LEASE_MS)));
        arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("".into()));
        arguments.insert("x-dead-letter-routing-key".into(), AMQPValue::LongString(target.into()));
        self.declare_queue(queue).await?;
        self.publisher.queue_declare(name.as_str().into(), QueueDeclareOptions::durable(), arguments).await?;
        Ok(name)
    }

    async fn declare_dead(&self, name: &str) -> Result<(), lapin::Error> {
        let name = names::dead(name);
        if !self.is_declared(&name) {
            let options = QueueDeclareOptions::durable();
            self.publisher.queue_declare(name.as_str().into(), options, FieldTable::default()).await?;
            self.note_declared(name);
        }
        Ok(())
    }

    /// How many messages wait in a queue; none in one that does not exist.
    pub(crate) async fn messages(&self, name: &str) -> Result<u32, lapin::Error> {
        // Its own channel: asking for a queue that does not exist is the end of one.
        let channel = self.channel().await?;
        let asked = channel.queue_declare(name.into(), QueueDeclareOptions::durable().passive(), FieldTable::default());
        match asked.await {
            Ok(queue) => {
                channel.close(200, "counted".into()).await?;
                Ok(queue.message_count())
            }
            Err(error) if is_not_found(&error) => Ok(0),
            Err(error) => Err(error),
        }
    }

    fn is_declared(&self, name: &str) -> bool {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    fn note_declared(&self, name: String) {
        let mut declared = self.declared.lock().unwrap_or_else(PoisonError::into_inner);
        if declared.len() >= MAX_DECLARED {
            declared.clear();
        }
        declared.insert(name);
    }
}

fn is_not_found(error: &lapin::Error) -> bool {
    let lapin::ErrorKind::ProtocolError(refused) = error.kind() else { return false };
    *refused.kind() == AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND)
}
