//! A log record as it is kept.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::attribute::{AttributeValue, Attributes, Resource, Scope, object, origin_weight, weight};

/// OTLP's severity: a number of 1 to 24, and what its maker calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Severity {
    pub(crate) number: i32,
    pub(crate) text: String,
}

/// The severities that functions and triggers have names for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    pub(crate) const ALL: [Self; 5] = [Self::Trace, Self::Debug, Self::Info, Self::Warn, Self::Error];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name().eq_ignore_ascii_case(name))
    }

    fn number(self) -> i32 {
        match self {
            Self::Trace => 1,
            Self::Debug => 5,
            Self::Info => 9,
            Self::Warn => 13,
            Self::Error => 17,
        }
    }

    pub(crate) fn severity(self) -> Severity {
        Severity { number: self.number(), text: self.name().to_uppercase() }
    }
}

impl Severity {
    /// Of a record that may have only one of the two.
    pub(crate) fn of(number: i32, text: &str) -> Self {
        const MAX_TEXT_BYTES: usize = 32;
        let named = Level::parse(if text.eq_ignore_ascii_case("warning") { "warn" } else { text });
        let number = if (1..=24).contains(&number) { number } else { named.map_or(0, Level::number) };
        let text = &text[..text.floor_char_boundary(MAX_TEXT_BYTES)];
        let severity = Self { number, text: text.to_owned() };
        if text.is_empty() { Self { text: severity.level().name().to_uppercase(), ..severity } } else { severity }
    }

    /// Above `error` is `error`; what has no number is `info`.
    pub(crate) fn level(&self) -> Level {
        match self.number {
            1..=4 => Level::Trace,
            5..=8 => Level::Debug,
            13..=16 => Level::Warn,
            17.. => Level::Error,
            _ => Level::Info,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LogRecord {
    pub(crate) time_unix_nano: u64,
    pub(crate) observed_unix_nano: u64,
    pub(crate) severity: Severity,
    pub(crate) body: String,
    pub(crate) attributes: Attributes,
    /// As given: hex as a rule, but callers of `engine::log` may say what they like.
    pub(crate) trace_id: Option<String>,
    pub(crate) span_id: Option<String>,
    pub(crate) resource: Arc<Resource>,
    pub(crate) scope: Arc<Scope>,
}

impl LogRecord {
    /// Without terminal escapes: what is kept is shown in terminals and browsers.
    pub(crate) fn plain(mut self) -> Self {
        if let Cow::Owned(plain) = without_escapes(&self.body) {
            self.body = plain;
        }
        self.attributes.iter_mut().for_each(|(_, value)| strip(value));
        self
    }

    /// About what it takes in memory.
    pub(crate) fn weight(&self) -> usize {
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        size_of::<Self>()
            + self.severity.text.len()
            + self.body.len()
            + length(&self.trace_id)
            + length(&self.span_id)
            + weight(&self.attributes)
            + origin_weight(&self.resource, &self.scope)
    }

    /// The stored shape; what is not known is `null` or, of what is optional, missing.
    pub(crate) fn json(&self) -> Value {
        let mut value = self.full_json();
        if let Value::Object(object) = &mut value {
            for key in ["instrumentation_scope_name", "instrumentation_scope_version"] {
                if object.get(key).is_some_and(Value::is_null) {
                    object.remove(key);
                }
            }
        }
        value
    }

    /// With every key, as triggers have it.
    pub(crate) fn full_json(&self) -> Value {
        let known = |text: &str| Some(text).filter(|text| !text.is_empty()).map(str::to_owned);
        json!({
            "timestamp_unix_nano": self.time_unix_nano,
            "observed_timestamp_unix_nano": self.observed_unix_nano,
            "severity_number": self.severity.number,
            "severity_text": self.severity.text,
            "body": self.body,
            "attributes": object(&self.attributes),
            "trace_id": self.trace_id,
            "span_id": self.span_id,
            "resource": object(&self.resource.attributes),
            "service_name": self.resource.service_name,
            "instrumentation_scope_name": known(&self.scope.name),
            "instrumentation_scope_version": known(&self.scope.version),
        })
    }
}

fn strip(value: &mut AttributeValue) {
    match value {
        AttributeValue::Text(text) => {
            if let Cow::Owned(plain) = without_escapes(text) {
                *text = plain;
            }
        }
        AttributeValue::List(values) => values.iter_mut().for_each(strip),
        AttributeValue::Map(entries) => entries.iter_mut().for_each(|(_, value)| strip(value)),
        _ => {}
    }
}

/// Leaves out ANSI escape sequences (ECMA-48): control sequences, strings up to their end, and two-letter ones.
pub(crate) fn without_escapes(text: &str) -> Cow<'_, str> {
    if !text.contains('\u{1b}') {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter != '\u{1b}' {
            plain.push(letter);
            continue;
        }
        match letters.next() {
            Some('[') => while letters.next().is_some_and(|letter| !('@'..='~').contains(&letter)) {},
            Some(']' | 'P' | 'X' | '^' | '_') => {
                while let Some(letter) = letters.next() {
                    let ends = letter == '\u{7}' || (letter == '\u{1b}' && letters.next_if_eq(&'\\').is_some());
                    if ends {
                        break;
                    }
                }
            }
            Some('(' | ')') => drop(letters.next()),
            _ => {}
        }
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn colours_titles_and_links_leave_only_their_text() {
        assert_eq!(without_escapes("\u{1b}[1;31mred\u{1b}[0m"), "red");
        assert_eq!(without_escapes("\u{1b}]0;title\u{7}a\u{1b}]8;;http://x\u{1b}\\b"), "ab");
        assert_eq!(without_escapes("end \u{1b}[31"), "end ");
        assert!(matches!(without_escapes("plain"), Cow::Borrowed("plain")));
    }

    #[test]
    fn a_severity_is_completed_from_whichever_half_there_is() {
        assert_eq!(Severity::of(0, "warning"), Severity { number: 13, text: "warning".into() });
        assert_eq!(Severity::of(18, ""), Severity { number: 18, text: "ERROR".into() });
        assert_eq!(Severity::of(-4, ""), Severity { number: 0, text: "INFO".into() });
        assert_eq!(Level::Warn.severity(), Severity { number: 13, text: "WARN".into() });
    }

    proptest! {
        #[test]
        fn no_escape_is_left_whatever_the_text(text in "[\u{1b}\\[\\]a-z0-9;m\u{7}\\\\é]{0,60}") {
            let plain = without_escapes(&text);
            prop_assert!(!plain.contains('\u{1b}'), "an escape is left");
        }
    }
}
