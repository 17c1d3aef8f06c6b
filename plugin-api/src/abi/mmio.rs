//! The extension `gvmm.mmio/1`. Frozen.
#![allow(non_local_definitions, reason = "abi_stable's derive puts impls into functions")]

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;

use abi_stable::StableAbi;
use abi_stable::sabi_trait;
use abi_stable::std_types::{RArc, ROption, RResult, RString, RVec, Tuple2};

use super::{contain, status};
use crate::fdt::{FdtNode, FdtValue};
use crate::interrupt::{Event, Interrupt};
use crate::log::Scope;
use crate::mmio::{AccessError, MmioDevice, Width};

/// An MMIO device across the boundary.
#[sabi_trait]
pub trait RawMmio: Send + Sync {
    /// See [`MmioDevice::layout`]: window sizes and the number of lines.
    fn layout(&self) -> RResult<Tuple2<RVec<u64>, u32>, RString>;
    /// See [`MmioDevice::node`].
    fn node(&self) -> RResult<RawNode, RString>;
    /// See [`MmioDevice::start`]; the eventfds change hands.
    fn start(&self, lines: RVec<i32>) -> RResult<(), RString>;
    /// See [`MmioDevice::read`]; `width` is 1, 2, 4 or 8.
    fn read(&self, window: u32, offset: u64, width: u8) -> RawRead;
    /// See [`MmioDevice::write`]; a value of [`status`].
    #[sabi(last_prefix_field)]
    fn write(&self, window: u32, offset: u64, width: u8, value: u64) -> u32;
}

/// A shared [`RawMmio`].
pub type RawMmioArc = RawMmio_TO<'static, RArc<()>>;

/// Answer to a read.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct RawRead {
    /// The value, zero unless the status is [`status::OK`].
    pub value: u64,
    /// A value of [`status`].
    pub status: u32,
}

/// An [`FdtNode`].
#[repr(C)]
#[derive(StableAbi)]
pub struct RawNode {
    name: RString,
    compatible: RVec<RString>,
    properties: RVec<RawProperty>,
    console: bool,
}

/// A property: its kind says which of the lists holds the value.
#[repr(C)]
#[derive(StableAbi)]
pub struct RawProperty {
    name: RString,
    kind: u8,
    numbers: RVec<u64>,
    strings: RVec<RString>,
    bytes: RVec<u8>,
}

/// Values of [`RawProperty::kind`].
mod kind {
    pub(super) const EMPTY: u8 = 0;
    pub(super) const U32S: u8 = 1;
    pub(super) const U64S: u8 = 2;
    pub(super) const STRINGS: u8 = 3;
    pub(super) const BYTES: u8 = 4;
    pub(super) const FIXED_CLOCKS: u8 = 5;
}

impl From<FdtNode> for RawNode {
    fn from(node: FdtNode) -> Self {
        Self {
            name: node.name.into(),
            compatible: node.compatible.into_iter().map(RString::from).collect(),
            properties: node.properties.into_iter().map(RawProperty::from).collect(),
            console: node.console,
        }
    }
}

impl From<(String, FdtValue)> for RawProperty {
    fn from((name, value): (String, FdtValue)) -> Self {
        let mut raw = Self {
            name: name.into(),
            kind: kind::EMPTY,
            numbers: RVec::new(),
            strings: RVec::new(),
            bytes: RVec::new(),
        };
        let wide = |list: Vec<u32>| list.into_iter().map(u64::from).collect();
        match value {
            FdtValue::Empty => {}
            FdtValue::U32s(list) => (raw.kind, raw.numbers) = (kind::U32S, wide(list)),
            FdtValue::U64s(list) => (raw.kind, raw.numbers) = (kind::U64S, list.into()),
            FdtValue::Strings(list) => {
                (raw.kind, raw.strings) = (kind::STRINGS, list.into_iter().map(RString::from).collect());
            }
            FdtValue::Bytes(list) => (raw.kind, raw.bytes) = (kind::BYTES, list.into()),
            FdtValue::FixedClocks(list) => (raw.kind, raw.numbers) = (kind::FIXED_CLOCKS, wide(list)),
        }
        raw
    }
}

impl TryFrom<RawNode> for FdtNode {
    type Error = String;

