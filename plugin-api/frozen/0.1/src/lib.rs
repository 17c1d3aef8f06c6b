//! What crosses the boundary in plugin API 0.1, and no more than that: the types, without the face that authors see.
//!
//! A plugin that was built when this version was published has these types inside. They are never changed.
#![allow(non_local_definitions, reason = "abi_stable's derive puts impls into functions")]
#![allow(missing_docs, reason = "the living crate describes them")]

use abi_stable::library::{CheckTypeLayout, LibHeader, RootModule, RootModuleError};
use abi_stable::marker_type::ErasedPrefix;
use abi_stable::pointer_trait::TransmuteElement;
use abi_stable::prefix_type::{PrefixRef, PrefixRefTrait, PrefixTypeTrait};
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RArc, RBox, ROption, RResult, RSlice, RSliceMut, RStr, RString, RVec, Tuple2};
use abi_stable::type_layout::TypeLayout;
use abi_stable::{StableAbi, package_version_strings, sabi_trait};

pub use abi_stable;

pub const MMIO: &str = "gvmm.mmio/1";
pub const VIRTIO: &str = "gvmm.virtio/1";

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
pub trait RawMmio: Send + Sync {
    fn layout(&self) -> RResult<Tuple2<RVec<u64>, u32>, RString>;
    fn node(&self) -> RResult<RawNode, RString>;
    fn start(&self, lines: RVec<i32>) -> RResult<(), RString>;
    fn read(&self, window: u32, offset: u64, width: u8) -> RawRead;
    #[sabi(last_prefix_field)]
    fn write(&self, window: u32, offset: u64, width: u8, value: u64) -> u32;
}

#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct RawRead {
    pub value: u64,
    pub status: u32,
}

#[repr(C)]
#[derive(StableAbi)]
pub struct RawNode {
    pub name: RString,
    pub compatible: RVec<RString>,
    pub properties: RVec<RawProperty>,
    pub console: bool,
}

#[repr(C)]
#[derive(StableAbi)]
pub struct RawProperty {
    pub name: RString,
    pub kind: u8,
    pub numbers: RVec<u64>,
    pub strings: RVec<RString>,
    pub bytes: RVec<u8>,
}

#[sabi_trait]
pub trait RawVirtio: Send + Sync {
    fn traits(&self) -> RResult<RawTraits, RString>;
    fn read_config(&self, offset: u32, data: RSliceMut<'_, u8>) -> u32;
    fn write_config(&self, offset: u32, data: RSlice<'_, u8>) -> u32;
    fn start_queue(&self, index: u16, setup: RawQueue) -> RResult<(), RString>;
    #[sabi(last_prefix_field)]
    fn stop_queue(&self, index: u16) -> RResult<ROption<RawQueueState>, RString>;
}

#[repr(C)]
#[derive(StableAbi)]
pub struct RawTraits {
    pub device_type: u32,
    pub config_size: u32,
    pub features: u64,
    pub queue_sizes: RVec<u16>,
}

#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct RawQueueState {
    pub next_avail: u16,
    pub next_used: u16,
}

#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct RawRegion {
    pub guest_address: u64,
    pub size: u64,
    pub host_address: usize,
    pub fd: i32,
    pub fd_offset: u64,
}

#[repr(C)]
#[derive(StableAbi)]
pub struct RawQueue {
    pub size: u16,
    pub state: RawQueueState,
    pub descriptor_table: u64,
    pub available_ring: u64,
    pub used_ring: u64,
    pub features: u64,
    pub kick: i32,
    pub call: i32,
    pub memory: RVec<RawRegion>,
    pub inflight_address: usize,
    pub inflight_size: usize,
}
