//! One VM as a child process.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::VmSpec;

/// What `iii-vm` reports, one JSON object per line of its standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum VmEvent {
    /// A template is being made for this shape; happens once per machine and takes seconds.
    BuildingTemplate,
    /// The guest's processors run. `accel` is `kvm` or `tcg`; `restored` says clone or cold boot;
    /// `driver_ms` is the time since `iii-vm` started.
    Running { driver: String, accel: String, restored: bool, driver_ms: u64 },
    /// Something a person should know, such as a template that could not be restored.
    Warning { message: String },
    /// Comes once, and last.
    Exited(VmExit),
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum VmExit {
    /// The guest powered off, or we asked it to end.
    Stopped,
    /// The VM could not be started, or broke; `console_tail` holds the guest's last words.
    Failed { reason: String, hint: Option<String>, console_tail: String },
}
