//! Registers that the guest reads as memory: a read-only slot. A write to it is an exit (api.rst,
//! KVM_SET_USER_MEMORY_REGION, KVM_MEM_READONLY).

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, VmFd};

use super::vm::failed;
use crate::hypervisor::{Error, ReadableRegisters};

/// A slot that has been given to a VM.
#[derive(Debug)]
pub(super) struct ReadableSlot(kvm_userspace_memory_region);

impl ReadableSlot {
    /// Gives the registers to a VM, if its KVM has such slots.
    pub(super) fn add(vm: &VmFd, slot: u32, registers: &ReadableRegisters) -> Option<Self> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: registers.base,
            memory_size: registers.image.size(),
            userspace_addr: registers.image.host_address(),
        };
        if !vm.check_extension(Cap::ReadonlyMem) {
            return None;
        }
        // SAFETY: the image is mapped until its last handle is dropped, one of which the VM holds.
        match unsafe { vm.set_user_memory_region(region) } {
            Ok(()) => Some(Self(region)),
            Err(error) => {
                tracing::debug!("reads of configuration space are exits: KVM_MEM_READONLY: {error}");
                None
            }
        }
    }

    /// Takes the registers from the VM again.
    pub(super) fn remove(mut self, vm: &VmFd) -> Result<(), Error> {
        self.0.memory_size = 0;
        // SAFETY: a slot of no bytes names no memory.
        let removed = unsafe { vm.set_user_memory_region(self.0) };
        removed.map_err(|error| {
            failed("KVM_SET_USER_MEMORY_REGION (read-only)", &error, "look at the kernel log")
        })
    }
}
