//! A span as it is kept.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::attribute::{Attributes, Resource, Scope, find, origin_weight, weight};
use crate::id::{SpanId, TraceId};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Status {
    #[default]
    Unset,
    Ok,
    Error,
}

impl Status {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unset => "unset",
            Self::Ok => "ok",
            Self::Error => "error",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub name: String,
    pub time_unix_nano: u64,
    pub attributes: Attributes,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Link {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    pub trace_state: String,
    pub attributes: Attributes,
}

/// One piece of work in a trace.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    pub parent: Option<SpanId>,
    pub trace_state: String,
    pub name: String,
    /// OTLP's number: 1 internal, 2 server, 3 client, 4 producer, 5 consumer.
    pub kind: i32,
    pub start_unix_nano: u64,
    pub end_unix_nano: u64,
    pub status: Status,
    pub status_description: String,
    pub attributes: Attributes,
    pub events: Vec<Event>,
    pub links: Vec<Link>,
    pub flags: Option<u32>,
    pub resource: Arc<Resource>,
    pub scope: Arc<Scope>,
}

impl Span {
    /// A span without attributes, from nobody yet.
    #[must_use]
    pub fn new(trace_id: TraceId, span_id: SpanId, name: impl Into<String>) -> Self {
        Self {
            trace_id,
            span_id,
            parent: None,
            trace_state: String::new(),
            name: name.into(),
            kind: 1,
            start_unix_nano: 0,
            end_unix_nano: 0,
            status: Status::Unset,
            status_description: String::new(),
            attributes: Vec::new(),
            events: Vec::new(),
            links: Vec::new(),
            flags: None,
            resource: Arc::default(),
            scope: Arc::default(),
        }
    }

    pub(crate) fn service_name(&self) -> &str {
        &self.resource.service_name
    }

    pub(crate) fn duration_nanos(&self) -> u64 {
        self.end_unix_nano.saturating_sub(self.start_unix_nano)
    }

    /// Of the engine's own work, which nobody asks for.
    pub(crate) fn is_internal(&self) -> bool {
        let has = |name: &str, wanted: &dyn Fn(&str) -> bool| {
            find(&self.attributes, name).is_some_and(|value| wanted(&value.text()))
        };
        has("iii.function.kind", &|kind| kind == "internal") || has("function_id", &|id| id.starts_with("engine::"))
    }

    /// About what it takes in memory.
    pub(crate) fn weight(&self) -> usize {
        let event = |event: &Event| size_of::<Event>() + event.name.len() + weight(&event.attributes);
        let link = |link: &Link| size_of::<Link>() + link.trace_state.len() + weight(&link.attributes);
        size_of::<Self>()
            + self.name.len()
            + self.trace_state.len()
            + self.status_description.len()
            + weight(&self.attributes)
            + self.events.iter().map(event).sum::<usize>()
            + self.links.iter().map(link).sum::<usize>()
            + origin_weight(&self.resource, &self.scope)
    }

    /// The stored shape, under another parent where the view has one.
    pub(crate) fn json(&self, parent: Option<SpanId>) -> Map<String, Value> {
        let mut object = Map::new();
        let mut set = |key: &str, value: Value| object.insert(key.to_owned(), value);
        set("trace_id", self.trace_id.to_string().into());
        set("span_id", self.span_id.to_string().into());
        set("parent_span_id", parent.map(|parent| parent.to_string()).into());
        set("name", self.name.as_str().into());
        set("start_time_unix_nano", self.start_unix_nano.into());
        set("end_time_unix_nano", self.end_unix_nano.into());
        set("status", self.status.name().into());
        if !self.status_description.is_empty() {
            set("status_description", self.status_description.as_str().into());
        }
        set("attributes", pairs(&self.attributes));
        set("service_name", self.service_name().into());
        set("events", self.events.iter().map(event_json).collect());
        set("links", self.links.iter().map(link_json).collect());
        for (key, text) in
            [("instrumentation_scope_name", &self.scope.name), ("instrumentation_scope_version", &self.scope.version)]
        {
            if !text.is_empty() {
                set(key, text.as_str().into());
            }
        }
        if let Some(flags) = self.flags {
            set("flags", flags.into());
        }
        object
    }
}

fn pairs(attributes: &Attributes) -> Value {
    attributes.iter().map(|(key, value)| json!([key, value.text()])).collect()
}

fn event_json(event: &Event) -> Value {
    json!({
        "name": event.name,
        "timestamp_unix_nano": event.time_unix_nano,
        "attributes": pairs(&event.attributes),
    })
}

fn link_json(link: &Link) -> Value {
    json!({
        "trace_id": link.trace_id.to_string(),
        "span_id": link.span_id.to_string(),
        "trace_state": link.trace_state,
        "attributes": pairs(&link.attributes),
    })
}
