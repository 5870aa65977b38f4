//! All routes, as a tree of path segments: who answers a request.
//!
//! At each segment a fixed text goes before a parameter; a branch that leads nowhere is left again. A path's end holds
//! the routes of each method, the newest first in charge: when it goes, the one before it is in charge again.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use engine_builtin::ErrorBody;
use hyper::Method;
use percent_encoding::percent_decode_str;

use crate::route::{Route, Segment, refused};

#[derive(Default)]
pub(crate) struct Routes {
    root: Node,
    /// By binding id, to find a route again when it goes.
    bound: HashMap<String, Arc<Route>>,
}

#[derive(Default)]
struct Node {
    fixed: HashMap<String, Node>,
    parameter: Option<Box<Node>>,
    /// Those whose path ends here, oldest first. They agree on the names of their parameters.
    ending: Vec<Arc<Route>>,
}

/// Who answers.
#[derive(Debug)]
pub(crate) enum Found<'p> {
    /// With the values of its parameters, in order.
    Route(Arc<Route>, Vec<Cow<'p, str>>),
    /// The path is known, with these methods.
    OtherMethods(Vec<Method>),
    Nothing,
}

impl Routes {
    /// Takes a route in. One of the same binding before it goes, whether the new one is accepted or not.
    ///
    /// # Errors
    /// `trigger_registration_failed`: there is a route of the same shape whose parameters have other names.
    pub(crate) fn insert(&mut self, route: Route) -> Result<(), ErrorBody> {
        self.remove(&route.binding_id);
        if let Some(other) = self.root.ending_at(&route.segments).first()
            && !other.parameter_names().eq(route.parameter_names())
        {
            let message = format!("route `{route}` conflicts with `{other}`: same shape, other parameter names");
            return Err(refused(message));
        }
        let route = Arc::new(route);
        self.root.descend(&route.segments).ending.push(Arc::clone(&route));
        self.bound.insert(route.binding_id.clone(), route);
        Ok(())
    }

    /// Forgets the route of a binding, if it has one.
    pub(crate) fn remove(&mut self, binding_id: &str) {
        if let Some(route) = self.bound.remove(binding_id) {
            self.root.prune(&route.segments, binding_id);
        }
    }

    /// `path` is a request's, still percent-encoded.
    pub(crate) fn find<'p>(&self, method: &Method, path: &'p str) -> Found<'p> {
        let Some(path) = path.strip_prefix('/') else { return Found::Nothing };
        let mut search = Search { method, values: Vec::new(), others: Vec::new() };
        match search.walk(&self.root, Some(path)) {
            Some(route) => Found::Route(route, search.values),
            None if search.others.is_empty() => Found::Nothing,
            None => Found::OtherMethods(search.others),
        }
    }
}

impl Node {
    fn ending_at(&self, segments: &[Segment]) -> &[Arc<Route>] {
        let mut node = self;
        for segment in segments {
            let next = match segment {
                Segment::Fixed(text) => node.fixed.get(text),
                Segment::Parameter(_) => node.parameter.as_deref(),
            };
            let Some(next) = next else { return &[] };
            node = next;
        }
        &node.ending
    }

    fn descend(&mut self, segments: &[Segment]) -> &mut Self {
        segments.iter().fold(self, |node, segment| match segment {
            Segment::Fixed(text) => node.fixed.entry(text.clone()).or_default(),
            Segment::Parameter(_) => node.parameter.get_or_insert_default(),
        })
    }

