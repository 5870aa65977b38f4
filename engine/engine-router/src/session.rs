//! What the worker of a guarded listener may do: decided when it connects, looked up at each message.

use std::collections::HashSet;
use std::sync::Arc;

use engine_protocol::{Action, ErrorBody, InvokeFunction, Payload, RegisterFunction};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::router::{ConnId, Router};

/// Functions that SDKs cannot do without; denied only by name.
const INFRASTRUCTURE: [&str; 10] = [
    "engine::channels::create",
    "engine::workers::register",
    "engine::log::info",
    "engine::log::warn",
    "engine::log::error",
    "engine::log::debug",
    "engine::log::trace",
    "engine::baggage::get",
    "engine::baggage::set",
    "engine::baggage::get_all",
];

/// A connection's rights; everything is allowed by default.
#[derive(Debug, Clone, Default)]
pub struct Session {
    pub policy: Option<Arc<Policy>>,
    /// Called instead of what its worker calls; it may call that itself.
    pub middleware: Option<String>,
}

/// What a listener's `rbac` block and its authentication have come to, for one connection.
#[derive(Debug, Clone)]
pub struct Policy {
    pub allowed_functions: HashSet<String>,
    pub forbidden_functions: HashSet<String>,
    pub expose: Vec<Expose>,
    /// `None`: all.
    pub allowed_trigger_types: Option<HashSet<String>>,
    pub may_register_functions: bool,
    pub may_register_trigger_types: bool,
    /// Goes before the ids of functions that its worker registers or binds.
    pub prefix: Option<String>,
    /// Opaque: for hooks and middleware.
    pub context: Value,
}

/// What middleware is called with.
#[derive(Serialize)]
struct Intercepted<'a> {
    function_id: &'a str,
    payload: Option<&'a Payload>,
    action: Option<&'a Action>,
    context: &'a Value,
}

/// One entry of `expose_functions`.
#[derive(Debug, Clone, PartialEq)]
pub enum Expose {
    /// Ids that match.
    Id(Pattern),
    /// Functions whose metadata has all of these.
    Metadata(Vec<(String, Wanted)>),
}

/// What a metadata key is to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Wanted {
    Equal(Value),
    Matching(Pattern),
}

/// Text in which `*` stands for any run of characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// From `match("...")` or `match('...')`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let inside = text.trim().strip_prefix("match(")?.strip_suffix(')')?.trim();
        let unquoted = ['"', '\''].iter().find_map(|quote| inside.strip_prefix(*quote)?.strip_suffix(*quote))?;
        Some(Self(unquoted.to_owned()))
    }

    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = text.strip_prefix(first) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }
}

impl Policy {
    /// In the order of the protocol's section 6.5: the first rule that applies decides.
    #[must_use]
    pub fn allows(&self, id: &str, metadata: Option<&RawValue>) -> bool {
        if self.forbidden_functions.contains(id) {
            return false;
        }
        if self.allowed_functions.contains(id) || INFRASTRUCTURE.contains(&id) {
            return true;
        }
        let mut parsed = None;
        self.expose.iter().any(|expose| match expose {
            Expose::Id(pattern) => pattern.matches(id),
            Expose::Metadata(wanted) => {
                let read = || metadata.and_then(|text| serde_json::from_str(text.get()).ok()).unwrap_or(Value::Null);
                let parsed: &Value = parsed.get_or_insert_with(read);
                wanted.iter().all(|(key, wanted)| match (parsed.get(key), wanted) {
                    (Some(value), Wanted::Equal(equal)) => value == equal,
                    (Some(Value::String(text)), Wanted::Matching(pattern)) => pattern.matches(text),
                    _ => false,
                })
            }
        })
    }

    /// The id under which others know a function that this worker calls `id`.
    #[must_use]
    pub fn prefixed(&self, id: &str) -> String {
        self.prefix.as_ref().map_or_else(|| id.to_owned(), |prefix| format!("{prefix}::{id}"))
    }
}

impl Router {
    fn policy(&self, conn: ConnId) -> Option<&Arc<Policy>> {
        self.connections.get(&conn).and_then(|connection| connection.session.policy.as_ref())
    }

    /// Whether this connection may call, and so see, a function.
    pub(crate) fn may_call(&self, conn: ConnId, id: &str) -> bool {
        let Some(policy) = self.policy(conn) else { return true };
        let provider = self.functions.get(id).and_then(|providers| providers.last());
        policy.allows(id, provider.and_then(|provider| provider.function.metadata.as_deref()))
    }

    pub(crate) fn refuse_by_policy(&self, conn: ConnId, id: &str) -> Option<ErrorBody> {
        (!self.may_call(conn, id)).then(|| {
            let message = format!(
                "function `{id}` is not open to this connection: add it to `allowed_functions` of the authentication's \
                 result or to `expose_functions` of the listener, and see that `forbidden_functions` does not name it"
            );
            ErrorBody::new("FORBIDDEN", message)
        })
    }

