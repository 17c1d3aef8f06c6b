//! One interrupt of a function on its way to the guest.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::eventfd;
use crate::hypervisor::{Error, InterruptLine};

/// An eventfd that a device signals, and the SPI that it raises for the moment, if any.
///
/// A device never learns whether its interrupt is masked. Masking disconnects the eventfd; what is signalled then stays
/// in it, and goes to the guest once it is connected again.
#[derive(Debug)]
pub struct Wire {
    event: Arc<EventFd>,
    device: String,
    spi: Option<u32>,
}

impl Wire {
    /// A wire of a device that is connected to no SPI.
    pub fn new(event: Arc<EventFd>, device: &str) -> Self {
        Self { event, device: device.to_owned(), spi: None }
    }

    /// The SPI that it is connected to.
    pub fn spi(&self) -> Option<u32> {
        self.spi
    }

    /// Whether an interrupt waits for being let through.
    pub fn is_pending(&self) -> bool {
        self.spi.is_none() && eventfd::is_signalled(&self.event)
    }

    /// Connects it to an SPI, or to none, by the calls that do so. A wire that cannot be connected holds its signals.
    pub fn lead_to(
        &mut self,
        spi: Option<u32>,
        connect: impl FnOnce(&InterruptLine) -> Result<(), Error>,
        disconnect: impl FnOnce(&InterruptLine) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if spi == self.spi {
            return Ok(());
        }
        if let Some(old) = self.spi.take() {
            disconnect(&self.line(old))?;
        }
        let Some(new) = spi else { return Ok(()) };
        connect(&self.line(new))?;
        self.spi = Some(new);
        // KVM delivers what was signalled before, Gunyah drops it. An interrupt too many does no harm.
        if eventfd::is_signalled(&self.event) {
            eventfd::signal(&self.event);
        }
        Ok(())
    }

    /// Forgets where it leads, because the VM has ended or has connected it by itself, and what waits in it.
    pub fn restart(&mut self, spi: Option<u32>) {
        self.spi = spi;
        // Without a signal there is nothing to read.
        let _ = self.event.read();
    }

    fn line(&self, spi: u32) -> InterruptLine {
        InterruptLine { spi, eventfd: self.event.clone(), device: self.device.clone() }
    }
}
