//! Interfaces asked for by id and revision, such as `gvmm.virtio/1`.
//!
//! An extension carries the layout of its type; it is only opened after abi_stable has found that layout compatible
//! with what the asker was compiled with.

use abi_stable::StableAbi;
use abi_stable::abi_stability::abi_checking::check_layout_compatibility;
use abi_stable::pointer_trait::TransmuteElement;
use abi_stable::std_types::RBox;
use abi_stable::type_layout::TypeLayout;

/// Id of the MMIO device interface.
pub const MMIO: &str = "gvmm.mmio/1";
/// Id of the interface for an MMIO device's further nodes.
pub const NODES: &str = "gvmm.nodes/1";
/// Id of the virtio device interface.
pub const VIRTIO: &str = "gvmm.virtio/1";
/// Id of the PCI device interface.
pub const PCI: &str = "gvmm.pci/1";
/// Id of the host's console interface.
pub const CONSOLE: &str = "gvmm.console/1";
/// Interfaces that a plugin may say it cannot do without.
#[cfg(feature = "host")]
pub(crate) const OFFERED: &[&str] = &[MMIO, NODES, VIRTIO, PCI, CONSOLE];
/// No interface: a plugin that is asked for it panics, catches that, and answers that it has none. So a host finds out
/// whether a plugin's panics stay in the plugin.
pub const PANIC: &str = "gvmm.panic/1";

/// A value of a type that only the id tells.
#[repr(C)]
#[derive(StableAbi)]
pub struct Extension {
    value: RBox<()>,
    layout: &'static TypeLayout,
}

// SAFETY: `wrap` takes only values that are Send and Sync.
unsafe impl Send for Extension {}
// SAFETY: as above.
unsafe impl Sync for Extension {}

impl Extension {
    /// Wraps a value.
    pub fn wrap<T: StableAbi + Send + Sync + 'static>(value: T) -> Self {
        // SAFETY: the box keeps the vtable of `T` and so drops a `T`; `open` checks the layout before it looks inside.
        let value = unsafe { RBox::new(value).transmute_element::<()>() };
        Self { value, layout: T::LAYOUT }
    }

    /// The value, if its layout is that of `T`; the error is abi_stable's full report.
    pub fn open<T: StableAbi + Send + Sync + 'static>(self) -> Result<T, String> {
        check_layout_compatibility(T::LAYOUT, self.layout).map_err(|errors| errors.to_string())?;
        // SAFETY: the layouts are compatible, and `wrap` is the only maker.
        let value = unsafe { self.value.transmute_element::<T>() };
        Ok(RBox::into_inner(value))
    }
}
