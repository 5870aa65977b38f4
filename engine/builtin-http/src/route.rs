//! One route, as a binding's configuration describes it.

use engine_builtin::{Binding, ErrorBody};
use hyper::Method;
use serde::Deserialize;

const MAX_PATH_BYTES: usize = 2048;
pub(crate) const MAX_SEGMENTS: usize = 64;

/// A function behind a method and a path.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) binding_id: String,
    pub(crate) function_id: String,
    /// As it was registered, with or without its first slash.
    pub(crate) path: String,
    pub(crate) method: Method,
    pub(crate) segments: Vec<Segment>,
    pub(crate) condition: Option<String>,
    pub(crate) middleware: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Segment {
    Fixed(String),
    Parameter(String),
}

#[derive(Deserialize)]
struct RouteConfig {
    api_path: String,
    #[serde(default)]
    http_method: Option<String>,
    #[serde(default)]
    condition_function_id: Option<String>,
    #[serde(default)]
    middleware_function_ids: Option<Vec<String>>,
}

impl Route {
    /// # Errors
    /// `trigger_registration_failed`, which says what is wrong with the configuration.
    pub(crate) fn new(binding: Binding) -> Result<Self, ErrorBody> {
        let Binding { id, function_id, config, .. } = binding;
        let config: RouteConfig =
            serde_path_to_error::deserialize(config).map_err(|error| refused(format!("`http` trigger: {error}")))?;
        Ok(Self {
            binding_id: id,
            function_id,
            segments: segments(&config.api_path)?,
            method: method(config.http_method.as_deref())?,
            path: config.api_path,
            condition: config.condition_function_id.filter(|id| !id.is_empty()),
            middleware: config.middleware_function_ids.unwrap_or_default(),
        })
    }

    pub(crate) fn parameter_names(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Parameter(name) => Some(name.as_str()),
            Segment::Fixed(_) => None,
        })
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} /{}", self.method, without_first_slash(&self.path))
    }
}

pub(crate) fn refused(message: impl Into<String>) -> ErrorBody {
    ErrorBody::new("trigger_registration_failed", message)
}

fn without_first_slash(path: &str) -> &str {
    path.strip_prefix('/').unwrap_or(path)
}

fn method(name: Option<&str>) -> Result<Method, ErrorBody> {
    const KNOWN: [Method; 7] =
        [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::HEAD, Method::OPTIONS];
    let Some(name) = name else { return Ok(Method::GET) };
    KNOWN
        .into_iter()
        .find(|method| method.as_str().eq_ignore_ascii_case(name))
        .ok_or_else(|| refused(format!("`http_method` `{name}` is none of GET POST PUT DELETE PATCH HEAD OPTIONS")))
}

fn segments(path: &str) -> Result<Vec<Segment>, ErrorBody> {
    if path.len() > MAX_PATH_BYTES {
        return Err(refused(format!("`api_path` has {} bytes; at most {MAX_PATH_BYTES} are taken", path.len())));
    }
    if let Some(bad) = path.chars().find(|char| matches!(char, '?' | '#') || char.is_control()) {
        return Err(refused(format!("`api_path` `{path}` contains {bad:?}, which no request's path does")));
    }
    let mut segments = Vec::new();
    for text in without_first_slash(path).split('/') {
        let segment = match text.strip_prefix(':') {
            Some("") => return Err(refused(format!("`api_path` `{path}` has a parameter without a name"))),
            Some(name) => Segment::Parameter(name.to_owned()),
            None => Segment::Fixed(text.to_owned()),
        };
        if matches!(segment, Segment::Parameter(_)) && segments.contains(&segment) {
            return Err(refused(format!("`api_path` `{path}` has the parameter `{text}` twice")));
        }
        segments.push(segment);
    }
    if segments.len() > MAX_SEGMENTS {
        let count = segments.len();
        return Err(refused(format!("`api_path` has {count} segments; at most {MAX_SEGMENTS} are taken")));
    }
    Ok(segments)
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub(crate) fn binding(id: &str, config: Value) -> Binding {
        Binding {
            id: id.into(),
            trigger_type: "http".into(),
            function_id: format!("{id}::run"),
            config,
            owner: None,
            vm: None,
        }
    }

    #[track_caller]
    fn refuses(config: Value, words: &str) {
        let error = Route::new(binding("b", config)).expect_err("a bad configuration");
        assert_eq!(error.code, "trigger_registration_failed");
        assert!(error.message.contains(words), "{}", error.message);
    }

    #[test]
    fn a_route_is_read_from_its_configuration() {
        let config = json!({"api_path": "/users/:id", "http_method": "post", "condition_function_id": "c",
            "middleware_function_ids": ["m"], "something": "else"});
        let route = Route::new(binding("b", config)).expect("a route");
        assert_eq!(route.to_string(), "POST /users/:id");
        assert_eq!(route.segments, [Segment::Fixed("users".into()), Segment::Parameter("id".into())]);
        assert_eq!((route.condition.as_deref(), route.middleware), (Some("c"), vec!["m".to_owned()]));
        let plain = Route::new(binding("b", json!({"api_path": ""}))).expect("a route");
        assert_eq!(plain.to_string(), "GET /");
    }

    #[test]
    fn a_bad_configuration_says_what_is_wrong() {
        refuses(Value::Null, "`http` trigger");
        refuses(json!({}), "api_path");
        refuses(json!({"api_path": 1}), "api_path");
        refuses(json!({"api_path": "x", "http_method": "TRACE"}), "TRACE");
        refuses(json!({"api_path": "x/:"}), "without a name");
        refuses(json!({"api_path": ":a/:a"}), "twice");
        refuses(json!({"api_path": "x?y=1"}), "'?'");
        refuses(json!({"api_path": "a/".repeat(MAX_SEGMENTS)}), "segments");
        refuses(json!({"api_path": "a".repeat(MAX_PATH_BYTES + 1)}), "bytes");
    }
}
