//! Devices of loaded plugins, behind the traits that any device implements.
//!
//! A device that panics has failed: the host is told once, and from then on it reads as zero, takes nothing and starts
//! no queue. The rest of the machine goes on.

use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use abi_stable::std_types::{ROption, RResult, RStr, RString, RVec};

use super::manifest::Manifest;
use crate::abi::device::RawDeviceBox;
use crate::abi::extension::{MMIO, NODES, PCI, VIRTIO};
use crate::abi::host::Host;
use crate::abi::mmio::{RawMmioArc, import_layout};
use crate::abi::nodes::{self, RawNodesArc, Room};
use crate::abi::pci::RawPciArc;
use crate::abi::status;
use crate::abi::virtio::RawVirtioArc;
use crate::fdt::{ExtraNode, FdtNode};
use crate::interrupt::Interrupt;
use crate::metrics::Metric;
use crate::mmio::{AccessError, MmioDevice, MmioLayout, Width};
use crate::pci::{Interrupts, PciDevice, PciLayout};
use crate::virtio::{QueueSetup, QueueState, VirtioDevice, VirtioTraits};

pub use crate::export::Device as Instance;

impl Instance {
    /// Asks a plugin's device for the interface of its kind.
    pub(crate) fn new(
        device: RawDeviceBox,
        manifest: &Manifest,
        host: Arc<dyn Host>,
    ) -> Result<Self, String> {
        let id = match manifest.kind.as_str() {
            "mmio" => MMIO,
            "virtio" => VIRTIO,
            "pci" => PCI,
            other => return Err(format!("this gvmm knows no device kind '{other}': update gvmm")),
        };
        let ROption::RSome(found) = device.extension(RStr::from(id)) else {
            return Err(format!("the plugin says it is {}, but does not offer {id}", manifest.kind));
        };
        let base = Base { device, host, failed: AtomicBool::new(false) };
        let incompatible = |_| format!("its {id} interface is not the one of this gvmm: rebuild the plugin");
        Ok(match id {
            MMIO => Self::mmio(Mmio::new(found.open().map_err(incompatible)?, base)?),
            VIRTIO => Self::virtio(Virtio::new(found.open().map_err(incompatible)?, base)?),
            _ => Self::pci(Pci::new(found.open().map_err(incompatible)?, base)?),
        })
    }
}

/// What devices of all kinds share.
struct Base {
    device: RawDeviceBox,
    host: Arc<dyn Host>,
    failed: AtomicBool,
}

impl Base {
    fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    fn fail(&self, reason: &str) {
        if !self.failed.swap(true, Ordering::Relaxed) {
            self.host.device_failed(reason);
        }
    }

    fn reset(&self) {
        if self.failed() {
            return;
        }
        if let ROption::RSome(panic) = self.device.reset() {
            self.fail(&panic);
        }
    }

    fn metrics(&self) -> Vec<Metric> {
        let metrics = self.device.metrics().into_iter();
        metrics.map(|pair| Metric { name: pair.0.into_string(), value: pair.1 }).collect()
    }

    /// The error for a status of a register access; a panic makes the device a failed one.
    fn access_error(
        &self,
        code: u32,
        what: &str,
        offset: u64,
        place: std::fmt::Arguments<'_>,
    ) -> AccessError {
        match code {
            status::NO_REGISTER => AccessError::NoRegister,
            status::WIDTH => AccessError::Width,
            status::DIRECTION => AccessError::Direction,
            status::PANICKED => {
                self.fail(&format!("panicked in a {what} of register {offset:#x} of {place}"));
                AccessError::Failed
            }
            _ => AccessError::Failed,
        }
    }
}

struct Mmio {
    raw: RawMmioArc,
    base: Base,
    layout: MmioLayout,
    node: FdtNode,
    extra: ExtraNodes,
}

/// The nodes beside a device's own. A device need not offer any.
#[derive(Default)]
struct ExtraNodes {
    below: Vec<ExtraNode>,
    beside: Vec<ExtraNode>,
}

impl ExtraNodes {
    fn of(device: &RawDeviceBox) -> Result<Self, String> {
        let ROption::RSome(found) = device.extension(RStr::from(NODES)) else { return Ok(Self::default()) };
        let incompatible =
            |_| format!("its {NODES} interface is not the one of this gvmm: rebuild the plugin");
        let raw: RawNodesArc = found.open().map_err(incompatible)?;
        let mut room = Room::default();
        let mut import = |list: RResult<RVec<_>, RString>| {
            let list = list.into_result().map_err(RString::into_string)?;
            nodes::import(list, &mut room)
        };
        Ok(Self { below: import(raw.below())?, beside: import(raw.beside())? })
    }
}

