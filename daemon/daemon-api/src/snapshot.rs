//! Shapes of `sandbox::snapshot` and its kin, and of `snapshot::*`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::sandbox::Env;

/// `sandbox::snapshot`: memory, programs, open files and disks, as they are at one moment. The sandbox goes on.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct Snapshot {
    pub sandbox_id: String,
    /// Another way to name it; no two snapshots have the same.
    pub name: Option<String>,
}

/// Answer to `sandbox::snapshot`.
#[derive(Debug, Clone, Serialize)]
pub struct Taken {
    pub snapshot_id: String,
    pub name: Option<String>,
    pub image: String,
    /// How long the sandbox stood still.
    pub paused_ms: f64,
    /// What it takes on the disk, without what it shares.
    pub size_bytes: u64,
}

/// `sandbox::restore`: new sandboxes that go on where the snapshot was taken.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct Restore {
    /// Id or name.
    pub snapshot: String,
    /// How many; default 1.
    pub count: Option<u32>,
    /// A label, nothing more.
    pub name: Option<String>,
    pub idle_timeout_secs: Option<u64>,
    /// For commands that are run there; programs that run already keep theirs.
    pub env: Option<Env>,
}

/// `sandbox::fork`: as a snapshot that is restored `count` times and not kept.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct Fork {
    pub sandbox_id: String,
    /// How many; default 1.
    pub count: Option<u32>,
    pub name: Option<String>,
    pub idle_timeout_secs: Option<u64>,
    pub env: Option<Env>,
}

/// Answer to `sandbox::restore` and `sandbox::fork`.
#[derive(Debug, Clone, Serialize)]
pub struct Restored {
    pub sandbox_ids: Vec<String>,
    /// How long the source stood still; only of a fork.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_ms: Option<f64>,
}

/// `sandbox::pause`: its processors stand still until `sandbox::resume`. `sandbox::resume`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct Pause {
    pub sandbox_id: String,
}

/// `snapshot::delete`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct Delete {
    /// Id or name.
    pub snapshot: String,
}

/// A row of `snapshot::list`.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub snapshot_id: String,
    pub name: Option<String>,
    pub image: String,
    /// Seconds since 1970.
    pub created_at: u64,
    pub size_bytes: u64,
    pub cpus: u32,
    pub memory_mb: u32,
    pub network: bool,
    /// The sandbox it was taken of.
    pub source: String,
}
