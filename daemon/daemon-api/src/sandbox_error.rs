//! S-codes: what can go wrong with a sandbox, and the envelope in which callers hear of it.

use engine_protocol::ErrorBody;
use serde_json::{Value, json};

/// A kind of failure; each has one code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxErrorKind {
    InvalidRequest,
    NotFound,
    ConcurrentExec,
    AlreadyStopped,
    Paused,
    ImageNotInCatalog,
    RootfsMissing,
    AutoInstallFailed,
    ExecTimedOut,
    FsInvalidRequest,
    FsNotFound,
    FsParentNotFound,
    FsWrongType,
    FsAlreadyExists,
    FsNotEmpty,
    FsPermission,
    FsIo,
    FsChannelAborted,
    BootFailed,
    ResourceLimit,
    SnapshotNotFound,
    SnapshotUnfit,
    SnapshotDamaged,
    SnapshotUnsupported,
    SnapshotFailed,
}

impl SandboxErrorKind {
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::InvalidRequest => "S001",
            Self::NotFound => "S002",
            Self::ConcurrentExec => "S003",
            Self::AlreadyStopped => "S004",
            Self::Paused => "S005",
            Self::ImageNotInCatalog => "S100",
            Self::RootfsMissing => "S101",
            Self::AutoInstallFailed => "S102",
            Self::ExecTimedOut => "S200",
            Self::FsInvalidRequest => "S210",
            Self::FsNotFound | Self::FsParentNotFound => "S211",
            Self::FsWrongType => "S212",
            Self::FsAlreadyExists => "S213",
            Self::FsNotEmpty => "S214",
            Self::FsPermission => "S215",
            Self::FsIo => "S216",
            Self::FsChannelAborted => "S218",
            Self::BootFailed => "S300",
            Self::ResourceLimit => "S400",
            Self::SnapshotNotFound => "S500",
            Self::SnapshotUnfit => "S501",
            Self::SnapshotDamaged => "S502",
            Self::SnapshotUnsupported => "S503",
            Self::SnapshotFailed => "S504",
        }
    }

    #[must_use]
    pub fn category(self) -> &'static str {
        match self {
            Self::InvalidRequest
            | Self::NotFound
            | Self::ConcurrentExec
            | Self::AlreadyStopped
            | Self::Paused
            | Self::SnapshotNotFound => "validation",
            Self::ImageNotInCatalog | Self::ResourceLimit => "config",
            Self::RootfsMissing | Self::SnapshotDamaged => "internal",
            Self::AutoInstallFailed | Self::FsChannelAborted => "transient",
            Self::ExecTimedOut => "execution",
            Self::BootFailed | Self::SnapshotUnfit | Self::SnapshotUnsupported | Self::SnapshotFailed => "platform",
            Self::FsInvalidRequest
            | Self::FsNotFound
            | Self::FsParentNotFound
            | Self::FsWrongType
            | Self::FsAlreadyExists
            | Self::FsNotEmpty
            | Self::FsPermission
            | Self::FsIo => "filesystem",
        }
    }

    #[must_use]
    pub fn retryable(self) -> bool {
        matches!(self, Self::AutoInstallFailed | Self::FsChannelAborted)
    }

    /// What to merge into the request, where that is unambiguous, and the next step in words.
    fn fix(self) -> (Value, Option<&'static str>) {
        let note = match self {
            Self::FsParentNotFound => {
                let note = "merge `fix` into the request and send it again; parents are then created";
                return (json!({ "parents": true }), Some(note));
            }
            Self::InvalidRequest => Some("see the message for what is accepted"),
            Self::NotFound | Self::AlreadyStopped => Some("create a sandbox first"),
            Self::ConcurrentExec => Some(
                "a foreground process holds its slot until it ends: detach long ones with `nohup … &`, or use another sandbox",
            ),
            Self::ImageNotInCatalog => Some("use a listed image, or add it to custom_images and image_allowlist"),
            Self::RootfsMissing => Some("the operator must install the image, or set auto_install"),
            Self::AutoInstallFailed => Some("retry shortly"),
            Self::ExecTimedOut => Some("raise timeout_ms or split the work"),
            Self::BootFailed => Some("`iii doctor` shows what this machine lacks"),
            Self::ResourceLimit => Some("stop a sandbox, or ask for less"),
            Self::Paused => Some("resume it with sandbox::resume"),
            Self::SnapshotNotFound => Some("snapshot::list shows the snapshots there are"),
            Self::SnapshotUnfit => Some("it needs what it was made with: make another with what is there now"),
            Self::SnapshotDamaged => Some("delete it with snapshot::delete"),
            Self::SnapshotUnsupported => Some("choose driver `qemu`"),
            Self::SnapshotFailed => Some("the sandbox goes on; see the message"),
            _ => None,
        };
        (Value::Null, note)
    }
}

/// One failure.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct SandboxError {
    pub kind: SandboxErrorKind,
    pub message: String,
    /// Replaces the kind's own fix, for a failure inside `sandbox::run`.
    pub fix: Option<Value>,
}

impl SandboxError {
    pub fn new(kind: SandboxErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), fix: None }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(SandboxErrorKind::InvalidRequest, message)
    }

    /// As it travels: the message is a JSON text, the code is the S-code.
    #[must_use]
    pub fn into_body(self) -> ErrorBody {
        let (fix, note) = match self.fix {
            // It tells of the step that failed, and is nothing to merge.
            Some(context) => (context, None),
            None => self.kind.fix(),
        };
        let envelope = json!({
            "code": self.kind.code(),
            "type": format!("{:?}", self.kind),
            "category": self.kind.category(),
            "message": self.message,
            "docs_url": format!("docs/sandbox-errors.md#{}", self.kind.code().to_lowercase()),
            "retryable": self.kind.retryable(),
            "fix": fix,
            "fix_note": note,
        });
        ErrorBody::new(self.kind.code(), envelope.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_envelope_has_every_field() {
        let body = SandboxError::new(SandboxErrorKind::FsParentNotFound, "parent directory not found: /a").into_body();
        assert_eq!(body.code, "S211");
        let envelope: Value = serde_json::from_str(&body.message).expect("JSON");
        assert_eq!(envelope["type"], "FsParentNotFound");
        assert_eq!(envelope["fix"], json!({ "parents": true }));
        for field in ["code", "message", "docs_url", "retryable", "fix_note", "category"] {
            assert!(envelope.get(field).is_some(), "{field}");
        }
    }
}
