//! The JSON Schema of the settings, as users are shown it.

use serde_json::{Map, Value, json};

use crate::alert::Operator;

/// Of this worker's settings.
#[must_use]
pub fn schema() -> Value {
    let mut properties = Map::new();
    for part in [traces(), metrics(), logs(), rest()] {
        if let Value::Object(part) = part {
            properties.extend(part);
        }
    }
    json!({"type": "object", "additionalProperties": false, "properties": properties})
}

fn traces() -> Value {
    json!({
        "enabled": {"type": "boolean", "default": true,
            "description": "Whether telemetry is taken at all. Read at start."},
        "service_name": {"type": "string", "default": "iii",
            "description": "The engine's name in its own telemetry. Read at start."},
        "service_version": {"type": "string", "default": "unknown",
            "description": "The engine's version in its own telemetry. Read at start."},
        "service_namespace": {"type": "string",
            "description": "The engine's namespace in its own telemetry. Read at start."},
        "exporter": exporter("Where spans go: kept in memory, sent by OTLP, or both. Read at start."),
        "endpoint": {"type": "string", "format": "uri", "default": "http://localhost:4317",
            "description": "Where OTLP is sent. Read at start."},
        "sampling_ratio": ratio("Share of traces that are kept."),
        "sampling": sampling(),
        "memory_max_spans": count(1000, "Spans kept in memory."),
        "collapse_spans": {"type": "array", "default": [],
            "description": "Spans left out of the view of a trace; their children move up.",
            "items": {"type": "object", "additionalProperties": false, "required": ["name"], "properties": {
                "name": {"type": "string", "description": "Pattern of the span's name; `*` and `?` are wildcards."},
                "service": {"type": "string", "description": "Pattern of its service."},
            }}},
    })
}

fn metrics() -> Value {
    json!({
        "metrics_enabled": {"type": "boolean", "default": true,
            "description": "Whether metrics are taken. Read at start."},
        "metrics_exporter": {"enum": ["memory", "otlp"], "default": "memory",
            "description": "Metrics are kept in memory; with `otlp` they are sent too. Read at start."},
        "metrics_retention_seconds": count(3600, "How long metrics are kept. Read at start."),
        "metrics_max_count": count(10_000, "Metrics kept in memory. Read at start."),
        "alerts": {"type": "array", "default": [], "items": alert(),
            "description": "Metrics to watch; looked at every 10 seconds."},
        "prometheus": {"type": "object", "additionalProperties": false, "default": {},
            "description": "The endpoint that Prometheus scrapes, at `/metrics`.",
            "properties": {
                "enabled": {"type": "boolean", "default": true, "description": "Whether there is one."},
                "host": {"type": "string", "default": "127.0.0.1", "description": "IP address it listens on."},
                "port": {"type": "integer", "minimum": 0, "maximum": 65535, "default": 9464,
                    "description": "Port it listens on; 0 is any that is free."},
            }},
    })
}

fn logs() -> Value {
    json!({
        "logs_enabled": {"type": "boolean", "default": true, "description": "Whether logs are taken."},
        "logs_exporter": exporter("Where logs go: kept in memory, sent by OTLP, or both."),
        "logs_max_count": count(1000, "Log records kept in memory."),
        "logs_retention_seconds": count(3600, "How long log records are kept."),
        "logs_batch_size": {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 100,
            "description": "Log records sent at once."},
        "logs_flush_interval_ms": {"type": "integer", "minimum": 100, "maximum": 3_600_000, "default": 5000,
            "description": "How long a log record waits for others before it is sent."},
        "logs_sampling_ratio": ratio("Share of log records that are kept."),
        "logs_console_output": {"type": "boolean", "default": true,
            "description": "Whether workers' logs are shown in the engine's own."},
    })
}

fn rest() -> Value {
    json!({
        "level": {"type": "string", "default": "info",
            "description": "What the engine logs: a filter such as `info,iii::queue=debug`."},
        "format": {"enum": ["default", "json"], "default": "default",
            "description": "How the engine logs. Read at start."},
    })
}

fn exporter(description: &str) -> Value {
    json!({"enum": ["memory", "otlp", "both"], "default": "memory", "description": description})
}

fn ratio(description: &str) -> Value {
    json!({"type": "number", "minimum": 0, "maximum": 1, "default": 1.0, "description": description})
}

fn count(default: u64, description: &str) -> Value {
    json!({"type": "integer", "minimum": 1, "default": default, "description": description})
}

fn sampling() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "description": "Which traces are kept.",
        "properties": {
            "default": {"type": "number", "minimum": 0, "maximum": 1,
                "description": "Share of traces that no rule fits; `sampling_ratio` where it is not given."},
            "rules": {"type": "array", "default": [], "description": "The first that fits decides.",
                "items": {"type": "object", "additionalProperties": false, "required": ["rate"], "properties": {
                    "operation": {"type": "string",
                        "description": "Pattern of the span's name; `*` and `?` are wildcards."},
                    "service": {"type": "string", "description": "Pattern of its service."},
                    "rate": {"type": "number", "minimum": 0, "maximum": 1, "description": "Share that is kept."},
                }}},
            "parent_based": {"type": "boolean", "default": false,
                "description": "Whether a trace's first span decides for all of it."},
            "rate_limit": {"type": "object", "additionalProperties": false, "required": ["max_traces_per_second"],
                "description": "A limit besides the shares.",
                "properties": {"max_traces_per_second": {"type": "number", "minimum": 1,
                    "description": "Traces kept in a second."}}},
        },
    })
}

fn alert() -> Value {
    let operators: Vec<&str> = Operator::ALL.iter().flat_map(|(_, name, symbol)| [*name, *symbol]).collect();
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["name", "metric", "threshold"],
        "properties": {
            "name": {"type": "string", "description": "What it is called."},
            "metric": {"type": "string",
                "description": "A metric of an SDK or of the engine, such as `iii.invocations.error`."},
            "threshold": {"type": "number", "description": "What the metric is compared with."},
            "operator": {"enum": operators, "default": "greaterthan", "description": "How it is compared."},
            "window_seconds": {"type": "integer", "minimum": 0, "default": 60,
                "description": "What counts: the rise of a counter in so many seconds, the newest value of a gauge."},
            "action": {
                "default": {"type": "log"},
                "description": "What is done when it fires.",
                "oneOf": [
                    action("log", None),
                    action("webhook", Some(("url", "Where it is posted."))),
                    action("function", Some(("path", "The function that is called."))),
                ],
            },
            "enabled": {"type": "boolean", "default": true, "description": "Whether it is looked at."},
            "cooldown_seconds": {"type": "integer", "minimum": 0, "default": 60,
                "description": "How long it is quiet after it was told."},
        },
    })
}

fn action(kind: &str, field: Option<(&str, &str)>) -> Value {
    let mut properties = json!({"type": {"const": kind, "description": "What kind of action it is."}});
    let mut required = vec!["type"];
    if let Some((name, description)) = field {
        properties[name] = json!({"type": "string", "description": description});
        required.push(name);
    }
    json!({"type": "object", "additionalProperties": false, "required": required, "properties": properties})
}
