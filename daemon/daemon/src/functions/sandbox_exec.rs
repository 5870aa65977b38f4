//! `sandbox::exec`: one command, its output in the answer or through channels.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use daemon_api::sandbox::{Exec, ExecResult, Input};
use daemon_api::{SandboxError, SandboxErrorKind as Kind};
use engine_client::{ChannelReader, ChannelWriter, Client, Item};
use guest_client::{Exec as Running, Output};
use guest_protocol::{ExecFile, ExecRequest};
use serde_json::{Value, json};

use crate::functions::guest_error;
use crate::sandbox::{Activity, Sandboxes, Seat, argv, environment, stdin};

/// Of each output, in an answer; what is more is read and thrown away.
const MAX_OUTPUT_BYTES: usize = 1024 * 1024;

const DEFAULT_TIMEOUT_MS: u64 = 300_000;

/// The guest ends a command at its deadline; one that has not by this much later is broken, or hostile.
const GUEST_GRACE: Duration = Duration::from_secs(15);

/// How long a reader of streamed output may take nothing before the command is given up.
const READER_IDLE: Duration = Duration::from_secs(300);

/// Exit status of what SIGKILL has ended.
const KILLED: i32 = 137;

/// Messages in flight on a channel of output.
const CHANNEL_BUFFER: u16 = 16;

/// A checked request.
pub(crate) struct Job {
    pub(crate) argv: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) stdin: Option<Stdin>,
    pub(crate) timeout_ms: u64,
    pub(crate) workdir: Option<String>,
    pub(crate) files: Vec<ExecFile>,
}

/// What a command reads.
pub(crate) enum Stdin {
    Bytes(Vec<u8>),
    Channel(Box<ChannelReader>),
}

pub(crate) async fn call(sandboxes: Arc<Sandboxes>, request: Exec) -> Result<Value, SandboxError> {
    let job = Job {
        argv: argv(request.argv.as_deref(), request.cmd.as_deref(), request.args.as_deref())?,
        env: environment(request.env.as_ref())?,
        stdin: input(&sandboxes.client, request.stdin).await?,
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

async fn input(client: &Client, given: Option<Input>) -> Result<Option<Stdin>, SandboxError> {
    match given {
        None => Ok(None),
        Some(Input::Base64(text)) => Ok(stdin(Some(&text))?.map(Stdin::Bytes)),
        Some(Input::Channel(channel)) => {
            let opened = client.open_reader(&channel).await;
            opened.map(|reader| Some(Stdin::Channel(Box::new(reader)))).map_err(|error| {
                SandboxError::new(Kind::FsChannelAborted, format!("the channel in `stdin` cannot be read: {error}"))
            })
        }
    }
}

async fn start(seat: &Seat, job: Job) -> Result<Running, SandboxError> {
    let request = ExecRequest {
        argv: job.argv,
        env: seat.env().clone().into_iter().chain(job.env).collect(),
        workdir: job.workdir,
        terminal: None,
        stdin: job.stdin.is_some(),
        timeout_ms: Some(job.timeout_ms),
        files: job.files,
    };
    let started = tokio::time::timeout(GUEST_GRACE, seat.guest().exec(request)).await;
    let silent = || SandboxError::new(Kind::ExecTimedOut, format!("the guest did not answer for {GUEST_GRACE:?}"));
    let running = started.map_err(|_| silent())?.map_err(guest_error)?;
    let input = running.input();
    match job.stdin {
        None => {}
        Some(Stdin::Bytes(bytes)) => drop(tokio::spawn(async move {
            // A program that has ended reads no more.
            if input.write(&bytes).await.is_ok() {
                let _ = input.close().await;
            }
        })),
        Some(Stdin::Channel(reader)) => drop(tokio::spawn(feed(input, *reader))),
    }
    Ok(running)
}

/// Passes on what comes through a channel, and its end; however it ends, the program must not wait for more.
async fn feed(input: guest_client::Input, mut reader: ChannelReader) {
    while let Some(Ok(item)) = reader.next().await {
        let bytes = match item {
            Item::Binary(bytes) => bytes,
            Item::Text(text) => text.into(),
        };
        if input.write(&bytes).await.is_err() {
            return;
        }
    }
    let _ = input.close().await;
}

/// What the command does next; its end, when the guest does not keep to `deadline`.
async fn next(running: &mut Running, deadline: Instant) -> Result<Output, SandboxError> {
    match tokio::time::timeout_at((deadline + GUEST_GRACE).into(), running.next()).await {
        Ok(event) => event.map_err(guest_error),
        Err(_) => Ok(Output::Exited { code: KILLED, timed_out: true }),
    }
}

/// Collects the output, up to the limit, and the end.
pub(crate) async fn buffered(seat: &Seat, job: Job) -> Result<ExecResult, SandboxError> {
    // Before the clock starts: the wait counts neither for `timeout_ms` nor in `duration_ms`.
    let _turn = seat.turn().await?;
    let begun = Instant::now();
    let deadline = begun + Duration::from_millis(job.timeout_ms);
    let mut running = start(seat, job).await?;
    let (mut stdout, mut stderr) = (Collected::default(), Collected::default());
    loop {
        match next(&mut running, deadline).await? {
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
    let (stdout_ref, stdout) = channel(client).await?;
    let (stderr_ref, stderr) = channel(client).await?;
    let (exit_ref, mut exit) = channel(client).await?;
    let turn = seat.during(seat.turn()).await?;
    let begun = Instant::now();
    let deadline = begun + Duration::from_millis(job.timeout_ms);
    let running = seat.during(start(&seat, job)).await?;
    tokio::spawn(async move {
        let _turn = turn;
        let carried = seat.during(carry(running, deadline, stdout, stderr)).await;
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
        SandboxError::new(Kind::FsChannelAborted, format!("channel aborted: {error}"))
    };
    let pair = client.create_channel(CHANNEL_BUFFER).await.map_err(aborted)?;
    let writer = client.open_writer(&pair.writer).await.map_err(aborted)?;
    Ok((pair.reader, writer))
}

/// A reader that has left stops the command: nobody wants its output.
async fn carry(
    mut running: Running,
    mut deadline: Instant,
    mut stdout: ChannelWriter,
    mut stderr: ChannelWriter,
) -> Result<(i32, bool), SandboxError> {
    loop {
        let event = next(&mut running, deadline).await?;
        let sending = Instant::now();
        match event {
            Output::Stdout(bytes) => send(&mut stdout, bytes).await?,
            Output::Stderr(bytes) => send(&mut stderr, bytes).await?,
            Output::Exited { code, timed_out } => {
                let _ = tokio::join!(stdout.close(), stderr.close());
                return Ok((code, timed_out));
            }
        }
        // Time that the reader took is not the guest's.
        deadline += sending.elapsed();
    }
}

async fn send(writer: &mut ChannelWriter, bytes: Bytes) -> Result<(), SandboxError> {
    let aborted = |why: &str| SandboxError::new(Kind::FsChannelAborted, format!("channel aborted: {why}"));
    let sent = tokio::time::timeout(READER_IDLE, writer.send(Item::Binary(bytes))).await;
    sent.map_err(|_| aborted("nobody reads the output"))?.map_err(|_| aborted("the reader has left"))
}
