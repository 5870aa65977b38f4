//! The functions, and what each answers.

use engine_builtin::{Answer, Call, ErrorBody, RegisterFunction, decode, encode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::attribute::{AttributeValue, Budget, Resource, of_object};
use crate::id::{TraceId, of_traceparent};
use crate::log::{Level, LogRecord};
use crate::rollup::{self, Query};
use crate::state::State;
use crate::time::{self, NANOS_PER_SECOND, Overflow, millis_to_nanos, nanos_to_millis};
use crate::view::{tree, view};
use crate::{baggage, engine_metrics, log_query, trace_query};

const FUNCTIONS: [(&str, &str); 20] = [
    ("engine::log::trace", "Write a log record of severity trace."),
    ("engine::log::debug", "Write a log record of severity debug."),
    ("engine::log::info", "Write a log record of severity info."),
    ("engine::log::warn", "Write a log record of severity warn."),
    ("engine::log::error", "Write a log record of severity error."),
    ("engine::baggage::get", "Read one entry of the call's baggage."),
    ("engine::baggage::set", "Has no lasting effect: baggage is set where a call is made."),
    ("engine::baggage::get_all", "Read the call's baggage."),
    ("engine::traces::list", "List spans that are kept."),
    ("engine::traces::tree", "Show one trace as a tree."),
    ("engine::traces::group_by", "Group spans by the value of an attribute."),
    ("engine::traces::clear", "Forget all spans."),
    ("engine::logs::list", "List log records that are kept."),
    ("engine::logs::clear", "Forget all log records."),
    ("engine::metrics::list", "Show the engine's counts and the metrics that are kept."),
    ("engine::rollups::list", "List metrics summed up by the minute, five minutes or hour."),
    ("engine::sampling::rules", "Show which traces and logs are kept."),
    ("engine::health::check", "Tell whether telemetry is taken."),
    ("engine::alerts::list", "List alerts and how they stand."),
    ("engine::alerts::evaluate", "Look at all alerts now."),
];

pub(crate) fn registrations() -> Vec<RegisterFunction> {
    let registration = |(id, description): (&str, &str)| RegisterFunction {
        id: id.to_owned(),
        description: Some(description.to_owned()),
        request_format: None,
        response_format: None,
        metadata: None,
        invocation: None,
    };
    FUNCTIONS.into_iter().map(registration).collect()
}

impl From<Overflow> for ErrorBodyOf {
    fn from(error: Overflow) -> Self {
        Self(ErrorBody::new("time_value_overflow", error.to_string()))
    }
}

/// An answer's error, so that `?` knows which code a failure has.
struct ErrorBodyOf(ErrorBody);

impl From<ErrorBody> for ErrorBodyOf {
    fn from(body: ErrorBody) -> Self {
        Self(body)
    }
}

impl State {
    /// Every function but `engine::alerts::evaluate`, which has something to do afterwards.
    pub(crate) fn answer(&self, call: &Call) -> Answer {
        let now = time::now();
        self.dispatch(call, now).map_err(|error| error.0)
    }

    fn dispatch(&self, call: &Call, now: u64) -> Result<Option<engine_builtin::Raw>, ErrorBodyOf> {
        let answer = match call.function_id.as_str() {
            "engine::baggage::get" => baggage_get(call)?,
            "engine::baggage::set" => baggage_set(call)?,
            "engine::baggage::get_all" => json!({"baggage": of_call(call)}),
            "engine::traces::list" => {
                let request: trace_query::List = optional(call)?;
                request.answer(self.kept_spans()?.iter())?
            }
            "engine::traces::tree" => self.trace_tree(call)?,
            "engine::traces::group_by" => {
                let request: trace_query::GroupBy = decode(call)?;
                request.answer(self.kept_spans()?.iter())?
            }
            "engine::traces::clear" => {
                self.kept_spans()?.clear();
                json!({"success": true})
            }
            "engine::logs::list" => {
                let request: log_query::List = optional(call)?;
                let mut logs = self.logs();
                logs.expire(now);
                request.answer(now, logs.iter())?
            }
            "engine::logs::clear" => {
                self.logs().clear();
                json!({"success": true})
            }
            "engine::metrics::list" => self.metrics_list(call, now)?,
            "engine::rollups::list" => self.rollups_list(call, now)?,
            "engine::sampling::rules" => self.sampling_rules(now),
            "engine::health::check" => self.health(now),
            "engine::alerts::list" => self.alerts().json(now),
            other => match other.strip_prefix("engine::log::").and_then(Level::parse) {
                Some(level) => {
                    self.log_call(call, level, now)?;
                    return Ok(None);
                }
                None => {
                    let message = format!("function `{other}` is not one of ours");
                    return Err(ErrorBody::new("function_not_found", message).into());
                }
            },
        };
        Ok(encode(&answer)?)
    }

    fn kept_spans(&self) -> Result<std::sync::MutexGuard<'_, crate::ring::Ring<crate::span::Span>>, ErrorBody> {
        self.spans().ok_or_else(|| {
            let message = "spans are not kept: set `exporter` to `memory` or `both`";
            ErrorBody::new("memory_exporter_not_enabled", message)
        })
    }

    fn log_call(&self, call: &Call, level: Level, now: u64) -> Result<(), ErrorBody> {
        let request: LogRequest = decode(call)?;
        let mut budget = Budget::new();
        let body = budget.text(&request.message);
        let attributes = match &request.data {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Object(entries)) => of_object(entries, &mut budget),
            Some(other) => vec![("data".to_owned(), AttributeValue::of_json(other, &mut budget))],
        };
        let called_in = call.trace.traceparent.as_deref().and_then(of_traceparent);
        let mut given = |id: Option<String>, called: Option<String>| {
            id.filter(|id| !id.is_empty()).map(|id| budget.text(&id)).or(called)
        };
        let trace_id = given(request.trace_id, called_in.map(|(trace, _)| trace.to_string()));
        let span_id = given(request.span_id, called_in.map(|(_, span)| span.to_string()));
        let resource = match request.service_name.filter(|name| !name.is_empty()) {
            None => std::sync::Arc::clone(&self.resource),
            Some(name) => {
                let service_name = budget.text(&name);
                let attributes = vec![("service.name".to_owned(), AttributeValue::Text(service_name.clone()))];
                std::sync::Arc::new(Resource { service_name, attributes })
            }
        };
        self.log(
            now,
            LogRecord {
                time_unix_nano: now,
                observed_unix_nano: now,
                severity: level.severity(),
                body,
                attributes,
                trace_id,
                span_id,
                resource,
                scope: std::sync::Arc::default(),
            },
        );
        Ok(())
    }

    fn trace_tree(&self, call: &Call) -> Result<Value, ErrorBody> {
        let request: TreeRequest = decode(call)?;
        let spans = self.kept_spans()?;
        let Some(trace) = TraceId::parse(&request.trace_id) else { return Ok(json!({"roots": []})) };
        let of_trace: Vec<_> = spans.iter().filter(|span| span.trace_id == trace).map(std::sync::Arc::clone).collect();
        drop(spans);
        Ok(json!({"roots": tree(&view(&of_trace, &self.settings().collapse))}))
    }

    fn metrics_list(&self, call: &Call, now: u64) -> Result<Value, ErrorBodyOf> {
        let request: MetricsRequest = optional(call)?;
        let from = request.start_time.map(millis_to_nanos).transpose()?.unwrap_or(0);
        let to = request.end_time.map(millis_to_nanos).transpose()?.unwrap_or(u64::MAX);
        let named = |name: &str| request.metric_name.as_ref().is_none_or(|wanted| wanted == name);
        // Before any lock: the engine has one of its own, under which it asks us for gauges.
        let engine_metrics = engine_metrics::json(&self.engine.stats());
        let mut metrics = self.metrics();
        metrics.expire(now);
        let shown: Vec<Value> = metrics
            .iter()
            .filter(|metric| named(&metric.name))
            .filter_map(|metric| metric.json(|point| (from..=to).contains(&point.time_unix_nano)))
            .collect();
        let mut answer = json!({
            "engine_metrics": engine_metrics,
            "sdk_metrics": shown,
            "timestamp": nanos_to_millis(now),
        });
        if let Some(step) = request.aggregate_interval.filter(|seconds| *seconds > 0) {
            let step = step.saturating_mul(NANOS_PER_SECOND);
            answer["aggregated_metrics"] =
                Value::Array(metrics.aggregated(step, |metric, point| {
                    named(&metric.name) && (from..=to).contains(&point.time_unix_nano)
                }));
        }
        if request.is_given() {
            answer["query"] = json!({
                "start_time": request.start_time,
                "end_time": request.end_time,
                "metric_name": request.metric_name,
                "aggregate_interval": request.aggregate_interval,
            });
        }
        Ok(answer)
    }

    fn rollups_list(&self, call: &Call, now: u64) -> Result<Value, ErrorBodyOf> {
        let request: RollupsRequest = optional(call)?;
        let number = request.level.unwrap_or(0);
        let level = rollup::Level::of_number(number).ok_or_else(|| {
            let message = format!("{}: `level` is {number}; it must be 0, 1 or 2", call.function_id);
            ErrorBody::new("deserialization_error", message)
        })?;
        let hour_ago = now.saturating_sub(3600 * NANOS_PER_SECOND);
        let query = Query {
            start_unix_nano: request.start_time.map(millis_to_nanos).transpose()?.unwrap_or(hour_ago),
            end_unix_nano: request.end_time.map(millis_to_nanos).transpose()?.unwrap_or(now),
            level,
            name: request.metric_name.as_deref(),
        };
        let (mut rollups, mut histograms) = self.metrics().rollups().list(&query);
        let (more, more_histograms) = self.engine_samples().rollups().list(&query);
        rollups.extend(more);
        histograms.extend(more_histograms);
        Ok(json!({
            "rollups": rollups,
            "histogram_rollups": histograms,
            "level": number,
            "source": "memory",
            "query": {
                "start_time": nanos_to_millis(query.start_unix_nano),
                "end_time": nanos_to_millis(query.end_unix_nano),
                "metric_name": query.name,
            },
            "timestamp": nanos_to_millis(now),
        }))
    }

    fn sampling_rules(&self, now: u64) -> Value {
        let settings = self.settings();
        let rules = &settings.sampling;
        let rule = |rule: &crate::sampling::Rule| json!({"operation": rule.operation, "service": rule.service, "rate": rule.rate.share()});
        json!({
            "traces": {
                "default_ratio": rules.default.share(),
                "rules": rules.rules.iter().map(rule).collect::<Vec<_>>(),
                "parent_based": rules.parent_based,
            },
            "logs": {"sampling_ratio": settings.logs_sampling.share()},
            "timestamp": nanos_to_millis(now),
        })
    }

    fn health(&self, now: u64) -> Value {
        let settings = self.settings();
        let component =
            |on: bool, details: Value| json!({"status": if on { "healthy" } else { "disabled" }, "details": details});
        let spans = self.spans().map(|spans| spans.len());
        json!({
            "status": "healthy",
            "components": {
                "otel": component(settings.enabled, json!({
                    "frames_dropped": self.frames.dropped(),
                    "frames_malformed": self.frames.malformed(),
                })),
                "metrics": component(settings.enabled && settings.metrics_enabled, json!({
                    "stored": self.metrics().len(),
                })),
                "logs": component(settings.enabled && settings.logs_enabled, json!({"stored": self.logs().len()})),
                "spans": component(spans.is_some(), json!({"stored": spans.unwrap_or(0)})),
            },
            "timestamp": nanos_to_millis(now),
            "version": self.engine.version(),
        })
    }
}

