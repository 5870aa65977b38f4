//! A trace as people look at it: without empty wrappers and collapsed spans, and as a tree.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::id::SpanId;
use crate::pattern;
use crate::span::Span;

/// A tree is no deeper: what would be is put beside its parent. JSON readers give up at about twice this.
const MAX_DEPTH: usize = 48;

/// Spans that are left out of the view, their children moving up.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Collapse {
    /// A pattern of the span's name.
    pub(crate) name: String,
    /// A pattern of its service; none is any.
    pub(crate) service: Option<String>,
}

impl Collapse {
    fn takes(&self, span: &Span) -> bool {
        let service = self.service.as_ref();
        pattern::matches(&self.name, &span.name)
            && service.is_none_or(|service| pattern::matches(service, span.service_name()))
    }
}

/// A span, and the parent it has in the view.
pub(crate) struct Seen {
    pub(crate) span: Arc<Span>,
    pub(crate) parent: Option<SpanId>,
}

/// The view of one trace: wrappers of triggers that nothing ran in are dropped, collapsed spans removed, and their
/// children given the nearest ancestor that is left.
pub(crate) fn view(spans: &[Arc<Span>], collapse: &[Collapse]) -> Vec<Seen> {
    let parents: HashSet<SpanId> = spans.iter().filter_map(|span| span.parent).collect();
    let is_empty_wrapper = |span: &Span| span.name.starts_with("trigger ") && !parents.contains(&span.span_id);
    // Where the children of what is removed go.
    let removed: HashMap<SpanId, Option<SpanId>> = spans
        .iter()
        .filter(|span| is_empty_wrapper(span) || collapse.iter().any(|rule| rule.takes(span)))
        .map(|span| (span.span_id, span.parent))
        .collect();
    let parent_of = |span: &Span| {
        let mut parent = span.parent;
        // A chain longer than there are spans goes in a circle.
        for _ in 0..=removed.len() {
            match parent.and_then(|id| removed.get(&id)) {
                Some(above) => parent = *above,
                None => return parent,
            }
        }
        None
    };
    let left = spans.iter().filter(|span| !removed.contains_key(&span.span_id));
    left.map(|span| Seen { parent: parent_of(span), span: Arc::clone(span) }).collect()
}

/// Every span once, below its parent, earliest first; roots are those whose parent is not there.
pub(crate) fn tree(seen: &[Seen]) -> Vec<Value> {
    let there: HashMap<SpanId, usize> = seen.iter().enumerate().map(|(at, seen)| (seen.span.span_id, at)).collect();
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); seen.len()];
    let mut roots = Vec::new();
    for (at, one) in seen.iter().enumerate() {
        match one.parent.and_then(|parent| there.get(&parent)) {
            Some(parent) if *parent != at => children[*parent].push(at),
            _ => roots.push(at),
        }
    }
    let start = |at: &usize| (seen[*at].span.start_unix_nano, seen[*at].span.span_id);
    roots.sort_by_key(start);
    children.iter_mut().for_each(|children| children.sort_by_key(start));
    let mut reached = vec![false; seen.len()];
    let mut order = Vec::new();
    for root in roots {
        walk(root, &children, &mut reached, &mut order);
    }
    // What no root leads to goes in a circle; it is cut where it begins.
    let mut rest: Vec<usize> = (0..seen.len()).filter(|at| !reached[*at]).collect();
    rest.sort_by_key(start);
    for at in rest {
        if !reached[at] {
            walk(at, &children, &mut reached, &mut order);
        }
    }
    build(seen, &order)
}

/// Depth first, without recursion: a trace may be one long chain.
fn walk(root: usize, children: &[Vec<usize>], reached: &mut [bool], order: &mut Vec<(usize, usize)>) {
    let mut next = vec![(root, 0)];
    reached[root] = true;
    while let Some((at, depth)) = next.pop() {
        order.push((at, depth));
        for child in children[at].iter().rev() {
            if !reached[*child] {
                reached[*child] = true;
                next.push((*child, (depth + 1).min(MAX_DEPTH)));
            }
        }
    }
}

