//! Whether `/dev/kvm` can really run guests.
//!
//! A device that opens proves nothing: some paravirtual hosts accept every call and then stop at the first
//! instruction they cannot emulate. So the probe runs a guest of a few instructions that such hosts lack:
//! ```text
//! 64-bit mode ─► int3 ─► handler ─► iretq ─► lock cmpxchg16b ─► fxsave, fxrstor ─► out 0x3f, 0x2a
//! ```

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment};
use kvm_ioctls::{Kvm, VcpuExit};
use serde::{Deserialize, Serialize};

use crate::machine::{cpu_model, kernel_release};
use crate::sys::GuestMemory;

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

/// Runs the probe here; may hang or crash, so call it in a process of its own.
#[must_use]
pub fn probe_in_this_process() -> KvmVerdict {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => return unopened(error.errno()),
    };
    match run_guest(&kvm) {
        Ok(()) => KvmVerdict::Works,
        Err(failure) => failure.into(),
    }
}

/// Why the probe's guest did not do its work.
enum Failure {
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
fn failed(what: &str, errno: i32) -> Failure {
    let reason = format!("{what}: {}", std::io::Error::from_raw_os_error(errno));
    match errno {
        libc::EAGAIN | libc::EBUSY | libc::EINTR | libc::EMFILE | libc::ENFILE | libc::ENOMEM => Failure::Want(reason),
        _ => Failure::Guest(reason),
    }
}

const MEMORY_BYTES: usize = 1024 * 1024;
const PAGE_TABLES: u64 = 0x1000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
const CODE: u64 = 0x6000;
const HANDLER: u64 = 0x7000;
const STACK_TOP: u64 = 0x8000;
const CODE_SELECTOR: u16 = 8;
const DATA_SELECTOR: u16 = 16;
const PORT: u16 = 0x3f;
const SUCCESS: u8 = 0x2a;

/// Data: a counter at 0x9000, the target of cmpxchg16b at 0x9010, the register image at 0x9200.
#[rustfmt::skip]
const PROGRAM: &[u8] = &[
    0xcc,                                           // int3
    0xbf, 0x10, 0x90, 0x00, 0x00,                   // mov edi, 0x9010
    0x31, 0xc0,                                     // xor eax, eax
    0x31, 0xd2,                                     // xor edx, edx
    0xbb, 0x01, 0x00, 0x00, 0x00,                   // mov ebx, 1
    0xb9, 0x02, 0x00, 0x00, 0x00,                   // mov ecx, 2
    0xf0, 0x48, 0x0f, 0xc7, 0x0f,                   // lock cmpxchg16b [rdi]
    0x75, 0x1f,                                     // jne failed
    0x0f, 0xae, 0x04, 0x25, 0x00, 0x92, 0x00, 0x00, // fxsave [0x9200]
    0x0f, 0xae, 0x0c, 0x25, 0x00, 0x92, 0x00, 0x00, // fxrstor [0x9200]
    0x83, 0x3c, 0x25, 0x00, 0x90, 0x00, 0x00, 0x01, // cmp dword [0x9000], 1
    0x75, 0x05,                                     // jne failed
    0xb0, SUCCESS,                                  // mov al, SUCCESS
    0xe6, 0x3f,                                     // out PORT, al
    0xf4,                                           // hlt
    0xb0, 0xff,                                     // failed: mov al, 0xff
    0xe6, 0x3f,                                     // out PORT, al
    0xf4,                                           // hlt
];

#[rustfmt::skip]
const BREAKPOINT_HANDLER: &[u8] = &[
    0x48, 0xff, 0x04, 0x25, 0x00, 0x90, 0x00, 0x00, // inc qword [0x9000]
    0x48, 0xcf,                                     // iretq
];

fn run_guest(kvm: &Kvm) -> Result<(), Failure> {
    let step = |what: &'static str| move |error: kvm_ioctls::Error| failed(what, error.errno());
    let vm = kvm.create_vm().map_err(step("it makes no VM"))?;
    let mut memory = GuestMemory::new(MEMORY_BYTES).map_err(|error| failed("no memory", error as i32))?;
    fill(&mut memory);
    memory.give_to(&vm).map_err(step("it takes no memory"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(step("it makes no processor"))?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(step("it names no processor features"))?;
    vcpu.set_cpuid2(&cpuid).map_err(step("it takes no processor features"))?;

    let mut special = vcpu.get_sregs().map_err(step("its registers cannot be read"))?;
    special.cr3 = PAGE_TABLES;
    special.cr4 = 1 << 5 | 1 << 9 | 1 << 10; // PAE, OSFXSR, OSXMMEXCPT
    special.cr0 = 1 << 31 | 1 << 16 | 1 << 5 | 1 << 4 | 1 << 1 | 1; // PG, WP, NE, ET, MP, PE
    special.efer = 1 << 8 | 1 << 10; // LME, LMA
    let segment = |selector: u16, kind: u8, long: u8| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: 1 - long,
        s: 1,
        l: long,
        g: 1,
        ..kvm_segment::default()
    };
    special.cs = segment(CODE_SELECTOR, 11, 1);
    let data = segment(DATA_SELECTOR, 3, 0);
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    (special.gdt.base, special.gdt.limit) = (GDT, 23);
    (special.idt.base, special.idt.limit) = (IDT, 4095);
    vcpu.set_sregs(&special).map_err(step("it refuses 64-bit mode"))?;

    let mut general = vcpu.get_regs().map_err(step("its registers cannot be read"))?;
    (general.rip, general.rsp, general.rflags) = (CODE, STACK_TOP, 2);
    vcpu.set_regs(&general).map_err(step("it takes no registers"))?;

    loop {
        let reason = match vcpu.run() {
            Ok(VcpuExit::IoOut(PORT, [SUCCESS])) => return Ok(()),
            Ok(VcpuExit::IoOut(PORT, _)) => "its processor computes wrong results".to_owned(),
            Ok(VcpuExit::InternalError) => "it met an instruction that it cannot emulate".to_owned(),
            Ok(VcpuExit::Shutdown) => "its processor reset at an ordinary instruction".to_owned(),
            Ok(other) => format!("its processor stopped with {other:?}"),
            Err(error) if error.errno() == libc::EINTR => continue,
            Err(error) => return Err(failed("its processor does not run", error.errno())),
        };
        return Err(Failure::Guest(reason));
    }
}

fn fill(memory: &mut GuestMemory) {
    // Identity mapping of the first 2 MiB: one entry on each of three levels, the last a large page.
    memory.write(PAGE_TABLES, &(0x2000u64 | 3).to_le_bytes());
    memory.write(0x2000, &(0x3000u64 | 3).to_le_bytes());
    memory.write(0x3000, &0x83u64.to_le_bytes());
    memory.write(GDT + u64::from(CODE_SELECTOR), &0x00af_9b00_0000_ffff_u64.to_le_bytes());
    memory.write(GDT + u64::from(DATA_SELECTOR), &0x00cf_9300_0000_ffff_u64.to_le_bytes());
    // Vector 3: an interrupt gate to the handler, which lies below 64 KiB.
    let gate = HANDLER | u64::from(CODE_SELECTOR) << 16 | 0x8e00 << 32;
    memory.write(IDT + 3 * 16, &gate.to_le_bytes());
    memory.write(CODE, PROGRAM);
    memory.write(HANDLER, BREAKPOINT_HANDLER);
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

    #[test]
    fn jumps_of_the_program_land_on_its_failure_branch() {
        let failed = PROGRAM.len() - 5;
        for (at, distance) in PROGRAM.windows(2).enumerate().filter(|(_, pair)| pair[0] == 0x75).map(|(i, p)| (i, p[1]))
        {
            assert_eq!(at + 2 + usize::from(distance), failed);
        }
    }
}
