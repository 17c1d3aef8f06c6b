//! Eventfds of a VM, irqfds and ioeventfds, and registers that its guest reads as memory.

use std::sync::{Arc, Weak};

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};

use super::readable::ReadableSlots;
use super::vm::failed;
use crate::hypervisor::{DoorbellWrite, Error, InterruptLine, ReadableRegisters, Wiring};

/// What to look at when KVM refuses an eventfd.
const HINT: &str = "look at the kernel log";

/// The wiring of a VM for as long as the VM is there.
pub(super) struct KvmWiring {
    vm: Weak<VmFd>,
    readable: Arc<ReadableSlots>,
}

impl KvmWiring {
    pub(super) fn new(vm: &Arc<VmFd>, readable: Arc<ReadableSlots>) -> Self {
        Self { vm: Arc::downgrade(vm), readable }
    }

    fn vm(&self) -> Result<Arc<VmFd>, Error> {
        self.vm.upgrade().ok_or_else(|| Error::Call("the VM is gone".to_owned()))
    }
}

impl Wiring for KvmWiring {
    fn connect(&self, line: &InterruptLine) -> Result<(), Error> {
        connect(&*self.vm()?, line)
    }

    fn disconnect(&self, line: &InterruptLine) -> Result<(), Error> {
        let disconnected = self.vm()?.unregister_irqfd(&line.eventfd, line.spi);
        disconnected.map_err(|error| irqfd_failed(line, &error))
    }

    fn add_doorbell(&self, doorbell: &DoorbellWrite) -> Result<(), Error> {
        add_doorbell(&*self.vm()?, doorbell)
    }

    fn remove_doorbell(&self, doorbell: &DoorbellWrite) -> Result<(), Error> {
        set_doorbell(&*self.vm()?, doorbell, false)
    }

    fn shows_registers(&self) -> bool {
        self.readable.possible()
    }

    fn show_registers(&self, registers: &ReadableRegisters) -> Result<(), Error> {
        self.readable.add(&*self.vm()?, registers)
    }

    fn hide_registers(&self, base: u64) -> Result<(), Error> {
        self.readable.remove(&*self.vm()?, base)
    }
}

pub(super) fn connect(vm: &VmFd, line: &InterruptLine) -> Result<(), Error> {
    vm.register_irqfd(&line.eventfd, line.spi).map_err(|error| irqfd_failed(line, &error))
}

fn irqfd_failed(line: &InterruptLine, error: &kvm_ioctls::Error) -> Error {
    failed(&format!("KVM_IRQFD (device {}, SPI {})", line.device, line.spi), error, HINT)
}

pub(super) fn add_doorbell(vm: &VmFd, doorbell: &DoorbellWrite) -> Result<(), Error> {
    set_doorbell(vm, doorbell, true)
}

fn set_doorbell(vm: &VmFd, doorbell: &DoorbellWrite, add: bool) -> Result<(), Error> {
    let set = match doorbell.datamatch {
        None => set_ioeventfd(vm, doorbell, NoDatamatch, add),
        Some((value, 1)) => set_ioeventfd(vm, doorbell, value as u8, add),
        Some((value, 2)) => set_ioeventfd(vm, doorbell, value as u16, add),
        Some((value, 4)) => set_ioeventfd(vm, doorbell, value as u32, add),
        Some((value, 8)) => set_ioeventfd(vm, doorbell, value, add),
        Some((_, width)) => {
            return Err(Error::Plan(format!("device {}: a doorbell of {width} bytes", doorbell.device)));
        }
    };
    set.map_err(|error| {
        let what = format!("KVM_IOEVENTFD (device {}, {:#x})", doorbell.device, doorbell.address);
        failed(&what, &error, HINT)
    })
}

fn set_ioeventfd(
    vm: &VmFd,
    doorbell: &DoorbellWrite,
    datamatch: impl Into<u64>,
    add: bool,
) -> Result<(), kvm_ioctls::Error> {
    let address = IoEventAddress::Mmio(doorbell.address);
    if add {
        vm.register_ioevent(&doorbell.eventfd, &address, datamatch)
    } else {
        vm.unregister_ioevent(&doorbell.eventfd, &address, datamatch)
    }
}
