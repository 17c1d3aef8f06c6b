//! What a gvmm device plugin is made of.
//!
//! A plugin is a shared library with one device model. It is written against this crate alone, in safe Rust: a struct
//! that implements [`mmio::MmioDevice`], [`virtio::VirtioDevice`] or [`pci::PciDevice`], its options by [`options!`],
//! and one call of [`export_plugin!`]. The same library then runs inside gvmm; that of a virtio device also in a
//! sandboxed process of its own, or as a vhost-user back end, and the device cannot tell.
//!
//! - [`descriptor`], [`options`](mod@options): what a plugin says of itself, readable without running it.
//! - [`mmio`], [`fdt`]: devices with registers and their device-tree nodes.
//! - [`virtio`], [`queue`], [`worker`], [`memory`]: virtio devices and their data path, which never leaves the plugin.
//! - [`pci`]: devices on the PCI bus that are not virtio.
//! - [`services`], [`interrupt`], [`metrics`]: what the host does for a device.
//! - [`abi`]: what crosses the library boundary; no plugin needs to look at it.
//! - [`host`] (feature `host`): loading plugins. `testing` (feature `test-kit`): testing a device without a VM.

#[doc(hidden)]
pub mod abi;
pub mod descriptor;
mod export;
pub mod fdt;
#[cfg(feature = "host")]
pub mod host;
pub mod inflight;
pub mod interrupt;
mod log;
pub mod memory;
pub mod metrics;
pub mod mmio;
pub mod options;
pub mod pci;
pub mod queue;
pub mod services;
#[cfg(feature = "test-kit")]
pub mod testing;
pub mod virtio;
mod walk;
pub mod worker;

pub use export::{Create, Device};
pub use tracing;

/// What a panic said, as far as it can be known.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else {
        panic.downcast_ref::<String>().map_or("no message", String::as_str)
    }
}

#[cfg(doctest)]
#[doc = include_str!("../../docs/plugins/README.md")]
struct PluginGuide;
