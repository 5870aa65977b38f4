//! The probe on other processors than x86-64: a machine and a processor can be made. Hosts that promise what they cannot
//! run are known on x86-64 only.

use kvm_bindings::kvm_vcpu_init;
use kvm_ioctls::Kvm;

use crate::kvm_probe::{Failure, failed};

pub(crate) fn run_guest(kvm: &Kvm) -> Result<(), Failure> {
    let step = |what: &'static str| move |error: kvm_ioctls::Error| failed(what, error.errno());
    let vm = kvm.create_vm().map_err(step("it makes no VM"))?;
    let vcpu = vm.create_vcpu(0).map_err(step("it makes no processor"))?;
    let mut kind = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut kind).map_err(step("it names no kind of processor"))?;
    vcpu.vcpu_init(&kind).map_err(step("it sets up no processor"))
}
