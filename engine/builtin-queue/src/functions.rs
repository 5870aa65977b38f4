//! The functions: payload in, one call of the adapter, result out.

use std::sync::Arc;

use engine_builtin::{
    Answer, Call, ErrorBody, Raw, RegisterFunction, RegisterTriggerType, Reply, decode, encode, no_function,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::NAME;
use crate::broker::{Broker, QueueError};
use crate::message::{MAX_NAME_BYTES, Message};
use crate::settings::QueueSettings;
use crate::worker::QueueWorker;

/// Longest name of a group, in bytes.
const MAX_GROUP_BYTES: usize = 1024;

/// Most dead messages shown at once.
const MAX_SHOWN: usize = 1000;
const SHOWN: usize = 50;

#[derive(Deserialize)]
struct Publish {
    topic: Option<String>,
    data: Option<Raw>,
}

#[derive(Deserialize)]
struct Enqueue {
    queue: String,
    function_id: String,
    data: Option<Raw>,
}

/// Functions that are about one queue or topic, or a dead message of it.
#[derive(Deserialize)]
struct About {
    queue: Option<String>,
    topic: Option<String>,
    message_id: Option<String>,
    offset: Option<usize>,
    limit: Option<usize>,
}

pub(crate) fn call(worker: &QueueWorker, call: Call) -> Reply {
    let prepared = match call.function_id.as_str() {
        "iii::durable::publish" => publish(worker, &call),
        "iii-queue::enqueue" => enqueue(worker, &call),
        "iii::queue::redrive" => redrive(worker, &call),
        "iii::queue::redrive_message" => one_message(worker, &call, "redrive_message_failed", true),
        "iii::queue::discard_message" => one_message(worker, &call, "discard_message_failed", false),
        "engine::queue::list_topics" => Ok(list_topics(worker.broker())),
        "engine::queue::topic_stats" => topic_stats(worker, &call),
        "engine::queue::dlq_topics" => Ok(dlq_topics(worker.broker())),
        "engine::queue::dlq_messages" => dlq_messages(worker, &call),
        other => Err(no_function(NAME, other)),
    };
    prepared.unwrap_or_else(|error| Reply::Now(Err(error)))
}

fn publish(worker: &QueueWorker, call: &Call) -> Result<Reply, ErrorBody> {
    let Publish { topic, data } = decode(call)?;
    let topic = topic.filter(|topic| !topic.is_empty());
    let topic = topic.ok_or_else(|| ErrorBody::new("topic_not_set", "`topic` is missing or empty"))?;
    check_length("the topic", &topic).map_err(|error| error.body("publish_failed"))?;
    let (broker, trace) = (worker.broker(), call.trace.clone());
    Ok(Reply::later(async move {
        broker.publish(topic, or_null(data), trace).await.map_err(|error| error.body("publish_failed"))?;
        Ok(None)
    }))
}

fn enqueue(worker: &QueueWorker, call: &Call) -> Result<Reply, ErrorBody> {
    let Enqueue { queue, function_id, data } = decode(call)?;
    let (broker, settings) = worker.queue(&queue);
    let mut message = Message::new(function_id, or_null(data), call.trace.clone());
    prepare(&queue, settings.as_ref(), &mut message).map_err(|error| error.body("enqueue_error"))?;
    Ok(Reply::later(async move {
        let id = broker.enqueue(queue, message).await.map_err(|error| error.body("enqueue_error"))?;
        encode(&json!({ "messageReceiptId": id }))
    }))
}

fn prepare(queue: &str, settings: Option<&QueueSettings>, message: &mut Message) -> Result<(), QueueError> {
    let settings = settings.ok_or_else(|| QueueError::UnknownQueue(queue.to_owned()))?;
    check_length("the function's id", &message.function_id)?;
    message.group = settings.group_field.as_deref().map(|field| group(queue, field, &message.data)).transpose()?;
    Ok(())
}

/// The group of a payload: a top-level field of it, as JSON.
fn group(queue: &str, field: &str, data: &Raw) -> Result<String, QueueError> {
    let object: Option<serde_json::Map<String, Value>> = serde_json::from_str(data.get()).ok();
    let value = object.and_then(|mut object| object.remove(field)).filter(|value| !value.is_null());
    let value = value.ok_or_else(|| QueueError::NoGroup { queue: queue.to_owned(), field: field.to_owned() })?;
    let group = value.to_string();
    if group.len() > MAX_GROUP_BYTES {
        return Err(QueueError::GroupTooLong { field: field.to_owned(), limit: MAX_GROUP_BYTES });
    }
    Ok(group)
}

fn redrive(worker: &QueueWorker, call: &Call) -> Result<Reply, ErrorBody> {
    let queue = name(decode(call)?, "queue_not_set")?.0;
    let broker = worker.broker();
    Ok(Reply::later(async move {
        let redriven = broker.redrive(queue.clone()).await.map_err(|error| error.body("redrive_failed"))?;
        encode(&json!({ "queue": queue, "redriven": redriven }))
    }))
}

fn one_message(worker: &QueueWorker, call: &Call, code: &'static str, redrives: bool) -> Result<Reply, ErrorBody> {
    let (queue, about) = name(decode(call)?, "queue_not_set")?;
    let id = about.message_id.filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| ErrorBody::new("message_id_not_set", "`message_id` is missing or empty"))?;
    let broker = worker.broker();
    Ok(Reply::later(async move {
        let done = if redrives {
            broker.redrive_message(queue.clone(), id.clone()).await
        } else {
            broker.discard_message(queue.clone(), id.clone()).await
        };
        let done = done.map_err(|error| error.body(code))?;
        encode(&json!({ "queue": queue, "message_id": id, "redriven": u8::from(done) }))
    }))
}

