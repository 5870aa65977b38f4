//! `iii-observability`: logs, spans and metrics, kept, queried, watched and sent on.
//!
//! ```text
//! SDK ── frame ──► ingest ─► queue ─► wire ─┐              ┌─► rings ◄── engine::{traces,logs,metrics}::*
//! engine::log::* ───────────────────────────┼─► State ─────┼─► activity ─ 300 ms ─► triggers, live feeds
//! record_span ──────────────────────────────┤  (sampling)  ├─► export ─► OTLP collector (gRPC, HTTP)
//! engine.stats(), every 10 s ───────────────┘              └─► rollups, alerts, Prometheus page
//! ```
//! Pure, without clock or IO: `wire`, `ring`, `sampling`, `view`, `activity`, `trace_query`, `log_query`, `metric_store`,
//! `rollup`, `alert`, `prometheus`, `settings`. With: `ingest`, `export`, `prometheus_server`, `triggers`, `observability`.
//! Knows OTLP and its own functions. Knows no router, no socket of a worker and no other built-in worker.
//!
//! Always true:
//! - Nothing an SDK sends makes its connection wait: a frame is queued, or dropped and counted.
//! - What is kept is bounded by number, by bytes per item and in all, and where it ages by time.
//! - What our own handlers and feeds cause in traces and logs makes us call nobody again.
//! - The engine is called with no lock of ours held: under its own, it asks us for gauges and binds triggers.
//! - An item leaves an export queue when the collector has answered for it.

mod activity;
mod alert;
mod attribute;
mod baggage;
mod engine_metrics;
mod export;
mod functions;
mod id;
mod ingest;
mod log;
mod log_query;
mod metric;
mod metric_store;
mod observability;
mod pattern;
mod prometheus;
mod prometheus_server;
mod ring;
mod rollup;
mod sampling;
mod schema;
mod settings;
mod span;
mod state;
mod time;
mod trace_query;
mod triggers;
mod view;
mod wire;

pub use attribute::{AttributeValue, Attributes, Resource, Scope};
pub use id::{SpanId, TraceId};
pub use ingest::IngestError;
pub use observability::{NAME, Observability, create};
pub use schema::schema;
pub use settings::Format;
pub use span::{Event, Link, Span, Status};
