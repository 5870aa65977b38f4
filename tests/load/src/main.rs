//! `make load`: what the engine costs per operation, by the process's own accounting; a table on stdout, the same as JSON in a
//! file.
//!
//! ```text
//! load [--json FILE] [--engine PROGRAM] [CASE]...      cases: calls void members lists idle; all of them by default
//! ```
//! It speaks the worker protocol itself and as little of it as it can, so that two cores are left to the engine.

mod calls;
mod engine;
mod idle;
mod lists;
mod members;
mod peer;
mod table;
mod void;

use std::path::PathBuf;
use std::process::ExitCode;

use table::Table;

const CASES: [&str; 5] = ["calls", "void", "members", "lists", "idle"];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (mut file, mut program, mut wanted) = (None, None, Vec::new());
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--json" => file = arguments.next(),
            "--engine" => program = arguments.next().map(PathBuf::from),
            case if CASES.contains(&case) => wanted.push(argument),
            other => {
                eprintln!("error: `{other}` is no case; there are {}", CASES.join(", "));
                return ExitCode::from(2);
            }
        }
    }
    let program = program.unwrap_or_else(engine::of_this_build);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut table = Table::default();
    for case in CASES {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == case) {
            continue;
        }
        eprintln!("== {case}");
        runtime.block_on(async {
            match case {
                "calls" => calls::measure(&program, &mut table).await,
                "void" => void::measure(&program, &mut table).await,
                "members" => members::measure(&program, &mut table).await,
                "lists" => lists::measure(&program, &mut table).await,
                _ => idle::measure(&program, &mut table).await,
            }
        });
    }
    println!("{}", table.text());
    if let Some(file) = file
        && let Err(error) = std::fs::write(&file, table.json() + "\n")
    {
        eprintln!("error: could not write {file}: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
