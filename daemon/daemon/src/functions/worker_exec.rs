//! `worker::exec`: a program in a worker's VM, interactive if need be.
//!
//! The answer comes at once, with three channels; everything else goes through them, as fast as each side takes it.
//!
//! ```text
//! caller ── input ──────► standard input, as the program reads it
//!        ── control ────► signals, sizes; its end kills the program
//!        ◄── output ─────  what it prints, and its end
//! ```

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use daemon_api::WorkerError;
use daemon_api::worker::{Exec, ExecChannels, ExecEnd, ExecOrder, STDERR, STDOUT};
use engine_client::{CallError, ChannelReader, ChannelWriter, Client, Item};
use guest_client::{Exec as Running, GuestError, Input, Output};
use guest_protocol::{Control, ExecRequest, TerminalSize};
use serde_json::Value;
use tracing::debug;

use crate::worker::Workers;

/// Messages in flight on each channel.
const CHANNEL_BUFFER: u16 = 16;

pub(crate) async fn call(workers: Arc<Workers>, request: Exec) -> Result<Value, WorkerError> {
    let bad = |reason: &str| WorkerError::BadRequest { function_id: "worker::exec".into(), reason: reason.into() };
    if request.argv.first().is_none_or(String::is_empty) {
        return Err(bad("`argv` is empty"));
    }
    if let Some(name) = request.env.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        return Err(bad(&format!("`{name}` is no name of an environment variable")));
    }
    let guest = workers.guest(&request.name)?;
    let worker = request.name.clone();
    let exec = ExecRequest {
        argv: request.argv,
        env: request.env,
        workdir: request.workdir,
        terminal: request.terminal.map(|size| TerminalSize { rows: size.rows, cols: size.cols }),
        stdin: true,
        timeout_ms: request.timeout_ms,
        files: Vec::new(),
    };
    let client = workers.client();
    let channels =
        Channels::open(client).await.map_err(|error| WorkerError::Internal { message: error.to_string() })?;
    let running = guest.exec(exec).await.map_err(|error| guest_error(&worker, &error))?;
    let answer = serde_json::to_value(&channels.theirs);
    tokio::spawn(carry(worker, running, channels));
    answer.map_err(|error| WorkerError::Internal { message: error.to_string() })
}

fn guest_error(worker: &str, error: &GuestError) -> WorkerError {
    match error {
        GuestError::Failed(failure) => {
            WorkerError::BadRequest { function_id: "worker::exec".into(), reason: failure.message.clone() }
        }
        GuestError::Closed => WorkerError::NotRunning { name: worker.to_owned() },
        GuestError::Request(_) | GuestError::Broken(_) | GuestError::NotFrozen(_) => {
            WorkerError::Internal { message: error.to_string() }
        }
    }
}

/// Our ends of the channels, and the caller's.
struct Channels {
    input: ChannelReader,
    control: ChannelReader,
    output: ChannelWriter,
    theirs: ExecChannels,
}

impl Channels {
    async fn open(client: &Client) -> Result<Self, CallError> {
        let input = client.create_channel(CHANNEL_BUFFER).await?;
        let control = client.create_channel(CHANNEL_BUFFER).await?;
        let output = client.create_channel(CHANNEL_BUFFER).await?;
        Ok(Self {
            input: client.open_reader(&input.reader).await?,
            control: client.open_reader(&control.reader).await?,
            output: client.open_writer(&output.writer).await?,
            theirs: ExecChannels { input: input.writer, control: control.writer, output: output.reader },
        })
    }
}

/// Carries everything until the program has ended, or the caller has left: then it is killed.
async fn carry(worker: String, mut running: Running, channels: Channels) {
    let Channels { input, control, mut output, .. } = channels;
    let stdin = tokio::spawn(feed(running.input(), input));
    let orders = obey(running.input(), control);
    let printing = async {
        loop {
            let message = match running.next().await {
                Ok(Output::Stdout(bytes)) => marked(STDOUT, &bytes),
                Ok(Output::Stderr(bytes)) => marked(STDERR, &bytes),
                Ok(Output::Exited { code, timed_out }) => return Some(ExecEnd::Exit { code, timed_out }),
                Err(error) => return Some(ExecEnd::Error(guest_error(&worker, &error).into_body())),
            };
            if output.send(message).await.is_err() {
                return None;
            }
        }
    };
    let end = tokio::select! {
        end = printing => end,
        () = orders => None,
    };
    stdin.abort();
    match end.as_ref().and_then(|end| serde_json::to_string(end).ok()) {
        Some(text) => {
            if output.send(Item::Text(text)).await.is_ok() {
                let _ = output.close().await;
            }
        }
        // Dropping it kills it.
        None => debug!(worker, "the caller has left, the program is killed"),
    }
}

fn marked(mark: u8, bytes: &[u8]) -> Item {
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.put_u8(mark);
    message.put_slice(bytes);
    Item::Binary(message.freeze())
}

/// The caller's input. Its orderly end is the program's end of file; whoever breaks off has left, and `obey` hears it.
async fn feed(to: Input, mut from: ChannelReader) {
    while let Some(item) = from.next().await {
        let bytes = match item {
            Ok(Item::Binary(bytes)) => bytes,
            Ok(Item::Text(text)) => text.into(),
            Err(_) => return,
        };
        match to.write(&bytes).await {
            // It has closed its input, or ended: what it prints still matters.
            Ok(()) | Err(GuestError::Closed) => {}
            Err(_) => return,
        }
    }
    let _ = to.close().await;
}

/// The caller's orders, until the caller leaves.
async fn obey(to: Input, mut from: ChannelReader) {
    while let Some(Ok(item)) = from.next().await {
        let Item::Text(text) = item else { continue };
        let obeyed = match serde_json::from_str(&text) {
            Ok(ExecOrder::Resize(size)) => {
                to.control(Control::Resize(TerminalSize { rows: size.rows, cols: size.cols })).await
            }
            Ok(ExecOrder::Signal(signal)) => to.control(Control::Signal { signal }).await,
            Err(error) => {
                debug!(%error, "an order that makes no sense");
                Ok(())
            }
        };
        if obeyed.is_err() {
            return;
        }
    }
}
