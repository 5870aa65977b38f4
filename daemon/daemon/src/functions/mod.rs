//! A file per function: decode, call, encode. Here: how they are offered to the engine.

mod fs_files;
mod fs_read;
mod fs_write;
mod sandbox_create;
mod sandbox_exec;
mod sandbox_list;
mod sandbox_run;
mod sandbox_stop;

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use daemon_api::SandboxError;
use daemon_api::sandbox as shapes;
use engine_client::{Call, Client, FunctionSpec};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::sandbox::Sandboxes;

/// Offers every `sandbox::*` function.
pub(crate) fn register_sandbox(client: &Client, sandboxes: &Arc<Sandboxes>) {
    let offer = Offer { client, sandboxes };
    offer.function("sandbox::create", "Boots a sandbox from a catalogue image and returns its id", sandbox_create::call);
    offer.function("sandbox::exec", "Runs one command in a sandbox", sandbox_exec::call);
    offer.function("sandbox::run", "Boots a sandbox, runs a piece of code in it, stops it", sandbox_run::call);
    offer.function("sandbox::stop", "Stops a sandbox; nothing of it is kept", sandbox_stop::call);
    offer.function("sandbox::list", "Lists living sandboxes", sandbox_list::sandboxes);
    offer.function("sandbox::catalog::list", "Lists images that sandboxes can be made of", sandbox_list::catalog);
    offer.function("sandbox::fs::ls", "Lists a directory of a sandbox", fs_files::ls);
    offer.function("sandbox::fs::stat", "Describes one path of a sandbox", fs_files::stat);
    offer.function("sandbox::fs::mkdir", "Makes a directory in a sandbox", fs_files::mkdir);
    offer.function("sandbox::fs::rm", "Removes a path of a sandbox", fs_files::rm);
    offer.function("sandbox::fs::chmod", "Changes mode and owner in a sandbox", fs_files::chmod);
    offer.function("sandbox::fs::mv", "Renames a path of a sandbox", fs_files::mv);
    offer.function("sandbox::fs::read", "Reads a file of a sandbox through a channel", fs_read::call);
    offer.function("sandbox::fs::write", "Writes a file of a sandbox, all of it or nothing", fs_write::call);
}

struct Offer<'a> {
    client: &'a Client,
    sandboxes: &'a Arc<Sandboxes>,
}

impl Offer<'_> {
    fn function<Q, F, R>(&self, id: &'static str, description: &str, call: F)
    where
        Q: DeserializeOwned + JsonSchema + Send + 'static,
        F: Fn(Arc<Sandboxes>, Q) -> R + Copy + Send + Sync + 'static,
        R: Future<Output = Result<Value, SandboxError>> + Send + 'static,
    {
        let spec = FunctionSpec {
            id: id.to_owned(),
            description: description.to_owned(),
            request_format: serde_json::to_value(schemars::schema_for!(Q)).ok(),
            response_format: None,
            metadata: Some(json!({ "default_timeout_ms": 300_000 })),
        };
        let sandboxes = Arc::clone(self.sandboxes);
        self.client.register(spec, move |request: Call| {
            let sandboxes = Arc::clone(&sandboxes);
            async move {
                let start = Instant::now();
                let (sandbox, result) = match decode::<Q>(&request.data) {
                    Ok((sandbox, question)) => (sandbox, call(sandboxes, question).await),
                    Err(error) => (String::new(), Err(error)),
                };
                report(id, &sandbox, start, &result);
                match result {
                    Ok(value) => Ok(RawValue::from_string(value.to_string()).ok()),
                    Err(error) => Err(error.into_body()),
                }
            }
        });
    }
}

/// The request, and the sandbox it names, for the log.
fn decode<Q: DeserializeOwned>(data: &RawValue) -> Result<(String, Q), SandboxError> {
    let text = if data.get().trim() == "null" { "{}" } else { data.get() };
    let bad = |error: serde_json::Error| SandboxError::invalid(format!("request not understood: {error}"));
    let value: Value = serde_json::from_str(text).map_err(bad)?;
    let sandbox = value["sandbox_id"].as_str().unwrap_or_default().chars().take(64).collect();
    Ok((sandbox, serde_json::from_value(value).map_err(bad)?))
}

/// One line per call, with these fields and no others: code, environment and file contents are nobody's business.
fn report(function_id: &str, sandbox_id: &str, start: Instant, result: &Result<Value, SandboxError>) {
    let duration_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    match result {
        Ok(_) => info!(function_id, sandbox_id, success = true, duration_ms, "call answered"),
        Err(error) => warn!(
            function_id,
            sandbox_id,
            success = false,
            error_code = error.kind.code(),
            error_type = ?error.kind,
            retryable = error.kind.retryable(),
            duration_ms,
            "call failed"
        ),
    }
}

/// What a guest says of a path, in the caller's terms.
fn guest_error(error: guest_client::GuestError) -> SandboxError {
    use daemon_api::SandboxErrorKind as Kind;
    use guest_client::GuestError;
    use guest_protocol::ErrorCode;
    let failure = match error {
        GuestError::Failed(failure) => failure,
        GuestError::Closed => return SandboxError::new(Kind::AlreadyStopped, "the sandbox is gone"),
        GuestError::Broken(what) => return SandboxError::new(Kind::FsIo, format!("fs i/o error: {what}")),
    };
    let (kind, prefix) = match failure.code {
        ErrorCode::Invalid => (Kind::FsInvalidRequest, ""),
        ErrorCode::NotFound => (Kind::FsNotFound, "file not found: "),
        ErrorCode::ParentNotFound => (Kind::FsParentNotFound, "parent directory not found: "),
        ErrorCode::WrongType => (Kind::FsWrongType, "not a directory or wrong type: "),
        ErrorCode::AlreadyExists => (Kind::FsAlreadyExists, "already exists: "),
        ErrorCode::NotEmpty => (Kind::FsNotEmpty, "directory not empty: "),
        ErrorCode::Permission => (Kind::FsPermission, "permission denied: "),
        ErrorCode::Aborted => (Kind::FsChannelAborted, "fs channel aborted: "),
        ErrorCode::NoSpace | ErrorCode::Io => (Kind::FsIo, "fs i/o error: "),
    };
    SandboxError::new(kind, format!("{prefix}{}", failure.message))
}

/// `None` as an empty object, for requests without fields.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
pub(crate) struct Nothing {}

/// A field that the function cannot do without.
fn path<'a>(fs: &'a shapes::Fs, field: &str, value: &'a Option<String>) -> Result<&'a str, SandboxError> {
    let missing = || SandboxError::invalid(format!("missing field `{field}` (sandbox {})", fs.sandbox_id));
    value.as_deref().ok_or_else(missing)
}

/// `"0644"` as a number.
fn mode(text: Option<&str>, default: u32) -> Result<u32, SandboxError> {
    let Some(text) = text else { return Ok(default) };
    let bad = || SandboxError::new(daemon_api::SandboxErrorKind::FsInvalidRequest, format!("`{text}` is no octal mode"));
    let mode = u32::from_str_radix(text, 8).map_err(|_| bad())?;
    if mode > 0o7777 { Err(bad()) } else { Ok(mode) }
}
