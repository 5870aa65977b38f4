//! `resourceLogs`.

use std::sync::Arc;

use serde::Deserialize;

use super::{AnyValue, Items, KeyValue, Scalar, WireResource, WireScope, attributes, request, resource, scope};
use crate::attribute::Budget;
use crate::log::{LogRecord, Severity};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    #[serde(borrow)]
    resource_logs: Items<ResourceLogs<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResourceLogs<'a> {
    #[serde(borrow)]
    resource: Option<WireResource<'a>>,
    #[serde(borrow)]
    scope_logs: Items<ScopeLogs<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ScopeLogs<'a> {
    #[serde(borrow)]
    scope: Option<WireScope<'a>>,
    #[serde(borrow)]
    log_records: Items<WireRecord<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireRecord<'a> {
    #[serde(borrow, default)]
    time_unix_nano: Scalar<'a>,
    #[serde(borrow, default)]
    observed_time_unix_nano: Scalar<'a>,
    #[serde(borrow, default)]
    severity_number: Scalar<'a>,
    #[serde(borrow, default)]
    severity_text: Scalar<'a>,
    #[serde(borrow)]
    body: Option<AnyValue<'a>>,
    #[serde(borrow)]
    attributes: Items<KeyValue<'a>>,
    #[serde(borrow, default)]
    trace_id: Scalar<'a>,
    #[serde(borrow, default)]
    span_id: Scalar<'a>,
}

/// Reads a log export request that arrived at `now_unix_nano`, which stands in for times that are missing.
///
/// # Errors
/// What is no JSON of this shape, or too much of it.
pub(crate) fn logs(json: &str, now_unix_nano: u64) -> Result<Vec<LogRecord>, serde_json::Error> {
    let request: Request<'_> = request(json)?;
    let mut records = Vec::new();
    for from in request.resource_logs.iter().flatten() {
        let resource = resource(&from.resource);
        for by in from.scope_logs.iter().flatten() {
            let scope = scope(&by.scope);
            for wire in by.log_records.iter().flatten() {
                let mut budget = Budget::new();
                let text = |scalar: &Scalar<'_>, budget: &mut Budget| {
                    Some(budget.text(&scalar.text())).filter(|text| !text.is_empty())
                };
                let or_now = |scalar: &Scalar<'_>| Some(scalar.unsigned()).filter(|time| *time != 0);
                let observed = or_now(&wire.observed_time_unix_nano).unwrap_or(now_unix_nano);
                records.push(LogRecord {
                    time_unix_nano: or_now(&wire.time_unix_nano).unwrap_or(observed),
                    observed_unix_nano: observed,
                    severity: Severity::of(wire.severity_number.small(), &wire.severity_text.text()),
                    body: wire.body.as_ref().map_or_else(String::new, |body| body.value(&mut budget).text().into()),
                    attributes: attributes(&wire.attributes, &mut budget),
                    trace_id: text(&wire.trace_id, &mut budget),
                    span_id: text(&wire.span_id, &mut budget),
                    resource: Arc::clone(&resource),
                    scope: Arc::clone(&scope),
                });
            }
        }
    }
    Ok(records)
}
