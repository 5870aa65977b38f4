//! What happened to traces since the last tick: who is told, and what the live view shows anew.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::attribute::find;
use crate::id::{SpanId, TraceId};
use crate::span::{Span, Status};
use crate::view::{Collapse, Seen, view};

/// Spans between two ticks; more are not told of.
const MAX_SPANS: usize = 10_000;

/// Traces that are remembered as made by ourselves.
const MAX_OWN: usize = 4096;

/// Traces of calls that we make: what happens in them must not make us call again.
#[derive(Default)]
pub(crate) struct OwnTraces {
    traces: HashSet<TraceId>,
    order: VecDeque<TraceId>,
}

impl OwnTraces {
    pub(crate) fn add(&mut self, trace: TraceId) {
        if self.order.len() == MAX_OWN
            && let Some(oldest) = self.order.pop_front()
        {
            self.traces.remove(&oldest);
        }
        self.traces.insert(trace);
        self.order.push_back(trace);
    }

    pub(crate) fn contains(&self, trace: &TraceId) -> bool {
        self.traces.contains(trace)
    }
}

/// Which spans fire a `trace` trigger.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TraceFilter {
    pub(crate) service_name: Option<String>,
    pub(crate) status: Option<Status>,
}

impl TraceFilter {
    fn takes(&self, span: &Span) -> bool {
        self.service_name.as_ref().is_none_or(|name| name.to_lowercase() == span.service_name().to_lowercase())
            && self.status.is_none_or(|status| status == span.status)
    }
}

/// Spans since the last tick.
#[derive(Default)]
pub(crate) struct Activity {
    spans: Vec<Arc<Span>>,
    pub(crate) own: OwnTraces,
}

impl Activity {
    pub(crate) fn note(&mut self, span: &Arc<Span>) {
        if self.spans.len() < MAX_SPANS && !self.own.contains(&span.trace_id) {
            self.spans.push(Arc::clone(span));
        }
    }

    pub(crate) fn take(&mut self) -> Vec<Arc<Span>> {
        std::mem::take(&mut self.spans)
    }
}

/// The traces a `trace` trigger is told of; `handlers` are the functions such triggers call.
pub(crate) fn fired(spans: &[Arc<Span>], filter: &TraceFilter, handlers: &HashSet<String>) -> BTreeSet<TraceId> {
    let of_handler = |span: &Span| {
        ["iii.function.id", "function_id"]
            .into_iter()
            .filter_map(|name| find(&span.attributes, name))
            .any(|function| handlers.contains(&*function.text()))
    };
    let fires = |span: &&Arc<Span>| !span.is_internal() && !of_handler(span) && filter.takes(span);
    spans.iter().filter(fires).map(|span| span.trace_id).collect()
}

