//! `iii worker add`, `reinstall`, `start` and `restart`: everything that brings a worker up, with its progress.

use std::path::Path;

use daemon_api::worker::{Phase, Progress, Source};
use engine_client::Item;
use serde_json::{Value, json};

use crate::Outcome;
use crate::arguments::{Add, Start};
use crate::clean::line;
use crate::commands::{LONG, SHORT, print_json};
use crate::connection::Connection;
use crate::failure::Failure;
use crate::progress::{Steps, seconds};

pub(crate) async fn run(arguments: Add, again: bool) -> Outcome {
    let force = arguments.force || again;
    if arguments.reset_config && !force {
        return Err(Failure::usage("--reset-config goes with --force"));
    }
    let connection = Connection::open(&arguments.to.address).await?;
    for text in &arguments.sources {
        let source = classify(text)?;
        if let Source::Local { path } = &source
            && !path.is_dir()
        {
            return Err(Failure::new(format!("{} is not a directory", path.display())));
        }
        let request = json!({
            "source": source, "force": force, "reset_config": arguments.reset_config, "wait": !arguments.no_wait,
            "ready_timeout_ms": arguments.ready_timeout.map(|limit| limit.as_millis()),
        });
        let mut steps = Steps::of(&line(text), arguments.to.json);
        let answer = with_progress(&connection, "worker::add", request, &mut steps).await?;
        let elapsed = seconds(steps.elapsed());
        drop(steps);
        if arguments.to.json {
            print_json(&answer);
            continue;
        }
        let name = line(answer["name"].as_str().unwrap_or_default());
        for warning in answer["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            eprintln!("warning: {}", line(warning));
        }
        let done = if answer["status"] == "replaced" { "Replaced" } else { "Installed" };
        match (answer["awaited_ready"].as_bool(), arguments.no_wait) {
            (Some(true), _) => eprintln!("{done} {name} in {elapsed}, ready"),
            (_, true) => eprintln!("{done} {name}; it is starting: `iii worker status {name}` follows it"),
            _ => eprintln!(
                "{done} {name} in {elapsed}; its process runs, but has not connected to the engine: see `iii worker logs {name}`"
            ),
        }
        println!("{name}");
    }
    connection.close().await;
    Ok(0)
}

pub(crate) async fn restart(arguments: Start) -> Outcome {
    let connection = Connection::open(&arguments.to.address).await?;
    connection.ask("worker::stop", &json!({ "name": arguments.name, "yes": true }), SHORT).await?;
    connection.close().await;
    start(arguments).await
}

pub(crate) async fn start(arguments: Start) -> Outcome {
    let connection = Connection::open(&arguments.to.address).await?;
    let request = json!({
        "name": arguments.name, "wait": !arguments.no_wait,
        "ready_timeout_ms": arguments.ready_timeout.map(|limit| limit.as_millis()),
    });
    let name = line(&arguments.name);
    let mut steps = Steps::of(&name, arguments.to.json);
    let answer = with_progress(&connection, "worker::start", request, &mut steps).await?;
    let elapsed = seconds(steps.elapsed());
    drop(steps);
    connection.close().await;
    if arguments.to.json {
        print_json(&answer);
    } else if answer["awaited_ready"] == true {
        eprintln!("Started {name} in {elapsed}");
    } else {
        eprintln!("{name} is starting: `iii worker status {name}` follows it");
    }
    Ok(0)
}

/// Calls, and shows what arrives on a progress channel until the answer comes.
async fn with_progress(
    connection: &Connection,
    function: &str,
    mut request: Value,
    steps: &mut Steps,
) -> Result<Value, Failure> {
    let client = connection.client();
    let channel = client.create_channel(64).await?;
    let progress = client.open_reader(&channel.reader).await?;
    request["progress"] = serde_json::to_value(&channel.writer).unwrap_or(Value::Null);
    let call = connection.ask(function, &request, LONG);
    tokio::pin!(call);
    let mut progress = Some(progress);
    loop {
        tokio::select! {
            answer = &mut call => return answer,
            step = next(&mut progress) => match step {
                Some(step) => steps.show(&step),
                None => progress = None,
            },
        }
    }
}

/// The next step; never one after the channel has ended.
async fn next(progress: &mut Option<engine_client::ChannelReader>) -> Option<Progress> {
    let Some(reader) = progress else { return std::future::pending().await };
    loop {
        match reader.next().await {
            Some(Ok(Item::Text(text))) => {
                if let Ok(step) = serde_json::from_str::<Progress>(&text) {
                    return Some(step);
                }
            }
            Some(Ok(Item::Binary(_))) => {}
            Some(Err(_)) | None => return None,
        }
    }
}

/// A folder, an image or a name: by how it is written, as the original does.
fn classify(text: &str) -> Result<Source, Failure> {
    if text.is_empty() {
        return Err(Failure::usage("an empty source: name a folder, an image or a worker"));
    }
    if text.starts_with(['.', '/', '~']) {
        // Only this process knows the directory it was called in.
        let path = match text.strip_prefix('~') {
            Some(rest) => Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(rest.trim_start_matches('/')),
            None => std::path::absolute(text).map_err(|error| Failure::new(format!("{text}: {error}")))?,
        };
        return Ok(Source::Local { path });
    }
    if text.contains('/') || (text.contains(':') && !text.contains('@')) {
        return Ok(Source::Oci { reference: text.to_owned() });
    }
    let (name, version) = match text.split_once('@') {
        Some((name, version)) => (name, Some(version.to_owned())),
        None => (text, None),
    };
    Ok(Source::Registry { name: name.to_owned(), version })
}

/// Whether nothing more will happen by itself.
pub(crate) fn is_settled(phase: Phase) -> bool {
    matches!(phase, Phase::Ready | Phase::Failed | Phase::Stopped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_apart_by_how_they_are_written() {
        let kind = |text: &str| match classify(text).expect("a source") {
            Source::Local { .. } => "local",
            Source::Oci { .. } => "oci",
            Source::Registry { .. } => "registry",
        };
        for (text, expected) in [
            ("./x", "local"),
            ("/x", "local"),
            ("../x", "local"),
            ("~/x", "local"),
            (".", "local"),
            ("ghcr.io/a/b:1", "oci"),
            ("a:1", "oci"),
            ("a/b", "oci"),
            ("pdf", "registry"),
            ("pdf@1.2.0", "registry"),
        ] {
            assert_eq!(kind(text), expected, "{text}");
        }
        assert!(classify("").is_err());
    }
}