    /// A worker of a guarded listener binds what it may call, and what is its own.
    pub(crate) fn refuse_binding(&self, conn: ConnId, id: &str) -> Option<ErrorBody> {
        let policy = self.policy(conn)?;
        let prefixed = policy
            .prefix
            .as_ref()
            .is_some_and(|prefix| id.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.starts_with("::")));
        let mut providers = self.functions.get(id).into_iter().flatten();
        if prefixed || providers.any(|provider| provider.conn == conn) {
            return None;
        }
        self.refuse_by_policy(conn, id)
    }

    /// Whether `conn` is of a guarded listener and `owner` is not the same tenant, as far as authentication tells. One
    /// that comes back replaces what its connection before has bound.
    pub(crate) fn is_other_tenant(&self, conn: ConnId, owner: ConnId) -> bool {
        let Some(policy) = self.policy(conn) else { return false };
        let same = |other: &Arc<Policy>| other.prefix == policy.prefix && other.context == policy.context;
        conn != owner && !self.policy(owner).is_some_and(same)
    }

    /// A function as the rest of the world knows it; `None` when its worker may not register any.
    pub(crate) fn under_policy(&self, conn: ConnId, mut function: RegisterFunction) -> Option<RegisterFunction> {
        if let Some(policy) = self.policy(conn) {
            if !policy.may_register_functions {
                return None;
            }
            function.id = policy.prefixed(&function.id);
        }
        Some(function)
    }

    /// An id that this worker uses for what it registers.
    pub(crate) fn prefixed(&self, conn: ConnId, id: String) -> String {
        self.policy(conn).map_or(id.clone(), |policy| policy.prefixed(&id))
    }

    /// Makes of a function's id what its worker itself calls it.
    pub(crate) fn unprefix(&self, conn: ConnId, id: &mut String) {
        let prefix = self.policy(conn).and_then(|policy| policy.prefix.as_deref());
        if let Some(local) = prefix.and_then(|prefix| id.strip_prefix(prefix)?.strip_prefix("::")) {
            *id = local.to_owned();
        }
    }

    pub(crate) fn may_register_trigger_types(&self, conn: ConnId) -> bool {
        self.policy(conn).is_none_or(|policy| policy.may_register_trigger_types)
    }

    pub(crate) fn may_bind(&self, conn: ConnId, trigger_type: &str) -> bool {
        let allowed = self.policy(conn).and_then(|policy| policy.allowed_trigger_types.as_ref());
        allowed.is_none_or(|allowed| allowed.contains(trigger_type))
    }

    /// The call of the listener's middleware that stands in for `call`, if there is one.
    pub(crate) fn through_middleware(&self, conn: ConnId, call: &InvokeFunction) -> Option<InvokeFunction> {
        let session = &self.connections.get(&conn)?.session;
        let middleware = session.middleware.as_ref().filter(|_| !call.function_id.starts_with("engine::"))?;
        let empty = json!({});
        let context = session.policy.as_ref().map_or(&empty, |policy| &policy.context);
        let payload = Intercepted {
            function_id: &call.function_id,
            payload: call.data.as_ref(),
            action: call.action.as_ref(),
            context,
        };
        Some(InvokeFunction {
            invocation_id: call.invocation_id,
            function_id: middleware.clone(),
            data: engine_protocol::raw(&payload).ok().map(Payload::from),
            traceparent: call.traceparent.clone(),
            baggage: call.baggage.clone(),
            action: None,
            metadata: call.metadata.clone(),
        })
    }

    /// Refused calls are answered even when no answer was asked for.
    pub(crate) fn forbid(&mut self, conn: ConnId, asked: Option<Uuid>, function_id: &str, error: ErrorBody) {
        let id = asked.unwrap_or_else(|| self.fresh_id());
        self.answer(conn, Some(id), function_id, Err(error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(&format!("match(\"{text}\")")).expect("a pattern")
    }

    #[test]
    fn patterns_are_anchored_and_know_the_star_only() {
        for (text, id, matches) in [
            ("api::*", "api::users::get", true),
            ("api::*", "xapi::users", false),
            ("*::get", "a::get", true),
            ("*::get", "a::get2", false),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "acb", false),
            ("a*a", "a", false),
            ("exact", "exact", true),
            ("exact", "exactly", false),
            ("a.c", "abc", false),
            ("*", "", true),
            ("", "", true),
        ] {
            assert_eq!(pattern(text).matches(id), matches, "{text} {id}");
        }
        assert_eq!(Pattern::parse("match('x')"), Some(pattern("x")));
        for text in ["x", "match(x)", "match(\"x')", "match(\"x\""] {
            assert_eq!(Pattern::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_pattern_matches_what_its_stars_are_filled_with(parts in prop::collection::vec("[a-c]{0,3}", 1..5), fill in "[a-c]{0,3}") {
            let pattern = pattern(&parts.join("*"));
            prop_assert!(pattern.matches(&parts.join(&fill)));
        }
    }

    fn policy() -> Policy {
        Policy {
            allowed_functions: HashSet::from(["named".to_owned(), "both".to_owned()]),
            forbidden_functions: HashSet::from(["both".to_owned(), "engine::log::info".to_owned()]),
            expose: vec![
                Expose::Id(pattern("api::*")),
                Expose::Metadata(vec![
                    ("public".to_owned(), Wanted::Equal(json!(true))),
                    ("tier".to_owned(), Wanted::Matching(pattern("b*"))),
                ]),
            ],
            allowed_trigger_types: None,
            may_register_functions: true,
            may_register_trigger_types: false,
            prefix: Some("t".to_owned()),
            context: Value::Null,
        }
    }

    #[test]
    fn the_first_rule_that_applies_decides() {
        let metadata = |value: Value| engine_protocol::raw(&value).expect("JSON");
        let policy = policy();
        let allows = |id: &str, value: Value| policy.allows(id, Some(&metadata(value)));
        assert!(allows("named", Value::Null));
        assert!(!allows("both", json!({ "public": true, "tier": "b" })));
        assert!(!allows("engine::log::info", Value::Null));
        assert!(allows("engine::log::warn", Value::Null));
        assert!(allows("api::x", Value::Null));
        assert!(allows("other", json!({ "public": true, "tier": "basic", "more": 1 })));
        assert!(!allows("other", json!({ "public": true, "tier": 1 })));
        assert!(!allows("other", json!({ "public": true })));
        assert!(!policy.allows("other", None));
    }
}
