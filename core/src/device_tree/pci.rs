//! The PCI host and the frame that its messages go to.

use std::ops::Range;

use vm_fdt::FdtWriter;

use super::Error;
use super::platform::{EDGE_RISING, GIC_PHANDLE, GIC_SPI, V2M_PHANDLE};
use crate::pci::v2m::FIRST_INTID;

/// What drivers know the host by.
pub const PCI_HOST: &str = "pci-host-ecam-generic";
/// First cell of a PCI address: 32-bit memory, not prefetchable (PCI Bus Binding to Open Firmware, 2.2.1.1).
const MEMORY_32: u32 = 0x0200_0000;
/// Bits of a PCI address that tell the device, and of an interrupt that tell the pin.
const DEVICE_MASK: u32 = 0xf800;
const PIN_MASK: u32 = 7;
/// Shift of the device number in a PCI address.
const DEVICE_SHIFT: usize = 11;
/// Interrupt pin A.
const PIN_A: u32 = 1;

/// A PCI host as the tree describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciNode {
    /// Configuration space of bus 0.
    pub ecam: Range<u64>,
    /// Addresses of BARs.
    pub window: Range<u64>,
    /// Registers of the GICv2m frame.
    pub frame: Range<u64>,
    /// SPIs of the frame.
    pub message_spis: Range<u32>,
    /// The interrupt line of each device, if it has one, from device 0 on.
    pub lines: Vec<Option<u32>>,
}

/// Writes the GICv2m frame, a child of the interrupt controller (Linux bindings, interrupt-controller/arm,gic-v3).
pub(super) fn write_frame(pci: &PciNode, fdt: &mut FdtWriter) -> Result<(), Error> {
    let frame = fdt.begin_node(&format!("v2m@{:x}", pci.frame.start))?;
    fdt.property_string("compatible", "arm,gic-v2m-frame")?;
    fdt.property_null("msi-controller")?;
    fdt.property_array_u64("reg", &[pci.frame.start, pci.frame.end - pci.frame.start])?;
    fdt.property_u32("arm,msi-base-spi", pci.message_spis.start + FIRST_INTID)?;
    fdt.property_u32("arm,msi-num-spis", pci.message_spis.end - pci.message_spis.start)?;
    fdt.property_phandle(V2M_PHANDLE)?;
    fdt.end_node(frame)?;
    Ok(())
}

/// Writes the host (Linux bindings, pci/host-generic-pci). `pool` is the phandle of the memory for the buffers of
/// devices, if that is not all of it.
pub(super) fn write_host(pci: &PciNode, pool: Option<u32>, fdt: &mut FdtWriter) -> Result<(), Error> {
    let host = fdt.begin_node(&format!("pcie@{:x}", pci.ecam.start))?;
    fdt.property_string("compatible", PCI_HOST)?;
    fdt.property_string("device_type", "pci")?;
    fdt.property_u32("#address-cells", 3)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("#interrupt-cells", 1)?;
    fdt.property_array_u32("bus-range", &[0, 0])?;
    fdt.property_array_u64("reg", &[pci.ecam.start, pci.ecam.end - pci.ecam.start])?;
    let [base, size] = [pci.window.start, pci.window.end - pci.window.start].map(cells);
    let ranges = [[MEMORY_32, 0].as_slice(), &base[1..], &base, &size].concat();
    fdt.property_array_u32("ranges", &ranges)?;
    fdt.property_u32("msi-parent", V2M_PHANDLE)?;
    fdt.property_null("dma-coherent")?;
    let lines = pci.lines.iter().enumerate();
    let map: Vec<u32> =
        lines.filter_map(|(device, spi)| Some(interrupt(device, (*spi)?))).flatten().collect();
    fdt.property_array_u32("interrupt-map", &map)?;
    fdt.property_array_u32("interrupt-map-mask", &[DEVICE_MASK, 0, 0, PIN_MASK])?;
    if let Some(pool) = pool {
        fdt.property_u32("memory-region", pool)?;
    }
    fdt.end_node(host)?;
    Ok(())
}

/// The line of a device: its PCI address and pin, then the interrupt controller with an address of two cells.
fn interrupt(device: usize, spi: u32) -> [u32; 10] {
    // A bus has 32 devices.
    let address = (device as u32) << DEVICE_SHIFT;
    [address, 0, 0, PIN_A, GIC_PHANDLE, 0, 0, GIC_SPI, spi, EDGE_RISING]
}

fn cells(value: u64) -> [u32; 2] {
    [(value >> 32) as u32, value as u32]
}
