//! The probe's guest on x86-64:
//! ```text
//! 64-bit mode ─► int3 ─► handler ─► iretq ─► lock cmpxchg16b ─► fxsave, fxrstor ─► out 0x3f, 0x2a
//! ```

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment};
use kvm_ioctls::{Kvm, VcpuExit};

use crate::guest_memory::GuestMemory;
use crate::kvm_probe::{Failure, failed};

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

pub(crate) fn run_guest(kvm: &Kvm) -> Result<(), Failure> {
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
    fn jumps_of_the_program_land_on_its_failure_branch() {
        let failed = PROGRAM.len() - 5;
        for (at, distance) in PROGRAM.windows(2).enumerate().filter(|(_, pair)| pair[0] == 0x75).map(|(i, p)| (i, p[1]))
        {
            assert_eq!(at + 2 + usize::from(distance), failed);
        }
    }
}
