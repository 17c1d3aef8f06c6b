//! Eventfds of a VM: irqfds, each of which claims the doorbell of its label, and ioeventfds.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Weak};

use super::explain::{Call, Refusal};
use super::probe::Generation;
use super::sys::VmFd;
use super::uapi::common::{IOEVENTFD_DATAMATCH, IoeventfdArgument, IrqfdArgument};
use crate::hypervisor::{DoorbellWrite, Error, InterruptLine, ReadableRegisters, Wiring};

/// The wiring of a VM for as long as its descriptor is open.
#[derive(Debug)]
pub(crate) struct GunyahWiring {
    fd: Weak<VmFd>,
    generation: Generation,
}

impl GunyahWiring {
    pub(crate) fn new(fd: &Arc<VmFd>, generation: Generation) -> Self {
        Self { fd: Arc::downgrade(fd), generation }
    }

    fn fd(&self) -> Result<Arc<VmFd>, Error> {
        self.fd.upgrade().ok_or_else(|| Error::Call("the VM is gone".to_owned()))
    }

    fn refused(&self, call: Call, subject: String) -> impl FnOnce(std::io::Error) -> Error {
        let generation = self.generation;
        move |error| Refusal::new(call, generation, &subject, &error).into()
    }
}

impl Wiring for GunyahWiring {
    fn connect(&self, line: &InterruptLine) -> Result<(), Error> {
        let added = self.fd()?.add_irqfd(&irqfd(line));
        added.map_err(self.refused(Call::AddIrqfd, line_subject(line)))
    }

    fn disconnect(&self, line: &InterruptLine) -> Result<(), Error> {
        let removed = self.fd()?.remove_irqfd(&irqfd(line));
        removed.map_err(|error| Error::Call(format!("irqfd of {}: {error}", line_subject(line))))
    }

    fn add_doorbell(&self, doorbell: &DoorbellWrite) -> Result<(), Error> {
        let added = self.fd()?.add_ioeventfd(&ioeventfd(doorbell));
        added.map_err(self.refused(Call::AddIoeventfd, doorbell_subject(doorbell)))
    }

    fn remove_doorbell(&self, doorbell: &DoorbellWrite) -> Result<(), Error> {
        let removed = self.fd()?.remove_ioeventfd(&ioeventfd(doorbell));
        removed.map_err(|error| Error::Call(format!("ioeventfd of {}: {error}", doorbell_subject(doorbell))))
    }

    /// Every access to the trap window is an exit.
    fn shows_registers(&self) -> bool {
        false
    }

    fn show_registers(&self, _: &ReadableRegisters) -> Result<(), Error> {
        Err(Error::Call("Gunyah shows no registers as memory".to_owned()))
    }

    fn hide_registers(&self, _: u64) -> Result<(), Error> {
        Ok(())
    }
}

/// What an irqfd of a line is made from. The lines are edge-triggered: no flags.
pub(crate) fn irqfd(line: &InterruptLine) -> IrqfdArgument {
    // Descriptors are not negative.
    let fd = line.eventfd.as_raw_fd().cast_unsigned();
    IrqfdArgument { fd, label: line.spi, flags: 0, padding: 0 }
}

/// What an ioeventfd of a doorbell is made from.
pub(crate) fn ioeventfd(doorbell: &DoorbellWrite) -> IoeventfdArgument {
    let (datamatch, length) = doorbell.datamatch.unwrap_or((0, 0));
    IoeventfdArgument {
        datamatch,
        address: doorbell.address,
        length,
        fd: doorbell.eventfd.as_raw_fd(),
        flags: if doorbell.datamatch.is_some() { IOEVENTFD_DATAMATCH } else { 0 },
        padding: 0,
    }
}

/// A line, for messages.
pub(crate) fn line_subject(line: &InterruptLine) -> String {
    format!("SPI {} of {}", line.spi, line.device)
}

/// A doorbell, for messages.
pub(crate) fn doorbell_subject(doorbell: &DoorbellWrite) -> String {
    match doorbell.datamatch {
        Some((value, _)) => format!("writes of {value} to {:#x} of {}", doorbell.address, doorbell.device),
        None => format!("writes to {:#x} of {}", doorbell.address, doorbell.device),
    }
}