fn list_topics(broker: Arc<dyn Broker>) -> Reply {
    Reply::later(async move { shown(broker.topics().await, "list_topics_failed") })
}

fn topic_stats(worker: &QueueWorker, call: &Call) -> Result<Reply, ErrorBody> {
    let (topic, _) = name(decode(call)?, "topic_required")?;
    let broker = worker.broker();
    Ok(Reply::later(async move { shown(broker.stats(topic).await, "topic_stats_failed") }))
}

fn dlq_topics(broker: Arc<dyn Broker>) -> Reply {
    Reply::later(async move { shown(broker.dead_topics().await, "dlq_topics_failed") })
}

fn dlq_messages(worker: &QueueWorker, call: &Call) -> Result<Reply, ErrorBody> {
    let (topic, about) = name(decode(call)?, "topic_required")?;
    let (offset, limit) = (about.offset.unwrap_or(0), about.limit.unwrap_or(SHOWN).min(MAX_SHOWN));
    let broker = worker.broker();
    Ok(Reply::later(async move { shown(broker.dead_messages(topic, offset, limit).await, "dlq_messages_failed") }))
}

fn shown(result: Result<impl serde::Serialize, QueueError>, code: &str) -> Answer {
    encode(&result.map_err(|error| error.body(code))?)
}

fn name(mut about: About, code: &str) -> Result<(String, About), ErrorBody> {
    let name = about.queue.take().or(about.topic.take()).filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| ErrorBody::new(code, "`queue` (or `topic`) is missing or empty"))?;
    check_length("the name", &name).map_err(|error| error.body(code))?;
    Ok((name, about))
}

fn check_length(what: &'static str, text: &str) -> Result<(), QueueError> {
    match text.len() {
        bytes if bytes > MAX_NAME_BYTES => Err(QueueError::NameTooLong { what, bytes, limit: MAX_NAME_BYTES }),
        _ => Ok(()),
    }
}

fn or_null(data: Option<Raw>) -> Raw {
    data.unwrap_or_else(|| serde_json::value::RawValue::NULL.to_owned())
}

pub(crate) fn trigger_type() -> RegisterTriggerType {
    RegisterTriggerType {
        id: "durable:subscriber".to_owned(),
        description: Some("Calls a function with what is published to a topic, at least once.".to_owned()),
        trigger_request_format: raw(&json!({
            "type": "object",
            "required": ["topic"],
            "properties": {
                "topic": {"type": "string"},
                "condition_function_id": {"type": "string", "description": "Asked first; only `false` is a no."},
                "queue_config": {"type": "object", "properties": {
                    "type": {"type": "string", "description": "`fifo`: one after another."},
                    "maxRetries": {"type": "integer", "description": "Deliveries, the first included."},
                    "concurrency": {"type": "integer", "minimum": 1},
                    "visibilityTimeout": {"type": "integer", "description": "Seconds a delivery may take."},
                    "delaySeconds": {"type": "integer"},
                    "backoffType": {"type": "string", "enum": ["exponential", "fixed"]},
                    "backoffDelayMs": {"type": "integer"},
                }},
            },
        })),
        call_request_format: None,
    }
}

pub(crate) fn all() -> Vec<RegisterFunction> {
    let queue = json!({"queue": {"type": "string"}});
    let message = json!({"queue": {"type": "string"}, "message_id": {"type": "string"}});
    let topic = json!({"topic": {"type": "string"}});
    let page = json!({"topic": {"type": "string"}, "offset": {"type": "integer"}, "limit": {"type": "integer"}});
    let publish = json!({"topic": {"type": "string"}, "data": {}});
    let mut enqueue = function(
        "iii-queue::enqueue",
        "Puts a call into a queue.",
        &json!({"queue": {"type": "string"}, "function_id": {"type": "string"}, "data": {}}),
    );
    enqueue.metadata = raw(&json!({"internal": true}));
    vec![
        function("iii::durable::publish", "Gives a message to every function that subscribes to a topic.", &publish),
        function("iii::queue::redrive", "Puts all dead messages of a queue or topic back.", &queue),
        function("iii::queue::redrive_message", "Puts one dead message back.", &message),
        function("iii::queue::discard_message", "Throws one dead message away.", &message),
        function("engine::queue::list_topics", "Lists topics and queues.", &json!({})),
        function("engine::queue::topic_stats", "Counts the messages of a topic or queue.", &topic),
        function("engine::queue::dlq_topics", "Lists topics and queues with dead messages.", &json!({})),
        function("engine::queue::dlq_messages", "Lists dead messages, newest first.", &page),
        enqueue,
    ]
}

fn function(id: &str, description: &str, properties: &Value) -> RegisterFunction {
    RegisterFunction {
        id: id.to_owned(),
        description: Some(description.to_owned()),
        request_format: raw(&json!({"type": "object", "properties": properties})),
        response_format: None,
        metadata: None,
        invocation: None,
    }
}

fn raw(value: &Value) -> Option<Raw> {
    serde_json::value::to_raw_value(value).ok()
}
