//! Frames from SDKs: taken off the socket's reader, read by a task.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc;

use crate::log::LogRecord;
use crate::metric::Metric;
use crate::span::Span;
use crate::wire;

const MAX_FRAMES: usize = 1024;
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// As collectors have it. Longer ones are dropped.
const MAX_FRAME_BYTES: usize = 4 * 1024 * 1024;

/// Longer ones are read where they keep no other task waiting.
const LONG_FRAME_BYTES: usize = 64 * 1024;

const PREFIX_BYTES: usize = 4;

/// Why a frame was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IngestError {
    #[error("frame starts with none of `OTLP`, `MTRC` and `LOGS`")]
    UnknownPrefix,
    #[error("frame has {bytes} bytes, and may have {MAX_FRAME_BYTES}; frame dropped")]
    TooLong { bytes: usize },
    #[error("telemetry queue is full; frame dropped")]
    Full,
}

/// Why a frame could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("telemetry frame is no UTF-8")]
    Text(#[from] std::str::Utf8Error),
    #[error("telemetry frame is no OTLP/JSON that we take")]
    Json(#[from] serde_json::Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Traces,
    Metrics,
    Logs,
}

/// A frame in the queue.
pub(crate) struct Frame {
    kind: Kind,
    json: Vec<u8>,
}

/// What a frame held.
#[derive(Debug)]
pub(crate) enum Telemetry {
    Spans(Vec<Span>),
    Metrics(Vec<Metric>),
    Logs(Vec<LogRecord>),
}

impl Frame {
    fn take(frame: &[u8]) -> Result<Self, IngestError> {
        let (prefix, json) = frame.split_at_checked(PREFIX_BYTES).ok_or(IngestError::UnknownPrefix)?;
        let kind = match prefix {
            b"OTLP" => Kind::Traces,
            b"MTRC" => Kind::Metrics,
            b"LOGS" => Kind::Logs,
            _ => return Err(IngestError::UnknownPrefix),
        };
        Ok(Self { kind, json: json.to_vec() })
    }

    fn read(&self, now_unix_nano: u64) -> Result<Telemetry, FrameError> {
        let json = std::str::from_utf8(&self.json)?;
        Ok(match self.kind {
            Kind::Traces => Telemetry::Spans(wire::traces(json)?),
            Kind::Metrics => Telemetry::Metrics(wire::metrics(json, now_unix_nano)?),
            Kind::Logs => Telemetry::Logs(wire::logs(json, now_unix_nano)?),
        })
    }
}

/// Frames on their way from the sockets to the task.
pub(crate) struct Frames {
    sender: mpsc::Sender<Frame>,
    receiver: Mutex<Option<mpsc::Receiver<Frame>>>,
    bytes: AtomicUsize,
    dropped: AtomicU64,
    malformed: AtomicU64,
}

impl Frames {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = mpsc::channel(MAX_FRAMES);
        Self {
            sender,
            receiver: Mutex::new(Some(receiver)),
            bytes: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
        }
    }

    /// The end that the one task reads; `None` the second time.
    pub(crate) fn receiver(&self) -> Option<mpsc::Receiver<Frame>> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Never waits: what does not fit is dropped, and counted.
    pub(crate) fn push(&self, frame: &[u8]) -> Result<(), IngestError> {
        if frame.len() > MAX_FRAME_BYTES {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return Err(IngestError::TooLong { bytes: frame.len() });
        }
        let frame = Frame::take(frame)?;
        let weight = frame.json.len();
        let before = self.bytes.fetch_add(weight, Ordering::Relaxed);
        if before + weight <= MAX_BYTES && self.sender.try_send(frame).is_ok() {
            return Ok(());
        }
        self.bytes.fetch_sub(weight, Ordering::Relaxed);
        self.dropped.fetch_add(1, Ordering::Relaxed);
        Err(IngestError::Full)
    }

    /// What a frame from the queue held; one that cannot be read is counted.
    pub(crate) async fn read(&self, frame: Frame, now_unix_nano: u64) -> Result<Telemetry, FrameError> {
        let weight = frame.json.len();
        let read = if weight < LONG_FRAME_BYTES {
            frame.read(now_unix_nano)
        } else {
            match tokio::task::spawn_blocking(move || frame.read(now_unix_nano)).await {
                Ok(read) => read,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        };
        self.bytes.fetch_sub(weight, Ordering::Relaxed);
        if read.is_err() {
            self.malformed.fetch_add(1, Ordering::Relaxed);
        }
        read
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(crate) fn malformed(&self) -> u64 {
        self.malformed.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn read(prefix: &[u8], json: &str) -> Result<Telemetry, FrameError> {
        let frame = Frame::take(&[prefix, json.as_bytes()].concat()).expect("a prefix");
        frame.read(7)
    }

    fn spans(request: &Value) -> Vec<Span> {
        match read(b"OTLP", &request.to_string()) {
            Ok(Telemetry::Spans(spans)) => spans,
            other => panic!("no spans: {other:?}"),
        }
    }

    const TRACE: &str = "3f2a9c7a6f1f4b5d8e2c0a1b2c3d4e5f";
    const SPAN: &str = "9a8b7c6d5e4f3a2b";

    #[test]
    fn a_span_is_read_whichever_way_its_numbers_are_written() {
        for (start, int) in
            [(json!("1700000000000000001"), json!("42")), (json!(1_700_000_000_000_000_001_u64), json!(42))]
        {
            let read = spans(&json!({"resourceSpans": [{
                "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]},
                "scopeSpans": [{"scope": {"name": "s", "version": "1"}, "spans": [{
                    "traceId": TRACE, "spanId": SPAN, "parentSpanId": "", "name": "work", "kind": 2,
                    "startTimeUnixNano": start, "endTimeUnixNano": 1_700_000_000_000_000_009_u64,
                    "attributes": [
                        {"key": "int", "value": {"intValue": int}},
                        {"key": "list", "value": {"arrayValue": {"values": [{"boolValue": true}, {"doubleValue": 0.5}]}}},
                        {"key": "map", "value": {"kvlistValue": {"values": [{"key": "k", "value": {"bytesValue": "AA=="}}]}}},
                        {"key": "none", "value": null},
                    ],
                    "events": [{"name": "e", "timeUnixNano": "5"}],
                    "links": [{"traceId": TRACE, "spanId": SPAN, "attributes": null}, {"traceId": "no"}],
                    "status": {"code": 2, "message": "broken"}, "flags": 257, "unknown": {"deep": [1]},
                }]}],
            }]}));
            let [span] = &read[..] else { panic!("one span") };
            let shown = Value::Object(span.json(span.parent));
            assert_eq!(
                shown,
                json!({
                    "trace_id": TRACE, "span_id": SPAN, "parent_span_id": null, "name": "work",
                    "start_time_unix_nano": 1_700_000_000_000_000_001_u64, "end_time_unix_nano": 1_700_000_000_000_000_009_u64,
                    "status": "error", "status_description": "broken",
                    "attributes": [["int", "42"], ["list", "[true,0.5]"], ["map", "{\"k\":\"AA==\"}"], ["none", ""]],
                    "service_name": "shop",
                    "events": [{"name": "e", "timestamp_unix_nano": 5, "attributes": []}],
                    "links": [{"trace_id": TRACE, "span_id": SPAN, "trace_state": "", "attributes": []}],
                    "instrumentation_scope_name": "s", "instrumentation_scope_version": "1", "flags": 257,
                })
            );
        }
    }

    #[test]
    fn a_span_without_ids_is_left_out_and_missing_arrays_are_empty() {
        let read = spans(
            &json!({"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "x"}, {"traceId": TRACE, "spanId": SPAN}]}]}, {}]}),
        );
        assert_eq!(read.len(), 1);
        assert_eq!((read[0].service_name(), read[0].name.as_str()), ("unknown", ""));
        assert!(spans(&json!({"resourceSpans": null})).is_empty());
    }

    #[test]
    fn a_log_record_is_read_and_times_that_are_missing_are_now() {
        let request = json!({"resourceLogs": [{"scopeLogs": [{"logRecords": [
            {"severityNumber": "13", "body": {"stringValue": "hello"}, "traceId": TRACE, "attributes": [{"key": "a", "value": {"intValue": 1}}]},
        ]}]}]});
        let Ok(Telemetry::Logs(logs)) = read(b"LOGS", &request.to_string()) else { panic!("logs") };
        let log = &logs[0];
        assert_eq!((log.time_unix_nano, log.observed_unix_nano, log.body.as_str()), (7, 7, "hello"));
        assert_eq!(log.json()["attributes"], json!({"a": 1}));
        assert_eq!((log.json()["severity_text"].as_str(), log.json()["span_id"].is_null()), (Some("WARN"), true));
    }

    #[test]
    fn metrics_of_each_kind_are_read_and_broken_histograms_left_out() {
        let request = json!({"resourceMetrics": [{"scopeMetrics": [{"metrics": [
            {"name": "g", "gauge": {"dataPoints": [{"asDouble": 1.5, "timeUnixNano": "9"}, {"asInt": "3"}, {}]}},
            {"name": "s", "sum": {"dataPoints": [{"asInt": 4}], "aggregationTemporality": 2, "isMonotonic": true}},
            {"name": "h", "histogram": {"aggregationTemporality": 1, "dataPoints": [
                {"count": "3", "sum": 1, "bucketCounts": ["1", 2], "explicitBounds": [0.5]},
                {"count": 1, "bucketCounts": [1], "explicitBounds": [0.5, 0.1]},
            ]}},
            {"name": "e", "exponentialHistogram": {"dataPoints": []}},
        ]}]}]});
        let Ok(Telemetry::Metrics(metrics)) = read(b"MTRC", &request.to_string()) else { panic!("metrics") };
        let shown: Vec<_> = metrics.iter().map(|metric| (metric.name.as_str(), metric.points.len())).collect();
        assert_eq!(shown, [("g", 2), ("s", 1), ("h", 1)]);
    }

    #[test]
    fn what_is_no_telemetry_is_named() {
        let frames = Frames::new();
        assert_eq!(frames.push(b"OTL"), Err(IngestError::UnknownPrefix));
        assert_eq!(frames.push(b"otlp{}"), Err(IngestError::UnknownPrefix));
        assert!(matches!(read(b"OTLP", "["), Err(FrameError::Json(_))));
        let frame = Frame::take(b"OTLP\xff").expect("a prefix");
        assert!(matches!(frame.read(0), Err(FrameError::Text(_))));
    }

    #[tokio::test]
    async fn a_full_queue_drops_and_counts_and_room_comes_back() {
        let frames = Frames::new();
        let mut receiver = frames.receiver().expect("the first time");
        assert!(frames.receiver().is_none());
        (0..MAX_FRAMES).for_each(|_| frames.push(b"OTLP{}").expect("room"));
        assert_eq!(frames.push(b"OTLP{}"), Err(IngestError::Full));
        assert_eq!(frames.dropped(), 1);
        for _ in 0..MAX_FRAMES {
            let frame = receiver.recv().await.expect("a frame");
            frames.read(frame, 0).await.expect("spans");
        }
        let longest = [b"OTLP".as_slice(), &vec![b'['; MAX_FRAME_BYTES - PREFIX_BYTES]].concat();
        (0..MAX_BYTES / longest.len()).for_each(|_| frames.push(&longest).expect("room"));
        assert_eq!(frames.push(&longest), Err(IngestError::Full));
        let frame = receiver.recv().await.expect("a frame");
        frames.read(frame, 0).await.expect_err("no JSON");
        assert_eq!((frames.malformed(), frames.dropped(), frames.push(&longest)), (1, 2, Ok(())));
    }

    #[test]
    fn a_frame_that_is_too_long_is_dropped_and_counted() {
        let frames = Frames::new();
        let bytes = MAX_FRAME_BYTES + 1;
        assert_eq!(frames.push(&vec![b' '; bytes]), Err(IngestError::TooLong { bytes }));
        assert_eq!(frames.dropped(), 1);
    }

    #[test]
    fn what_is_too_much_is_refused_before_it_takes_memory() {
        // One over the limit, in lists of lists of empty things: the outermost has one, and that has one.
        let bombs = [
            (
                b"OTLP",
                format!(
                    "{{\"resourceSpans\":[{{\"scopeSpans\":[{{\"spans\":[{}]}}]}}]}}",
                    empty(wire::MAX_ELEMENTS - 1)
                ),
            ),
            (b"LOGS", format!("{{\"resourceLogs\":[{}]}}", empty(wire::MAX_ELEMENTS + 1))),
            (b"MTRC", format!("{{\"unknown\":{{\"deep\":[[{}]]}}}}", empty(wire::MAX_ELEMENTS))),
        ];
        for (prefix, bomb) in bombs {
            let Err(FrameError::Json(error)) = read(prefix, &bomb) else { panic!("it was read") };
            assert!(error.to_string().contains("more than 65536 elements"), "{error}");
        }
        assert!(read(b"LOGS", &format!("{{\"resourceLogs\":[{}]}}", empty(wire::MAX_ELEMENTS))).is_ok());
    }

    fn empty(count: usize) -> String {
        vec!["{}"; count].join(",")
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let key = prop::sample::select(vec![
            "resourceSpans",
            "scopeSpans",
            "spans",
            "traceId",
            "spanId",
            "attributes",
            "key",
            "value",
            "stringValue",
            "intValue",
            "arrayValue",
            "kvlistValue",
            "values",
            "events",
            "links",
            "status",
            "code",
            "resourceLogs",
            "scopeLogs",
            "logRecords",
            "body",
            "resourceMetrics",
            "scopeMetrics",
            "metrics",
            "name",
            "gauge",
            "sum",
            "histogram",
            "dataPoints",
            "asInt",
            "asDouble",
            "bucketCounts",
            "explicitBounds",
            "timeUnixNano",
            "count",
            "resource",
            "scope",
        ]);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "\\PC{0,8}".prop_map(Value::from),
            Just(Value::from(TRACE)),
            Just(Value::from(SPAN)),
        ];
        leaf.prop_recursive(8, 64, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(key.clone(), inner, 0..6).prop_map(|map| Value::Object(
                    map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
                )),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_json_makes_a_reader_panic(value in any_json()) {
            let text = value.to_string();
            for prefix in [b"OTLP", b"MTRC", b"LOGS"] {
                let _ = read(prefix, &text);
            }
        }

        #[test]
        fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(frame) = Frame::take(&[b"LOGS".as_slice(), &bytes].concat()) {
                let _ = frame.read(0);
            }
        }
    }

    #[test]
    fn deep_nesting_is_refused_without_a_deep_stack() {
        let deep = format!("{}1{}", "[".repeat(200_000), "]".repeat(200_000));
        assert!(read(b"OTLP", &format!("{{\"resourceSpans\":{deep}}}")).is_err());
    }
}
