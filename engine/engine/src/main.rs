//! `iii-engine`: command line, logging, signals.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use engine::{Config, ConfigError, EngineError, Logging, VERSION, serve};
use mimalloc::MiMalloc;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What one thread allocates another frees, with every call: that costs less here than in glibc's.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Routes function calls between workers.
#[derive(Parser)]
#[command(name = "iii", disable_version_flag = true)]
struct Arguments {
    /// Configuration file.
    #[arg(short, long, default_value = "config.yaml", conflicts_with = "use_default_config")]
    config: PathBuf,
    /// Built-in configuration, no file.
    #[arg(long)]
    use_default_config: bool,
    /// Print the version.
    #[arg(short, long)]
    version: bool,
    /// With it, `iii` does not look for new versions before it starts the engine, which itself never does.
    #[arg(long)]
    no_update_check: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.version {
        println!("{VERSION}");
        return ExitCode::SUCCESS;
    }
    let config = if arguments.use_default_config { Ok(Config::standard()) } else { Config::load(&arguments.config) };
    let config = match config {
        Ok(config) => config,
        Err(error) => {
            let path = arguments.config.display();
            let hint = match &error {
                ConfigError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                    format!("create `{path}`, or start with `iii --use-default-config`")
                }
                ConfigError::Read { .. } => format!("check the owner and mode of `{path}`"),
                ConfigError::Variable { name, .. } => {
                    format!("set `{name}`, or write `${{{name}:default}}` in `{path}`")
                }
                ConfigError::Parse { .. } | ConfigError::Worker { .. } => format!("mend `{path}` and start again"),
            };
            return fail(&error, Some(hint));
        }
    };
    let logging = Logging::begin(&config);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, None),
    };
    let result = runtime.block_on(run(config, logging));
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, error.hint()),
    }
}

async fn run(config: Config, logging: Logging) -> Result<(), EngineError> {
    let stop = CancellationToken::new();
    let on_signal = stop.clone();
    tokio::spawn(async move {
        let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        for asked in 0.. {
            tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
            if asked > 0 {
                // A second signal ends at once; the lifelines take the children along.
                std::process::exit(130);
            }
            on_signal.cancel();
        }
    });
    serve(config, logging, stop).await
}

fn fail(error: &dyn std::error::Error, hint: Option<String>) -> ExitCode {
    eprintln!("error: {error}");
    let mut cause = error.source();
    while let Some(reason) = cause {
        eprintln!("  cause: {reason}");
        cause = reason.source();
    }
    if let Some(hint) = hint {
        eprintln!("\nhint: {hint}");
    }
    ExitCode::FAILURE
}
