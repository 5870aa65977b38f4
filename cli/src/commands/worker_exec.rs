//! `iii worker exec`: a program in a worker's VM, as if it ran here.

use std::io::{IsTerminal, Read, Write};

use bytes::Bytes;
use daemon_api::worker::{Exec, ExecChannels, ExecEnd, ExecOrder, STDERR};
use engine_client::{CallError, ChannelReader, ChannelWriter, Item};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::Outcome;
use crate::arguments;
use crate::commands::SHORT;
use crate::connection::Connection;
use crate::failure::Failure;
use crate::terminal::{self, Raw};

/// Of standard input, at once.
const CHUNK_BYTES: usize = 32 * 1024;

const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;

const TIMED_OUT: u8 = 124;
const INTERRUPTED: u8 = 130;

pub(crate) async fn run(arguments: arguments::Exec) -> Outcome {
    let stdin_is_terminal = std::io::stdin().is_terminal();
    if arguments.tty && !stdin_is_terminal {
        return Err(Failure::usage("--tty needs a terminal on standard input"));
    }
    let interactive = arguments.tty || (!arguments.no_tty && terminal::is_interactive());
    let connection = Connection::open(&arguments.to.address).await?;
    let request = Exec {
        name: arguments.name,
        argv: arguments.command,
        env: arguments.env.into_iter().collect(),
        workdir: arguments.workdir,
        terminal: interactive.then(terminal::size),
        timeout_ms: arguments.timeout.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
    };
    let channels: ExecChannels = connection.call("worker::exec", &request, SHORT).await?;
    let input = connection.client().open_writer(&channels.input).await?;
    let output = connection.client().open_reader(&channels.output).await?;
    let raw = if interactive {
        Some(Raw::enter().map_err(|error| Failure::new(format!("the terminal cannot be made raw: {error}")))?)
    } else {
        None
    };
    // With pipes, a terminal on standard input is nobody's input: its end comes at once.
    let reads_stdin = interactive || !stdin_is_terminal;
    let session = tokio::spawn(speak(input, interactive, reads_stdin));
    let end = listen(output).await;
    session.abort();
    drop(raw);
    match end? {
        ExecEnd::Exit { timed_out: true, .. } => {
            eprintln!("error: the program took too long and was killed");
            Ok(TIMED_OUT)
        }
        ExecEnd::Exit { code, .. } => Ok(u8::try_from(code).unwrap_or(1)),
        ExecEnd::Error(body) => Err(CallError::Remote(body).into()),
    }
}

/// Writes what the program prints, until its end.
async fn listen(mut output: ChannelReader) -> Result<ExecEnd, Failure> {
    loop {
        match output.next().await {
            Some(Ok(Item::Binary(bytes))) if !bytes.is_empty() => write(bytes).await,
            Some(Ok(Item::Binary(_))) => {}
            Some(Ok(Item::Text(text))) => {
                return serde_json::from_str(&text)
                    .map_err(|error| Failure::new(format!("the program's end was not understood: {error}")));
            }
            Some(Err(error)) => return Err(error.into()),
            None => {
                return Err(Failure::new("the connection to the program was lost")
                    .hint("the worker, its daemon or the engine has ended: `iii worker status` tells"));
            }
        }
    }
}

/// Its bytes are the data asked for: they are passed on as they are. A reader of ours that has left is not told of.
async fn write(bytes: Bytes) {
    let _ = tokio::task::spawn_blocking(move || {
        let body = &bytes[1..];
        if bytes[0] == STDERR {
            let _ = std::io::stderr().write_all(body);
        } else {
            let mut stdout = std::io::stdout().lock();
            let _ = stdout.write_all(body).and_then(|()| stdout.flush());
        }
    })
    .await;
}

/// Sends standard input, window sizes and signals. Ends when the engine does not take them any more.
async fn speak(mut input: ChannelWriter, interactive: bool, reads_stdin: bool) {
    let (Ok(mut resized), Ok(mut interrupted)) = (signal(SignalKind::window_change()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    let mut typed = reads_stdin.then(read_stdin);
    if typed.is_none() && order(&mut input, ExecOrder::Eof(true)).await.is_err() {
        return;
    }
    let mut interrupts = 0;
    loop {
        let sent = tokio::select! {
            bytes = next(&mut typed) => match bytes {
                Some(bytes) => input.send(Item::Binary(bytes)).await,
                None => {
                    typed = None;
                    order(&mut input, ExecOrder::Eof(true)).await
                }
            },
            _ = resized.recv(), if interactive => order(&mut input, ExecOrder::Resize(terminal::size())).await,
            _ = interrupted.recv() => {
                interrupts += 1;
                if interrupts > 1 {
                    // Killed there; here nobody waits for it any longer.
                    let _ = order(&mut input, ExecOrder::Signal(SIGKILL)).await;
                    std::process::exit(i32::from(INTERRUPTED));
                }
                order(&mut input, ExecOrder::Signal(SIGINT)).await
            }
        };
        if sent.is_err() {
            // The program has ended, or will not hear more; what it prints is still coming.
            std::future::pending::<()>().await;
        }
    }
}

async fn order(input: &mut ChannelWriter, order: ExecOrder) -> Result<(), CallError> {
    input.send(Item::Text(serde_json::to_string(&order).unwrap_or_default())).await
}

async fn next(typed: &mut Option<mpsc::Receiver<Bytes>>) -> Option<Bytes> {
    match typed {
        Some(typed) => typed.recv().await,
        None => std::future::pending().await,
    }
}

/// A thread of its own: a read of standard input cannot be cut short.
fn read_stdin() -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => {
                    if sender.blocking_send(Bytes::copy_from_slice(&buffer[..length])).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    receiver
}