impl Mmio {
    fn new(raw: RawMmioArc, base: Base) -> Result<Self, String> {
        let layout = raw.layout().map(import_layout).into_result().map_err(RString::into_string)?;
        let node = raw.node().into_result().map_err(RString::into_string).and_then(FdtNode::try_from)?;
        let extra = ExtraNodes::of(&base.device)?;
        Ok(Self { raw, base, layout, node, extra })
    }
}

impl MmioDevice for Mmio {
    fn layout(&self) -> MmioLayout {
        self.layout.clone()
    }

    fn node(&self) -> FdtNode {
        self.node.clone()
    }

    fn nodes_below(&self) -> Vec<ExtraNode> {
        self.extra.below.clone()
    }

    fn nodes_beside(&self) -> Vec<ExtraNode> {
        self.extra.beside.clone()
    }

    fn start(&self, lines: Vec<Interrupt>) -> Result<(), String> {
        let fds = lines.into_iter().map(|line| OwnedFd::from(line.into_event()).into_raw_fd()).collect();
        self.raw.start(fds).into_result().map_err(RString::into_string)
    }

    fn read(&self, window: u32, offset: u64, width: Width) -> Result<u64, AccessError> {
        if self.base.failed() {
            return Err(AccessError::Failed);
        }
        let answer = self.raw.read(window, offset, width as u8);
        if answer.status == status::OK {
            return Ok(answer.value);
        }
        Err(self.base.access_error(answer.status, "read", offset, format_args!("window {window}")))
    }

    fn write(&self, window: u32, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        if self.base.failed() {
            return Err(AccessError::Failed);
        }
        match self.raw.write(window, offset, width as u8, value) {
            status::OK => Ok(()),
            code => Err(self.base.access_error(code, "write", offset, format_args!("window {window}"))),
        }
    }

    fn reset(&self) {
        self.base.reset();
    }

    fn metrics(&self) -> Vec<Metric> {
        self.base.metrics()
    }
}

struct Virtio {
    raw: RawVirtioArc,
    base: Base,
    traits: VirtioTraits,
}

impl Virtio {
    fn new(raw: RawVirtioArc, base: Base) -> Result<Self, String> {
        let traits = raw.traits().map(VirtioTraits::from).into_result().map_err(RString::into_string)?;
        Ok(Self { raw, base, traits })
    }
}

impl VirtioDevice for Virtio {
    fn traits(&self) -> VirtioTraits {
        self.traits.clone()
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        if self.base.failed() {
            return;
        }
        if self.raw.read_config(offset, data.into()) != status::OK {
            self.base.fail("panicked in a read of configuration space");
        }
    }

    fn write_config(&self, offset: u32, data: &[u8]) {
        if self.base.failed() {
            return;
        }
        if self.raw.write_config(offset, data.into()) != status::OK {
            self.base.fail("panicked in a write of configuration space");
        }
    }

    fn start_queue(&self, index: u16, setup: QueueSetup) -> Result<(), String> {
        if self.base.failed() {
            return Err("the device has failed".to_owned());
        }
        self.raw.start_queue(index, setup.into()).into_result().map_err(RString::into_string)
    }

    fn stop_queue(&self, index: u16) -> Option<QueueState> {
        match self.raw.stop_queue(index).into_result() {
            Ok(state) => state.map(QueueState::from).into_option(),
            Err(panic) => {
                self.base.fail(&panic);
                None
            }
        }
    }

    fn reset(&self) {
        self.base.reset();
    }

    fn metrics(&self) -> Vec<Metric> {
        self.base.metrics()
    }
}

struct Pci {
    raw: RawPciArc,
    base: Base,
    layout: PciLayout,
}

impl Pci {
    fn new(raw: RawPciArc, base: Base) -> Result<Self, String> {
        let layout = raw.layout().map(PciLayout::from).into_result().map_err(RString::into_string)?;
        Ok(Self { raw, base, layout })
    }
}

impl PciDevice for Pci {
    fn layout(&self) -> PciLayout {
        self.layout.clone()
    }

    fn start(&self, interrupts: Interrupts) -> Result<(), String> {
        self.raw.start(interrupts.into()).into_result().map_err(RString::into_string)
    }

    fn read(&self, bar: u8, offset: u64, width: Width) -> Result<u64, AccessError> {
        if self.base.failed() {
            return Err(AccessError::Failed);
        }
        let answer = self.raw.read(bar, offset, width as u8);
        if answer.status == status::OK {
            return Ok(answer.value);
        }
        Err(self.base.access_error(answer.status, "read", offset, format_args!("BAR {bar}")))
    }

    fn write(&self, bar: u8, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        if self.base.failed() {
            return Err(AccessError::Failed);
        }
        match self.raw.write(bar, offset, width as u8, value) {
            status::OK => Ok(()),
            code => Err(self.base.access_error(code, "write", offset, format_args!("BAR {bar}"))),
        }
    }

    fn reset(&self) {
        self.base.reset();
    }

    fn metrics(&self) -> Vec<Metric> {
        self.base.metrics()
    }
}
