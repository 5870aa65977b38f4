//! `iii worker status`: how a worker is, watched until it is settled.

use std::time::Duration;

use daemon_api::worker::{Phase, Progress, Status};
use serde_json::json;

use crate::Outcome;
use crate::arguments;
use crate::clean::line;
use crate::commands::worker_add::is_settled;
use crate::commands::{SHORT, print_json};
use crate::connection::Connection;
use crate::failure::Failure;
use crate::progress::Steps;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// Lines of each output that are shown of a worker that failed.
const TAIL: usize = 10;

pub(crate) async fn run(arguments: arguments::Status) -> Outcome {
    let connection = Connection::open(&arguments.to.address).await?;
    let mut steps = Steps::of(&line(&arguments.name), arguments.to.json);
    let answer = loop {
        let answer = connection.ask("worker::status", &json!({ "name": arguments.name }), SHORT).await?;
        let status: Status = serde_json::from_value(answer.clone())
            .map_err(|error| Failure::new(format!("worker::status answered something else: {error}")))?;
        if arguments.no_watch || is_settled(status.status) {
            break (answer, status);
        }
        steps.show(&Progress { phase: status.status, message: status.detail, done: None, total: None });
        tokio::time::sleep(LOOK).await;
    };
    drop(steps);
    connection.close().await;
    let (answer, status) = answer;
    if arguments.to.json {
        print_json(&answer);
    } else {
        print(&status);
    }
    let bad = !status.installed || (status.status == Phase::Failed && !arguments.no_watch);
    Ok(u8::from(bad))
}

fn print(status: &Status) {
    println!("{}: {}", line(&status.name), format!("{:?}", status.status).to_lowercase());
    println!("  type:     {}", line(&status.worker_type));
    println!("  detail:   {}", line(&status.detail));
    if let Some(pid) = status.pid {
        let driver = status.driver.as_deref().unwrap_or("unknown");
        let kernel = status.kernel.as_deref().unwrap_or("unknown");
        println!("  VM:       pid {pid}, driver {}, kernel {}", line(driver), line(kernel));
    }
    if status.restarts > 0 {
        println!("  restarts: {}", status.restarts);
    }
    if let Some(logs) = &status.logs_dir {
        println!("  logs:     {}", logs.display());
    }
    if status.status == Phase::Failed {
        for (name, lines) in [("stdout", &status.stdout_tail), ("stderr", &status.stderr_tail)] {
            for text in lines.iter().skip(lines.len().saturating_sub(TAIL)) {
                println!("  {name} | {}", line(text));
            }
        }
    }
    eprintln!("\nhint: {}", line(&status.hint));
}
