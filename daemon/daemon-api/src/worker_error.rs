//! W-codes: what can go wrong with a worker, and the envelope in which callers hear of it.

use std::path::PathBuf;

use engine_protocol::ErrorBody;
use serde_json::{Value, json};

/// One failure of a `worker::*` function. The codes are the original's.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WorkerError {
    #[error("`{name}` is no worker name: {reason}")]
    InvalidName { name: String, reason: String },
    #[error("worker::{op}: {reason}")]
    MissingTarget { op: &'static str, reason: &'static str },
    #[error("worker::{op} destroys things: send it again with `yes: true`")]
    ConsentRequired { op: &'static str },
    #[error("{function_id}: {reason}")]
    BadRequest { function_id: String, reason: String },
    #[error("there is no worker `{name}`")]
    NotFound { name: String },
    #[error(
        "worker `{name}` is in config.yaml already: keep it, add it with `force` to install it again, or with `force` and `reset_config` to forget its configuration too"
    )]
    AlreadyExists { name: String },
    #[error("worker `{name}` is not running")]
    NotRunning { name: String },
    #[error("worker `{name}` is running: stop it first")]
    AlreadyRunning { name: String, pid: Option<u32> },
    #[error("{}", busy(*holder_pid, *holder_is_self))]
    LockBusy { holder_pid: Option<u32>, holder_is_self: bool },
    #[error("could not open the lock {}: {reason}", path.display())]
    LockIo { path: PathBuf, reason: String },
    #[error("could not access {}: {reason}", path.display())]
    ConfigIo { path: PathBuf, reason: String },
    #[error("{} is not usable: {message}", path.display())]
    ConfigParse { path: PathBuf, message: String },
    #[error("{message}")]
    Registry { message: String },
    #[error("could not get image `{reference}`: {message}")]
    OciPull { reference: String, message: String },
    /// Something in the VM, or the VM itself, did not start.
    #[error("could not start worker `{worker}`: {step}: {reason}")]
    Spawn {
        worker: String,
        /// `vm`, `source`, `setup`, `install` or `start`.
        step: String,
        reason: String,
        /// Of the program that ended.
        exit_code: Option<i32>,
        /// The end of what it printed.
        last_words: Vec<String>,
    },
    #[error("the operation on worker `{worker}` was cut short by another one")]
    Cancelled { worker: String },
    #[error("{message}")]
    Internal { message: String },
}

fn busy(holder: Option<u32>, is_self: bool) -> String {
    match holder {
        Some(pid) if is_self => format!(
            "another operation is running inside the worker-ops daemon (pid {pid}): retry shortly, or poll worker::status and worker::list. Do not kill pid {pid}: it serves the worker::* API"
        ),
        Some(pid) => format!("process {pid} holds the project's lock: retry shortly; do not kill it"),
        None => "the project's lock is busy: retry shortly".to_owned(),
    }
}

