//! vhost-user for gvmm, both ends.
//!
//! - [`protocol`]: messages, payloads and the socket that carries them.
//! - [`backend`]: serves the device of any plugin to any VMM.
//! - [`device_types`]: virtio device types by name.

pub mod backend;
pub mod device_types;
pub mod protocol;
#[cfg(test)]
mod testing;
