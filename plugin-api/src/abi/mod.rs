//! What crosses the library boundary, and nothing else does.
//!
//! [`root`] and [`device`] are frozen: abi_stable refuses an older plugin as soon as a published type gains an entry, so
//! growth happens in new types only, which either side asks for by id through an [`extension`]. The device kinds
//! themselves are extensions ([`mmio`] with [`nodes`], [`virtio`], [`pci`]). Every function that a plugin exports catches
//! its own panics, since abi_stable would end the process.

pub mod device;
pub mod extension;
pub mod host;
pub mod mmio;
pub mod nodes;
pub mod pci;
pub mod root;
pub mod virtio;

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::log::Scope;

/// How a call into a plugin went, where there is no richer answer.
pub mod status {
    /// Done.
    pub const OK: u32 = 0;
    /// [`crate::mmio::AccessError::NoRegister`].
    pub const NO_REGISTER: u32 = 1;
    /// [`crate::mmio::AccessError::Width`].
    pub const WIDTH: u32 = 2;
    /// [`crate::mmio::AccessError::Direction`].
    pub const DIRECTION: u32 = 3;
    /// [`crate::mmio::AccessError::Failed`].
    pub const FAILED: u32 = 4;
    /// The plugin panicked and caught it.
    pub const PANICKED: u32 = 5;
}

/// Runs a device's code in its log scope; a panic in it becomes an error that says what it said.
pub(crate) fn contain<T>(scope: Scope, body: impl FnOnce() -> T) -> Result<T, String> {
    let _scope = scope.enter();
    catch_unwind(AssertUnwindSafe(body)).map_err(|panic| format!("panicked: {}", crate::panic_text(&*panic)))
}