    /// Takes a route out, and the branches that are empty without it.
    fn prune(&mut self, segments: &[Segment], binding_id: &str) {
        match segments.split_first() {
            None => self.ending.retain(|route| route.binding_id != binding_id),
            Some((Segment::Fixed(text), rest)) => {
                if let Some(next) = self.fixed.get_mut(text) {
                    next.prune(rest, binding_id);
                    if next.is_empty() {
                        self.fixed.remove(text);
                    }
                }
            }
            Some((Segment::Parameter(_), rest)) => {
                if let Some(next) = &mut self.parameter {
                    next.prune(rest, binding_id);
                    if next.is_empty() {
                        self.parameter = None;
                    }
                }
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.fixed.is_empty() && self.parameter.is_none() && self.ending.is_empty()
    }

    /// A HEAD without a route of its own is a GET's.
    fn route(&self, method: &Method) -> Option<&Arc<Route>> {
        let newest = |method: &Method| self.ending.iter().rev().find(|route| route.method == *method);
        newest(method).or_else(|| if method == Method::HEAD { newest(&Method::GET) } else { None })
    }
}

struct Search<'p, 'm> {
    method: &'m Method,
    values: Vec<Cow<'p, str>>,
    /// Methods of paths that match.
    others: Vec<Method>,
}

impl<'p> Search<'p, '_> {
    /// No deeper than the deepest route, however many segments a request has.
    fn walk(&mut self, node: &Node, rest: Option<&'p str>) -> Option<Arc<Route>> {
        let Some(rest) = rest else {
            if let Some(route) = node.route(self.method) {
                return Some(Arc::clone(route));
            }
            for route in &node.ending {
                if !self.others.contains(&route.method) {
                    self.others.push(route.method.clone());
                }
            }
            return None;
        };
        let (segment, rest) = match rest.split_once('/') {
            Some((segment, rest)) => (segment, Some(rest)),
            None => (rest, None),
        };
        let segment = percent_decode_str(segment).decode_utf8().ok()?;
        if let Some(next) = node.fixed.get(segment.as_ref())
            && let Some(found) = self.walk(next, rest)
        {
            return Some(found);
        }
        let next = node.parameter.as_deref().filter(|_| !segment.is_empty())?;
        self.values.push(segment);
        let found = self.walk(next, rest);
        if found.is_none() {
            self.values.pop();
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::route::tests::binding;

    fn route(id: &str, method: &str, path: &str) -> Route {
        Route::new(binding(id, json!({"api_path": path, "http_method": method}))).expect("a route")
    }

    fn table(routes: &[(&str, &str, &str)]) -> Routes {
        let mut table = Routes::default();
        for (id, method, path) in routes {
            table.insert(route(id, method, path)).expect("no conflict");
        }
        table
    }

    /// Binding id and parameters, or the methods that there are.
    #[track_caller]
    fn check(table: &Routes, method: Method, path: &str, expected: &str) {
        let found = match table.find(&method, path) {
            Found::Route(route, values) => format!("{} {}", route.binding_id, values.join(",")).trim_end().to_owned(),
            Found::OtherMethods(methods) => format!("only {methods:?}"),
            Found::Nothing => "nothing".into(),
        };
        assert_eq!(found, expected, "{method} {path}");
    }

    #[test]
    fn a_fixed_segment_goes_before_a_parameter_and_a_dead_end_is_left_again() {
        let table = table(&[
            ("one", "GET", "users/:id"),
            ("me", "GET", "/users/me"),
            ("posts", "GET", "users/:id/posts"),
            ("deep", "GET", "users/me/friends"),
            ("root", "GET", "/"),
            ("put", "PUT", "users/:id"),
        ]);
        check(&table, Method::GET, "/users/7", "one 7");
        check(&table, Method::GET, "/users/me", "me");
        check(&table, Method::GET, "/users/me/posts", "posts me");
        check(&table, Method::PUT, "/users/me", "put me");
        check(&table, Method::GET, "/", "root");
        check(&table, Method::GET, "/users/", "nothing");
        check(&table, Method::GET, "/users/7/", "nothing");
        check(&table, Method::GET, "/users", "nothing");
        check(&table, Method::DELETE, "/users/me", "only [GET, PUT]");
        check(&table, Method::OPTIONS, "*", "nothing");
    }

    #[test]
    fn segments_are_decoded_one_by_one() {
        let table = table(&[("café", "GET", "café/:name")]);
        check(&table, Method::GET, "/caf%C3%A9/a%2Fb", "café a/b");
        check(&table, Method::GET, "/caf%C3%A9/%ff", "nothing");
        check(&table, Method::GET, &"/x".repeat(30_000), "nothing");
    }

    #[test]
    fn head_is_answered_by_get_unless_it_has_its_own() {
        let table = table(&[("get", "GET", "a"), ("get2", "GET", "b"), ("head", "HEAD", "b"), ("post", "POST", "c")]);
        check(&table, Method::HEAD, "/a", "get");
        check(&table, Method::HEAD, "/b", "head");
        check(&table, Method::HEAD, "/c", "only [POST]");
    }

    #[test]
    fn the_same_shape_with_other_names_is_refused_and_both_are_named() {
        let mut table = table(&[("one", "GET", "users/:id")]);
        let error = table.insert(route("two", "POST", "users/:uid")).expect_err("a conflict");
        assert_eq!(error.code, "trigger_registration_failed");
        assert!(error.message.contains("POST /users/:uid") && error.message.contains("GET /users/:id"));
        table.remove("two");
        check(&table, Method::GET, "/users/7", "one 7");
        // The same binding again may rename its own parameter.
        table.insert(route("one", "GET", "users/:uid")).expect("no conflict with itself");
        check(&table, Method::GET, "/users/7", "one 7");
    }

    #[test]
    fn the_newer_binding_takes_over_and_the_older_ones_end_changes_nothing() {
        let mut table = table(&[("old", "GET", "a"), ("new", "GET", "/a")]);
        check(&table, Method::GET, "/a", "new");
        table.remove("old");
        check(&table, Method::GET, "/a", "new");
        table.insert(route("newest", "GET", "a")).expect("no conflict");
        table.remove("newest");
        check(&table, Method::GET, "/a", "new");
        table.remove("new");
        check(&table, Method::GET, "/a", "nothing");
        assert!(table.root.is_empty());
    }

    /// What a route matches, said without a tree.
    fn matches(route: &Route, path: &[String]) -> bool {
        route.segments.len() == path.len()
            && route.segments.iter().zip(path).all(|(segment, text)| match segment {
                Segment::Fixed(fixed) => fixed == text,
                Segment::Parameter(_) => !text.is_empty(),
            })
    }

    fn kinds(route: &Route) -> Vec<bool> {
        route.segments.iter().map(|segment| matches!(segment, Segment::Parameter(_))).collect()
    }

    fn patterns() -> impl Strategy<Value = Vec<(bool, Vec<&'static str>)>> {
        let segment = prop_oneof![Just("a"), Just("b"), Just(":x"), Just(":y")];
        prop::collection::vec((any::<bool>(), prop::collection::vec(segment, 1..4)), 1..12)
    }

    proptest! {
        /// Of the routes that match a request one is the most exact, and it is the one that is found.
        #[test]
        fn no_request_is_matched_ambiguously(
            patterns in patterns(),
            path in prop::collection::vec("[abc]?", 1..4),
            removed in prop::collection::vec(any::<bool>(), 12),
        ) {
            let mut table = Routes::default();
            let mut accepted: Vec<Route> = Vec::new();
            for (index, (post, segments)) in patterns.iter().enumerate() {
                let method = if *post { "POST" } else { "GET" };
                let config = json!({"api_path": segments.join("/"), "http_method": method});
                let Ok(new) = Route::new(binding(&index.to_string(), config.clone())) else { continue };
                let conflict = accepted.iter().any(|old| kinds(old) == kinds(&new)
                    && old.segments != new.segments
                    && old.segments.iter().zip(&new.segments).all(|(a, b)| a == b || matches!(a, Segment::Parameter(_))));
                prop_assert_eq!(table.insert(new).is_err(), conflict);
                if !conflict {
                    accepted.push(Route::new(binding(&index.to_string(), config)).expect("a route"));
                }
            }
            accepted.retain(|route| {
                let gone = removed[route.binding_id.parse::<usize>().expect("an index")];
                if gone { table.remove(&route.binding_id); }
                !gone
            });
            let mut fitting: Vec<&Route> =
                accepted.iter().filter(|route| route.method == Method::GET && matches(route, &path)).collect();
            // The most exact first, of equals the newest.
            fitting.reverse();
            fitting.sort_by_key(|route| kinds(route));
            for pair in fitting.windows(2) {
                prop_assert!(kinds(pair[0]) != kinds(pair[1]) || pair[0].segments == pair[1].segments);
            }
            let text = format!("/{}", path.join("/"));
            let found = match table.find(&Method::GET, &text) {
                Found::Route(route, values) => {
                    prop_assert_eq!(values.len(), route.parameter_names().count());
                    Some(route.binding_id.clone())
                }
                Found::OtherMethods(_) | Found::Nothing => None,
            };
            prop_assert_eq!(found, fitting.first().map(|route| route.binding_id.clone()));
        }
    }
}
