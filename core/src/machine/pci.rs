//! The PCI devices of a machine: collected as they are plugged in, then given a host.

use std::sync::Arc;

use gvmm_plugin_api::pci::PciDevice;
use gvmm_plugin_api::virtio::VirtioDevice;

use super::layout::{Allocator, PCI_ECAM, PCI_WINDOW, V2M_FRAME};
use crate::bus::Bus;
use crate::device_tree::{self, PciNode};
use crate::hypervisor::InterruptLine;
use crate::pci::function::FunctionSpec;
use crate::pci::host::{ECAM_SIZE, Ecam, PciHost, Window};
use crate::pci::plugged;
use crate::pci::v2m::{FRAME_SIZE, V2mFrame};
use crate::plugin::host::DeviceHost;
use crate::virtio::VirtioFunction;
use crate::virtio::pci::{Interrupts, spec};

/// Name of what belongs to the bus and not to a device, for messages.
const BUS_NAME: &str = "pci";

/// What the user is told about a kernel that does not know the host.
pub const UNKNOWN_HOST: &str = "the kernel has no driver for the PCI host built in (CONFIG_PCI_HOST_GENERIC): it finds \
                                no device on PCI unless it loads one; transport=mmio puts a device on virtio-mmio";

/// Whether a kernel has the driver of the host built in: then it contains the host's name in device trees.
pub fn kernel_knows_host(kernel: &[u8]) -> bool {
    memchr::memmem::find(kernel, device_tree::PCI_HOST.as_bytes()).is_some()
}

/// The functions so far.
#[derive(Default)]
pub struct PciBuilder {
    specs: Vec<FunctionSpec>,
}

impl PciBuilder {
    /// Makes a virtio device a function, with a line for guests without MSI.
    pub fn add_virtio(
        &mut self,
        id: &str,
        device: Arc<dyn VirtioDevice>,
        host: &DeviceHost,
        line: InterruptLine,
    ) -> Result<Arc<VirtioFunction>, String> {
        let failed = |error: std::io::Error| format!("cannot make an eventfd: {error}");
        let queues = device.traits().queue_sizes.len();
        let interrupts = Arc::new(Interrupts::new(line.eventfd.clone(), queues).map_err(failed)?);
        let function = VirtioFunction::new(id, device, Box::new(interrupts.clone())).map_err(failed)?;
        let function = Arc::new(function.with_ring_reset());
        host.connect(&function);
        self.specs.push(spec(&function, &interrupts, line));
        Ok(function)
    }

    /// Makes a plugin's PCI device a function, with a line if it asks for one. Its layout has been checked.
    pub fn add_plugged(
        &mut self,
        id: &str,
        device: Arc<dyn PciDevice>,
        line: Option<InterruptLine>,
    ) -> Result<(), String> {
        self.specs.push(plugged::spec(id, device, line)?);
        Ok(())
    }

    /// The host of all functions, on the bus of the machine; `None` without functions.
    pub fn finish(self, map: &mut Allocator, bus: &mut Bus) -> Result<Option<Arc<PciHost>>, String> {
        if self.specs.is_empty() {
            return Ok(None);
        }
        let messages: usize = self.specs.iter().map(|spec| spec.vectors.len()).sum();
        let spis = map.spis(u32::try_from(messages).unwrap_or(u32::MAX)).map_err(|error| {
            format!("the PCI devices want {messages} interrupts: {error}; add transport=mmio to some")
        })?;
        let frame = Arc::new(V2mFrame::new(V2M_FRAME, spis));
        let host = Arc::new(PciHost::new(self.specs, frame.clone(), PCI_ECAM, PCI_WINDOW)?);
        bus.insert(V2M_FRAME, FRAME_SIZE, BUS_NAME, frame);
        bus.insert(PCI_ECAM, ECAM_SIZE, BUS_NAME, Arc::new(Ecam(host.clone())));
        let window = PCI_WINDOW.end - PCI_WINDOW.start;
        bus.insert(PCI_WINDOW.start, window, BUS_NAME, Arc::new(Window(host.clone())));
        Ok(Some(host))
    }
}

/// What the device tree says of a host.
pub fn node(host: &PciHost) -> PciNode {
    PciNode {
        ecam: host.ecam()..host.ecam() + ECAM_SIZE,
        window: host.window(),
        frame: host.frame().base()..host.frame().base() + FRAME_SIZE,
        message_spis: host.frame().spis(),
        lines: host.functions().iter().map(|function| function.spi()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_with_the_driver_of_the_host_is_told_by_its_name() {
        assert!(kernel_knows_host(b"code\0pci-host-ecam-generic\0data"));
        assert!(!kernel_knows_host(b"pci-host-cam-generic"));
    }
}
