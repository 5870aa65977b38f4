//! What we keep, as OTLP's protobuf messages.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList};
use opentelemetry_proto::tonic::logs::v1::{LogRecord as OtlpLog, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric as OtlpMetric, NumberDataPoint,
    ResourceMetrics, ScopeMetrics, Sum, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource as OtlpResource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as OtlpSpan, Status as OtlpStatus, span};

use super::Signal;
use crate::attribute::{AttributeValue, Attributes, Resource, Scope};
use crate::id::{SpanId, TraceId};
use crate::log::LogRecord;
use crate::metric::{Kind, Metric, Point, PointValue};
use crate::span::{Span, Status};

pub(crate) struct Traces;
pub(crate) struct Logs;
pub(crate) struct Metrics;

impl Signal for Traces {
    type Item = Span;
    type Request = ExportTraceServiceRequest;
    type Response = ExportTraceServiceResponse;
    const NAME: &'static str = "traces";
    const HTTP: &'static str = "traces";
    const GRPC: &'static str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

    fn request(items: &[Arc<Span>]) -> Self::Request {
        let groups = grouped(items, |span| (&span.resource, &span.scope), otlp_span);
        let resource_spans = groups.into_iter().map(|(from, by, spans)| ResourceSpans {
            resource: Some(resource(from)),
            scope_spans: vec![ScopeSpans { scope: Some(scope(by)), spans, schema_url: String::new() }],
            schema_url: String::new(),
        });
        ExportTraceServiceRequest { resource_spans: resource_spans.collect() }
    }

    fn rejected(response: &Self::Response) -> Option<(i64, &str)> {
        let partial = response.partial_success.as_ref()?;
        (partial.rejected_spans > 0).then_some((partial.rejected_spans, &partial.error_message))
    }
}

impl Signal for Logs {
    type Item = LogRecord;
    type Request = ExportLogsServiceRequest;
    type Response = ExportLogsServiceResponse;
    const NAME: &'static str = "logs";
    const HTTP: &'static str = "logs";
    const GRPC: &'static str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";

    fn request(items: &[Arc<LogRecord>]) -> Self::Request {
        let groups = grouped(items, |record| (&record.resource, &record.scope), otlp_log);
        let resource_logs = groups.into_iter().map(|(from, by, log_records)| ResourceLogs {
            resource: Some(resource(from)),
            scope_logs: vec![ScopeLogs { scope: Some(scope(by)), log_records, schema_url: String::new() }],
            schema_url: String::new(),
        });
        ExportLogsServiceRequest { resource_logs: resource_logs.collect() }
    }

    fn rejected(response: &Self::Response) -> Option<(i64, &str)> {
        let partial = response.partial_success.as_ref()?;
        (partial.rejected_log_records > 0).then_some((partial.rejected_log_records, &partial.error_message))
    }
}

impl Signal for Metrics {
    type Item = Metric;
    type Request = ExportMetricsServiceRequest;
    type Response = ExportMetricsServiceResponse;
    const NAME: &'static str = "metrics";
    const HTTP: &'static str = "metrics";
    const GRPC: &'static str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";

    fn request(items: &[Arc<Metric>]) -> Self::Request {
        let groups = grouped(items, |metric| (&metric.resource, &metric.scope), otlp_metric);
        let resource_metrics = groups.into_iter().map(|(from, by, metrics)| ResourceMetrics {
            resource: Some(resource(from)),
            scope_metrics: vec![ScopeMetrics { scope: Some(scope(by)), metrics, schema_url: String::new() }],
            schema_url: String::new(),
        });
        ExportMetricsServiceRequest { resource_metrics: resource_metrics.collect() }
    }

    fn rejected(response: &Self::Response) -> Option<(i64, &str)> {
        let partial = response.partial_success.as_ref()?;
        (partial.rejected_data_points > 0).then_some((partial.rejected_data_points, &partial.error_message))
    }
}

/// Items that came together stay together, under one resource and scope.
fn grouped<'a, T, O>(
    items: &'a [Arc<T>],
    origin: impl Fn(&'a T) -> (&'a Arc<Resource>, &'a Arc<Scope>),
    convert: impl Fn(&T) -> O,
) -> Vec<(&'a Resource, &'a Scope, Vec<O>)> {
    let mut groups: Vec<(&Resource, &Scope, Vec<O>)> = Vec::new();
    for item in items {
        let (resource, scope): (&Resource, &Scope) = {
            let (resource, scope) = origin(item);
            (resource, scope)
        };
        match groups.last_mut() {
            Some((from, by, group)) if std::ptr::eq(*from, resource) && std::ptr::eq(*by, scope) => {
                group.push(convert(item));
            }
            _ => groups.push((resource, scope, vec![convert(item)])),
        }
    }
    groups
}

fn resource(resource: &Resource) -> OtlpResource {
    OtlpResource { attributes: key_values(&resource.attributes), ..OtlpResource::default() }
}

fn scope(scope: &Scope) -> InstrumentationScope {
    InstrumentationScope { name: scope.name.clone(), version: scope.version.clone(), ..InstrumentationScope::default() }
}

fn key_values(attributes: &Attributes) -> Vec<KeyValue> {
    let key_value = |(key, value): &(String, AttributeValue)| KeyValue {
        key: key.clone(),
        value: Some(any_value(value)),
        ..KeyValue::default()
    };
    attributes.iter().map(key_value).collect()
}

