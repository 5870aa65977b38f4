//! What the settings look like, for people and for checks.

use serde_json::{Value, json};

use crate::settings::{
    DEFAULT_BRIDGE_URL, DEFAULT_CHANNEL_SIZE, DEFAULT_FILE_PATH, DEFAULT_HOST, DEFAULT_PORT, DEFAULT_REDIS_URL,
    MAX_CHANNEL_SIZE,
};

/// The settings' JSON Schema.
#[must_use]
pub fn schema() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "port": {
                "type": "integer", "minimum": 0, "maximum": 65535, "default": DEFAULT_PORT,
                "description": "Where subscribers connect to; 0 is any. A change listens anew before the old port closes."
            },
            "host": {
                "type": "string", "default": DEFAULT_HOST, "description": "The address that subscribers connect to."
            },
            "auth_function": {
                "type": ["string", "null"],
                "description": "A function that is asked about each new connection; what it fails for is refused."
            },
            "adapter": {
                "description": "Where items are kept. Connections stay with the adapter they came to.",
                "default": { "name": "kv" },
                "oneOf": [
                    one("kv", "In a file of this engine.", &json!({
                        "store_method": {
                            "enum": ["file_based", "in_memory"], "default": "file_based",
                            "description": "in_memory loses everything when the engine ends."
                        },
                        "file_path": {
                            "type": "string", "default": DEFAULT_FILE_PATH, "description": "The folder of the file."
                        },
                        "save_interval_ms": {
                            "type": "integer", "minimum": 0,
                            "description": "Accepted, and means nothing: every acknowledged write is on disk."
                        },
                        "channel_size": {
                            "type": "integer", "minimum": 1, "maximum": MAX_CHANNEL_SIZE,
                            "default": DEFAULT_CHANNEL_SIZE,
                            "description": "Events that wait for one subscriber; beyond that it loses the oldest."
                        }
                    })),
                    one("redis", "At a Redis, shared by every engine there.", &json!({
                        "redis_url": {
                            "type": "string", "default": DEFAULT_REDIS_URL, "description": "Where the Redis listens."
                        }
                    })),
                    one("bridge", "At another engine.", &json!({
                        "bridge_url": {
                            "type": "string", "default": DEFAULT_BRIDGE_URL,
                            "description": "Where the other engine listens for workers."
                        }
                    }))
                ]
            }
        }
    })
}

fn one(name: &str, description: &str, config: &Value) -> Value {
    json!({
        "type": "object",
        "description": description,
        "additionalProperties": false,
        "required": ["name"],
        "properties": {
            "name": { "const": name },
            "config": { "type": "object", "additionalProperties": false, "properties": config }
        }
    })
}