impl WorkerError {
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidName { .. } => "W100",
            Self::MissingTarget { .. } => "W103",
            Self::ConsentRequired { .. } => "W104",
            Self::BadRequest { .. } => "W105",
            Self::NotFound { .. } => "W110",
            Self::AlreadyExists { .. } => "W111",
            Self::NotRunning { .. } => "W113",
            Self::AlreadyRunning { .. } => "W114",
            Self::LockBusy { .. } => "W120",
            Self::LockIo { .. } => "W121",
            Self::ConfigIo { .. } => "W130",
            Self::ConfigParse { .. } => "W131",
            Self::Registry { .. } => "W140",
            Self::OciPull { .. } => "W141",
            Self::Spawn { .. } => "W160",
            Self::Cancelled { .. } => "W170",
            Self::Internal { .. } => "W900",
        }
    }

    fn retryable(&self) -> bool {
        matches!(self, Self::LockBusy { .. } | Self::Registry { .. } | Self::OciPull { .. } | Self::Cancelled { .. })
    }

    /// The reader's next step, where we know one.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { .. } => Some("`iii worker list` shows those there are".into()),
            Self::AlreadyExists { .. } => Some("`iii worker add --force` installs it again".into()),
            Self::NotRunning { name } => Some(format!("start it with `iii worker start {name}`")),
            Self::AlreadyRunning { name, .. } => Some(format!("stop it with `iii worker stop {name}`")),
            Self::Spawn { worker, step, .. } if step != "vm" => {
                Some(format!("see the whole log with `iii worker logs {worker}`"))
            }
            Self::Spawn { .. } => Some("`iii doctor` shows what this machine lacks".into()),
            Self::BadRequest { function_id, .. } => {
                Some(format!("`iii trigger worker::schema function_id={function_id}` shows what it takes"))
            }
            Self::ConfigParse { .. } => Some("mend the file by hand; nothing was written to it".into()),
            _ => None,
        }
    }

    fn details(&self) -> Value {
        match self {
            Self::InvalidName { name, reason } => json!({ "name": name, "reason": reason }),
            Self::MissingTarget { op, reason } => json!({ "op": op, "reason": reason }),
            Self::ConsentRequired { op } => json!({ "op": op }),
            Self::BadRequest { function_id, reason } => json!({ "function_id": function_id, "reason": reason }),
            Self::NotFound { name } | Self::AlreadyExists { name } | Self::NotRunning { name } => {
                json!({ "name": name })
            }
            Self::AlreadyRunning { name, pid } => json!({ "name": name, "pid": pid }),
            Self::LockBusy { holder_pid, holder_is_self } => {
                json!({ "holder_pid": holder_pid, "holder_is_self": holder_is_self })
            }
            Self::LockIo { path, reason } | Self::ConfigIo { path, reason } => {
                json!({ "path": path, "reason": reason })
            }
            Self::ConfigParse { path, message } => json!({ "path": path, "message": message }),
            Self::Registry { message } | Self::Internal { message } => json!({ "message": message }),
            Self::OciPull { reference, message } => json!({ "reference": reference, "message": message }),
            Self::Spawn { worker, step, reason, exit_code, last_words } => json!({
                "worker": worker, "step": step, "reason": reason, "exit_code": exit_code, "last_words": last_words,
            }),
            Self::Cancelled { worker } => json!({ "worker": worker }),
        }
    }

    fn variant(&self) -> String {
        let debug = format!("{self:?}");
        debug.split([' ', '{']).next().unwrap_or_default().to_owned()
    }

    /// As it travels: the message is a JSON text, the code is the W-code.
    #[must_use]
    pub fn into_body(self) -> ErrorBody {
        let mut details = self.details();
        details["variant"] = self.variant().into();
        details["retryable"] = self.retryable().into();
        if let Some(hint) = self.hint() {
            details["hint"] = hint.into();
        }
        let envelope = json!({
            "type": "WorkerOpError", "code": self.code(), "message": self.to_string(), "details": details,
        });
        ErrorBody::new(self.code(), envelope.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_envelope_is_the_originals() {
        let error =
            WorkerError::BadRequest { function_id: "worker::start".into(), reason: "missing field `name`".into() };
        let body = error.into_body();
        assert_eq!(body.code, "W105");
        let envelope: Value = serde_json::from_str(&body.message).expect("JSON");
        assert_eq!(envelope["type"], "WorkerOpError");
        assert_eq!(envelope["message"], "worker::start: missing field `name`");
        assert_eq!(envelope["details"]["variant"], "BadRequest");
        assert!(envelope["details"]["hint"].as_str().is_some_and(|hint| hint.contains("worker::schema")));
    }

    #[test]
    fn the_daemon_as_holder_of_the_lock_is_not_to_be_killed() {
        let text = |holder_pid, holder_is_self| WorkerError::LockBusy { holder_pid, holder_is_self }.to_string();
        assert!(text(Some(7), true).contains("Do not kill pid 7"));
        assert!(text(Some(7), false).contains("process 7"));
        assert!(text(None, false).contains("retry"));
    }
}
