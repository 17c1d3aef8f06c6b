//! Virtio devices as the guest sees them.
//!
//! [`function::VirtioFunction`] holds what every transport has (virtio 1.2, 2 and 3): status, features, queues,
//! configuration generation. A transport adds the register layout: [`mmio`].

pub mod function;
pub mod mmio;

pub use function::VirtioFunction;
