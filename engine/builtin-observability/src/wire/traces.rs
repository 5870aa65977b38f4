//! `resourceSpans`.

use serde::Deserialize;

use super::{Items, KeyValue, Scalar, WireResource, WireScope, attributes, request, resource, scope};
use crate::attribute::Budget;
use crate::id::{SpanId, TraceId};
use crate::span::{Event, Link, Span, Status};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    #[serde(borrow)]
    resource_spans: Items<ResourceSpans<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResourceSpans<'a> {
    #[serde(borrow)]
    resource: Option<WireResource<'a>>,
    #[serde(borrow)]
    scope_spans: Items<ScopeSpans<'a>>,
}

#[derive(Deserialize)]
struct ScopeSpans<'a> {
    #[serde(borrow)]
    scope: Option<WireScope<'a>>,
    #[serde(borrow)]
    spans: Items<WireSpan<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireSpan<'a> {
    #[serde(borrow, default)]
    trace_id: Scalar<'a>,
    #[serde(borrow, default)]
    span_id: Scalar<'a>,
    #[serde(borrow, default)]
    parent_span_id: Scalar<'a>,
    #[serde(borrow, default)]
    trace_state: Scalar<'a>,
    #[serde(borrow, default)]
    name: Scalar<'a>,
    #[serde(borrow, default)]
    kind: Scalar<'a>,
    #[serde(borrow, default)]
    start_time_unix_nano: Scalar<'a>,
    #[serde(borrow, default)]
    end_time_unix_nano: Scalar<'a>,
    #[serde(borrow)]
    attributes: Items<KeyValue<'a>>,
    #[serde(borrow)]
    events: Items<WireEvent<'a>>,
    #[serde(borrow)]
    links: Items<WireLink<'a>>,
    #[serde(borrow)]
    status: Option<WireStatus<'a>>,
    #[serde(borrow)]
    flags: Option<Scalar<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireEvent<'a> {
    #[serde(borrow, default)]
    name: Scalar<'a>,
    #[serde(borrow, default)]
    time_unix_nano: Scalar<'a>,
    #[serde(borrow)]
    attributes: Items<KeyValue<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireLink<'a> {
    #[serde(borrow, default)]
    trace_id: Scalar<'a>,
    #[serde(borrow, default)]
    span_id: Scalar<'a>,
    #[serde(borrow, default)]
    trace_state: Scalar<'a>,
    #[serde(borrow)]
    attributes: Items<KeyValue<'a>>,
}

#[derive(Deserialize)]
struct WireStatus<'a> {
    #[serde(borrow, default)]
    code: Scalar<'a>,
    #[serde(borrow, default)]
    message: Scalar<'a>,
}

/// Reads a trace export request. Spans without ids are left out.
///
/// # Errors
/// What is no JSON of this shape, or too much of it.
pub(crate) fn traces(json: &str) -> Result<Vec<Span>, serde_json::Error> {
    let request: Request<'_> = request(json)?;
    let mut spans = Vec::new();
    for from in request.resource_spans.iter().flatten() {
        let resource = resource(&from.resource);
        for by in from.scope_spans.iter().flatten() {
            let scope = scope(&by.scope);
            let read = by.spans.iter().flatten().filter_map(span);
            spans.extend(read.map(|span| Span { resource: resource.clone(), scope: scope.clone(), ..span }));
        }
    }
    Ok(spans)
}

fn span(wire: &WireSpan<'_>) -> Option<Span> {
    let trace_id = TraceId::parse(&wire.trace_id.text())?;
    let span_id = SpanId::parse(&wire.span_id.text())?;
    let mut budget = Budget::new();
    let mut span = Span::new(trace_id, span_id, budget.text(&wire.name.text()));
    span.parent = SpanId::parse(&wire.parent_span_id.text());
    span.trace_state = budget.text(&wire.trace_state.text());
    span.kind = wire.kind.small();
    span.start_unix_nano = wire.start_time_unix_nano.unsigned();
    span.end_unix_nano = wire.end_time_unix_nano.unsigned();
    if let Some(status) = &wire.status {
        span.status = match status.code.small() {
            1 => Status::Ok,
            2 => Status::Error,
            _ => Status::Unset,
        };
        span.status_description = budget.text(&status.message.text());
    }
    span.flags = wire.flags.as_ref().map(|flags| u32::try_from(flags.unsigned()).unwrap_or(0));
    span.attributes = attributes(&wire.attributes, &mut budget);
    for event in wire.events.iter().flatten() {
        if !budget.entry() {
            break;
        }
        span.events.push(Event {
            name: budget.text(&event.name.text()),
            time_unix_nano: event.time_unix_nano.unsigned(),
            attributes: attributes(&event.attributes, &mut budget),
        });
    }
    for link in wire.links.iter().flatten() {
        if !budget.entry() {
            break;
        }
        let ids = TraceId::parse(&link.trace_id.text()).zip(SpanId::parse(&link.span_id.text()));
        let Some((trace_id, span_id)) = ids else { continue };
        span.links.push(Link {
            trace_id,
            span_id,
            trace_state: budget.text(&link.trace_state.text()),
            attributes: attributes(&link.attributes, &mut budget),
        });
    }
    Some(span)
}
