//! Why a command failed, as a person or a program reads it.

use engine_client::{CallError, ErrorBody};
use serde_json::{Value, json};

use crate::clean::clean;

/// What went wrong, and what to do about it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Failure {
    what: String,
    causes: Vec<String>,
    code: Option<String>,
    hint: Option<String>,
    /// As it came over the wire.
    body: Option<Box<ErrorBody>>,
    status: u8,
}

impl Failure {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), status: 1, ..Self::default() }
    }

    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self { what: what.into(), status: 2, ..Self::default() }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    pub(crate) fn hint_if(self, hint: Option<String>) -> Self {
        Self { hint, ..self }
    }

    pub(crate) fn status(&self) -> u8 {
        self.status
    }

    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    pub(crate) fn body(&self) -> Option<&ErrorBody> {
        self.body.as_deref()
    }

    /// An error as the engine or a worker said it; the envelopes of our daemons are opened.
    fn remote(body: ErrorBody) -> Self {
        let envelope: Value = serde_json::from_str(&body.message).unwrap_or(Value::Null);
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let what = text(&envelope["message"]).unwrap_or_else(|| body.message.clone());
        let details = &envelope["details"];
        let last_words = details["last_words"].as_array().into_iter().flatten().filter_map(text).collect();
        let hint = text(&details["hint"]).or_else(|| text(&envelope["fix_note"]));
        let hint = hint.or_else(|| match body.code.as_str() {
            "function_not_found" => Some("`iii trigger engine::functions::list` shows those there are".to_owned()),
            _ => None,
        });
        Self { what, causes: last_words, code: Some(body.code.clone()), hint, body: Some(Box::new(body)), status: 1 }
    }

    /// On stderr: for people, or as one JSON object.
    pub(crate) fn print(&self, as_json: bool) {
        if as_json {
            let object = match &self.body {
                Some(body) => json!({ "error": { "code": body.code, "message": body.message } }),
                None => json!({ "error": { "message": self.what, "hint": self.hint } }),
            };
            eprintln!("{object}");
            return;
        }
        eprintln!("error: {}", clean(&self.what));
        for cause in &self.causes {
            eprintln!("  | {}", clean(cause));
        }
        if let Some(code) = &self.code {
            eprintln!("  code: {}", clean(code));
        }
        if let Some(hint) = &self.hint {
            eprintln!("\nhint: {}", clean(hint));
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Remote(body) => Self::remote(body),
            CallError::Unreachable { .. } => Self::new(error.to_string())
                .hint("start the engine with `iii`, or name another with --address and --port"),
            CallError::Timeout { .. } => Self::new(error.to_string())
                .hint("does the engine run at this address and port, and does the worker answer? `iii trigger` waits longer with --timeout-ms"),
            CallError::Closed | CallError::Payload(_) | CallError::Channel(_) | CallError::Aborted(_) => {
                Self::new(error.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemons_envelopes_are_opened() {
        let message = json!({
            "message": "could not start worker `a`", "details": { "hint": "see the log", "last_words": ["no module"] },
        });
        let failure = Failure::from(CallError::Remote(ErrorBody::new("W160", message.to_string())));
        assert_eq!(failure.what, "could not start worker `a`");
        assert_eq!((failure.causes, failure.hint.as_deref()), (vec!["no module".to_owned()], Some("see the log")));
        let plain = Failure::from(CallError::Remote(ErrorBody::new("boom", "plain words")));
        assert_eq!((plain.what.as_str(), plain.code.as_deref()), ("plain words", Some("boom")));
    }
}
