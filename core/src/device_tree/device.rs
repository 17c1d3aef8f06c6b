//! The nodes of devices.

use std::collections::{BTreeMap, BTreeSet};

use gvmm_plugin_api::fdt::{ExtraNode, FdtNode, FdtValue};
use vm_fdt::FdtWriter;

use super::Error;
use super::extra::{self, ExtraWriter};
use super::platform::{EDGE_RISING, FIRST_FREE_PHANDLE, GIC_SPI};

/// A device-tree node with its place in the machine.
#[derive(Debug, Clone, Default)]
pub struct PlacedNode {
    /// The node as the device describes it.
    pub node: FdtNode,
    /// Register windows: base and size.
    pub windows: Vec<(u64, u64)>,
    /// Interrupt lines.
    pub spis: Vec<u32>,
    /// Further nodes of the device, below its own.
    pub below: Vec<ExtraNode>,
    /// Further nodes of the device, under the root.
    pub beside: Vec<ExtraNode>,
}

/// Properties that say where a device is, which the machine knows and no device may claim.
pub(super) const OF_THE_MACHINE: [&str; 8] = [
    "compatible",
    "reg",
    "interrupts",
    "interrupt-parent",
    "interrupts-extended",
    "memory-region",
    "phandle",
    "linux,phandle",
];

/// Name of a device's node, with its unit address if it has registers.
pub(super) fn name(placed: &PlacedNode) -> String {
    match placed.windows.first() {
        Some((base, _)) => format!("{}@{base:x}", placed.node.name),
        None => placed.node.name.clone(),
    }
}

/// Writes the clocks that devices ask for, then the devices. `pool` is the phandle of the memory for the buffers of
/// devices that access memory, if that is not all of it.
pub(super) fn write_all(nodes: &[PlacedNode], pool: Option<u32>, fdt: &mut FdtWriter) -> Result<(), Error> {
    let clocks = write_clocks(nodes, fdt)?;
    let mut phandles = (FIRST_FREE_PHANDLE..).skip(clocks.len());
    let mut names = BTreeSet::new();
    for placed in nodes {
        let name = name(placed);
        let failed = |problem: String| Error::Device { node: name.clone(), problem };
        if !names.insert(name.clone()) {
            return Err(failed("another device has a node of this name".to_owned()));
        }
        let phandle = if extra::refer_to_device(placed) { phandles.next() } else { None };
        let phandles = Phandles { clocks: &clocks, pool, device: phandle };
        write_one(placed, &name, &phandles, fdt).map_err(failed)?;
    }
    Ok(())
}

/// What the nodes of a device may refer to.
pub(super) struct Phandles<'a> {
    /// Clocks by frequency.
    pub(super) clocks: &'a BTreeMap<u32, u32>,
    /// The memory for buffers, if that is not all of it.
    pool: Option<u32>,
    /// The device's own node, if any of its nodes refers to that.
    pub(super) device: Option<u32>,
}

/// One fixed clock for each frequency; their phandles by frequency.
fn write_clocks(nodes: &[PlacedNode], fdt: &mut FdtWriter) -> Result<BTreeMap<u32, u32>, Error> {
    let own = nodes.iter().flat_map(|placed| &placed.node.properties);
    let values = own.chain(nodes.iter().flat_map(extra::properties)).map(|(_, value)| value);
    let frequencies: BTreeSet<u32> = values
        .filter_map(
            |value| if let FdtValue::FixedClocks(frequencies) = value { Some(frequencies) } else { None },
        )
        .flatten()
        .copied()
        .collect();
    let clocks: BTreeMap<u32, u32> = frequencies.into_iter().zip(FIRST_FREE_PHANDLE..).collect();
    for (&frequency, &phandle) in &clocks {
        let clock = fdt.begin_node(&format!("clock-{frequency}"))?;
        fdt.property_string("compatible", "fixed-clock")?;
        fdt.property_u32("#clock-cells", 0)?;
        fdt.property_u32("clock-frequency", frequency)?;
        fdt.property_phandle(phandle)?;
        fdt.end_node(clock)?;
    }
    Ok(clocks)
}

fn write_one(
    placed: &PlacedNode,
    name: &str,
    phandles: &Phandles<'_>,
    fdt: &mut FdtWriter,
) -> Result<(), String> {
    let text = |error: vm_fdt::Error| error.to_string();
    let node = fdt.begin_node(name).map_err(text)?;
    fdt.property_string_list("compatible", placed.node.compatible.clone()).map_err(text)?;
    if !placed.windows.is_empty() {
        let cells: Vec<u64> = placed.windows.iter().flat_map(|&(base, size)| [base, size]).collect();
        fdt.property_array_u64("reg", &cells).map_err(text)?;
    }
    if !placed.spis.is_empty() {
        let cells: Vec<u32> = placed.spis.iter().flat_map(|&spi| [GIC_SPI, spi, EDGE_RISING]).collect();
        fdt.property_array_u32("interrupts", &cells).map_err(text)?;
    }
    let mut written = BTreeSet::new();
    for (property, value) in &placed.node.properties {
        if OF_THE_MACHINE.contains(&property.as_str()) {
            return Err(format!("the property '{property}' is the machine's to give"));
        }
        if !written.insert(property) {
            return Err(format!("the property '{property}' is there twice"));
        }
        write_property(property, value, phandles.clocks, fdt)
            .map_err(|error| format!("property '{property}': {error}"))?;
    }
    if let Some(pool) = phandles.pool.filter(|_| accesses_memory(placed)) {
        fdt.property_u32("memory-region", pool).map_err(text)?;
    }
    if let Some(phandle) = phandles.device {
        fdt.property_phandle(phandle).map_err(text)?;
    }
    let mut extra = ExtraWriter { phandles, fdt };
    extra.write_below(&placed.below)?;
    extra.fdt.end_node(node).map_err(text)?;
    extra.write_beside(placed)
}

/// A device that reads and writes guest memory by itself says how that goes with the caches.
fn accesses_memory(placed: &PlacedNode) -> bool {
    placed.node.properties.iter().any(|(name, _)| name == "dma-coherent")
}

pub(super) fn write_property(
    name: &str,
    value: &FdtValue,
    clocks: &BTreeMap<u32, u32>,
    fdt: &mut FdtWriter,
) -> Result<(), vm_fdt::Error> {
    match value {
        FdtValue::Empty => fdt.property_null(name),
        FdtValue::U32s(cells) => fdt.property_array_u32(name, cells),
        FdtValue::U64s(cells) => fdt.property_array_u64(name, cells),
        FdtValue::Strings(strings) => fdt.property_string_list(name, strings.clone()),
        FdtValue::Bytes(bytes) => fdt.property(name, bytes),
        FdtValue::FixedClocks(frequencies) => {
            let phandles: Vec<u32> = frequencies.iter().filter_map(|hz| clocks.get(hz)).copied().collect();
            fdt.property_array_u32(name, &phandles)
        }
    }
}
