//! `iii worker remove`, `clear`, `stop`, `list` and `validate`: one question, one answer.

use std::io::{IsTerminal, Write};

use daemon_api::worker::{Row, Verdict};
use serde_json::{Value, json};

use crate::Outcome;
use crate::arguments::{Clear, List, Remove, Stop, To, Validate};
use crate::clean::line;
use crate::commands::{SHORT, print_json};
use crate::connection::Connection;
use crate::failure::Failure;

async fn ask(to: &To, function: &str, request: &Value) -> Result<Value, Failure> {
    let connection = Connection::open(&to.address).await?;
    let answer = connection.ask(function, request, SHORT).await;
    connection.close().await;
    answer
}

/// Asks the person, where there is one; else consent must be on the command line.
fn consent(yes: bool, question: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(format!("{question} Nobody is here to ask: pass --yes")));
    }
    eprint!("{question} [y/N] ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    let _ = std::io::stdin().read_line(&mut answer);
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(Failure::new("nothing was done")) }
}

pub(crate) async fn remove(arguments: Remove) -> Outcome {
    let names = arguments.names.join(", ");
    consent(arguments.yes, &format!("Stop {names} and remove from config.yaml?"))?;
    let request = json!({ "names": arguments.names, "yes": true });
    let answer = ask(&arguments.to, "worker::remove", &request).await?;
    if arguments.to.json {
        print_json(&answer);
    } else {
        eprintln!("Removed {}; `iii worker clear` frees what is kept on disk", line(&names));
    }
    Ok(0)
}

pub(crate) async fn clear(arguments: Clear) -> Outcome {
    let whom = arguments.name.as_deref().unwrap_or("all stopped workers");
    consent(arguments.yes, &format!("Delete the disks and logs of {whom}?"))?;
    let request = match &arguments.name {
        Some(name) => json!({ "names": [name], "yes": true }),
        None => json!({ "all": true, "yes": true }),
    };
    let answer = ask(&arguments.to, "worker::clear", &request).await?;
    if arguments.to.json {
        print_json(&answer);
    } else {
        eprintln!("Freed {} MiB", answer["cleared_bytes"].as_u64().unwrap_or(0) >> 20);
    }
    Ok(0)
}

pub(crate) async fn stop(arguments: Stop) -> Outcome {
    let answer = ask(&arguments.to, "worker::stop", &json!({ "name": arguments.name, "yes": true })).await?;
    if arguments.to.json {
        print_json(&answer);
    } else {
        eprintln!("Stopped {}", line(&arguments.name));
    }
    Ok(0)
}

pub(crate) async fn list(arguments: List) -> Outcome {
    let answer = ask(&arguments.to, "worker::list", &json!({ "running_only": arguments.running })).await?;
    if arguments.to.json {
        print_json(&answer);
        return Ok(0);
    }
    let rows: Vec<Row> = serde_json::from_value(answer["workers"].clone())
        .map_err(|error| Failure::new(format!("worker::list answered something else: {error}")))?;
    if rows.is_empty() {
        eprintln!("No workers yet: `iii worker add ./my-worker` adds one");
        return Ok(0);
    }
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max(4);
    eprintln!("{:width$}  {:8} STATUS", "NAME", "TYPE");
    for row in rows {
        let status = format!("{:?}", row.status).to_lowercase();
        eprintln!("{:width$}  {:8} {status}", line(&row.name), line(&row.worker_type));
    }
    Ok(0)
}

pub(crate) async fn validate(arguments: Validate) -> Outcome {
    let path = std::path::absolute(&arguments.path)
        .map_err(|error| Failure::new(format!("{}: {error}", arguments.path.display())))?;
    let answer = ask(&arguments.to, "worker::validate", &json!({ "path": path })).await?;
    let verdict: Verdict = serde_json::from_value(answer.clone())
        .map_err(|error| Failure::new(format!("worker::validate answered something else: {error}")))?;
    if arguments.to.json {
        print_json(&answer);
    } else {
        for problem in &verdict.errors {
            eprintln!("error: {}", line(problem));
        }
        for warning in &verdict.warnings {
            eprintln!("warning: {}", line(warning));
        }
        if verdict.valid {
            eprintln!("{} is valid", line(verdict.name.as_deref().unwrap_or("the manifest")));
        }
    }
    Ok(u8::from(!verdict.valid || (arguments.strict && !verdict.warnings.is_empty())))
}
