//! The command line: what all commands share, and the commands at the top.

mod project;
mod sandbox;
mod values;
mod worker;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use self::project::{GenerateDocker, Init, Project};
pub(crate) use self::sandbox::{
    Children, DeleteSnapshot, Download, Sandbox, SandboxCreate, SandboxExec, SandboxFork, SandboxList, SandboxRestore,
    SandboxRun, SandboxSnapshot, SandboxStop, Upload,
};
pub(crate) use self::worker::{Add, Clear, Exec, List, Logs, Remove, Start, Status, Stop, Validate, Worker};

/// A backend in one binary: an engine that routes calls between workers, and workers in microVMs.
///
/// Without a command, starts the engine.
#[derive(Parser)]
#[command(
    name = "iii",
    disable_version_flag = true,
    subcommand_negates_reqs = true,
    args_conflicts_with_subcommands = true
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) engine: Engine,
    /// Print the version.
    #[arg(short, long)]
    pub(crate) version: bool,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What the engine takes.
#[derive(Args)]
pub(crate) struct Engine {
    /// Configuration file [default: config.yaml].
    #[arg(short, long, value_name = "PATH", conflicts_with = "use_default_config")]
    pub(crate) config: Option<PathBuf>,
    /// Built-in configuration, no file.
    #[arg(long)]
    pub(crate) use_default_config: bool,
    /// Do not look for new versions.
    #[arg(long)]
    pub(crate) no_update_check: bool,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Call a function and print its result.
    Trigger(Trigger),
    /// Add, start, stop and look at workers in microVMs.
    #[command(subcommand, arg_required_else_help = true)]
    Worker(Worker),
    /// Make a project's files.
    #[command(subcommand, arg_required_else_help = true)]
    Project(Project),
    /// Run the console, `iii-console`, with these arguments.
    #[command(disable_help_flag = true)]
    Console(Delegated),
    /// Run `iii-cloud` with these arguments.
    #[command(disable_help_flag = true)]
    Cloud(Delegated),
    /// Replace programs with their latest versions.
    Update(Update),
    /// Check what this machine has and lacks.
    Doctor(Doctor),
    /// Print a script that completes commands in a shell.
    Completions(Completions),
}

impl Command {
    /// Whether errors are to be JSON too.
    pub(crate) fn wants_json(&self) -> bool {
        match self {
            Self::Trigger(_)
            | Self::Project(_)
            | Self::Console(_)
            | Self::Cloud(_)
            | Self::Update(_)
            | Self::Completions(_) => false,
            Self::Doctor(doctor) => doctor.json,
            Self::Worker(worker) => worker.to().json,
        }
    }
}

/// Which engine.
#[derive(Args, Clone)]
pub(crate) struct Address {
    /// Host of the engine.
    #[arg(long, default_value = "localhost", value_name = "HOST")]
    pub(crate) address: String,
    /// Worker port of the engine.
    #[arg(long, default_value_t = 49134, value_name = "PORT", env = "III_PORT")]
    pub(crate) port: u16,
}

/// Which engine, and how to answer.
#[derive(Args, Clone)]
pub(crate) struct To {
    #[command(flatten)]
    pub(crate) address: Address,
    /// The answer, where there is one, and errors as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Trigger {
    /// Function to call, such as `billing::invoice::create`.
    pub(crate) function_path: Option<String>,
    /// Fields of the payload, `key=value`; a value that is JSON is taken as such.
    pub(crate) kv: Vec<String>,
    /// Payload as JSON; `key=value` fields replace its own.
    #[arg(long, value_name = "JSON", allow_hyphen_values = true)]
    pub(crate) json: Option<String>,
    #[command(flatten)]
    pub(crate) address: Address,
    /// How long to wait, connection included.
    #[arg(long, default_value_t = 30_000, value_name = "MS")]
    pub(crate) timeout_ms: u64,
    /// Help; after a function's id, help on that function.
    #[arg(short, long)]
    pub(crate) help: bool,
}

#[derive(Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    pub(crate) address: Address,
    /// Print the findings as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What another program gets, untouched.
#[derive(Args)]
pub(crate) struct Delegated {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    pub(crate) arguments: Vec<OsString>,
}

#[derive(Args)]
pub(crate) struct Update {
    /// What to update, or install if it is absent [default: iii and every program that is installed].
    pub(crate) target: Option<String>,
    /// Print the names that may be given.
    #[arg(long, conflicts_with = "target")]
    pub(crate) list_targets: bool,
    /// Where releases are published.
    #[arg(long, value_name = "URL", env = "III_UPDATE_URL", hide_env_values = true)]
    pub(crate) url: Option<String>,
}

#[derive(Args)]
pub(crate) struct Completions {
    pub(crate) shell: Shell,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn wrong_command_lines_are_usage_errors() {
        for line in [
            "start",
            "bogus",
            "install x",
            "list",
            "info",
            "--config a.yaml --use-default-config",
            "trigger x --function-id y",
            "trigger x --payload {}",
            "worker remove",
            "worker info",
            "worker exec a",
            "worker exec a -e B -- c",
            "update console --list-targets",
            "completions tcsh",
            "project init --template x",
        ] {
            let words = std::iter::once("iii").chain(line.split(' '));
            assert!(Arguments::try_parse_from(words).is_err(), "{line}");
        }
        for line in [
            "",
            "--use-default-config",
            "-c a.yaml --no-update-check",
            "-v",
            "trigger",
            "trigger a b=c",
            "worker exec a -- b -c",
            "console --help -p 1",
            "cloud",
            "update",
            "update console",
            "project init shop --docker",
        ] {
            let words = std::iter::once("iii").chain(line.split(' ').filter(|word| !word.is_empty()));
            assert!(Arguments::try_parse_from(words).is_ok(), "{line}");
        }
    }
}
