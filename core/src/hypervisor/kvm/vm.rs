//! Building a VM.

use std::sync::Arc;

use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_CAP_ARM_NISV_TO_USER, kvm_enable_cap, kvm_regs,
    kvm_userspace_memory_region, kvm_vcpu_init, user_pt_regs,
};
use kvm_ioctls::{DeviceFd, Kvm, VcpuFd, VmFd};

use super::gic;
use super::readable::ReadableSlots;
use super::vcpu::KvmVcpu;
use super::wiring::{self, KvmWiring};
use crate::hypervisor::{Boot, Error, StartedVm, Vcpu, Vm, VmPlan};
use crate::memory::{GuestRam, RegionKind};

/// Guest physical address bits when KVM is not asked for another number.
const DEFAULT_ADDRESS_BITS: u32 = 40;
/// Fewest guest physical address bits that KVM takes.
pub(super) const LEAST_ADDRESS_BITS: u32 = 32;

/// A VM under KVM. The fields go in the order of their declaration; irqfds and ioeventfds go with the VM.
struct KvmVm {
    _gic: DeviceFd,
    _vm: Arc<VmFd>,
    _readable: Arc<ReadableSlots>,
}

impl Vm for KvmVm {
    fn teardown(self: Box<Self>) -> Result<(), Error> {
        Ok(())
    }
}

/// The text of a failed call.
pub(super) fn failed(call: &str, error: &kvm_ioctls::Error, hint: &str) -> Error {
    Error::Call(format!("{call}: {error}: {hint}"))
}

pub(super) fn start(kvm: &Kvm, plan: &VmPlan<'_>, ram: &GuestRam) -> Result<StartedVm, Error> {
    if plan.memory.iter().any(|range| range.kind == RegionKind::Lent) {
        return Err(Error::Plan(
            "protected VMs need Gunyah: KVM has no memory that the host cannot reach; leave out --protected"
                .to_owned(),
        ));
    }
    check_vcpus(kvm, plan.vcpus)?;
    let vm = create(kvm, address_bits(kvm, plan)?)?;
    report_undecoded_accesses(&vm);
    give_memory(&vm, ram)?;
    // A machine has a few regions, which have the first slots.
    let readable = Arc::new(ReadableSlots::new(&vm, ram.regions().len() as u32));
    let vcpus = create_vcpus(&vm, plan)?;
    let gic = gic::create(&vm, plan)?;
    for line in plan.lines {
        wiring::connect(&vm, line)?;
    }
    for doorbell in plan.doorbells {
        wiring::add_doorbell(&vm, doorbell)?;
    }
    let run_size = vm.run_size();
    let boxed = |fd: VcpuFd| KvmVcpu::new(fd, run_size).map(|vcpu| Box::new(vcpu) as Box<dyn Vcpu>);
    let vcpus = vcpus.into_iter().map(boxed).collect::<Result<_, _>>()?;
    let vm = Arc::new(vm);
    let wiring = Arc::new(KvmWiring::new(&vm, readable.clone()));
    let vm = KvmVm { _gic: gic, _vm: vm, _readable: readable };
    Ok(StartedVm { vm: Box::new(vm), vcpus, wiring })
}

fn check_vcpus(kvm: &Kvm, vcpus: u32) -> Result<(), Error> {
    let most = kvm.get_max_vcpus();
    if vcpus as usize > most {
        return Err(Error::Plan(format!(
            "--cpus {vcpus}: KVM on this machine runs at most {most} vCPUs in a VM"
        )));
    }
    Ok(())
}

/// The guest physical address bits that the guest's memory needs.
fn address_bits(kvm: &Kvm, plan: &VmPlan<'_>) -> Result<u32, Error> {
    let end = plan.memory.iter().map(|range| range.base + range.size).max().unwrap_or(1);
    let needed = (u64::BITS - (end - 1).leading_zeros()).max(LEAST_ADDRESS_BITS);
    let most = most_address_bits(kvm).unwrap_or(DEFAULT_ADDRESS_BITS);
    if needed > most {
        return Err(Error::Plan(format!(
            "guest memory ends at {end:#x}, beyond the {most} address bits that this machine gives a guest: use less \
             --memory"
        )));
    }
    Ok(needed)
}

