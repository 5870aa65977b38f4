//! `iii worker sandbox create`, `exec`, `run`, `list` and `stop`: thin clients of `sandbox::*`.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use engine_client::{ChannelReader, ChannelRef, Client, Item};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::Outcome;
use crate::arguments::{SandboxCreate, SandboxExec, SandboxList, SandboxRun, SandboxStop};
use crate::clean::line;
use crate::commands::{LONG, SHORT, print_json};
use crate::connection::Connection;
use crate::failure::Failure;
use crate::stdin;

const TIMED_OUT: u8 = 124;
const INTERRUPTED: u8 = 130;

/// Messages in flight on the channel of standard input.
const STDIN_BUFFER: u16 = 16;

async fn boot(connection: &Connection, arguments: &SandboxCreate) -> Result<Value, Failure> {
    let env: Value = arguments.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let request = json!({
        "image": arguments.image, "cpus": arguments.cpus, "memory_mb": arguments.memory, "name": arguments.name,
        "idle_timeout_secs": arguments.idle_timeout.map(|limit| limit.as_secs().max(1)),
        "network": arguments.network, "env": env,
    });
    connection.ask("sandbox::create", &request, LONG).await
}

pub(crate) async fn create(arguments: SandboxCreate) -> Outcome {
    let connection = Connection::open(&arguments.to.address).await?;
    let answer = boot(&connection, &arguments).await?;
    connection.close().await;
    if arguments.to.json {
        print_json(&answer);
    } else {
        println!("{}", answer["sandbox_id"].as_str().unwrap_or_default());
    }
    Ok(0)
}

pub(crate) async fn exec(arguments: SandboxExec) -> Outcome {
    let connection = Connection::open(&arguments.to.address).await?;
    let env: Value = arguments.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let work = run_in(&connection, &arguments.id, &arguments.command, env, arguments.timeout);
    let outcome = work.await;
    connection.close().await;
    outcome
}

pub(crate) async fn run(arguments: SandboxRun) -> Outcome {
    let connection = Connection::open(&arguments.create.to.address).await?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|error| Failure::new(format!("signals cannot be watched: {error}")))?;
    // Ctrl-C meanwhile is heeded when it is there: only then can it be stopped.
    let answer = boot(&connection, &arguments.create).await?;
    let id = answer["sandbox_id"].as_str().unwrap_or_default().to_owned();
    let work = run_in(&connection, &id, &arguments.command, json!([]), arguments.timeout);
    let outcome = tokio::select! {
        outcome = work => outcome,
        _ = interrupt.recv() => Ok(INTERRUPTED),
    };
    // Also after a failure, and after Ctrl-C: nothing is left behind.
    let stopped = connection.ask("sandbox::stop", &json!({ "sandbox_id": id, "wait": true }), SHORT).await;
    connection.close().await;
    let status = outcome?;
    stopped?;
    Ok(status)
}

/// Runs a program through pipes and returns its exit status.
async fn run_in(
    connection: &Connection,
    id: &str,
    command: &[String],
    env: Value,
    timeout: Option<Duration>,
) -> Outcome {
    let mut request = json!({ "sandbox_id": id, "argv": command, "env": env, "stream": true });
    if let Some(timeout) = timeout {
        request["timeout_ms"] = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).into();
    }
    if let Some(channel) = stdin(connection.client()).await? {
        request["stdin"] = json!(channel);
    }
    let answer = connection.ask("sandbox::exec", &request, LONG).await?;
    let end = |name: &str| -> Result<ChannelRef, Failure> {
        serde_json::from_value(answer[name].clone())
            .map_err(|error| Failure::new(format!("sandbox::exec gave no channel `{name}`: {error}")))
    };
    let client = connection.client();
    let (stdout, stderr) = (client.open_reader(&end("stdout")?).await?, client.open_reader(&end("stderr")?).await?);
    let exit = end("exit")?;
    let exit = exit_status(client, &exit);
    let (_, _, exit) = tokio::join!(pass(stdout, std::io::stdout()), pass(stderr, std::io::stderr()), exit);
    let exit = exit?;
    if exit["timed_out"] == true {
        eprintln!("error: the program took too long and was killed");
        return Ok(TIMED_OUT);
    }
    match exit["exit_code"].as_i64() {
        Some(code) => Ok(u8::try_from(code).unwrap_or(1)),
        None => Err(Failure::new(format!("the program did not end: {}", line(&exit["error"].to_string())))),
    }
}

/// A channel that carries what is piped into this process; `None` from a terminal. The program does not wait for its end.
async fn stdin(client: &Client) -> Result<Option<ChannelRef>, Failure> {
    if std::io::stdin().is_terminal() {
        return Ok(None);
    }
    let pair = client.create_channel(STDIN_BUFFER).await?;
    let mut writer = client.open_writer(&pair.writer).await?;
    tokio::spawn(async move {
        let mut typed = stdin::read();
        while let Some(bytes) = typed.recv().await {
            if writer.send(Item::Binary(bytes)).await.is_err() {
                return;
            }
        }
        let _ = writer.close().await;
    });
    Ok(Some(pair.reader))
}

async fn exit_status(client: &Client, channel: &ChannelRef) -> Result<Value, Failure> {
    let mut reader = client.open_reader(channel).await?;
    while let Some(item) = reader.next().await {
        if let Item::Text(text) = item? {
            return serde_json::from_str(&text).map_err(|error| Failure::new(format!("no exit status: {error}")));
        }
    }
    Err(Failure::new("the program's end was not told"))
}

async fn pass(mut from: ChannelReader, mut to: impl Write) {
    while let Some(Ok(item)) = from.next().await {
        let bytes = match item {
            Item::Binary(bytes) => bytes,
            Item::Text(text) => text.into(),
        };
        if to.write_all(&bytes).and_then(|()| to.flush()).is_err() {
            return;
        }
    }
}

pub(crate) async fn list(arguments: SandboxList) -> Outcome {
    let connection = Connection::open(&arguments.to.address).await?;
    let answer = connection.ask("sandbox::list", &json!({}), SHORT).await?;
    connection.close().await;
    if arguments.to.json {
        print_json(&answer);
        return Ok(0);
    }
    let rows = answer["sandboxes"].as_array().cloned().unwrap_or_default();
    if rows.is_empty() {
        eprintln!("No sandboxes: `iii worker sandbox create python` boots one");
    }
    for row in rows {
        let text = |field: &str| line(row[field].as_str().unwrap_or("-"));
        let age = row["age_secs"].as_u64().unwrap_or(0);
        println!("{}  {:10} {age:>6}s  {}", text("sandbox_id"), text("image"), text("name"));
    }
    Ok(0)
}

pub(crate) async fn stop(arguments: SandboxStop) -> Outcome {
    let connection = Connection::open(&arguments.to.address).await?;
    let answer = connection.ask("sandbox::stop", &json!({ "sandbox_id": arguments.id, "wait": true }), SHORT).await?;
    connection.close().await;
    if arguments.to.json {
        print_json(&answer);
    } else {
        eprintln!("Stopped {}", line(&arguments.id));
    }
    Ok(0)
}
