//! The extension `gvmm.pci/1`. Frozen.
#![allow(non_local_definitions, reason = "abi_stable's derive puts impls into functions")]

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use abi_stable::StableAbi;
use abi_stable::sabi_trait;
use abi_stable::std_types::{RArc, ROption, RResult, RString, RVec};

use super::mmio::{RawRead, status_of};
use super::{contain, status};
use crate::interrupt::{Event, Interrupt};
use crate::log::Scope;
use crate::mmio::Width;
use crate::pci::{Bar, Capability, Identity, Interrupts, PciDevice, PciLayout};

/// A PCI device across the boundary.
#[sabi_trait]
pub trait RawPci: Send + Sync {
    /// See [`PciDevice::layout`].
    fn layout(&self) -> RResult<RawPciLayout, RString>;
    /// See [`PciDevice::start`].
    fn start(&self, interrupts: RawInterrupts) -> RResult<(), RString>;
    /// See [`PciDevice::read`]; `width` is 1, 2, 4 or 8.
    fn read(&self, bar: u8, offset: u64, width: u8) -> RawRead;
    /// See [`PciDevice::write`]; a value of [`status`].
    #[sabi(last_prefix_field)]
    fn write(&self, bar: u8, offset: u64, width: u8, value: u64) -> u32;
}

/// A shared [`RawPci`].
pub type RawPciArc = RawPci_TO<'static, RArc<()>>;

/// [`PciLayout`], its identity's fields first.
#[repr(C)]
#[derive(StableAbi)]
pub struct RawPciLayout {
    vendor: u16,
    device: u16,
    subsystem_vendor: u16,
    subsystem: u16,
    class: u32,
    revision: u8,
    line: bool,
    vectors: u16,
    bars: RVec<RawBar>,
    capabilities: RVec<RawCapability>,
}

/// [`Bar`].
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct RawBar {
    index: u8,
    size: u32,
}

/// [`Capability`].
#[repr(C)]
#[derive(StableAbi)]
pub struct RawCapability {
    id: u8,
    body: RVec<u8>,
    writable: RVec<u8>,
}

/// [`Interrupts`]; the eventfds change hands.
#[repr(C)]
#[derive(StableAbi)]
pub struct RawInterrupts {
    /// -1 when there is no line.
    line: i32,
    vectors: RVec<i32>,
    /// Set by the host while the guest uses messages.
    messages: RArc<AtomicBool>,
}

impl From<PciLayout> for RawPciLayout {
    fn from(layout: PciLayout) -> Self {
        let Identity { vendor, device, subsystem_vendor, subsystem, class, revision } = layout.identity;
        let bar = |Bar { index, size }| RawBar { index, size };
        let capability = |Capability { id, body, writable }| RawCapability {
            id,
            body: body.into(),
            writable: writable.into(),
        };
        Self {
            vendor,
            device,
            subsystem_vendor,
            subsystem,
            class,
            revision,
            line: layout.line,
            vectors: layout.vectors,
            bars: layout.bars.into_iter().map(bar).collect(),
            capabilities: layout.capabilities.into_iter().map(capability).collect(),
        }
    }
}

impl From<RawPciLayout> for PciLayout {
    fn from(raw: RawPciLayout) -> Self {
        let RawPciLayout { vendor, device, subsystem_vendor, subsystem, class, revision, .. } = raw;
        let bar = |RawBar { index, size }| Bar { index, size };
        let capability = |RawCapability { id, body, writable }| Capability {
            id,
            body: body.into(),
            writable: writable.into(),
        };
        Self {
            identity: Identity { vendor, device, subsystem_vendor, subsystem, class, revision },
            bars: raw.bars.into_iter().map(bar).collect(),
            capabilities: raw.capabilities.into_iter().map(capability).collect(),
            vectors: raw.vectors,
            line: raw.line,
        }
    }
}

impl From<Interrupts> for RawInterrupts {
    fn from(interrupts: Interrupts) -> Self {
        let fd = |interrupt: Interrupt| OwnedFd::from(interrupt.into_event()).into_raw_fd();
        Self {
            line: interrupts.line.map_or(-1, fd),
            vectors: interrupts.vectors.into_iter().map(fd).collect(),
            messages: interrupts.messages,
        }
    }
}

/// Takes over interrupts that came across the boundary.
fn import(raw: RawInterrupts) -> Interrupts {
    // SAFETY: the host gives the descriptors away with the call.
    let interrupt = |fd| Interrupt::new(Event::from(unsafe { OwnedFd::from_raw_fd(fd) }));
    Interrupts {
        line: (raw.line >= 0).then(|| interrupt(raw.line)),
        vectors: raw.vectors.into_iter().map(interrupt).collect(),
        messages: raw.messages,
    }
}

/// The plugin's side: a device for the boundary.
pub(crate) struct Export(pub(crate) Arc<dyn PciDevice>, pub(crate) Scope);

impl RawPci for Export {
    fn layout(&self) -> RResult<RawPciLayout, RString> {
        contain(self.1, || self.0.layout()).map(RawPciLayout::from).map_err(RString::from).into()
    }

    fn start(&self, interrupts: RawInterrupts) -> RResult<(), RString> {
        let interrupts = import(interrupts);
        contain(self.1, || self.0.start(interrupts)).and_then(|result| result).map_err(RString::from).into()
    }

    fn read(&self, bar: u8, offset: u64, width: u8) -> RawRead {
        let Some(width) = Width::from_bytes(width.into()) else {
            return RawRead { value: 0, status: status::WIDTH };
        };
        match contain(self.1, || self.0.read(bar, offset, width)) {
            Ok(Ok(value)) => RawRead { value, status: status::OK },
            Ok(Err(error)) => RawRead { value: 0, status: status_of(error) },
            Err(_) => RawRead { value: 0, status: status::PANICKED },
        }
    }

    fn write(&self, bar: u8, offset: u64, width: u8, value: u64) -> u32 {
        let Some(width) = Width::from_bytes(width.into()) else { return status::WIDTH };
        match contain(self.1, || self.0.write(bar, offset, width, value)) {
            Ok(Ok(())) => status::OK,
            Ok(Err(error)) => status_of(error),
            Err(_) => status::PANICKED,
        }
    }
}

/// The extension for a device's `gvmm.pci/1`.
pub(crate) fn export(device: Arc<dyn PciDevice>, scope: Scope) -> ROption<super::extension::Extension> {
    let object = RawPci_TO::from_ptr(RArc::new(Export(device, scope)), sabi_trait::TD_Opaque);
    ROption::RSome(super::extension::Extension::wrap(object))
}
