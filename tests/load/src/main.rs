//! `make load`: what the engine costs per operation, by the process's own accounting; a table on stdout, the same as JSON in a
//! file.
//!
//! ```text
//! load [--json FILE] [--engine PROGRAM] [--runs N] [CASE]...      of several runs the medians
//! ```
//! It speaks the worker protocol itself and as little of it as it can, so that two cores are left to the engine. Every
//! case starts engines of its own, on free ports and in temporary folders.

mod answers;
mod calls;
mod echo;
mod engine;
mod flow;
mod http;
mod idle;
mod lists;
mod members;
mod nats;
mod peer;
mod publish;
mod server;
mod state;
mod table;
mod void;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use table::Row;

/// In this order; `answers` only where it is asked for.
const CASES: [&str; 11] =
    ["calls", "echo", "nats", "void", "members", "lists", "idle", "state", "http", "publish", "answers"];
const ON_REQUEST: &str = "answers";

struct Arguments {
    json: Option<PathBuf>,
    engine: PathBuf,
    runs: usize,
    cases: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(wrong) => {
            eprintln!("error: {wrong}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut table = Vec::new();
    for case in CASES {
        let is_wanted = arguments.cases.iter().any(|wanted| wanted == case);
        if !is_wanted && (case == ON_REQUEST || !arguments.cases.is_empty()) {
            continue;
        }
        eprintln!("== {case}");
        let mut runs: Vec<Vec<Row>> = Vec::new();
        for _ in 0..arguments.runs {
            let mut rows = Vec::new();
            runtime.block_on(measure(case, &arguments.engine, &mut rows));
            rows.iter().for_each(|row| eprintln!("{}", row.line()));
            runs.push(rows);
        }
        for index in 0..runs.first().map_or(0, Vec::len) {
            let same: Vec<Row> = runs.iter().filter_map(|rows| rows.get(index).cloned()).collect();
            table.push(Row::median(&same));
        }
    }
    println!("{}", table::text(&table));
    if let Some(file) = arguments.json
        && let Err(error) = std::fs::write(&file, table::json(&table) + "\n")
    {
        eprintln!("error: could not write {}: {error}", file.display());
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn arguments() -> Result<Arguments, String> {
    let mut read = Arguments { json: None, engine: engine::of_this_build(), runs: 1, cases: Vec::new() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("`{word}` needs a value"));
        match word.as_str() {
            "--json" => read.json = Some(value()?.into()),
            "--engine" => read.engine = std::path::absolute(value()?).map_err(|error| error.to_string())?,
            "--runs" => {
                let given = value()?;
                read.runs = given
                    .parse()
                    .ok()
                    .filter(|runs| *runs > 0)
                    .ok_or_else(|| format!("`{given}` is no number of runs"))?;
            }
            case if CASES.contains(&case) => read.cases.push(word),
            other => return Err(format!("`{other}` is no case; there are {}", CASES.join(", "))),
        }
    }
    Ok(read)
}

async fn measure(case: &str, engine: &Path, rows: &mut Vec<Row>) {
    match case {
        "calls" => calls::measure(engine, rows).await,
        "echo" => echo::measure(engine, rows).await,
        "nats" => nats::measure(engine, rows).await,
        "void" => void::measure(engine, rows).await,
        "members" => members::measure(engine, rows).await,
        "lists" => lists::measure(engine, rows).await,
        "idle" => idle::measure(engine, rows).await,
        "state" => state::measure(engine, rows).await,
        "http" => http::measure(engine, rows).await,
        "publish" => publish::measure(engine, rows).await,
        "answers" => answers::measure(engine, rows).await,
        other => unreachable!("`{other}` is none of CASES"),
    }
}
