//! `iii`: a command line becomes one call, its answer becomes text.
//!
//! ```text
//! arguments ─► commands/<one file each> ─┬─► connection ─► engine
//!                      │                 ├─► release ─► install, state     (`iii update`)
//!                      │                 ├─► project                       (`iii project`)
//!                      │                 └─► programs: becomes another one (`iii`, `iii console`)
//!                      └─► answer on stdout, everything else on stderr
//! ```
//! Knows functions by name and shape. Starts no VM, and keeps nothing but a list of programs that it installed: a
//! command and a call from a worker take the same path.
//!
//! Always true:
//! - Text that came from a worker or a guest is printed without control characters, except where it is the data asked
//!   for.
//! - A terminal that was made raw is put back on every way out.

mod arguments;
mod clean;
mod commands;
mod connection;
mod failure;
mod install;
mod programs;
mod progress;
mod project;
mod release;
mod removed;
mod state;
mod stdin;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::{Arguments, Command};
use crate::failure::Failure;

/// What a command returns: its exit status, or why there is none.
type Outcome = Result<u8, Failure>;

fn main() -> ExitCode {
    // `iii … | head` ends us as it ends other programs: by a signal, not by an error about printing.
    sigpipe::reset();
    let called = std::env::args_os().next().unwrap_or_default();
    if let Some(hint) = removed::program(&called.to_string_lossy()) {
        let failure = Failure::usage("this name of the program is no longer used").hint(hint);
        failure.print(false);
        return ExitCode::from(failure.status());
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            let words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into()).collect();
            if let Some(hint) = removed::replacement(&error, &words) {
                eprintln!("\nhint: {hint}");
            }
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    if arguments.version {
        println!("{}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    let json = arguments.command.as_ref().is_some_and(Command::wants_json);
    let outcome = match arguments.command {
        None => start(&arguments.engine),
        Some(command) => on_runtime(commands::run(command)).flatten(),
    };
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            failure.print(json);
            ExitCode::from(failure.status())
        }
    }
}

fn start(arguments: &arguments::Engine) -> Outcome {
    if !arguments.no_update_check {
        on_runtime(commands::update_check::announce())?;
    }
    Err(commands::engine::become_engine(arguments))
}

fn on_runtime<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("could not start: {error}")))?;
    let outcome = runtime.block_on(work);
    // A read of standard input may still block a thread: nobody waits for it.
    runtime.shutdown_background();
    Ok(outcome)
}
