//! `sandbox::exec`: one command, its output in the answer or through channels.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use daemon_api::sandbox::{Exec, ExecResult};
use daemon_api::{SandboxError, SandboxErrorKind as Kind};
use engine_client::{ChannelWriter, Client, Item};
use guest_client::{Exec as Running, Output};
use guest_protocol::{ExecFile, ExecRequest};
use serde_json::{Value, json};

use crate::functions::guest_error;
use crate::sandbox::{Activity, Sandboxes, Seat, argv, environment, stdin};

/// Of each output, in an answer; what is more is read and thrown away.
const MAX_OUTPUT_BYTES: usize = 1024 * 1024;

const DEFAULT_TIMEOUT_MS: u64 = 300_000;

/// Messages in flight on a channel of output.
const CHANNEL_BUFFER: u16 = 16;

/// A checked request.
pub(crate) struct Job {
    pub(crate) argv: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) stdin: Option<Vec<u8>>,
    pub(crate) timeout_ms: u64,
    pub(crate) workdir: Option<String>,
    pub(crate) files: Vec<ExecFile>,
}

pub(crate) async fn call(sandboxes: Arc<Sandboxes>, request: Exec) -> Result<Value, SandboxError> {
    let job = Job {
        argv: argv(request.argv.as_deref(), request.cmd.as_deref(), request.args.as_deref())?,
        env: environment(request.env.as_ref())?,
        stdin: stdin(request.stdin.as_deref())?,
        timeout_ms: timeout(&sandboxes, request.timeout_ms),
        workdir: request.workdir,
        files: Vec::new(),
    };
    let seat = sandboxes.enter(&request.sandbox_id, Activity::Exec)?;
    if request.stream.unwrap_or(false) {
        return stream(&sandboxes.client, seat, job).await;
    }
    let result = seat.during(buffered(&seat, job)).await?;
    serde_json::to_value(result).map_err(|error| SandboxError::invalid(error.to_string()))
}

pub(crate) fn timeout(sandboxes: &Sandboxes, asked: Option<u64>) -> u64 {
    asked.unwrap_or(DEFAULT_TIMEOUT_MS).min(sandboxes.config.max_exec_timeout_ms)
}

async fn start(seat: &Seat, job: Job) -> Result<Running, SandboxError> {
    let request = ExecRequest {
        argv: job.argv,
        env: job.env,
        workdir: job.workdir,
        terminal: None,
        stdin: job.stdin.is_some(),
        timeout_ms: Some(job.timeout_ms),
        files: job.files,
    };
    let running = seat.guest().exec(request).await.map_err(guest_error)?;
    if let Some(bytes) = job.stdin {
        let input = running.input();
        tokio::spawn(async move {
            // A program that has ended reads no more.
            if input.write(&bytes).await.is_ok() {
                let _ = input.close().await;
            }
        });
    }
    Ok(running)
}

/// Collects the output, up to the limit, and the end.
pub(crate) async fn buffered(seat: &Seat, job: Job) -> Result<ExecResult, SandboxError> {
    let begun = Instant::now();
    let mut running = start(seat, job).await?;
    let (mut stdout, mut stderr) = (Collected::default(), Collected::default());
    loop {
        match running.next().await.map_err(guest_error)? {
            Output::Stdout(bytes) => stdout.add(&bytes),
            Output::Stderr(bytes) => stderr.add(&bytes),
            Output::Exited { code, timed_out } => {
                return Ok(ExecResult {
                    stdout: stdout.text(),
                    stderr: stderr.text(),
                    exit_code: (!timed_out).then_some(code),
                    timed_out,
                    duration_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
                    success: code == 0 && !timed_out,
                    stdout_truncated: stdout.truncated,
                    stderr_truncated: stderr.truncated,
                    sandbox_id: None,
                });
            }
        }
    }
}

#[derive(Default)]
struct Collected {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Collected {
    fn add(&mut self, bytes: &[u8]) {
        let room = MAX_OUTPUT_BYTES - self.bytes.len();
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.truncated |= bytes.len() > room;
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// Answers at once; output and end go through channels, as fast as their readers take them.
async fn stream(client: &Client, seat: Seat, job: Job) -> Result<Value, SandboxError> {
    let begun = Instant::now();
    let (stdout_ref, stdout) = channel(client).await?;
    let (stderr_ref, stderr) = channel(client).await?;
    let (exit_ref, mut exit) = channel(client).await?;
    let running = seat.during(start(&seat, job)).await?;
    tokio::spawn(async move {
        let carried = seat.during(carry(running, stdout, stderr)).await;
        let said = match carried {
            Ok((code, timed_out)) => json!({
                "exit_code": (!timed_out).then_some(code), "timed_out": timed_out,
                "duration_ms": u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
                "success": code == 0 && !timed_out,
            }),
            Err(error) => json!({ "error": error.into_body() }),
        };
        if exit.send(Item::Text(said.to_string())).await.is_ok() {
            let _ = exit.close().await;
        }
    });
    Ok(json!({ "stdout": stdout_ref, "stderr": stderr_ref, "exit": exit_ref }))
}

async fn channel(client: &Client) -> Result<(engine_client::ChannelRef, ChannelWriter), SandboxError> {
    let aborted = |error: engine_client::CallError| {
        SandboxError::new(Kind::FsChannelAborted, format!("fs channel aborted: {error}"))
    };
    let pair = client.create_channel(CHANNEL_BUFFER).await.map_err(aborted)?;
    let writer = client.open_writer(&pair.writer).await.map_err(aborted)?;
    Ok((pair.reader, writer))
}

/// A reader that has left stops the command: nobody wants its output.
async fn carry(
    mut running: Running,
    mut stdout: ChannelWriter,
    mut stderr: ChannelWriter,
) -> Result<(i32, bool), SandboxError> {
    let aborted = |_| SandboxError::new(Kind::FsChannelAborted, "fs channel aborted: the reader has left");
    loop {
        match running.next().await.map_err(guest_error)? {
            Output::Stdout(bytes) => send(&mut stdout, bytes).await.map_err(aborted)?,
            Output::Stderr(bytes) => send(&mut stderr, bytes).await.map_err(aborted)?,
            Output::Exited { code, timed_out } => {
                let _ = tokio::join!(stdout.close(), stderr.close());
                return Ok((code, timed_out));
            }
        }
    }
}

async fn send(writer: &mut ChannelWriter, bytes: Bytes) -> Result<(), engine_client::CallError> {
    writer.send(Item::Binary(bytes)).await
}
