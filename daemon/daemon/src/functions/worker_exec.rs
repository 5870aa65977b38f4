//! `worker::exec`: a program in a worker's VM, interactive if need be.
//!
//! The answer comes at once, with two channels; everything else goes through them, as fast as each side takes it.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use daemon_api::WorkerError;
use daemon_api::worker::{Exec, ExecChannels, ExecEnd, ExecOrder, STDERR, STDOUT};
use engine_client::{CallError, ChannelReader, ChannelRef, ChannelWriter, Client, Item};
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
    let answer = ExecChannels { input: channels.their_input, output: channels.their_output };
    tokio::spawn(carry(worker, running, channels.input, channels.output));
    serde_json::to_value(answer).map_err(|error| WorkerError::Internal { message: error.to_string() })
}

fn guest_error(worker: &str, error: &GuestError) -> WorkerError {
    match error {
        GuestError::Failed(failure) => {
            WorkerError::BadRequest { function_id: "worker::exec".into(), reason: failure.message.clone() }
        }
        GuestError::Closed => WorkerError::NotRunning { name: worker.to_owned() },
        GuestError::Broken(_) => WorkerError::Internal { message: error.to_string() },
    }
}

/// Our ends of the two channels, and the caller's.
struct Channels {
    input: ChannelReader,
    output: ChannelWriter,
    their_input: ChannelRef,
    their_output: ChannelRef,
}

impl Channels {
    async fn open(client: &Client) -> Result<Self, CallError> {
        let (input, output) =
            (client.create_channel(CHANNEL_BUFFER).await?, client.create_channel(CHANNEL_BUFFER).await?);
        Ok(Self {
            input: client.open_reader(&input.reader).await?,
            output: client.open_writer(&output.writer).await?,
            their_input: input.writer,
            their_output: output.reader,
        })
    }
}

/// Carries both directions until the program has ended, or the caller has left: then it is killed.
async fn carry(worker: String, mut running: Running, input: ChannelReader, mut output: ChannelWriter) {
    let stdin = tokio::spawn(feed(running.input(), input));
    let end = loop {
        match running.next().await {
            Ok(Output::Stdout(bytes)) => {
                if output.send(marked(STDOUT, &bytes)).await.is_err() {
                    break None;
                }
            }
            Ok(Output::Stderr(bytes)) => {
                if output.send(marked(STDERR, &bytes)).await.is_err() {
                    break None;
                }
            }
            Ok(Output::Exited { code, timed_out }) => break Some(ExecEnd::Exit { code, timed_out }),
            Err(error) => break Some(ExecEnd::Error(guest_error(&worker, &error).into_body())),
        }
    };
    stdin.abort();
    match end.as_ref().and_then(|end| serde_json::to_string(end).ok()) {
        Some(text) => {
            if output.send(Item::Text(text)).await.is_ok() {
                let _ = output.close().await;
            }
        }
        None => debug!(worker, "the reader of a program's output has left, the program is killed"),
    }
}

fn marked(mark: u8, bytes: &[u8]) -> Item {
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.put_u8(mark);
    message.put_slice(bytes);
    Item::Binary(message.freeze())
}

/// The caller's input and orders. A caller who leaves without an end of file kills the program.
async fn feed(to: Input, mut from: ChannelReader) {
    while let Some(item) = from.next().await {
        let done = match item {
            Ok(Item::Binary(bytes)) => write(&to, &bytes).await,
            Ok(Item::Text(text)) => match serde_json::from_str(&text) {
                Ok(ExecOrder::Resize(size)) => {
                    to.control(Control::Resize(TerminalSize { rows: size.rows, cols: size.cols })).await
                }
                Ok(ExecOrder::Signal(signal)) => to.control(Control::Signal { signal }).await,
                Ok(ExecOrder::Eof(_)) => to.close().await,
                Err(error) => {
                    debug!(%error, "an order that makes no sense");
                    Ok(())
                }
            },
            Err(_) => break,
        };
        if done.is_err() {
            return;
        }
    }
    let _ = to.control(Control::Stop).await;
}

async fn write(to: &Input, bytes: &Bytes) -> Result<(), GuestError> {
    match to.write(bytes).await {
        // It has closed its input, or ended: what it prints still matters.
        Err(GuestError::Closed) => Ok(()),
        other => other,
    }
}
