//! The in-kernel GICv3 (Documentation/virt/kvm/devices/arm-vgic-v3.rst).

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST,
    kvm_create_device, kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};

use super::vm::failed;
use crate::hypervisor::{Error, VmPlan};

/// Interrupts private to a vCPU: SGIs and PPIs.
const PRIVATE: u32 = 32;
/// Fewest interrupts that KVM takes.
const LEAST: u32 = 64;
/// Interrupts come in multiples of this.
const GRANULE: u32 = 32;
/// Most interrupts that KVM takes: those of a GICv3 without extended ranges, rounded down to its granule.
const MOST: u32 = 1024 - 32;

/// Makes a GIC without a place; it ends with the VM, not with its descriptor.
pub(super) fn create_bare(vm: &VmFd) -> Result<DeviceFd, Error> {
    let mut device = kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, fd: 0, flags: 0 };
    vm.create_device(&mut device).map_err(|error| {
        Error::Unavailable(format!(
            "KVM_CREATE_DEVICE (GICv3): {error}: gvmm's guests need a GICv3, which a machine with a GICv2 alone cannot \
             give them"
        ))
    })
}

/// Number of interrupts of a VM, in KVM's granule.
fn interrupts(plan: &VmPlan<'_>) -> Result<u32, Error> {
    let Some(last) = plan.spis().max() else { return Ok(LEAST) };
    let interrupts = PRIVATE.saturating_add(last).saturating_add(1).next_multiple_of(GRANULE).max(LEAST);
    if interrupts > MOST {
        return Err(Error::Plan(format!(
            "the devices have interrupt numbers up to {last}, and KVM has {} of them: use fewer devices",
            MOST - PRIVATE
        )));
    }
    Ok(interrupts)
}

/// Makes the GIC of a VM. Every vCPU must have been made before.
pub(super) fn create(vm: &VmFd, plan: &VmPlan<'_>) -> Result<DeviceFd, Error> {
    let interrupts = interrupts(plan)?;
    let gic = create_bare(vm)?;
    set(&gic, "distributor address", GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, &plan.gic.distributor)?;
    set(&gic, "redistributor address", GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST, &plan.gic.redistributors)?;
    set(&gic, "number of interrupts", KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &interrupts)?;
    set::<u8>(&gic, "start", KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, &0)?;
    Ok(gic)
}

const GRP_ADDR: u32 = KVM_DEV_ARM_VGIC_GRP_ADDR;

fn set<T>(gic: &DeviceFd, what: &str, group: u32, attribute: u32, value: &T) -> Result<(), Error> {
    let address = std::ptr::from_ref(value).expose_provenance() as u64;
    let attribute = kvm_device_attr { group, attr: attribute.into(), addr: address, flags: 0 };
    gic.set_device_attr(&attribute)
        .map_err(|e| failed(&format!("KVM_SET_DEVICE_ATTR (GICv3 {what})"), &e, "look at the kernel log"))
}
