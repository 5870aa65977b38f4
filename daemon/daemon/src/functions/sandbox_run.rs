//! `sandbox::run`: boot a machine, run one piece of code in it, stop it.

use std::sync::Arc;

use daemon_api::SandboxError;
use daemon_api::sandbox::{Create, ExecResult, Run, RunFile};
use guest_protocol::ExecFile;
use serde_json::{Value, json};

use crate::functions::guest_error;
use crate::functions::sandbox_exec::{Job, Stdin, buffered, timeout};
use crate::sandbox::{Activity, Sandboxes, environment, stdin};

const FILE_MODE: u32 = 0o644;

/// Longer code is written first: a request to a guest is one frame, of at most 1 MiB as JSON.
const MAX_WITH_COMMAND: usize = 128 * 1024;

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
    let outcome = run(&sandboxes, &id, job, &request.files.unwrap_or_default()).await;
    if !keep {
        // On success and on failure alike; what goes wrong here is for the log.
        let _ = sandboxes.stop(&id, false).await;
    }
    let mut result = outcome.map_err(|(step, error)| in_step(step, if keep { &id } else { "" }, error))?;
    result.sandbox_id = keep.then_some(id);
    serde_json::to_value(result).map_err(|error| SandboxError::invalid(error.to_string()))
}

/// On failure, with the name of the step.
async fn run(
    sandboxes: &Arc<Sandboxes>,
    id: &str,
    mut job: Job,
    files: &[RunFile],
) -> Result<ExecResult, (&'static str, SandboxError)> {
    let in_exec = |error| ("exec", error);
    let seat = sandboxes.enter(id, Activity::Exec).map_err(in_exec)?;
    let with_command = job.files.iter().map(|file| file.content.len()).sum::<usize>() <= MAX_WITH_COMMAND;
    let first: Vec<ExecFile> = if with_command { Vec::new() } else { std::mem::take(&mut job.files) };
    let files = files.iter().map(|file| ("fs::write (sibling file)", &file.path, &file.content));
    let code = first.iter().map(|file| ("fs::write (code)", &file.path, &file.content));
    for (step, path, content) in files.chain(code) {
        let writing = async {
            let mut writer = seat.guest().write(path, FILE_MODE, true).await.map_err(guest_error)?;
            writer.write(content.as_bytes()).await.map_err(guest_error)?;
            writer.finish().await.map_err(guest_error)
        };
        seat.during(writing).await.map_err(|error| (step, error))?;
    }
    seat.during(buffered(&seat, job)).await.map_err(in_exec)
}

/// The code travels with the command, where it is short enough: one request less.
fn job(sandboxes: &Sandboxes, request: &Run) -> Result<Job, SandboxError> {
    let source = sandboxes.image_of(&request.image)?;
    let lang = request.lang.as_deref().unwrap_or(match source.as_str() {
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
    Ok(Job {
        argv: vec![interpreter.to_owned(), path.to_owned()],
        env: environment(request.env.as_ref())?,
        stdin: stdin(request.stdin.as_deref())?.map(Stdin::Bytes),
        timeout_ms: timeout(sandboxes, request.timeout_ms),
        workdir: request.workdir.clone(),
        files: vec![ExecFile { path: path.into(), mode: FILE_MODE, content: request.code.clone() }],
    })
}

fn in_step(step: &str, id: &str, error: SandboxError) -> SandboxError {
    let fix = json!({
        "context": format!("during sandbox::run step `{step}`"), "sandbox_id": id, "inner_code": error.kind.code(),
    });
    SandboxError { kind: error.kind, message: format!("{step}: {}", error.message), fix: Some(fix) }
}
