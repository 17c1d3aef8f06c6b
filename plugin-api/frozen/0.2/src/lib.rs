//! What crosses the boundary in plugin API 0.2 for a PCI device, and no more than that: the types, without the face that
//! authors see. Those of the other kinds are in 0.1.
//!
//! A plugin that was built when this version was published has these types inside. They are never changed.
#![allow(non_local_definitions, reason = "abi_stable's derive puts impls into functions")]
#![allow(missing_docs, reason = "the living crate describes them")]

use std::sync::atomic::AtomicBool;

use abi_stable::library::{CheckTypeLayout, LibHeader, RootModule, RootModuleError};
use abi_stable::marker_type::ErasedPrefix;
use abi_stable::pointer_trait::TransmuteElement;
use abi_stable::prefix_type::{PrefixRef, PrefixRefTrait, PrefixTypeTrait};
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RArc, RBox, ROption, RResult, RStr, RString, RVec, Tuple2};
use abi_stable::type_layout::TypeLayout;
use abi_stable::{StableAbi, package_version_strings, sabi_trait};

pub use abi_stable;

pub const PCI: &str = "gvmm.pci/1";

#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = PluginRootRef)))]
#[sabi(missing_field(panic))]
pub struct PluginRoot {
    pub descriptor: extern "C" fn() -> RStr<'static>,
    pub init: extern "C" fn(max_level: u8),
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

pub type Created = RResult<RawDeviceBox, RString>;
pub type Loaded = RResult<PrefixRef<ErasedPrefix>, RootModuleError>;
pub type OptionList = RVec<Tuple2<RString, RString>>;

pub fn load(root: PluginRoot) -> Loaded {
    // SAFETY: the loader asked `header` for a PluginRootRef, and that is what this is.
    RResult::ROk(unsafe { root.leak_into_prefix().to_prefix_ref().cast::<ErasedPrefix>() })
}

/// # Safety
///
/// `load` must return what [`load`] returns.
pub const unsafe fn header(load: extern "C" fn() -> Loaded) -> LibHeader {
    // SAFETY: the caller promises that the constructor makes a PluginRootRef.
    unsafe { LibHeader::from_constructor::<PluginRootRef>(load, CheckTypeLayout::Yes) }
}

#[sabi_trait]
pub trait RawDevice: Send + Sync {
    fn reset(&self) -> ROption<RString>;
    fn metrics(&self) -> RVec<Tuple2<RString, u64>>;
    #[sabi(last_prefix_field)]
    fn extension(&self, id: RStr<'_>) -> ROption<Extension>;
}

pub type RawDeviceBox = RawDevice_TO<'static, RBox<()>>;

#[sabi_trait]
pub trait RawHost: Send + Sync {
    fn log(&self, level: u8, target: RStr<'_>, text: RStr<'_>);
    fn config_changed(&self);
    fn device_failed(&self, reason: RStr<'_>);
    #[sabi(last_prefix_field)]
    fn extension(&self, id: RStr<'_>) -> ROption<Extension>;
}

pub type RawHostArc = RawHost_TO<'static, RArc<()>>;

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
    pub fn wrap<T: StableAbi + Send + Sync + 'static>(value: T) -> Self {
        // SAFETY: the box keeps the vtable of `T` and so drops a `T`; the host checks the layout before it looks inside.
        let value = unsafe { RBox::new(value).transmute_element::<()>() };
        Self { value, layout: T::LAYOUT }
    }
}

#[sabi_trait]
pub trait RawPci: Send + Sync {
    fn layout(&self) -> RResult<RawPciLayout, RString>;
    fn start(&self, interrupts: RawInterrupts) -> RResult<(), RString>;
    fn read(&self, bar: u8, offset: u64, width: u8) -> RawRead;
    #[sabi(last_prefix_field)]
    fn write(&self, bar: u8, offset: u64, width: u8, value: u64) -> u32;
}

#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct RawRead {
    pub value: u64,
    pub status: u32,
}

#[repr(C)]
#[derive(StableAbi)]
pub struct RawPciLayout {
    pub vendor: u16,
    pub device: u16,
    pub subsystem_vendor: u16,
    pub subsystem: u16,
    pub class: u32,
    pub revision: u8,
    pub line: bool,
    pub vectors: u16,
    pub bars: RVec<RawBar>,
    pub capabilities: RVec<RawCapability>,
}

#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct RawBar {
    pub index: u8,
    pub size: u32,
}

#[repr(C)]
#[derive(StableAbi)]
pub struct RawCapability {
    pub id: u8,
    pub body: RVec<u8>,
    pub writable: RVec<u8>,
}

#[repr(C)]
#[derive(StableAbi)]
pub struct RawInterrupts {
    pub line: i32,
    pub vectors: RVec<i32>,
    pub messages: RArc<AtomicBool>,
}
