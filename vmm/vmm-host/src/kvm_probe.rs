//! Whether `/dev/kvm` can really run guests.
//!
//! A device that opens proves nothing: some paravirtual hosts accept every call and then stop at the first
//! instruction they cannot emulate. So the probe runs a guest of a few instructions that such hosts lack: `kvm_guest.rs`.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::machine::{cpu_model, kernel_release};

const DEVICE: &str = "/dev/kvm";

/// What is known about KVM on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum KvmVerdict {
    Works,
    Absent,
    NoPermission,
    /// The probe's guest ran, and failed.
    CannotRunGuests {
        reason: String,
    },
    /// The probe could not be started, or its machine could not be made, for want of something that may come back.
    NotRun {
        reason: String,
    },
    /// The probe was started and said nothing: its guest spins, or this machine is busy.
    NoAnswer {
        reason: String,
    },
}

/// How long a probe that gave no answer is not asked again: it costs seconds where guests spin.
const SILENCE: Duration = Duration::from_secs(10 * 60);

impl KvmVerdict {
    /// The rest of the sentence "KVM is not used because …".
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::Works => "it works".to_owned(),
            Self::Absent => "there is no /dev/kvm".to_owned(),
            Self::NoPermission => "this user may not open /dev/kvm (join the group `kvm`)".to_owned(),
            Self::CannotRunGuests { reason } => format!("/dev/kvm cannot run guests here: {reason}"),
            Self::NotRun { reason } => format!("the probe of /dev/kvm did not run: {reason}"),
            Self::NoAnswer { reason } => format!("the probe of /dev/kvm gave no answer: {reason}"),
        }
    }

    /// Whether it still holds when it is this old. Only what a guest has shown holds for ever.
    fn holds_at(&self, age: Duration) -> bool {
        match self {
            Self::Works | Self::CannotRunGuests { .. } => true,
            Self::NoAnswer { .. } => age < SILENCE,
            Self::Absent | Self::NoPermission | Self::NotRun { .. } => false,
        }
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Cached {
    kernel: String,
    cpu_model: String,
    probed_at: SystemTime,
    verdict: KvmVerdict,
}

/// The verdict for this kernel and processor: cached in `folder`, else from `probe`.
/// What costs nothing to see, an absent or forbidden device, is looked at each time, and a probe that did not run is
/// run again.
pub fn cached_verdict(folder: &Path, probe: impl FnOnce() -> KvmVerdict) -> KvmVerdict {
    match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(_) => remembered(folder, kernel_release(), cpu_model(), SystemTime::now(), probe),
        Err(error) => unopened(error.raw_os_error().unwrap_or(0)),
    }
}

fn remembered(
    folder: &Path,
    kernel: String,
    cpu_model: String,
    now: SystemTime,
    probe: impl FnOnce() -> KvmVerdict,
) -> KvmVerdict {
    let path = folder.join("kvm-probe.json");
    let known: Option<Cached> = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
    if let Some(known) = known
        && (&known.kernel, &known.cpu_model) == (&kernel, &cpu_model)
        // A clock that was set back makes any age.
        && known.verdict.holds_at(now.duration_since(known.probed_at).unwrap_or(SILENCE))
    {
        return known.verdict;
    }
    let cached = Cached { kernel, cpu_model, probed_at: now, verdict: probe() };
    // Not being able to remember costs another probe next time, nothing else.
    if cached.verdict.holds_at(Duration::ZERO)
        && let Ok(text) = serde_json::to_vec_pretty(&cached)
        && let Ok(mut file) = tempfile::NamedTempFile::new_in(folder)
        && file.write_all(&text).is_ok()
    {
        let _ = file.persist(&path);
    }
    cached.verdict
}

fn unopened(errno: i32) -> KvmVerdict {
    match errno {
        libc::EACCES | libc::EPERM => KvmVerdict::NoPermission,
        libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmVerdict::Absent,
        errno => failed("it cannot be opened", errno).into(),
    }
}

/// Runs the probe here; may hang or crash, so call it in a process of its own. Elsewhere than on Linux there is no KVM.
#[must_use]
pub fn probe_in_this_process() -> KvmVerdict {
    #[cfg(target_os = "linux")]
    return match kvm_ioctls::Kvm::new() {
        Ok(kvm) => crate::kvm_guest::run_guest(&kvm).map_or_else(Into::into, |()| KvmVerdict::Works),
        Err(error) => unopened(error.errno()),
    };
    #[cfg(not(target_os = "linux"))]
    KvmVerdict::Absent
}

/// Why the probe's guest did not do its work.
pub(crate) enum Failure {
    /// For as long as the host is what it is.
    Guest(String),
    /// For now.
    Want(String),
}

impl From<Failure> for KvmVerdict {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Guest(reason) => Self::CannotRunGuests { reason },
            Failure::Want(reason) => Self::NotRun { reason },
        }
    }
}

/// What a refused call says about the device: nothing, where memory or descriptors ran out or another has the processor.
pub(crate) fn failed(what: &str, errno: i32) -> Failure {
    let reason = format!("{what}: {}", std::io::Error::from_raw_os_error(errno));
    match errno {
        libc::EAGAIN | libc::EBUSY | libc::EINTR | libc::EMFILE | libc::ENFILE | libc::ENOMEM => Failure::Want(reason),
        _ => Failure::Guest(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_asked_for_once_per_kernel_and_processor() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let ask = |kernel: &str, answer| remembered(folder.path(), kernel.to_owned(), "cpu".to_owned(), now, || answer);
        let broken = KvmVerdict::CannotRunGuests { reason: "test".to_owned() };
        assert_eq!(ask("6.1", broken.clone()), broken);
        assert_eq!(ask("6.1", KvmVerdict::Works), broken);
        assert_eq!(ask("6.2", KvmVerdict::Works), KvmVerdict::Works);
    }

    #[test]
    fn a_probe_that_did_not_run_is_run_again_and_a_silent_one_later() {
        let folder = tempfile::tempdir().unwrap();
        let start = SystemTime::now();
        let ask = |seconds, answer| {
            let now = start + Duration::from_secs(seconds);
            remembered(folder.path(), "6.1".to_owned(), "cpu".to_owned(), now, || answer)
        };
        let not_run = KvmVerdict::NotRun { reason: "test".to_owned() };
        let silent = KvmVerdict::NoAnswer { reason: "test".to_owned() };
        assert_eq!(ask(0, not_run.clone()), not_run);
        assert_eq!(ask(0, silent.clone()), silent);
        assert_eq!(ask(599, KvmVerdict::Works), silent);
        assert_eq!(ask(600, KvmVerdict::Works), KvmVerdict::Works);
        assert_eq!(ask(6000, not_run), KvmVerdict::Works);
    }

    #[test]
    fn reasons_for_not_opening_are_told_apart() {
        assert_eq!(unopened(libc::ENOENT), KvmVerdict::Absent);
        assert_eq!(unopened(libc::EACCES), KvmVerdict::NoPermission);
        assert!(matches!(unopened(libc::EBUSY), KvmVerdict::NotRun { .. }));
        assert!(matches!(unopened(libc::EIO), KvmVerdict::CannotRunGuests { .. }));
    }
}
