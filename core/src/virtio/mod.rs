//! Virtio devices as the guest sees them.
//!
//! [`function::VirtioFunction`] holds what every transport has (virtio 1.2, 2 and 3): status, features, queues,
//! configuration generation. A transport adds the register layout: [`mmio`] or
//! [`pci`].

pub mod function;
pub mod mmio;
pub mod pci;
#[cfg(test)]
mod recorder;

pub use function::VirtioFunction;
