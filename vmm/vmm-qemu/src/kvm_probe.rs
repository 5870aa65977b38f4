//! Whether `/dev/kvm` can really run guests.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// What is known about KVM on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum KvmVerdict {
    Works,
    Absent,
    NoPermission,
    CannotRunGuests { reason: String },
}

impl KvmVerdict {
    /// The rest of the sentence "KVM is not used because …".
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::Works => "it works".to_owned(),
            Self::Absent => "there is no /dev/kvm".to_owned(),
            Self::NoPermission => "this user may not open /dev/kvm (join the group `kvm`)".to_owned(),
            Self::CannotRunGuests { reason } => format!("/dev/kvm cannot run guests here: {reason}"),
        }
    }
}

/// The verdict for this kernel and processor: cached in `folder`, else from `probe`.
pub fn cached_verdict(_folder: &Path, probe: impl FnOnce() -> KvmVerdict) -> KvmVerdict {
    probe()
}

/// Runs the probe here; may hang or crash, so call it in a process of its own.
#[must_use]
pub fn probe_in_this_process() -> KvmVerdict {
    KvmVerdict::CannotRunGuests { reason: "not probed".to_owned() }
}
