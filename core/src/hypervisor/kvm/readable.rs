//! Registers that the guest reads as memory: read-only slots. A write to one is an exit (api.rst,
//! KVM_SET_USER_MEMORY_REGION, KVM_MEM_READONLY).

use std::sync::{Mutex, PoisonError};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, VmFd};

use super::vm::failed;
use crate::hypervisor::{Error, ReadableRegisters};

/// The read-only slots of a VM, which have the numbers behind those of its memory.
#[derive(Debug)]
pub(super) struct ReadableSlots {
    first: u32,
    possible: bool,
    /// By number. Whatever the VM may still have is in here, so that it stays mapped.
    slots: Mutex<Vec<Option<ReadableRegisters>>>,
}

impl ReadableSlots {
    /// No slots so far of a VM whose numbers are free from `first` on.
    pub(super) fn new(vm: &VmFd, first: u32) -> Self {
        Self { first, possible: vm.check_extension(Cap::ReadonlyMem), slots: Mutex::new(Vec::new()) }
    }

    /// Whether this KVM has such slots.
    pub(super) fn possible(&self) -> bool {
        self.possible
    }

    /// Gives the registers to the VM.
    pub(super) fn add(&self, vm: &VmFd, registers: &ReadableRegisters) -> Result<(), Error> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let free = slots.iter().position(Option::is_none).unwrap_or(slots.len());
        self.set(vm, free, registers, registers.image.size())?;
        if free == slots.len() {
            slots.push(None);
        }
        slots[free] = Some(registers.clone());
        Ok(())
    }

    /// Takes the registers at an address from the VM again, if it has them.
    pub(super) fn remove(&self, vm: &VmFd, base: u64) -> Result<(), Error> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let there = |slot: &Option<ReadableRegisters>| slot.as_ref().is_some_and(|shown| shown.base == base);
        let Some(number) = slots.iter().position(there) else { return Ok(()) };
        if let Some(registers) = &slots[number] {
            self.set(vm, number, registers, 0)?;
        }
        slots[number] = None;
        Ok(())
    }

    /// Sets a slot; one of no bytes is gone.
    fn set(&self, vm: &VmFd, number: usize, registers: &ReadableRegisters, size: u64) -> Result<(), Error> {
        let region = kvm_userspace_memory_region {
            // A machine has some dozens of them.
            slot: self.first + number as u32,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: registers.base,
            memory_size: size,
            userspace_addr: registers.image.host_address(),
        };
        // SAFETY: the image is mapped until its last handle is dropped, one of which is in `slots` for as long as the VM
        // has the memory, and the VM goes before `slots`.
        let set = unsafe { vm.set_user_memory_region(region) };
        set.map_err(|error| {
            let call = format!("KVM_SET_USER_MEMORY_REGION (read-only, {:#x})", registers.base);
            failed(&call, &error, "look at the kernel log")
        })
    }
}
