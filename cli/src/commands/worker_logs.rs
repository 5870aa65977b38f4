//! `iii worker logs`: both outputs of a worker, once or as they grow.

use std::io::Write;
use std::time::Duration;

use daemon_api::worker::{Logs, Positions};
use serde_json::json;

use crate::Outcome;
use crate::arguments;
use crate::clean::clean;
use crate::commands::SHORT;
use crate::connection::Connection;

/// Between two looks of `--follow`.
const LOOK: Duration = Duration::from_millis(250);

/// Lines of one look, as many as the daemon gives.
const MAX_LINES: u32 = 1000;

/// What a worker wrote to its standard output goes to ours, and what it wrote to standard error to ours.
pub(crate) async fn run(arguments: arguments::Logs) -> Outcome {
    let connection = Connection::open(&arguments.to.address).await?;
    let mut tail = arguments.tail;
    let mut after: Option<Positions> = None;
    loop {
        let request = json!({ "name": arguments.name, "tail": tail, "after": after });
        let logs: Logs = connection.call("worker::logs", &request, SHORT).await?;
        if arguments.to.json {
            println!("{}", json!({ "stdout": logs.stdout, "stderr": logs.stderr }));
        } else {
            for text in &logs.stderr {
                eprintln!("{}", clean(text));
            }
            let mut stdout = std::io::stdout().lock();
            for text in &logs.stdout {
                // A reader that has left ends the command.
                if writeln!(stdout, "{}", clean(text)).is_err() {
                    return Ok(0);
                }
            }
        }
        if !arguments.follow {
            break;
        }
        after = Some(logs.positions);
        tail = MAX_LINES;
        tokio::time::sleep(LOOK).await;
    }
    connection.close().await;
    Ok(0)
}
