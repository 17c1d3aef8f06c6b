//! PCI: a host with one bus, its functions, and the frame that turns their messages into interrupts.
//!
//! The guest reaches configuration space through ECAM and registers through one window of addresses; [`host`] finds the
//! [`function`] behind an access. A function is a virtio device, or a plugin's own ([`plugged`]). Interrupts are messages
//! (MSI-X) to a GICv2m frame ([`v2m`]), or one line a function for guests without MSI. Every message interrupt has an
//! eventfd that the device's workers signal. While the guest lets the interrupt through, the hypervisor has that eventfd
//! and raises the SPI by itself; while it is masked nobody has it, and its counter is the pending bit ([`wire`]).

mod assembly;
pub mod bars;
pub mod config;
pub mod function;
pub mod host;
pub mod msix;
pub mod plugged;
mod shown;
pub mod v2m;
pub mod wire;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod function_test;
#[cfg(test)]
mod hostile_test;
#[cfg(test)]
mod plugged_test;
