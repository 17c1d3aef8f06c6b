//! vCPUs under KVM: real guests, in the test bed.
//!
//! KVM's own answers stand in for the hypervisor's where both agree: the interrupt controller, PSCI, timers,
//! ioeventfds. Where they differ, an exit is translated.

mod interrupts;
mod vcpu;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_CAP_ARM_NISV_TO_USER, KVM_MEM_READONLY,
    kvm_enable_cap, kvm_userspace_memory_region, kvm_vcpu_init,
};
use kvm_ioctls::VmFd;

use crate::driver::functions::{Ioeventfd, Irqfd};
use crate::driver::start::Plan;
use crate::errno::Errno;
use crate::host::guest_memory::GuestMemory;
use crate::host::signals::{self, Blocked};

use super::{BackEnd, Resume, Stop};
use interrupts::Interrupts;
use vcpu::Vcpu;

/// Guest address bits asked for; hosts with fewer give what they have.
const ADDRESS_BITS: u32 = 40;

/// A VM under KVM.
pub(crate) struct Kvm {
    vcpus: Vec<Slot>,
    interrupts: Interrupts,
    vm: VmFd,
    /// Last: the guest's memory outlives everything that uses it.
    _memory: Arc<GuestMemory>,
}

struct Slot {
    vcpu: Mutex<Vcpu>,
    /// The thread inside [`BackEnd::run`], or 0.
    thread: AtomicI32,
    woken: AtomicBool,
}

impl Kvm {
    pub(crate) fn new(plan: &Plan, memory: Arc<GuestMemory>) -> Result<Kvm, kvm_ioctls::Error> {
        signals::install_kick();
        let kvm = kvm_ioctls::Kvm::new()?;
        let bits =
            u32::try_from(kvm.get_host_ipa_limit()).map_or(ADDRESS_BITS, |limit| limit.min(ADDRESS_BITS));
        let vm = kvm.create_vm_with_ipa_size(bits)?;
        // Accesses the CPU does not decode come here instead of failing the run.
        vm.enable_cap(&kvm_enable_cap { cap: KVM_CAP_ARM_NISV_TO_USER, ..kvm_enable_cap::default() })?;
        add_memory(&vm, &memory)?;
        let description = &plan.description;
        let mut vcpus = Vec::new();
        for id in 0..description.vcpus {
            let fd = vm.create_vcpu(id.into())?;
            let mut init = kvm_vcpu_init::default();
            vm.get_preferred_target(&mut init)?;
            if description.psci {
                init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
            }
            if id > 0 {
                init.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
            }
            fd.vcpu_init(&init)?;
            let mut vcpu = Vcpu::new(fd);
            if id == 0 {
                vcpu.set_boot_state(&plan.boot)?;
            }
            vcpus.push(Slot {
                vcpu: Mutex::new(vcpu),
                thread: AtomicI32::new(0),
                woken: AtomicBool::new(false),
            });
        }
        let interrupts = Interrupts::new(&vm, description)?;
        Ok(Kvm { vcpus, interrupts, vm, _memory: memory })
    }
}

fn add_memory(vm: &VmFd, memory: &GuestMemory) -> Result<(), kvm_ioctls::Error> {
    for (slot, mapping) in (0..).zip(&memory.mappings) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: if mapping.writable { 0 } else { KVM_MEM_READONLY },
            guest_phys_addr: mapping.guest,
            memory_size: mapping.size,
            userspace_addr: mapping.host,
        };
        // SAFETY: the mapping stays until the VM is gone: the back end holds it. Memory that is shared is the
        // program's, which may unmap it; its guest then faults, as KVM handles by itself.
        unsafe { vm.set_user_memory_region(region) }?;
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BackEnd for Kvm {
    fn run(&self, vcpu: u32, resume: Resume, signals: &mut Blocked) -> Stop {
        let Some(slot) = self.vcpus.get(vcpu as usize) else { return Stop::Woken };
        let mut vcpu = lock(&slot.vcpu);
        vcpu.resume(resume);
        slot.thread.store(signals::this_thread(), Ordering::SeqCst);
        // A kick between here and the run stays pending, which ends the run at once.
        let stop = if slot.woken.swap(false, Ordering::SeqCst) { Stop::Woken } else { vcpu.run(signals) };
        slot.thread.store(0, Ordering::SeqCst);
        signals::discard_kick();
        stop
    }

    fn bind_irqfd(&self, label: u32, irqfd: &Irqfd) -> Result<(), Errno> {
        self.interrupts.bind(&self.vm, label, irqfd).map_err(|error| Errno(error.errno()))
    }

    fn unbind_irqfd(&self, label: u32, _: &Irqfd) {
        self.interrupts.unbind(&self.vm, label);
    }

    fn add_ioeventfd(&self, ioeventfd: &Ioeventfd) {
        // What KVM does not take leaves the run as a write, and is answered then.
        let _ = interrupts::set_ioeventfd(&self.vm, ioeventfd, true);
    }

    fn remove_ioeventfd(&self, ioeventfd: &Ioeventfd) {
        let _ = interrupts::set_ioeventfd(&self.vm, ioeventfd, false);
    }

    fn wake(&self) {
        for slot in &self.vcpus {
            slot.woken.store(true, Ordering::SeqCst);
            let thread = slot.thread.load(Ordering::SeqCst);
            if thread != 0 {
                signals::kick(thread);
            }
        }
    }
}
