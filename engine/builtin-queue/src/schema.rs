//! What the worker's settings look like, for people and forms.

use serde_json::{Value, json};

/// JSON Schema of the worker's settings.
#[must_use]
pub fn schema() -> Value {
    let url = |default: &str, what: &str| json!({"type": "string", "default": default, "description": what});
    let count = |default: u64, least: u64, what: &str| json!({"type": "integer", "minimum": least, "default": default, "description": what});
    json!({
        "type": "object",
        "additionalProperties": false,
        "description": "Topics and queues whose messages are delivered at least once.",
        "properties": {
            "adapter": {
                "description": "Where messages are kept. Changing it does not move those that wait.",
                "default": {"name": "builtin"},
                "oneOf": [
                    adapter("builtin", "In a file of this engine.", &json!({
                        "store_method": {"type": "string", "enum": ["file_based", "in_memory"], "default": "file_based",
                            "description": "`in_memory` loses all messages when the engine ends."},
                        "file_path": {"type": "string", "default": "./data/queue", "description": "The folder of the file."},
                        "save_interval_ms": count(5000, 0, "Accepted, and means nothing: what is acknowledged is on disk."),
                        "max_attempts": count(3, 1, "Deliveries of a topic's message before it is given up."),
                        "backoff_ms": count(1000, 0, "Pause before the second attempt; it doubles with every further one."),
                        "concurrency": {"type": "integer", "minimum": 1, "maximum": crate::settings::MAX_CONCURRENCY,
                            "default": 10, "description": "Messages in flight for each subscribed function."},
                        "poll_interval_ms": count(100, 0, "Accepted, and means nothing: consumers are woken."),
                        "mode": {"type": "string", "enum": ["concurrent", "standard", "fifo"], "default": "concurrent",
                            "description": "`fifo` delivers a topic's messages to a function one after another."},
                    })),
                    adapter("redis", "Topics on a Redis: no retries, no dead letters; named queues are only written to.", &json!({
                        "redis_url": url("redis://localhost:6379", "The Redis."),
                    })),
                    adapter("rabbitmq", "On a RabbitMQ.", &json!({
                        "amqp_url": url("amqp://localhost:5672", "The broker."),
                        "max_attempts": count(3, 1, "Deliveries of a topic's message before it is given up."),
                        "prefetch_count": {"type": "integer", "minimum": 1, "maximum": 65535, "default": 10,
                            "description": "Messages in flight for each subscribed function."},
                        "queue_mode": {"type": "string", "enum": ["standard", "fifo"], "default": "standard",
                            "description": "`fifo` delivers a topic's messages to a function one after another."},
                    })),
                    adapter("bridge", "Topics of another engine.", &json!({
                        "bridge_url": url("ws://localhost:49134", "The other engine."),
                    })),
                ],
            },
            "queue_configs": {
                "type": "object",
                "description": "Queues that calls can be put into, by name. `default` is always there.",
                "additionalProperties": {
                    "type": "object",
                    "additionalProperties": false,
                    "properties": {
                        "max_retries": count(3, 0, "Deliveries before a message is given up, the first included."),
                        "concurrency": {"type": "integer", "minimum": 1, "maximum": crate::settings::MAX_CONCURRENCY,
                            "default": 10, "description": "Messages in flight; always 1 for fifo."},
                        "type": {"type": "string", "enum": ["standard", "fifo"], "default": "standard",
                            "description": "`fifo` keeps the order within a group, also over retries."},
                        "message_group_field": {"type": "string",
                            "description": "Top-level field of the payload that names the message's group; required for fifo."},
                        "backoff_ms": count(1000, 0, "Pause before the second attempt; it doubles with every further one."),
                        "timeout_ms": count(crate::settings::DEFAULT_TIMEOUT_MS, 1,
                            "A delivery that takes longer has failed; its place is the next message's."),
                        "poll_interval_ms": count(100, 0, "Accepted, and means nothing: consumers are woken."),
                    },
                },
            },
        },
    })
}

fn adapter(name: &str, description: &str, properties: &Value) -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["name"],
        "description": description,
        "properties": {
            "name": {"const": name},
            "config": {"type": ["object", "null"], "additionalProperties": false, "properties": properties},
        },
    })
}