    fn try_from(raw: RawNode) -> Result<Self, String> {
        Ok(Self {
            name: raw.name.into_string(),
            compatible: raw.compatible.into_iter().map(RString::into_string).collect(),
            properties: raw.properties.into_iter().map(property).collect::<Result<_, _>>()?,
            console: raw.console,
        })
    }
}

pub(super) fn property(raw: RawProperty) -> Result<(String, FdtValue), String> {
    let name = raw.name.into_string();
    let narrow = |list: RVec<u64>| -> Result<Vec<u32>, String> {
        let cell =
            |n| u32::try_from(n).map_err(|_| format!("property '{name}': {n:#x} does not fit 32 bits"));
        list.into_iter().map(cell).collect()
    };
    let value = match raw.kind {
        kind::EMPTY => FdtValue::Empty,
        kind::U32S => FdtValue::U32s(narrow(raw.numbers)?),
        kind::U64S => FdtValue::U64s(raw.numbers.into()),
        kind::STRINGS => FdtValue::Strings(raw.strings.into_iter().map(RString::into_string).collect()),
        kind::BYTES => FdtValue::Bytes(raw.bytes.into()),
        kind::FIXED_CLOCKS => FdtValue::FixedClocks(narrow(raw.numbers)?),
        other => return Err(format!("property '{name}' has kind {other}, which this gvmm does not know")),
    };
    Ok((name, value))
}

/// The plugin's side: a device for the boundary.
pub(crate) struct Export(pub(crate) Arc<dyn MmioDevice>, pub(crate) Scope);

impl RawMmio for Export {
    fn layout(&self) -> RResult<Tuple2<RVec<u64>, u32>, RString> {
        let layout = contain(self.1, || self.0.layout());
        layout.map(|layout| Tuple2(layout.windows.into(), layout.lines)).map_err(RString::from).into()
    }

    fn node(&self) -> RResult<RawNode, RString> {
        contain(self.1, || self.0.node()).map(RawNode::from).map_err(RString::from).into()
    }

    fn start(&self, lines: RVec<i32>) -> RResult<(), RString> {
        // SAFETY: the host gives the descriptors away with the call.
        let line = |fd| Interrupt::new(Event::from(unsafe { OwnedFd::from_raw_fd(fd) }));
        let lines = lines.into_iter().map(line).collect();
        contain(self.1, || self.0.start(lines)).and_then(|result| result).map_err(RString::from).into()
    }

    fn read(&self, window: u32, offset: u64, width: u8) -> RawRead {
        let Some(width) = Width::from_bytes(width.into()) else {
            return RawRead { value: 0, status: status::WIDTH };
        };
        match contain(self.1, || self.0.read(window, offset, width)) {
            Ok(Ok(value)) => RawRead { value, status: status::OK },
            Ok(Err(error)) => RawRead { value: 0, status: status_of(error) },
            Err(_) => RawRead { value: 0, status: status::PANICKED },
        }
    }

    fn write(&self, window: u32, offset: u64, width: u8, value: u64) -> u32 {
        let Some(width) = Width::from_bytes(width.into()) else { return status::WIDTH };
        match contain(self.1, || self.0.write(window, offset, width, value)) {
            Ok(Ok(())) => status::OK,
            Ok(Err(error)) => status_of(error),
            Err(_) => status::PANICKED,
        }
    }
}

pub(super) fn status_of(error: AccessError) -> u32 {
    match error {
        AccessError::NoRegister => status::NO_REGISTER,
        AccessError::Width => status::WIDTH,
        AccessError::Direction => status::DIRECTION,
        AccessError::Failed => status::FAILED,
    }
}

/// The layout of a device, as told across the boundary.
#[cfg(feature = "host")]
pub(crate) fn import_layout(raw: Tuple2<RVec<u64>, u32>) -> crate::mmio::MmioLayout {
    crate::mmio::MmioLayout { windows: raw.0.into(), lines: raw.1 }
}

/// The extension for a device's `gvmm.mmio/1`.
pub(crate) fn export(device: Arc<dyn MmioDevice>, scope: Scope) -> ROption<super::extension::Extension> {
    let object = RawMmio_TO::from_ptr(RArc::new(Export(device, scope)), sabi_trait::TD_Opaque);
    ROption::RSome(super::extension::Extension::wrap(object))
}
