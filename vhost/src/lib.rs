//! vhost-user for gvmm, both ends.
//!
//! - [`protocol`]: messages, payloads and the socket that carries them.
//! - [`backend`]: serves the device of any plugin to any VMM.
//! - [`frontend`]: a device that another program serves.
//! - [`isolation`]: a plugin's device in a process of its own.
//! - [`device_types`]: virtio device types by name.

pub mod backend;
pub mod device_types;
pub mod frontend;
pub mod isolation;
pub mod protocol;
#[cfg(test)]
mod testing;
