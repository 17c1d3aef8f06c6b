//! Whether KVM on this machine can run the guests of gvmm.

use kvm_bindings::KVM_API_VERSION;
use kvm_ioctls::{Cap, Kvm};

use super::{gic, vm};
use crate::hypervisor::Error;

/// What gvmm cannot do without.
const NEEDED: [(Cap, &str); 5] = [
    (Cap::ArmPsci02, "PSCI"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::OneReg, "KVM_SET_ONE_REG"),
    (Cap::ImmediateExit, "immediate_exit"),
];

/// Makes an empty VM and asks what it could have. That a guest runs is not certain even so: some machines offer KVM
/// without the means for it, which shows when one is started.
pub(super) fn check(kvm: &Kvm) -> Result<(), Error> {
    let version = kvm.get_api_version();
    if u32::try_from(version) != Ok(KVM_API_VERSION) {
        return Err(Error::Unavailable(format!(
            "KVM has API version {version} and gvmm speaks {KVM_API_VERSION}: use Linux 4.11 or later"
        )));
    }
    if let Some((_, name)) = NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        return Err(Error::Unavailable(format!("KVM of this kernel has no {name}: use Linux 4.11 or later")));
    }
    gic::create_bare(&vm::create(kvm, vm::LEAST_ADDRESS_BITS)?).map(drop)
}
