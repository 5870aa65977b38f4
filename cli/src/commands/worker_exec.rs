//! `iii worker exec`: a program in a worker's VM, as if it ran here.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use bytes::Bytes;
use daemon_api::worker::{Exec, ExecChannels, ExecEnd, ExecOrder, STDERR};
use engine_client::{CallError, ChannelReader, ChannelWriter, Item};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::Outcome;
use crate::arguments;
use crate::commands::SHORT;
use crate::connection::Connection;
use crate::failure::Failure;
use crate::stdin;
use crate::terminal::{self, Raw};

const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;

/// How long the last order may take.
const LAST_ORDER: Duration = Duration::from_secs(1);

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
    let control = connection.client().open_writer(&channels.control).await?;
    let output = connection.client().open_reader(&channels.output).await?;
    let raw = if interactive {
        Some(Raw::enter().map_err(|error| Failure::new(format!("the terminal cannot be made raw: {error}")))?)
    } else {
        None
    };
    // With pipes, a terminal on standard input is nobody's input: its end comes at once.
    let reads_stdin = interactive || !stdin_is_terminal;
    let typing = tokio::spawn(send_input(input, reads_stdin.then(stdin::read)));
    let orders = tokio::spawn(send_orders(control, interactive));
    let end = listen(output).await;
    typing.abort();
    orders.abort();
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

/// Its bytes are the data asked for: they are passed on as they are. A reader of ours that has left ends us
/// (SIGPIPE), and with us the program.
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

/// Sends standard input, and its end.
async fn send_input(mut input: ChannelWriter, typed: Option<mpsc::Receiver<Bytes>>) {
    if let Some(mut typed) = typed {
        while let Some(bytes) = typed.recv().await {
            if input.send(Item::Binary(bytes)).await.is_err() {
                // The program has ended, or reads no more; what it prints is still coming.
                return;
            }
        }
    }
    let _ = input.close().await;
}

/// Sends window sizes and signals, for as long as it runs: its end kills the program.
async fn send_orders(mut control: ChannelWriter, interactive: bool) {
    let (Ok(mut resized), Ok(mut interrupted)) = (signal(SignalKind::window_change()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    let mut interrupts = 0;
    loop {
        let sent = tokio::select! {
            _ = resized.recv(), if interactive => order(&mut control, ExecOrder::Resize(terminal::size())).await,
            _ = interrupted.recv() => {
                interrupts += 1;
                if interrupts > 1 {
                    // Killed there; here nobody waits for it any longer.
                    let _ = timeout(LAST_ORDER, order(&mut control, ExecOrder::Signal(SIGKILL))).await;
                    std::process::exit(i32::from(INTERRUPTED));
                }
                order(&mut control, ExecOrder::Signal(SIGINT)).await
            }
        };
        if sent.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn order(control: &mut ChannelWriter, order: ExecOrder) -> Result<(), CallError> {
    control.send(Item::Text(serde_json::to_string(&order).unwrap_or_default())).await
}
