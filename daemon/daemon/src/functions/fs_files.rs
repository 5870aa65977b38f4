//! File functions that are one question and one answer.

use std::sync::Arc;

use daemon_api::SandboxError;
use daemon_api::sandbox::{Fs, FsEntry};
use guest_protocol::DirEntry;
use serde_json::{Value, json};

use crate::functions::{guest_error, mode, required};
use crate::sandbox::{Activity, Sandboxes, Seat};

fn entry(found: DirEntry) -> FsEntry {
    FsEntry {
        name: found.name,
        is_dir: found.is_dir,
        size: found.size,
        mode: format!("{:04o}", found.mode),
        mtime: found.mtime,
        is_symlink: found.is_symlink,
    }
}

/// Asks the guest something about files.
async fn ask<T>(
    seat: &Seat,
    question: impl Future<Output = Result<T, guest_client::GuestError>>,
) -> Result<T, SandboxError> {
    seat.during(async { question.await.map_err(guest_error) }).await
}

pub(crate) async fn ls(sandboxes: Arc<Sandboxes>, request: Fs) -> Result<Value, SandboxError> {
    let seat = sandboxes.enter(&request.sandbox_id, Activity::Files)?;
    let found = ask(&seat, seat.guest().list(required(&request, "path", &request.path)?)).await?;
    let entries: Vec<FsEntry> = found.into_iter().map(entry).collect();
    Ok(json!({ "entries": entries }))
}

pub(crate) async fn stat(sandboxes: Arc<Sandboxes>, request: Fs) -> Result<Value, SandboxError> {
    let seat = sandboxes.enter(&request.sandbox_id, Activity::Files)?;
    let found = ask(&seat, seat.guest().stat(required(&request, "path", &request.path)?)).await?;
    Ok(json!(entry(found)))
}

pub(crate) async fn mkdir(sandboxes: Arc<Sandboxes>, request: Fs) -> Result<Value, SandboxError> {
    let seat = sandboxes.enter(&request.sandbox_id, Activity::Files)?;
    let mode = mode(request.mode.as_deref(), 0o755)?;
    let path = required(&request, "path", &request.path)?;
    let created = ask(&seat, seat.guest().make_dir(path, mode, request.parents.unwrap_or(false))).await?;
    Ok(json!({ "created": created }))
}

pub(crate) async fn rm(sandboxes: Arc<Sandboxes>, request: Fs) -> Result<Value, SandboxError> {
    let seat = sandboxes.enter(&request.sandbox_id, Activity::Files)?;
    let path = required(&request, "path", &request.path)?;
    ask(&seat, seat.guest().remove(path, request.recursive.unwrap_or(false))).await?;
    Ok(json!({ "removed": true }))
}

pub(crate) async fn chmod(sandboxes: Arc<Sandboxes>, request: Fs) -> Result<Value, SandboxError> {
    let seat = sandboxes.enter(&request.sandbox_id, Activity::Files)?;
    required(&request, "mode", &request.mode)?;
    let mode = mode(request.mode.as_deref(), 0)?;
    let path = required(&request, "path", &request.path)?;
    let owner = (request.uid, request.gid);
    let updated = ask(&seat, seat.guest().change_mode(path, mode, owner, request.recursive.unwrap_or(false))).await?;
    Ok(json!({ "updated": updated }))
}

pub(crate) async fn mv(sandboxes: Arc<Sandboxes>, request: Fs) -> Result<Value, SandboxError> {
    let seat = sandboxes.enter(&request.sandbox_id, Activity::Files)?;
    let (from, to) = (required(&request, "src", &request.src)?, required(&request, "dst", &request.dst)?);
    ask(&seat, seat.guest().rename(from, to, request.overwrite.unwrap_or(false))).await?;
    Ok(json!({ "moved": true }))
}
