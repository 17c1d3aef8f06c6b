//! The nodes that every machine has.

use vm_fdt::FdtWriter;

use super::{Description, Error, PciNode, device, pci};
use crate::hypervisor::VmPlan;
use crate::hypervisor::plan::{GIC_DISTRIBUTOR_SIZE, GIC_PATH, GIC_REDISTRIBUTOR_SIZE, mpidr};
use crate::memory::{MemoryRange, RegionKind};

/// Name of the shared window in device trees (Linux bindings, reserved-memory/shared-dma-pool). A kernel with
/// `CONFIG_DMA_RESTRICTED_POOL` contains it.
pub const WINDOW: &str = "restricted-dma-pool";

/// Phandle of the interrupt controller.
pub(super) const GIC_PHANDLE: u32 = 1;
/// Phandle of the shared window.
const WINDOW_PHANDLE: u32 = 2;
/// Phandle of the GICv2m frame.
pub(super) const V2M_PHANDLE: u32 = 3;
/// First phandle that is free for the nodes of devices.
pub(super) const FIRST_FREE_PHANDLE: u32 = 4;

/// Interrupt specifiers of GICv3 (Linux bindings, interrupt-controller/arm,gic-v3): type and trigger.
pub(super) const GIC_SPI: u32 = 0;
const GIC_PPI: u32 = 1;
pub(super) const EDGE_RISING: u32 = 1;
const LEVEL_LOW: u32 = 8;

/// Timer interrupts: secure, non-secure, virtual, hypervisor (Linux bindings, timer/arm,arch_timer).
const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];

pub(super) fn write_chosen(description: &Description<'_>, fdt: &mut FdtWriter) -> Result<(), Error> {
    let chosen = fdt.begin_node("chosen")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_string("bootargs", description.cmdline)?;
    if let Some(console) = description.nodes.iter().find(|placed| placed.node.console) {
        fdt.property_string("stdout-path", &format!("/{}", device::name(console)))?;
    }
    if let Some(initrd) = description.initrd {
        fdt.property_u64("linux,initrd-start", initrd.address)?;
        fdt.property_u64("linux,initrd-end", initrd.address + initrd.size)?;
    }
    if let Some(seed) = &description.seed {
        fdt.property("kaslr-seed", &seed.kaslr)?;
        fdt.property("rng-seed", &seed.rng)?;
    }
    fdt.end_node(chosen)?;
    Ok(())
}

/// All of RAM, the shared window included; the node must have no unit address for the Resource Manager to take the
/// tree. The memory of a firmware is not the guest's to use.
pub(super) fn write_memory(plan: &VmPlan<'_>, fdt: &mut FdtWriter) -> Result<(), Error> {
    let mut cells: Vec<u64> = Vec::new();
    for range in plan.memory.iter().filter(|range| range.base >= plan.boot.entry) {
        match cells.as_mut_slice() {
            [.., base, size] if *base + *size == range.base => *size += range.size,
            _ => cells.extend([range.base, range.size]),
        }
    }
    let memory = fdt.begin_node("memory")?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &cells)?;
    fdt.end_node(memory)?;
    Ok(())
}

/// The window that a guest with lent memory shares with its devices: all their buffers go there. Its phandle.
pub(super) fn write_window(plan: &VmPlan<'_>, fdt: &mut FdtWriter) -> Result<Option<u32>, Error> {
    let has_lent = plan.memory.iter().any(|range| range.kind == RegionKind::Lent);
    let shared = |range: &&MemoryRange| range.kind == RegionKind::Shared && has_lent;
    let Some(window) = plan.memory.iter().find(shared) else { return Ok(None) };
    let reserved = fdt.begin_node("reserved-memory")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    let pool = fdt.begin_node(&format!("{WINDOW}@{:x}", window.base))?;
    fdt.property_string("compatible", WINDOW)?;
    fdt.property_array_u64("reg", &[window.base, window.size])?;
    fdt.property_phandle(WINDOW_PHANDLE)?;
    fdt.end_node(pool)?;
    fdt.end_node(reserved)?;
    Ok(Some(WINDOW_PHANDLE))
}

pub(super) fn write_cpus(vcpus: u32, fdt: &mut FdtWriter) -> Result<(), Error> {
    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    for vcpu in 0..vcpus {
        // Aff0 to Aff2 are the low 24 bits.
        let affinity = mpidr(vcpu) as u32;
        let cpu = fdt.begin_node(&format!("cpu@{affinity:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_u32("reg", affinity)?;
        fdt.property_string("enable-method", "psci")?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(cpus)?;
    Ok(())
}

pub(super) fn write_psci(fdt: &mut FdtWriter) -> Result<(), Error> {
    let psci = fdt.begin_node("psci")?;
    fdt.property_string_list("compatible", vec!["arm,psci-1.0".to_owned(), "arm,psci-0.2".to_owned()])?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(psci)?;
    Ok(())
}

pub(super) fn write_timer(fdt: &mut FdtWriter) -> Result<(), Error> {
    let timer = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    let interrupts: Vec<u32> = TIMER_PPIS.iter().flat_map(|ppi| [GIC_PPI, *ppi, LEVEL_LOW]).collect();
    fdt.property_array_u32("interrupts", &interrupts)?;
    fdt.property_null("always-on")?;
    fdt.end_node(timer)?;
    Ok(())
}

pub(super) fn write_gic(plan: &VmPlan<'_>, pci: Option<&PciNode>, fdt: &mut FdtWriter) -> Result<(), Error> {
    let redistributors = GIC_REDISTRIBUTOR_SIZE * u64::from(plan.vcpus);
    let gic = fdt.begin_node(GIC_PATH.trim_start_matches('/'))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    let windows = [plan.gic.distributor, GIC_DISTRIBUTOR_SIZE, plan.gic.redistributors, redistributors];
    fdt.property_array_u64("reg", &windows)?;
    fdt.property_phandle(GIC_PHANDLE)?;
    if let Some(pci) = pci {
        pci::write_frame(pci, fdt)?;
    }
    fdt.end_node(gic)?;
    Ok(())
}
