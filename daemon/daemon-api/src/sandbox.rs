//! Shapes of `sandbox::*`.

use std::collections::BTreeMap;

use engine_protocol::ChannelRef;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Environment variables, in either of two shapes.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Env {
    /// `["NAME=value"]`
    List(Vec<String>),
    /// `{"NAME": "value"}`
    Map(BTreeMap<String, String>),
}

/// `sandbox::create`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct Create {
    /// Name of an image in the catalogue.
    pub image: String,
    pub cpus: Option<u32>,
    /// MiB
    pub memory_mb: Option<u32>,
    /// A label, nothing more.
    pub name: Option<String>,
    /// Whether packets may leave the sandbox. Default: no.
    pub network: Option<bool>,
    pub idle_timeout_secs: Option<u64>,
    pub env: Option<Env>,
}

#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Created {
    pub sandbox_id: String,
    pub image: String,
}

/// `sandbox::exec`: exactly one of `argv`, `cmd` with `args`, or `cmd` as a line.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct Exec {
    pub sandbox_id: String,
    pub cmd: Option<String>,
    pub args: Option<Vec<String>>,
    pub argv: Option<Vec<String>>,
    /// Base64, or the reading end of a channel.
    pub stdin: Option<Input>,
    pub env: Option<Env>,
    /// Default 300000.
    pub timeout_ms: Option<u64>,
    pub workdir: Option<String>,
    /// Answer at once, with channels for the output.
    pub stream: Option<bool>,
}

#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ExecResult {
    pub stdout: String,
    pub stderr: String,
    /// 128 + n after signal n; absent after a timeout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    pub timed_out: bool,
    pub duration_ms: u64,
    pub success: bool,
    pub stdout_truncated: bool,
    pub stderr_truncated: bool,
    /// Only of `sandbox::run` with `keep_sandbox`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
}

/// What a command reads.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Input {
    Base64(String),
    #[schemars(with = "serde_json::Value")]
    Channel(ChannelRef),
}

/// Answer to `sandbox::exec` with `stream`.
#[derive(Debug, Clone, Serialize)]
pub struct ExecStreams {
    pub stdout: ChannelRef,
    pub stderr: ChannelRef,
    /// One JSON text: `{exit_code?, timed_out, duration_ms, success}`.
    pub exit: ChannelRef,
}

/// A file beside the code of `sandbox::run`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct RunFile {
    pub path: String,
    pub content: String,
}

/// `sandbox::run`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct Run {
    pub image: String,
    pub code: String,
    /// `python`, `node`, `shell`, or an interpreter's name. Default: by the image.
    pub lang: Option<String>,
    pub files: Option<Vec<RunFile>>,
    pub env: Option<Env>,
    /// Base64.
    pub stdin: Option<String>,
    /// Default 300000.
    pub timeout_ms: Option<u64>,
    pub keep_sandbox: Option<bool>,
    pub cpus: Option<u32>,
    pub memory_mb: Option<u32>,
    pub network: Option<bool>,
    pub name: Option<String>,
    pub idle_timeout_secs: Option<u64>,
    pub workdir: Option<String>,
}

/// `sandbox::stop`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct Stop {
    pub sandbox_id: String,
    /// Answer only when nothing of it is left.
    pub wait: Option<bool>,
}

/// Every file function; each uses some of it.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct Fs {
    pub sandbox_id: String,
    /// Absolute.
    pub path: Option<String>,
    pub src: Option<String>,
    pub dst: Option<String>,
    /// Octal digits, such as `"0644"`.
    pub mode: Option<String>,
    pub parents: Option<bool>,
    pub recursive: Option<bool>,
    pub overwrite: Option<bool>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// A string, or a channel to read from.
    #[schemars(with = "Option<serde_json::Value>")]
    pub content: Option<Content>,
    pub content_b64: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Content {
    Text(String),
    Channel(ChannelRef),
}

/// One entry of `fs::ls`, and the answer of `fs::stat`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct FsEntry {
    pub name: String,
    pub is_dir: bool,
    pub size: u64,
    /// Octal digits.
    pub mode: String,
    /// Seconds since 1970.
    pub mtime: i64,
    pub is_symlink: bool,
}
