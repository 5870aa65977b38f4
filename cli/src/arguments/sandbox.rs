//! `iii worker sandbox …`

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::arguments::To;
use crate::arguments::values::{duration, variable};

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
    /// Save a sandbox as it is, programs and memory included, and print the snapshot's id.
    Snapshot(SandboxSnapshot),
    /// Make sandboxes that go on where a snapshot was taken, and print their ids.
    Restore(SandboxRestore),
    /// Make sandboxes that go on where another one is, and print their ids.
    Fork(SandboxFork),
    /// Make a sandbox stand still.
    Pause(SandboxStop),
    /// Let a paused sandbox go on.
    Resume(SandboxStop),
    /// List snapshots.
    Snapshots(SandboxList),
    /// Delete a snapshot; sandboxes made of it go on.
    DeleteSnapshot(DeleteSnapshot),
    /// Copy a file into a sandbox; `-` is standard input.
    Upload(Upload),
    /// Copy a file out of a sandbox; `-` is standard output.
    Download(Download),
}

impl Sandbox {
    pub(super) fn to(&self) -> &To {
        match self {
            Self::Create(create) => &create.to,
            Self::Exec(exec) => &exec.to,
            Self::Run(run) => &run.create.to,
            Self::List(list) => &list.to,
            Self::Stop(stop) => &stop.to,
            Self::Snapshot(snapshot) => &snapshot.to,
            Self::Restore(restore) => &restore.to,
            Self::Fork(fork) => &fork.to,
            Self::Pause(one) | Self::Resume(one) => &one.to,
            Self::Snapshots(list) => &list.to,
            Self::DeleteSnapshot(delete) => &delete.to,
            Self::Upload(upload) => &upload.to,
            Self::Download(download) => &download.to,
        }
    }
}

#[derive(Args)]
pub(crate) struct SandboxCreate {
    /// Name in the catalogue, such as `python`.
    pub(crate) image: String,
    /// Virtual processors.
    #[arg(long)]
    pub(crate) cpus: Option<u32>,
    /// Memory in MiB.
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
    /// Id of the sandbox, as `create` printed it.
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
    /// Id of the sandbox, as `create` printed it.
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) to: To,
}

#[derive(Args)]
pub(crate) struct SandboxSnapshot {
    /// Id of the sandbox, as `create` printed it.
    pub(crate) id: String,
    /// Another way to name the snapshot.
    #[arg(long)]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) to: To,
}

#[derive(Args)]
pub(crate) struct SandboxRestore {
    /// Id or name of the snapshot.
    pub(crate) snapshot: String,
    #[command(flatten)]
    pub(crate) children: Children,
    #[command(flatten)]
    pub(crate) to: To,
}

#[derive(Args)]
pub(crate) struct SandboxFork {
    /// Id of the sandbox, as `create` printed it.
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) children: Children,
    #[command(flatten)]
    pub(crate) to: To,
}

/// What new sandboxes are to be.
#[derive(Args)]
pub(crate) struct Children {
    /// How many.
    #[arg(long, default_value_t = 1)]
    pub(crate) count: u32,
    /// A label.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Stop each after this long without use, such as `30s` or `10m`.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) idle_timeout: Option<Duration>,
    /// Environment variable of commands that are run there, `NAME=value`.
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    pub(crate) env: Vec<(String, String)>,
}

#[derive(Args)]
pub(crate) struct DeleteSnapshot {
    /// Id or name of the snapshot.
    pub(crate) snapshot: String,
    #[command(flatten)]
    pub(crate) to: To,
}

#[derive(Args)]
pub(crate) struct Upload {
    /// Id of the sandbox, as `create` printed it.
    pub(crate) id: String,
    /// File here; `-` for a pipe.
    pub(crate) local: PathBuf,
    /// File in the sandbox, an absolute path.
    pub(crate) remote: String,
    /// Permission bits, octal.
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
    /// Id of the sandbox, as `create` printed it.
    pub(crate) id: String,
    /// File in the sandbox, an absolute path.
    pub(crate) remote: String,
    /// File here; `-` for a pipe.
    pub(crate) local: PathBuf,
    #[command(flatten)]
    pub(crate) to: To,
}
