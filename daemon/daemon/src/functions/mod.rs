//! A file per function, or per family of small ones: decode, call, encode. What is offered is listed here.

mod fs_files;
mod fs_read;
mod fs_write;
mod offer;
mod sandbox_create;
mod sandbox_exec;
mod sandbox_list;
mod sandbox_run;
mod sandbox_snapshot;
mod sandbox_stop;
mod worker_add;
mod worker_exec;
mod worker_list;
mod worker_logs;
mod worker_remove;
mod worker_schema;
mod worker_start;
mod worker_status;
mod worker_validate;

use std::sync::Arc;

use daemon_api::SandboxError;
use daemon_api::sandbox as shapes;
use engine_client::Client;
use schemars::JsonSchema;

use crate::functions::offer::{About, Offer};
use crate::sandbox::Sandboxes;
use crate::worker::Workers;

/// Offers every `sandbox::*` function.
pub(crate) fn register_sandbox(client: &Client, sandboxes: &Arc<Sandboxes>) {
    let mut offer = Offer { client, state: sandboxes, schemas: Vec::new() };
    let about = |id, description| About { id, description, default_timeout_ms: 300_000, idempotent: None };
    offer.function(
        about("sandbox::create", "Boots a sandbox from a catalogue image and returns its id"),
        sandbox_create::call,
    );
    offer.function(about("sandbox::exec", "Runs one command in a sandbox"), sandbox_exec::call);
    offer.function(about("sandbox::run", "Boots a sandbox, runs a piece of code in it, stops it"), sandbox_run::call);
    offer.function(about("sandbox::stop", "Stops a sandbox; nothing of it is kept"), sandbox_stop::call);
    let taken = "Saves a sandbox as it is, programs and memory included; it goes on";
    offer.function(about("sandbox::snapshot", taken), sandbox_snapshot::snapshot);
    offer.function(
        about("sandbox::restore", "Makes sandboxes that go on where a snapshot was taken"),
        sandbox_snapshot::restore,
    );
    offer.function(about("sandbox::fork", "Makes sandboxes that go on where another one is"), sandbox_snapshot::fork);
    offer.function(about("sandbox::pause", "Makes a sandbox stand still"), sandbox_snapshot::pause);
    offer.function(about("sandbox::resume", "Lets a paused sandbox go on"), sandbox_snapshot::resume);
    offer.function(about("snapshot::list", "Lists the snapshots there are"), sandbox_snapshot::list);
    offer.function(
        about("snapshot::delete", "Deletes a snapshot; sandboxes made of it go on"),
        sandbox_snapshot::delete,
    );
    offer.function(about("sandbox::list", "Lists living sandboxes"), sandbox_list::sandboxes);
    offer
        .function(about("sandbox::catalog::list", "Lists images that sandboxes can be made of"), sandbox_list::catalog);
    offer.function(about("sandbox::fs::ls", "Lists a directory of a sandbox"), fs_files::ls);
    offer.function(about("sandbox::fs::stat", "Describes one path of a sandbox"), fs_files::stat);
    offer.function(about("sandbox::fs::mkdir", "Makes a directory in a sandbox"), fs_files::mkdir);
    offer.function(about("sandbox::fs::rm", "Removes a path of a sandbox"), fs_files::rm);
    offer.function(about("sandbox::fs::chmod", "Changes mode and owner in a sandbox"), fs_files::chmod);
    offer.function(about("sandbox::fs::mv", "Renames a path of a sandbox"), fs_files::mv);
    offer.function(about("sandbox::fs::read", "Reads a file of a sandbox through a channel"), fs_read::call);
    offer.function(about("sandbox::fs::write", "Writes a file of a sandbox, all of it or nothing"), fs_write::call);
}

/// Offers every `worker::*` function.
pub(crate) fn register_worker(client: &Client, workers: &Arc<Workers>) {
    let mut offer = Offer { client, state: workers, schemas: Vec::new() };
    let about = |id, default_timeout_ms, idempotent, description| About {
        id,
        description,
        default_timeout_ms,
        idempotent: Some(idempotent),
    };
    offer.function(about("worker::add", 600_000, true, worker_add::DESCRIPTION), worker_add::call);
    offer.function(
        about("worker::remove", 30_000, true, "Ends workers and removes them from config.yaml; needs `yes: true`. What is on their disks stays: see worker::clear"),
        worker_remove::remove,
    );
    offer.function(about("worker::start", 60_000, false, "Starts a worker of config.yaml"), worker_start::start);
    offer.function(about("worker::stop", 30_000, false, "Stops a worker; needs `yes: true`"), worker_start::stop);
    offer.function(
        about("worker::clear", 30_000, true, "Frees what is kept of stopped workers, logs too; needs `yes: true`"),
        worker_remove::clear,
    );
    offer.function(about("worker::list", 10_000, true, "Lists the workers of config.yaml"), worker_list::call);
    offer.function(
        about("worker::status", 10_000, true, "Says how a worker is, and what to do next"),
        worker_status::call,
    );
    offer.function(
        about("worker::logs", 10_000, true, "Returns the last lines that a worker printed"),
        worker_logs::call,
    );
    offer.function(
        about(
            "worker::validate",
            10_000,
            true,
            "Checks an iii.worker.yaml without any effect: what it finds valid, worker::add takes",
        ),
        worker_validate::call,
    );
    offer.function(
        about("worker::exec", 60_000, false, "Runs a program in a worker's VM, its streams through channels"),
        worker_exec::call,
    );
    let description = "Describes requests to worker::* functions; with function_id `iii.worker.yaml`, the manifest";
    let schemas = Arc::new(offer.schemas.clone());
    offer.function(about("worker::schema", 10_000, true, description), move |_, request| {
        let schemas = Arc::clone(&schemas);
        async move { worker_schema::call(&schemas, &request) }
    });
}

/// What a guest says of a path, in the caller's terms.
fn guest_error(error: guest_client::GuestError) -> SandboxError {
    use daemon_api::SandboxErrorKind as Kind;
    use guest_client::GuestError;
    use guest_protocol::ErrorCode;
    let failure = match error {
        GuestError::Failed(failure) => failure,
        GuestError::Closed => return SandboxError::new(Kind::AlreadyStopped, "the sandbox is gone"),
        GuestError::Request(what) | GuestError::Broken(what) => {
            return SandboxError::new(Kind::FsIo, format!("fs i/o error: {what}"));
        }
        GuestError::NotFrozen(_) => return SandboxError::new(Kind::FsIo, format!("fs i/o error: {error}")),
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
        ErrorCode::NoSpace | ErrorCode::TooLarge | ErrorCode::Io => (Kind::FsIo, "fs i/o error: "),
    };
    SandboxError::new(kind, format!("{prefix}{}", failure.message))
}

/// `None` as an empty object, for requests without fields.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
pub(crate) struct Nothing {}

/// A field that the function cannot do without.
fn required<'a>(fs: &'a shapes::Fs, field: &str, value: &'a Option<String>) -> Result<&'a str, SandboxError> {
    let missing = || SandboxError::invalid(format!("missing field `{field}` (sandbox {})", fs.sandbox_id));
    value.as_deref().ok_or_else(missing)
}

/// `"0644"` as a number.
fn mode(text: Option<&str>, default: u32) -> Result<u32, SandboxError> {
    let Some(text) = text else { return Ok(default) };
    let bad =
        || SandboxError::new(daemon_api::SandboxErrorKind::FsInvalidRequest, format!("`{text}` is no octal mode"));
    let mode = u32::from_str_radix(text, 8).map_err(|_| bad())?;
    if mode > 0o7777 { Err(bad()) } else { Ok(mode) }
}
