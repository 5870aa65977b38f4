//! The operations as they arrive, and what can be wrong with one.

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

/// Segments of a path.
pub const MAX_PATH_SEGMENTS: usize = 32;
pub const MAX_SEGMENT_BYTES: usize = 256;
/// Keys of the object that is merged, on its first level.
pub const MAX_MERGE_KEYS: usize = 1024;
/// Objects and arrays in each other, the merged one included.
pub const MAX_MERGE_DEPTH: usize = 16;

/// Keys by which a careless reader in JavaScript would change all of its objects.
const POLLUTING: [&str; 3] = ["__proto__", "constructor", "prototype"];

/// One change of a value.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Op {
    Set {
        path: String,
        #[serde(default)]
        value: Value,
    },
    Increment {
        path: String,
        by: i64,
    },
    Decrement {
        path: String,
        by: i64,
    },
    Append {
        #[serde(default)]
        path: Option<Path>,
        value: Value,
    },
    Merge {
        #[serde(default)]
        path: Option<Path>,
        value: Value,
    },
    Remove {
        path: String,
    },
}

/// Where in a value: one literal key, or one on each level.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Path {
    Key(String),
    Segments(Vec<String>),
}

impl From<Path> for Vec<String> {
    /// Empty for the value itself.
    fn from(path: Path) -> Self {
        match path {
            Path::Key(key) if key.is_empty() => Vec::new(),
            Path::Key(key) => vec![key],
            Path::Segments(segments) => segments,
        }
    }
}

impl Op {
    /// As in `type`, and in front of its error codes.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Set { .. } => "set",
            Self::Increment { .. } => "increment",
            Self::Decrement { .. } => "decrement",
            Self::Append { .. } => "append",
            Self::Merge { .. } => "merge",
            Self::Remove { .. } => "remove",
        }
    }

    /// Empty for the value itself.
    fn segments(&self) -> &[String] {
        match self {
            Self::Set { path, .. }
            | Self::Increment { path, .. }
            | Self::Decrement { path, .. }
            | Self::Remove { path }
            | Self::Append { path: Some(Path::Key(path)), .. }
            | Self::Merge { path: Some(Path::Key(path)), .. } => {
                if path.is_empty() {
                    &[]
                } else {
                    std::slice::from_ref(path)
                }
            }
            Self::Append { path: Some(Path::Segments(segments)), .. }
            | Self::Merge { path: Some(Path::Segments(segments)), .. } => segments,
            Self::Append { path: None, .. } | Self::Merge { path: None, .. } => &[],
        }
    }

    /// What is wrong with the operation, whatever it is applied to.
    pub(crate) fn check(&self) -> Result<(), UpdateErrorCode> {
        let segments = self.segments();
        if segments.len() > MAX_PATH_SEGMENTS {
            return Err(UpdateErrorCode::PathTooDeep);
        }
        for segment in segments {
            match segment.as_str() {
                "" => return Err(UpdateErrorCode::EmptySegment),
                long if long.len() > MAX_SEGMENT_BYTES => return Err(UpdateErrorCode::SegmentTooLong),
                key if POLLUTING.contains(&key) => return Err(UpdateErrorCode::PathPolluted),
                _ => {}
            }
        }
        match self {
            Self::Merge { value, .. } => check_merged(value),
            _ => Ok(()),
        }
    }
}

fn check_merged(value: &Value) -> Result<(), UpdateErrorCode> {
    let Value::Object(object) = value else { return Err(UpdateErrorCode::NotAnObject) };
    if object.len() > MAX_MERGE_KEYS {
        return Err(UpdateErrorCode::TooManyKeys);
    }
    if !is_at_most_deep(value, MAX_MERGE_DEPTH) {
        return Err(UpdateErrorCode::ValueTooDeep);
    }
    if is_polluting(value) { Err(UpdateErrorCode::ValuePolluted) } else { Ok(()) }
}

fn is_at_most_deep(value: &Value, levels: usize) -> bool {
    match value {
        Value::Object(object) => levels > 0 && object.values().all(|inner| is_at_most_deep(inner, levels - 1)),
        Value::Array(items) => levels > 0 && items.iter().all(|inner| is_at_most_deep(inner, levels - 1)),
        _ => true,
    }
}

fn is_polluting(value: &Value) -> bool {
    match value {
        Value::Object(object) => {
            object.iter().any(|(key, inner)| POLLUTING.contains(&key.as_str()) || is_polluting(inner))
        }
        Value::Array(items) => items.iter().any(is_polluting),
        _ => false,
    }
}

/// What was wrong with an operation; its code begins with the operation's name, see [`UpdateError::code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateErrorCode {
    PathTooDeep,
    SegmentTooLong,
    EmptySegment,
    PathPolluted,
    NotAnObject,
    TooManyKeys,
    ValueTooDeep,
    ValuePolluted,
    TargetNotObject,
    NotNumber,
    TypeMismatch,
}

impl UpdateErrorCode {
    fn suffix(self) -> &'static str {
        match self {
            Self::PathTooDeep => "path.too_deep",
            Self::SegmentTooLong => "path.segment_too_long",
            Self::EmptySegment => "path.empty_segment",
            Self::PathPolluted => "path.proto_polluted",
            Self::NotAnObject => "value.not_an_object",
            Self::TooManyKeys => "value.too_many_keys",
            Self::ValueTooDeep => "value.too_deep",
            Self::ValuePolluted => "value.proto_polluted",
            Self::TargetNotObject => "target_not_object",
            Self::NotNumber => "not_number",
            Self::TypeMismatch => "type_mismatch",
        }
    }

    fn explained(self) -> String {
        match self {
            Self::PathTooDeep => format!("the path has more than {MAX_PATH_SEGMENTS} segments"),
            Self::SegmentTooLong => format!("a segment of the path has more than {MAX_SEGMENT_BYTES} bytes"),
            Self::EmptySegment => "a segment of the path is empty".into(),
            Self::PathPolluted => format!("no segment of a path may be one of {}", POLLUTING.join(", ")),
            Self::NotAnObject => "only an object can be merged".into(),
            Self::TooManyKeys => format!("the object has more than {MAX_MERGE_KEYS} keys"),
            Self::ValueTooDeep => format!("the object is nested more than {MAX_MERGE_DEPTH} levels deep"),
            Self::ValuePolluted => format!("no key may be one of {}", POLLUTING.join(", ")),
            Self::TargetNotObject => "the value is no object, so it has no keys".into(),
            Self::NotNumber => "what is there is no number, or the result is too large for one".into(),
            Self::TypeMismatch => {
                "what is there can take no more: it is no array, or the two are not both strings".into()
            }
        }
    }
}

/// An operation that was skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateError {
    pub op_index: usize,
    /// The operation's name.
    pub op: &'static str,
    pub reason: UpdateErrorCode,
}

impl UpdateError {
    /// Part of the protocol: `append.type_mismatch`, for instance.
    #[must_use]
    pub fn code(&self) -> String {
        format!("{}.{}", self.op, self.reason.suffix())
    }
}

/// As in the answer of an update: `op_index`, `code` and `message`.
impl Serialize for UpdateError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct as _;
        let mut error = serializer.serialize_struct("UpdateError", 3)?;
        error.serialize_field("op_index", &self.op_index)?;
        error.serialize_field("code", &self.code())?;
        error.serialize_field("message", &format!("could not {}: {}", self.op, self.reason.explained()))?;
        error.end()
    }
}