/// Most guest physical address bits, where their number can be chosen.
fn most_address_bits(kvm: &Kvm) -> Option<u32> {
    u32::try_from(kvm.get_host_ipa_limit()).ok().filter(|bits| *bits > 0)
}

/// Makes an empty VM with so many address bits, which some machines want to be fewer than the default: the fewer there
/// are, the fewer levels has the stage-2 table.
pub(super) fn create(kvm: &Kvm, address_bits: u32) -> Result<VmFd, Error> {
    let created = match most_address_bits(kvm) {
        Some(_) => kvm.create_vm_with_ipa_size(address_bits),
        None => kvm.create_vm(),
    };
    created.map_err(|e| failed("KVM_CREATE_VM", &e, "look at the kernel log"))
}

/// Asks for an exit where the guest touches an address without memory by an instruction that KVM cannot decode: it
/// tells the address, which the bare ENOSYS of a kernel without this does not.
fn report_undecoded_accesses(vm: &VmFd) {
    let cap = kvm_enable_cap { cap: KVM_CAP_ARM_NISV_TO_USER, ..Default::default() };
    if let Err(error) = vm.enable_cap(&cap) {
        tracing::debug!("KVM_CAP_ARM_NISV_TO_USER: {error}");
    }
}

fn give_memory(vm: &VmFd, ram: &GuestRam) -> Result<(), Error> {
    for (slot, region) in (0..).zip(ram.regions()) {
        let memory = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.guest_base,
            memory_size: region.size,
            userspace_addr: region.host_address,
        };
        // SAFETY: the region is mapped until `GuestRam` is dropped, which comes after `Vm::teardown`.
        unsafe { vm.set_user_memory_region(memory) }.map_err(|e| {
            let what = format!("KVM_SET_USER_MEMORY_REGION ({} MiB)", region.size >> 20);
            failed(&what, &e, "use less --memory")
        })?;
    }
    Ok(())
}

fn create_vcpus(vm: &VmFd, plan: &VmPlan<'_>) -> Result<Vec<VcpuFd>, Error> {
    let mut target = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut target)
        .map_err(|e| failed("KVM_ARM_PREFERRED_TARGET", &e, "KVM does not know this processor"))?;
    (0..plan.vcpus).map(|index| create_vcpu(vm, index, target, plan.boot)).collect()
}

fn create_vcpu(vm: &VmFd, index: u32, mut init: kvm_vcpu_init, boot: Boot) -> Result<VcpuFd, Error> {
    let failed =
        |call: &str, error| failed(&format!("{call} (vCPU {index})"), &error, "look at the kernel log");
    let vcpu = vm.create_vcpu(index.into()).map_err(|e| failed("KVM_CREATE_VCPU", e))?;
    init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
    if index > 0 {
        init.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
    }
    vcpu.vcpu_init(&init).map_err(|e| failed("KVM_ARM_VCPU_INIT", e))?;
    if index == 0 {
        let x0 = std::mem::offset_of!(kvm_regs, regs) + std::mem::offset_of!(user_pt_regs, regs);
        let pc = std::mem::offset_of!(kvm_regs, regs) + std::mem::offset_of!(user_pt_regs, pc);
        for (offset, value) in [(x0, boot.dtb_address), (pc, boot.entry)] {
            vcpu.set_one_reg(core_register(offset), &value.to_le_bytes())
                .map_err(|e| failed("KVM_SET_ONE_REG", e))?;
        }
    }
    Ok(vcpu)
}

/// Id of a 64-bit core register at an offset of `kvm_regs` (api.rst, "arm64 core registers").
fn core_register(offset: usize) -> u64 {
    let id = kvm_bindings::KVM_REG_ARM64 | kvm_bindings::KVM_REG_SIZE_U64;
    id | u64::from(kvm_bindings::KVM_REG_ARM_CORE) | (offset / size_of::<u32>()) as u64
}