/// Nests spans, given in the order of their tree with their depths.
fn build(seen: &[Seen], order: &[(usize, usize)]) -> Vec<Value> {
    let mut roots: Vec<Value> = Vec::new();
    let mut open: Vec<(Map<String, Value>, Vec<Value>)> = Vec::new();
    let close = |open: &mut Vec<(Map<String, Value>, Vec<Value>)>, roots: &mut Vec<Value>| {
        if let Some((mut span, children)) = open.pop() {
            span.insert("children".to_owned(), Value::Array(children));
            let siblings = open.last_mut().map_or(roots, |(_, siblings)| siblings);
            siblings.push(Value::Object(span));
        }
    };
    for (at, depth) in order {
        while open.len() > *depth {
            close(&mut open, &mut roots);
        }
        open.push((seen[*at].span.json(seen[*at].parent), Vec::new()));
    }
    while !open.is_empty() {
        close(&mut open, &mut roots);
    }
    roots
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::TraceId;

    fn id(number: u64) -> SpanId {
        SpanId::parse(&format!("{number:016x}")).expect("an id")
    }

    fn spans(list: &[(u64, Option<u64>, &str)]) -> Vec<Arc<Span>> {
        let trace = TraceId::parse(&"ab".repeat(16)).expect("an id");
        let span = |(number, parent, name): &(u64, Option<u64>, &str)| {
            let mut span = Span::new(trace, id(*number), *name);
            span.parent = parent.map(id);
            span.start_unix_nano = *number;
            Arc::new(span)
        };
        list.iter().map(span).collect()
    }

    /// `1(2 3(4))`
    fn drawn(roots: &[Value]) -> String {
        let one = |span: &Value| {
            let number = u64::from_str_radix(span["span_id"].as_str().expect("an id"), 16).expect("hex");
            let children = span["children"].as_array().expect("children");
            if children.is_empty() { number.to_string() } else { format!("{number}({})", drawn(children)) }
        };
        roots.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    fn check(list: &[(u64, Option<u64>, &str)], collapse: &[Collapse], expected: &str) {
        assert_eq!(drawn(&tree(&view(&spans(list), collapse))), expected);
    }

    fn named(name: &str) -> Collapse {
        Collapse { name: name.into(), service: None }
    }

    #[test]
    fn spans_nest_below_their_parents_and_orphans_are_roots() {
        check(
            &[(3, Some(1), "c"), (1, None, "a"), (4, Some(3), "d"), (2, Some(1), "b"), (9, Some(8), "x")],
            &[],
            "1(2 3(4)) 9",
        );
    }

    #[test]
    fn a_trigger_wrapper_that_nothing_ran_in_is_dropped() {
        let list = [(1, None, "a"), (2, Some(1), "trigger one"), (3, Some(1), "trigger two"), (4, Some(3), "b")];
        check(&list, &[], "1(3(4))");
    }

    #[test]
    fn children_of_collapsed_spans_move_up() {
        let list = [
            (1, None, "a"),
            (2, Some(1), "hop x"),
            (3, Some(2), "hop y"),
            (4, Some(3), "b"),
            (5, None, "hop z"),
            (6, Some(5), "c"),
        ];
        check(&list, &[named("hop *")], "1(4) 6");
        check(&list, &[Collapse { name: "*".into(), service: Some("other".into()) }], "1(2(3(4))) 5(6)");
    }

    #[test]
    fn circles_are_cut_and_no_span_is_lost() {
        check(&[(1, Some(2), "a"), (2, Some(1), "b"), (3, Some(3), "c")], &[], "3 1(2)");
        check(&[(1, Some(2), "hop"), (2, Some(1), "hop"), (3, Some(1), "c")], &[named("hop")], "3");
    }

    #[test]
    fn a_long_chain_stays_readable() {
        let list: Vec<_> = (1..=5000_u64).map(|number| (number, (number > 1).then(|| number - 1), "n")).collect();
        let roots = tree(&view(&spans(&list), &[]));
        let text = serde_json::to_string(&roots).expect("JSON");
        let read: Value = serde_json::from_str(&text).expect("within a reader's depth");
        assert_eq!(text.matches("span_id\":").count(), 2 * 5000);
        assert_eq!(read.as_array().map(Vec::len), Some(1));
    }

    proptest! {
        /// Whatever their parents are, every span that the view leaves is in the tree exactly once.
        #[test]
        fn every_span_is_in_the_tree_once(parents in prop::collection::vec(prop::option::of(1_u64..30), 0..30)) {
            let list: Vec<_> = (1..).zip(&parents).map(|(number, parent)| (number, *parent, if number % 3 == 0 { "hop" } else { "n" })).collect();
            let seen = view(&spans(&list), &[named("hop")]);
            let text = serde_json::to_string(&tree(&seen)).expect("JSON");
            for one in &seen {
                prop_assert_eq!(text.matches(&format!("\"span_id\":\"{}\"", one.span.span_id)).count(), 1);
            }
        }
    }
}
