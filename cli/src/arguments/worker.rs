//! `iii worker …`

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::arguments::values::{duration, variable};
use crate::arguments::{Sandbox, To};

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
    pub(super) fn to(&self) -> &To {
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
    /// Names of workers, as in config.yaml.
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
    /// Name of the worker, as in config.yaml.
    pub(crate) name: String,
    /// Look once.
    #[arg(long)]
    pub(crate) no_watch: bool,
    #[command(flatten)]
    pub(crate) to: To,
}

#[derive(Args)]
pub(crate) struct Start {
    /// Name of the worker, as in config.yaml.
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
    /// Name of the worker, as in config.yaml.
    pub(crate) name: String,
    /// Accepted; stopping does not ask.
    #[arg(short, long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) to: To,
}

#[derive(Args)]
pub(crate) struct Logs {
    /// Name of the worker, as in config.yaml.
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
    /// Name of the worker, as in config.yaml.
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
