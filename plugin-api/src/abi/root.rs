//! The entry of a plugin library. Frozen.

use abi_stable::StableAbi;
use abi_stable::library::{CheckTypeLayout, LibHeader, RootModule, RootModuleError};
use abi_stable::marker_type::ErasedPrefix;
use abi_stable::package_version_strings;
use abi_stable::prefix_type::{PrefixRef, PrefixRefTrait, PrefixTypeTrait};
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RResult, RStr, RString, RVec, Tuple2};

use super::device::RawDeviceBox;
use super::host::RawHostArc;

/// The root module of a plugin.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = PluginRootRef)))]
#[sabi(missing_field(panic))]
pub struct PluginRoot {
    /// The descriptor as JSON, the same bytes as in the ELF section.
    pub descriptor: extern "C" fn() -> RStr<'static>,
    /// Called once, before anything else: the most detailed log level that the host wants (1 error to 5 trace).
    pub init: extern "C" fn(max_level: u8),
    /// Makes a device from option values.
    #[sabi(last_prefix_field)]
    pub create: extern "C" fn(
        options: RVec<Tuple2<RString, RString>>,
        host: RawHostArc,
    ) -> RResult<RawDeviceBox, RString>,
}

impl RootModule for PluginRootRef {
    abi_stable::declare_root_module_statics! {PluginRootRef}
    const BASE_NAME: &'static str = "gvmm_plugin";
    const NAME: &'static str = "gvmm_plugin";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}

/// Answer of [`PluginRoot::create`].
pub type Created = RResult<RawDeviceBox, RString>;
/// What the loader calls to get the root module.
pub type Loaded = RResult<PrefixRef<ErasedPrefix>, RootModuleError>;
pub use super::host::RawHostArc as Host;
pub use crate::export::{create, init};
/// The exported static of a plugin.
pub type Header = LibHeader;
/// Text with the lifetime of the library.
pub type Text = RStr<'static>;
/// Option names and values.
pub type OptionList = RVec<Tuple2<RString, RString>>;

/// Name of the exported [`Header`]: `ROOT_MODULE_LOADER_NAME` of abi_stable, which a link attribute wants as a literal.
pub const SYMBOL: &str = "_1as_0lib_1header_0root_bmodule_bloader";

/// Text for the boundary; `export_plugin!` makes its JSON from string constants.
pub fn text(bytes: &'static [u8]) -> Text {
    RStr::from(std::str::from_utf8(bytes).unwrap_or_default())
}

/// Makes the root module ready for the loader.
pub fn load(root: PluginRoot) -> Loaded {
    // SAFETY: the loader asked `header` for a PluginRootRef, and that is what this is.
    RResult::ROk(unsafe { root.leak_into_prefix().to_prefix_ref().cast::<ErasedPrefix>() })
}

/// The header that a plugin exports.
///
/// # Safety
///
/// `load` must return what [`load`] returns.
pub const unsafe fn header(load: extern "C" fn() -> Loaded) -> Header {
    // SAFETY: the caller promises that the constructor makes a PluginRootRef.
    unsafe { LibHeader::from_constructor::<PluginRootRef>(load, CheckTypeLayout::Yes) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_exported_symbol_is_the_one_that_the_loader_looks_up() {
        assert_eq!(super::SYMBOL, abi_stable::library::ROOT_MODULE_LOADER_NAME);
    }
}
