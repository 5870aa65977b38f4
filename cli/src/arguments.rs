//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

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
    /// No background look for new versions; there is none in this version.
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
    /// Check what this machine has and lacks.
    Doctor(Doctor),
}

impl Command {
    /// Whether errors are to be JSON too.
    pub(crate) fn wants_json(&self) -> bool {
        match self {
            Self::Trigger(_) => false,
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
    /// Print the answer as JSON.
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

#[derive(Subcommand)]
pub(crate) enum Worker {
    /// Add workers: a folder (./x), an image (host/name:tag) or a built-in worker's name.
    Add(Add),
    /// Add again, from a clean disk.
    Reinstall(Add),
    /// Remove workers from config.yaml and stop them; their disks stay.
    Remove(Remove),
    /// Free the disks and logs of stopped workers.
    Clear(Clear),
    /// List the workers of config.yaml.
    List(List),
    /// Show how a worker is, until it is ready or has failed.
    Status(Status),
    /// Start a worker.
    Start(Start),
    /// Stop a worker.
    Stop(Stop),
    /// Stop and start a worker.
    Restart(Start),
    /// Print the last lines of a worker's output.
    Logs(Logs),
    /// Run a program in a worker's VM.
    Exec(Exec),
    /// Check an iii.worker.yaml without any effect.
    #[command(visible_alias = "verify")]
    Validate(Validate),
    /// Throw-away VMs: create, exec, run, list, stop, upload, download.
    #[command(subcommand, arg_required_else_help = true)]
    Sandbox(Sandbox),
}

impl Worker {
    fn to(&self) -> &To {
        match self {
            Self::Add(add) | Self::Reinstall(add) => &add.to,
            Self::Remove(remove) => &remove.to,
            Self::Clear(clear) => &clear.to,
            Self::List(list) => &list.to,
            Self::Status(status) => &status.to,
            Self::Start(start) | Self::Restart(start) => &start.to,
            Self::Stop(stop) => &stop.to,
            Self::Logs(logs) => &logs.to,
            Self::Exec(exec) => &exec.to,
            Self::Validate(validate) => &validate.to,
            Self::Sandbox(sandbox) => sandbox.to(),
        }
    }
}

#[derive(Args)]
pub(crate) struct Add {
    /// Folder, image or name.
    #[arg(required = true, value_name = "SRC")]
    pub(crate) sources: Vec<String>,
    /// Install again, from a clean disk.
    #[arg(short, long)]
    pub(crate) force: bool,
    /// With --force: forget what config.yaml says about it.
    #[arg(long)]
    pub(crate) reset_config: bool,
    /// Do not wait until it is ready.
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// How long it may take to connect once it is installed.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) ready_timeout: Option<Duration>,
    #[command(flatten)]
    pub(crate) to: To,
}

#[derive(Args)]
pub(crate) struct Remove {
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Do not ask.
    #[arg(short, long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) to: To,
}

#[derive(Args)]
pub(crate) struct Clear {
    /// Leave out for all stopped workers.
    pub(crate) name: Option<String>,
    /// Do not ask.
    #[arg(short, long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) to: To,
}

#[derive(Args)]
pub(crate) struct List {
    /// Leave out what does not run.
    #[arg(long)]
    pub(crate) running: bool,
    #[command(flatten)]
    pub(crate) to: To,
}

#[derive(Args)]
pub(crate) struct Status {
    pub(crate) name: String,
    /// Look once.
    #[arg(long)]
    pub(crate) no_watch: bool,
    #[command(flatten)]
    pub(crate) to: To,
}

#[derive(Args)]
pub(crate) struct Start {
    pub(crate) name: String,
    /// Do not wait until it is ready.
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// How long it may take to connect once it is installed.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) ready_timeout: Option<Duration>,
    #[command(flatten)]
    pub(crate) to: To,
}

#[derive(Args)]
pub(crate) struct Stop {
    pub(crate) name: String,
    /// Accepted; stopping does not ask.
    #[arg(short, long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) to: To,
}

#[derive(Args)]
pub(crate) struct Logs {
    pub(crate) name: String,
    /// Go on printing what is written.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Lines of each output.
    #[arg(short = 'n', long, default_value_t = 100)]
    pub(crate) tail: u32,
    #[command(flatten)]
    pub(crate) to: To,
}

#[derive(Args)]
pub(crate) struct Exec {
    pub(crate) name: String,
    /// Environment variable, `NAME=value`.
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    pub(crate) env: Vec<(String, String)>,
    /// Directory to run in.
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// Use a terminal; the default where standard input and output are terminals.
    #[arg(short, long, conflicts_with = "no_tty")]
    pub(crate) tty: bool,
    /// Use pipes.
    #[arg(long)]
    pub(crate) no_tty: bool,
    /// Kill the program after this, such as `500ms`, `30s` or `2m`; the exit status is 124.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
    #[command(flatten)]
    pub(crate) to: To,
    /// Program and arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

#[derive(Args)]
pub(crate) struct Validate {
    /// Folder, or manifest.
    #[arg(default_value = ".")]
    pub(crate) path: PathBuf,
    /// Warnings are errors.
    #[arg(long)]
    pub(crate) strict: bool,
    #[command(flatten)]
    pub(crate) to: To,
}

#[derive(Subcommand)]
pub(crate) enum Sandbox {
    /// Boot a sandbox and print its id.
    Create(SandboxCreate),
    /// Run a program in a sandbox, through pipes.
    Exec(SandboxExec),
    /// Boot a sandbox, run a program, stop the sandbox.
    Run(SandboxRun),
    /// List living sandboxes.
    List(SandboxList),
    /// Stop a sandbox.
    Stop(SandboxStop),
    /// Copy a file into a sandbox; `-` is standard input.
    Upload(Upload),
    /// Copy a file out of a sandbox; `-` is standard output.
    Download(Download),
}

impl Sandbox {
    fn to(&self) -> &To {
        match self {
            Self::Create(create) => &create.to,
            Self::Exec(exec) => &exec.to,
            Self::Run(run) => &run.create.to,
            Self::List(list) => &list.to,
            Self::Stop(stop) => &stop.to,
            Self::Upload(upload) => &upload.to,
            Self::Download(download) => &download.to,
        }
    }
}

#[derive(Args)]
pub(crate) struct SandboxCreate {
    /// Name in the catalogue, such as `python`.
    pub(crate) image: String,
    #[arg(long)]
    pub(crate) cpus: Option<u32>,
    /// MiB
    #[arg(long)]
    pub(crate) memory: Option<u32>,
    /// Stop it after this long without use, such as `30s` or `10m`.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) idle_timeout: Option<Duration>,
    /// A label.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Let it reach the network.
    #[arg(long)]
    pub(crate) network: bool,
    /// Environment variable, `NAME=value`.
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    pub(crate) env: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) to: To,
}

#[derive(Args)]
pub(crate) struct SandboxExec {
    pub(crate) id: String,
    /// Kill the program after this; the exit status is 124.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
    /// Environment variable, `NAME=value`.
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    pub(crate) env: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) to: To,
    /// Program and arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

#[derive(Args)]
pub(crate) struct SandboxRun {
    #[command(flatten)]
    pub(crate) create: SandboxCreate,
    /// Kill the program after this; the exit status is 124.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
    /// Program and arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

#[derive(Args)]
pub(crate) struct SandboxList {
    /// Accepted; all are listed.
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) to: To,
}

#[derive(Args)]
pub(crate) struct SandboxStop {
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) to: To,
}

#[derive(Args)]
pub(crate) struct Upload {
    pub(crate) id: String,
    pub(crate) local: PathBuf,
    pub(crate) remote: String,
    /// Octal.
    #[arg(long, default_value = "0644")]
    pub(crate) mode: String,
    /// Make missing directories.
    #[arg(long)]
    pub(crate) parents: bool,
    #[command(flatten)]
    pub(crate) to: To,
}

#[derive(Args)]
pub(crate) struct Download {
    pub(crate) id: String,
    pub(crate) remote: String,
    pub(crate) local: PathBuf,
    #[command(flatten)]
    pub(crate) to: To,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not NAME=value")),
    }
}

/// `500ms`, `30s`, `2m`, `1h`; a number alone is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let per_unit = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("`{text}` is no duration: write 500ms, 30s, 2m or 1h")),
    };
    let number: u64 = number.parse().map_err(|_| format!("`{text}` is no duration: write 500ms, 30s, 2m or 1h"))?;
    number.checked_mul(per_unit).map(Duration::from_millis).ok_or_else(|| format!("`{text}` is too long"))
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
    fn durations_have_units() {
        for (text, ms) in [("500ms", 500), ("30s", 30_000), ("2m", 120_000), ("7", 7000), ("1h", 3_600_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-1s", "1d", "1.5s", "99999999999999999999s", "99999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
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
        ] {
            let words = std::iter::once("iii").chain(line.split(' ').filter(|word| !word.is_empty()));
            assert!(Arguments::try_parse_from(words).is_ok(), "{line}");
        }
    }
}