/// What the live view has not shown yet, or now shows under another parent, by trace.
///
/// `all` is every span of the touched traces; `new` came since the last tick.
pub(crate) fn changes(
    all: impl Iterator<Item = Arc<Span>>,
    new: &[Arc<Span>],
    collapse: &[Collapse],
) -> BTreeMap<TraceId, Vec<Seen>> {
    let new: HashSet<(TraceId, SpanId)> = new.iter().map(|span| (span.trace_id, span.span_id)).collect();
    let mut traces: BTreeMap<TraceId, Vec<Arc<Span>>> = BTreeMap::new();
    for span in all {
        traces.entry(span.trace_id).or_default().push(span);
    }
    let changed = |(trace, spans): (TraceId, Vec<Arc<Span>>)| {
        let old: Vec<Arc<Span>> =
            spans.iter().filter(|span| !new.contains(&(trace, span.span_id))).map(Arc::clone).collect();
        let shown: HashMap<SpanId, Option<SpanId>> =
            view(&old, collapse).into_iter().map(|seen| (seen.span.span_id, seen.parent)).collect();
        let mut now = view(&spans, collapse);
        now.retain(|seen| shown.get(&seen.span.span_id) != Some(&seen.parent));
        (!now.is_empty()).then_some((trace, now))
    };
    traces.into_iter().filter_map(changed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribute::{AttributeValue, Resource};

    fn trace(number: u8) -> TraceId {
        TraceId::parse(&format!("{number:032x}")).expect("an id")
    }

    fn id(number: u8) -> SpanId {
        SpanId::parse(&format!("{number:016x}")).expect("an id")
    }

    fn span(of: u8, number: u8, parent: Option<u8>, name: &str) -> Span {
        let mut span = Span::new(trace(of), id(number), name);
        span.parent = parent.map(id);
        span.resource = Arc::new(Resource { service_name: "Shop".into(), attributes: Vec::new() });
        span
    }

    fn with(mut span: Span, key: &str, value: &str) -> Span {
        span.attributes.push((key.into(), AttributeValue::Text(value.into())));
        span
    }

    #[test]
    fn a_trigger_is_told_of_distinct_traces_in_order_but_not_of_the_engines_or_its_own_work() {
        let spans: Vec<Arc<Span>> = [
            span(3, 1, None, "a"),
            span(1, 2, None, "b"),
            span(3, 3, Some(1), "c"),
            with(span(4, 4, None, "d"), "iii.function.kind", "internal"),
            with(span(5, 5, None, "e"), "function_id", "engine::traces::list"),
            with(span(6, 6, None, "f"), "iii.function.id", "watch::traces"),
        ]
        .into_iter()
        .map(Arc::new)
        .collect();
        let handlers = HashSet::from(["watch::traces".to_owned()]);
        let told = |filter: TraceFilter| fired(&spans, &filter, &handlers).into_iter().collect::<Vec<_>>();
        assert_eq!(told(TraceFilter::default()), [trace(1), trace(3)]);
        let of = |name: &str| TraceFilter { service_name: Some(name.into()), status: None };
        assert_eq!(told(of("sHOP")).len(), 2);
        assert_eq!(told(of("other")), []);
        assert_eq!(told(TraceFilter { service_name: None, status: Some(Status::Error) }), []);
    }

    #[test]
    fn what_happens_in_our_own_traces_is_not_noted() {
        let mut activity = Activity::default();
        activity.own.add(trace(1));
        activity.note(&Arc::new(span(1, 1, None, "a")));
        activity.note(&Arc::new(span(2, 1, None, "a")));
        assert_eq!(activity.take().len(), 1);
        assert!(activity.take().is_empty());
        (0..=MAX_OWN).for_each(|_| activity.own.add(TraceId::random()));
        assert!(!activity.own.contains(&trace(1)) && activity.own.traces.len() == MAX_OWN);
    }

    /// A child arrives before the spans around it, as SDKs send them: it is shown again when its parent is known to be
    /// collapsed, and a wrapper is shown only once something ran in it.
    #[test]
    fn the_live_view_corrects_parents_when_what_was_missing_arrives() {
        let hop = Collapse { name: "hop".into(), service: None };
        let child = Arc::new(span(1, 3, Some(2), "child"));
        let hopped = Arc::new(span(1, 2, Some(1), "hop"));
        let root = Arc::new(span(1, 1, None, "root"));
        let wrapper = Arc::new(span(1, 4, Some(1), "trigger x"));
        let inner = Arc::new(span(1, 5, Some(4), "inner"));
        let mut all: Vec<Arc<Span>> = Vec::new();
        let mut tick = |new: &[&Arc<Span>]| {
            let new: Vec<Arc<Span>> = new.iter().map(|span| Arc::clone(span)).collect();
            all.extend(new.iter().cloned());
            let changed = changes(all.iter().cloned(), &new, std::slice::from_ref(&hop));
            let mut shown: Vec<_> =
                changed.into_values().flatten().map(|seen| (seen.span.name.clone(), seen.parent)).collect();
            shown.sort();
            shown
        };
        assert_eq!(tick(&[&child]), [("child".into(), Some(id(2)))]);
        assert_eq!(tick(&[&hopped, &wrapper]), [("child".into(), Some(id(1)))]);
        assert_eq!(tick(&[&root]), [("root".into(), None)]);
        assert_eq!(tick(&[&inner]), [("inner".into(), Some(id(4))), ("trigger x".into(), Some(id(1)))]);
    }
}
