//! `sandbox::run`: boot a machine, run one piece of code in it, stop it.

use std::sync::Arc;

use daemon_api::SandboxError;
use daemon_api::sandbox::{Create, Run};
use guest_protocol::ExecFile;
use serde_json::{Value, json};

use crate::functions::sandbox_exec::{Job, buffered, timeout};
use crate::sandbox::{Activity, Sandboxes, environment, stdin};

const FILE_MODE: u32 = 0o644;

pub(crate) async fn call(sandboxes: Arc<Sandboxes>, request: Run) -> Result<Value, SandboxError> {
    let job = job(&sandboxes, &request)?;
    let keep = request.keep_sandbox.unwrap_or(false);
    let create = Create {
        image: request.image,
        cpus: request.cpus,
        memory_mb: request.memory_mb,
        name: request.name,
        network: request.network,
        idle_timeout_secs: request.idle_timeout_secs,
        env: None,
    };
    let id = sandboxes.create(&create).await.map_err(|error| in_step("create", "", error))?.to_string();
    let outcome = run(&sandboxes, &id, job).await;
    if !keep {
        // On success and on failure alike; what goes wrong here is for the log.
        let _ = sandboxes.stop(&id, false).await;
    }
    let mut result = outcome.map_err(|error| in_step("exec", if keep { &id } else { "" }, error))?;
    result.sandbox_id = keep.then_some(id);
    serde_json::to_value(result).map_err(|error| SandboxError::invalid(error.to_string()))
}

async fn run(sandboxes: &Arc<Sandboxes>, id: &str, job: Job) -> Result<daemon_api::sandbox::ExecResult, SandboxError> {
    let seat = sandboxes.enter(id, Activity::Exec)?;
    seat.during(buffered(&seat, job)).await
}

/// Files travel with the command: one request, and the program finds them all.
fn job(sandboxes: &Sandboxes, request: &Run) -> Result<Job, SandboxError> {
    let lang = request.lang.as_deref().unwrap_or(match request.image.as_str() {
        "python" => "python",
        "node" => "node",
        _ => "shell",
    });
    let (interpreter, path) = match lang {
        "python" | "py" => ("python3", "/tmp/run.py"),
        "node" | "js" | "javascript" => ("node", "/tmp/run.js"),
        "shell" | "sh" | "bash" => ("/bin/sh", "/tmp/run.sh"),
        other => (other, "/tmp/run.txt"),
    };
    let siblings = request.files.iter().flatten();
    let mut files: Vec<ExecFile> = siblings
        .map(|file| ExecFile { path: file.path.clone(), mode: FILE_MODE, content: file.content.clone() })
        .collect();
    files.push(ExecFile { path: path.into(), mode: FILE_MODE, content: request.code.clone() });
    Ok(Job {
        argv: vec![interpreter.to_owned(), path.to_owned()],
        env: environment(request.env.as_ref())?,
        stdin: stdin(request.stdin.as_deref())?,
        timeout_ms: timeout(sandboxes, request.timeout_ms),
        workdir: request.workdir.clone(),
        files,
    })
}

fn in_step(step: &str, id: &str, error: SandboxError) -> SandboxError {
    let fix = json!({
        "context": format!("during sandbox::run step `{step}`"), "sandbox_id": id, "inner_code": error.kind.code(),
    });
    SandboxError { kind: error.kind, message: format!("{step}: {}", error.message), fix: Some(fix) }
}
