//! The interrupt controller, doorbells as KVM irqfds, and ioeventfds.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd};
use std::sync::Mutex;

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST,
    kvm_create_device, kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::driver::functions::{Ioeventfd, Irqfd};
use crate::host::event::Event;
use crate::rm::{Description, Line};
use crate::trace;

use super::lock;

/// All interrupts that KVM gives a GICv3: the largest multiple of 32 below 1023. A doorbell on one of the last 28 SPIs
/// (rule 3.2) cannot ring here.
const INTERRUPTS: u32 = 992;

struct Bound {
    event: EventFd,
    /// KVM drops the line of a level interrupt when the guest has handled it, and says so here.
    _handled: Option<EventFd>,
    spi: u32,
}

/// The controller and the doorbells connected to it.
pub(crate) struct Interrupts {
    bells: BTreeMap<u32, Line>,
    bound: Mutex<BTreeMap<u32, Bound>>,
    _controller: DeviceFd,
}

fn set(controller: &DeviceFd, group: u32, attr: u32, value: Option<u64>) -> Result<(), kvm_ioctls::Error> {
    let addr = value.as_ref().map_or(0, |value| std::ptr::from_ref(value).expose_provenance() as u64);
    let attr = kvm_device_attr { group, attr: attr.into(), addr, flags: 0 };
    controller.set_device_attr(&attr)
}

fn copy(event: &Event) -> Result<EventFd, kvm_ioctls::Error> {
    let fd = event.as_fd().try_clone_to_owned().map_err(|_| kvm_ioctls::Error::last())?;
    // SAFETY: the descriptor is a copy of an eventfd that nobody else owns.
    Ok(unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) })
}

impl Interrupts {
    /// Makes the controller; every vCPU exists by now.
    pub(crate) fn new(vm: &VmFd, description: &Description) -> Result<Interrupts, kvm_ioctls::Error> {
        let mut device = kvm_create_device {
            type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
            ..kvm_create_device::default()
        };
        let controller = vm.create_device(&mut device)?;
        let gic = &description.gic;
        set(&controller, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, Some(gic.distributor))?;
        set(&controller, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST, Some(gic.redistributors))?;
        set(&controller, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, Some(INTERRUPTS.into()))?;
        set(&controller, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, None)?;
        let bells = description.doorbells.iter().filter_map(|bell| Some((bell.label, bell.line?))).collect();
        Ok(Interrupts { bells, bound: Mutex::default(), _controller: controller })
    }

    /// A level bell stays up until the guest has handled it and then drops by itself: still one interrupt for each
    /// signal (rule 5.1).
    pub(crate) fn bind(&self, vm: &VmFd, label: u32, irqfd: &Irqfd) -> Result<(), kvm_ioctls::Error> {
        let Some(line) = self.bells.get(&label) else { return Ok(()) };
        if line.kind != 0 {
            trace::kernel_log(&format!("doorbell {label} is no SPI: KVM cannot ring it"));
            return Ok(());
        }
        let event = copy(&irqfd.event)?;
        let handled = if line.level {
            let handled = copy(&Event::new().map_err(|errno| kvm_ioctls::Error::new(errno.0))?)?;
            vm.register_irqfd_with_resample(&event, &handled, line.number)?;
            Some(handled)
        } else {
            vm.register_irqfd(&event, line.number)?;
            None
        };
        lock(&self.bound).insert(label, Bound { event, _handled: handled, spi: line.number });
        Ok(())
    }

    pub(crate) fn unbind(&self, vm: &VmFd, label: u32) {
        if let Some(bound) = lock(&self.bound).remove(&label) {
            let _ = vm.unregister_irqfd(&bound.event, bound.spi);
        }
    }
}

/// Registers an ioeventfd with KVM, or takes it back.
pub(crate) fn set_ioeventfd(vm: &VmFd, ioeventfd: &Ioeventfd, add: bool) -> Result<(), kvm_ioctls::Error> {
    let event = copy(&ioeventfd.event)?;
    let at = IoEventAddress::Mmio(ioeventfd.addr);
    macro_rules! apply {
        ($datamatch:expr) => {
            if add {
                vm.register_ioevent(&event, &at, $datamatch)
            } else {
                vm.unregister_ioevent(&event, &at, $datamatch)
            }
        };
    }
    match ioeventfd.datamatch {
        None => apply!(NoDatamatch),
        Some((1, value)) => apply!(value as u8),
        Some((2, value)) => apply!(value as u16),
        Some((4, value)) => apply!(value as u32),
        Some((_, value)) => apply!(value),
    }
}