#[derive(Deserialize)]
struct LogRequest {
    message: String,
    data: Option<Value>,
    trace_id: Option<String>,
    span_id: Option<String>,
    service_name: Option<String>,
}

#[derive(Deserialize)]
struct TreeRequest {
    trace_id: String,
}

#[derive(Deserialize)]
struct BaggageGet {
    key: String,
}

#[derive(Deserialize)]
struct BaggageSet {
    #[serde(rename = "key")]
    _key: String,
    #[serde(rename = "value")]
    _value: String,
}

#[derive(Default, Deserialize)]
struct MetricsRequest {
    start_time: Option<u64>,
    end_time: Option<u64>,
    metric_name: Option<String>,
    aggregate_interval: Option<u64>,
}

impl MetricsRequest {
    fn is_given(&self) -> bool {
        self.start_time.is_some()
            || self.end_time.is_some()
            || self.metric_name.is_some()
            || self.aggregate_interval.is_some()
    }
}

#[derive(Default, Deserialize)]
struct RollupsRequest {
    start_time: Option<u64>,
    end_time: Option<u64>,
    level: Option<u64>,
    metric_name: Option<String>,
}

/// A request of which every part is optional: so is the whole.
fn optional<T: for<'de> Deserialize<'de> + Default>(call: &Call) -> Result<T, ErrorBody> {
    decode::<Option<T>>(call).map(Option::unwrap_or_default)
}

fn of_call(call: &Call) -> serde_json::Map<String, Value> {
    call.trace.baggage.as_deref().map(baggage::entries).unwrap_or_default()
}

fn baggage_get(call: &Call) -> Result<Value, ErrorBody> {
    let request: BaggageGet = decode(call)?;
    Ok(json!({"value": of_call(call).remove(&request.key)}))
}

fn baggage_set(call: &Call) -> Result<Value, ErrorBody> {
    let _: BaggageSet = decode(call)?;
    let note = "baggage is set where a call is made; this has no effect on the caller";
    Ok(json!({"success": true, "note": note}))
}
