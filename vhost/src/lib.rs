//! vhost-user for gvmm, both ends.
//!
//! - [`protocol`]: messages, payloads and the socket that carries them.
//! - [`backend`]: serves the device of any plugin to any VMM.

pub mod backend;
pub mod protocol;
#[cfg(test)]
mod testing;
