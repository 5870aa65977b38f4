//! Why a machine did not come up, in words for whoever asked for it.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use guest_client::GuestError;
use vmm::{Unrestorable, VmExit};

#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error("could not get image `{image}`")]
    Image { image: String, source: Box<oci::PullError> },
    #[error("{what}")]
    Limit { what: String },
    #[error("the guest kit lacks `{file}` in {}", kit.display())]
    Kit { file: &'static str, kit: PathBuf },
    #[error("disk {} is in use by another machine", path.display())]
    DiskInUse { path: PathBuf },
    #[error("a VM needs {needed_mib} MiB for what it writes, and {free_mib} MiB are free in {}", path.display())]
    NoSpace { path: PathBuf, free_mib: u64, needed_mib: u64 },
    #[error("could not prepare {what}")]
    Io { what: String, source: io::Error },
    #[error("could not start the VM")]
    Spawn { source: Box<vmm::SpawnError> },
    #[error("the VM is not running: {reason}{}", tail(console_tail))]
    Vm { reason: String, hint: Option<String>, console_tail: String },
    #[error("{reason}")]
    Snapshot { reason: String, hint: Option<String> },
    #[error("the VM was not restored: {reason}")]
    Unrestorable { kind: Unrestorable, reason: String, hint: Option<String> },
    #[error("the guest did not become ready")]
    Guest { source: GuestError },
}

impl BootError {
    /// The reader's next step, where we know one.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Kit { .. } => Some("run `make kit`".into()),
            Self::Vm { hint, .. } | Self::Snapshot { hint, .. } | Self::Unrestorable { hint, .. } => hint.clone(),
            Self::Image { source, .. } => source.hint().map(|hint| hint.to_string()),
            Self::Spawn { source } => source.hint().map(|hint| hint.to_string()),
            Self::DiskInUse { .. } => Some("stop the other machine first".into()),
            Self::NoSpace { .. } => Some("free some space there; `iii worker clear` may help".into()),
            Self::Limit { .. } | Self::Io { .. } | Self::Guest { .. } => None,
        }
    }

    /// The error with its causes, in one line, and the next step.
    pub(crate) fn explain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(reason) = cause {
            text.push_str(&format!(": {reason}"));
            cause = reason.source();
        }
        if let Some(hint) = self.hint() {
            text.push_str(&format!(" (hint: {hint})"));
        }
        text
    }

    /// No answer in time from the VM whose run directory is `run`.
    pub(crate) fn silent(patience: Duration, run: &Path) -> Self {
        Self::Vm {
            reason: format!("no answer within {} s", patience.as_secs()),
            hint: Some("`iii doctor` shows the driver".into()),
            console_tail: console(run),
        }
    }

    pub(crate) fn ended(exit: VmExit) -> Self {
        match exit {
            VmExit::Stopped => Self::Vm { reason: "it powered off".into(), hint: None, console_tail: String::new() },
            VmExit::Failed { reason, hint, console_tail } => Self::Vm { reason, hint, console_tail },
            VmExit::Unrestorable { kind, reason, hint } => Self::Unrestorable { kind, reason, hint },
        }
    }
}

fn tail(console: &str) -> String {
    if console.trim().is_empty() { String::new() } else { format!("; the guest's last words: {}", console.trim()) }
}

/// The end of what the guest wrote to its console.
fn console(run: &Path) -> String {
    let text = fs::read(run.join("console.log")).unwrap_or_default();
    String::from_utf8_lossy(&text[text.len().saturating_sub(4096)..]).into_owned()
}