fn any_value(value: &AttributeValue) -> AnyValue {
    let value = match value {
        AttributeValue::Empty => None,
        AttributeValue::Text(text) => Some(Value::StringValue(text.clone())),
        AttributeValue::Bool(value) => Some(Value::BoolValue(*value)),
        AttributeValue::Int(number) => Some(Value::IntValue(*number)),
        AttributeValue::Double(number) => Some(Value::DoubleValue(*number)),
        AttributeValue::Bytes(text) => Some(match STANDARD.decode(text) {
            Ok(bytes) => Value::BytesValue(bytes),
            Err(_) => Value::StringValue(text.clone()),
        }),
        AttributeValue::List(values) => {
            Some(Value::ArrayValue(ArrayValue { values: values.iter().map(any_value).collect() }))
        }
        AttributeValue::Map(entries) => Some(Value::KvlistValue(KeyValueList { values: key_values(entries) })),
    };
    AnyValue { value }
}

fn otlp_span(span: &Span) -> OtlpSpan {
    let event = |event: &crate::span::Event| span::Event {
        time_unix_nano: event.time_unix_nano,
        name: event.name.clone(),
        attributes: key_values(&event.attributes),
        dropped_attributes_count: 0,
    };
    let link = |link: &crate::span::Link| span::Link {
        trace_id: link.trace_id.bytes().to_vec(),
        span_id: link.span_id.bytes().to_vec(),
        trace_state: link.trace_state.clone(),
        attributes: key_values(&link.attributes),
        ..span::Link::default()
    };
    let code = match span.status {
        Status::Unset => 0,
        Status::Ok => 1,
        Status::Error => 2,
    };
    OtlpSpan {
        trace_id: span.trace_id.bytes().to_vec(),
        span_id: span.span_id.bytes().to_vec(),
        parent_span_id: span.parent.map_or_else(Vec::new, |parent| parent.bytes().to_vec()),
        trace_state: span.trace_state.clone(),
        flags: span.flags.unwrap_or(0),
        name: span.name.clone(),
        kind: span.kind,
        start_time_unix_nano: span.start_unix_nano,
        end_time_unix_nano: span.end_unix_nano,
        attributes: key_values(&span.attributes),
        events: span.events.iter().map(event).collect(),
        links: span.links.iter().map(link).collect(),
        status: Some(OtlpStatus { message: span.status_description.clone(), code }),
        ..OtlpSpan::default()
    }
}

fn otlp_log(record: &LogRecord) -> OtlpLog {
    let trace = record.trace_id.as_deref().and_then(TraceId::parse);
    let span = record.span_id.as_deref().and_then(SpanId::parse);
    OtlpLog {
        time_unix_nano: record.time_unix_nano,
        observed_time_unix_nano: record.observed_unix_nano,
        severity_number: record.severity.number,
        severity_text: record.severity.text.clone(),
        body: Some(AnyValue { value: Some(Value::StringValue(record.body.clone())) }),
        attributes: key_values(&record.attributes),
        trace_id: trace.map_or_else(Vec::new, |id| id.bytes().to_vec()),
        span_id: span.map_or_else(Vec::new, |id| id.bytes().to_vec()),
        ..OtlpLog::default()
    }
}

fn otlp_metric(metric: &Metric) -> OtlpMetric {
    let temporality = |cumulative| match cumulative {
        true => AggregationTemporality::Cumulative as i32,
        false => AggregationTemporality::Delta as i32,
    };
    let numbers = || metric.points.iter().filter_map(number_point).collect();
    let data = match metric.kind {
        Kind::Gauge => Data::Gauge(Gauge { data_points: numbers() }),
        Kind::Sum { monotonic, cumulative } => Data::Sum(Sum {
            data_points: numbers(),
            aggregation_temporality: temporality(cumulative),
            is_monotonic: monotonic,
        }),
        Kind::Histogram { cumulative } => Data::Histogram(Histogram {
            data_points: metric.points.iter().filter_map(histogram_point).collect(),
            aggregation_temporality: temporality(cumulative),
        }),
    };
    OtlpMetric {
        name: metric.name.clone(),
        description: metric.description.clone(),
        unit: metric.unit.clone(),
        data: Some(data),
        ..OtlpMetric::default()
    }
}

fn number_point(point: &Point) -> Option<NumberDataPoint> {
    let value = match point.value {
        PointValue::Int(number) => number_data_point::Value::AsInt(number),
        PointValue::Double(number) => number_data_point::Value::AsDouble(number),
        PointValue::Distribution(_) => return None,
    };
    Some(NumberDataPoint {
        attributes: key_values(&point.attributes),
        start_time_unix_nano: point.start_unix_nano,
        time_unix_nano: point.time_unix_nano,
        value: Some(value),
        ..NumberDataPoint::default()
    })
}

fn histogram_point(point: &Point) -> Option<HistogramDataPoint> {
    let PointValue::Distribution(distribution) = &point.value else { return None };
    Some(HistogramDataPoint {
        attributes: key_values(&point.attributes),
        start_time_unix_nano: point.start_unix_nano,
        time_unix_nano: point.time_unix_nano,
        count: distribution.count,
        sum: distribution.sum,
        bucket_counts: distribution.buckets.clone(),
        explicit_bounds: distribution.bounds.clone(),
        min: distribution.min,
        max: distribution.max,
        ..HistogramDataPoint::default()
    })
}
