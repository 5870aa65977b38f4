//! Shapes of `worker::*`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use engine_protocol::ChannelRef;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a worker comes from.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Source {
    /// A folder on the daemon's machine. Relative paths start at the project's root, `~` is the daemon's user's home.
    Local { path: PathBuf },
    /// An image whose entry point is the worker.
    Oci { reference: String },
    /// A name in the public registry of workers, or a built-in worker.
    Registry { name: String, version: Option<String> },
}

/// `worker::add`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct Add {
    pub source: Source,
    /// Stop it, throw its disk away, install again.
    #[serde(default)]
    pub force: bool,
    /// With `force`: forget what config.yaml says about it.
    #[serde(default)]
    pub reset_config: bool,
    /// Answer when it is ready, or not within `ready_timeout_ms`. Default: yes.
    pub wait: Option<bool>,
    /// How long `wait` waits once the dependencies are installed. Default 120000, at most 600000.
    pub ready_timeout_ms: Option<u64>,
    #[serde(default)]
    pub yes: bool,
    /// The writing end of a channel: receives a [`Progress`] as JSON text for each step.
    #[schemars(with = "Option<serde_json::Value>")]
    pub progress: Option<ChannelRef>,
}

/// One step of an installation, as it happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub phase: Phase,
    pub message: String,
    /// Bytes, where the step has a length.
    pub done: Option<u64>,
    pub total: Option<u64>,
}

/// What a worker's daemon is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Stopped,
    /// Image, VM, source.
    Preparing,
    /// The manifest's `setup` and `install`.
    Installing,
    /// Its process runs, or is about to run again; the engine does not know it yet.
    Starting,
    /// The engine knows it.
    Ready,
    Stopping,
    Failed,
}

/// Answer to `worker::add`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Added {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// `installed`, `already_current` or `replaced`.
    pub status: String,
    /// Whether the engine was seen to know the worker.
    pub awaited_ready: bool,
    pub config_path: PathBuf,
    /// What the manifest should not say, or should say otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// `worker::remove` and `worker::clear`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
pub struct Targets {
    #[serde(default)]
    pub names: Vec<String>,
    #[serde(default)]
    pub all: bool,
    /// Consent: nothing happens without.
    #[serde(default)]
    pub yes: bool,
}

/// `worker::start`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct Start {
    pub name: String,
    pub wait: Option<bool>,
    /// As in `worker::add`.
    pub ready_timeout_ms: Option<u64>,
    #[schemars(with = "Option<serde_json::Value>")]
    pub progress: Option<ChannelRef>,
}

/// `worker::stop`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct Stop {
    pub name: String,
    #[serde(default)]
    pub yes: bool,
}

/// `worker::list`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
pub struct List {
    #[serde(default)]
    pub running_only: bool,
}

/// One row of `worker::list`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Row {
    pub name: String,
    /// `local`, `oci` or `builtin`.
    pub worker_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    pub running: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    pub status: Phase,
}

/// `worker::status`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct StatusOf {
    pub name: String,
}

/// Answer to `worker::status`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    pub name: String,
    pub installed: bool,
    /// `local`, `oci`, `builtin` or `not-installed`.
    pub worker_type: String,
    pub running: bool,
    pub status: Phase,
    /// Of the VM's process on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How the VM runs: `kvm` or `tcg`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Of the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// How often its process was started again after it had ended by itself.
    pub restarts: u32,
    /// What it is doing, or why it failed.
    pub detail: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs_dir: Option<PathBuf>,
    pub stderr_tail: Vec<String>,
    pub stdout_tail: Vec<String>,
    pub hint: String,
}

/// `worker::logs`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct LogsOf {
    pub name: String,
    /// Lines of each output. Default 100, at most 1000.
    pub tail: Option<u32>,
    /// Leave control characters in.
    #[serde(default)]
    pub raw: bool,
    /// Return only what was written after these positions (bytes), as an earlier answer gave them.
    pub after: Option<Positions>,
}

/// How far each log had come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Positions {
    pub stdout: u64,
    pub stderr: u64,
}

/// Answer to `worker::logs`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Logs {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs_dir: Option<PathBuf>,
    pub stdout: Vec<String>,
    pub stderr: Vec<String>,
    pub positions: Positions,
}

/// `worker::validate`: exactly one of the two.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
pub struct Validate {
    /// The manifest's text.
    pub manifest: Option<String>,
    /// Of a manifest, or of the folder that has one.
    pub path: Option<PathBuf>,
}

/// Answer to `worker::validate`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    /// Whether `worker::add` takes it.
    pub valid: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub errors: Vec<String>,
    pub unknown_keys: Vec<String>,
    pub deprecated_keys: Vec<String>,
    pub warnings: Vec<String>,
}

/// `worker::schema`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
pub struct SchemaOf {
    pub function_id: Option<String>,
}

/// `worker::exec`: a program in a worker's VM, its streams through two channels.
///
/// What is sent on the channel `input` is standard input, and its end is the end of file. On `control`, messages are
/// JSON texts: `{"resize":{"rows","cols"}}`, `{"signal":n}`; they do not wait for input that the program has not read,
/// and when this channel ends the program is killed. Of `output`, binary messages start with a byte, 1 for standard
/// output and 2 for standard error; the last message is text: `{"exit":{"code","timed_out"}}` or `{"error":{...}}`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Exec {
    pub name: String,
    pub argv: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    pub workdir: Option<String>,
    /// A pseudo-terminal of this size instead of pipes.
    pub terminal: Option<TerminalSize>,
    pub timeout_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TerminalSize {
    pub rows: u16,
    pub cols: u16,
}

/// Answer to `worker::exec`: the caller's ends.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecChannels {
    pub input: ChannelRef,
    pub control: ChannelRef,
    pub output: ChannelRef,
}

/// A message on the control channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExecOrder {
    Resize(TerminalSize),
    Signal(i32),
}

/// The last message on the output channel.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExecEnd {
    Exit { code: i32, timed_out: bool },
    Error(engine_protocol::ErrorBody),
}

/// First byte of a binary message on the output channel.
pub const STDOUT: u8 = 1;
/// See [`STDOUT`].
pub const STDERR: u8 = 2;
