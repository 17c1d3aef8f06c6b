//! The interrupt controller (rule 3.2): found through the configuration or the root's interrupt-parent.

use crate::fdt::{Node, Tree, number};

use super::config_node::Interrupts;
use super::{Cells, Refusal};

/// Alignment of both frames, and size of the distributor.
const FRAME: u64 = 0x1_0000;
/// Bytes of redistributor per vCPU, and smallest stride.
pub(crate) const REDISTRIBUTOR: u64 = 0x2_0000;
/// Where frames go when the node has no `reg`: right below the end of the trap window.
const DEFAULT_DISTRIBUTOR: u64 = 0x3fff_0000;

/// Where the controller's frames are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gic {
    pub(crate) distributor: u64,
    pub(crate) redistributors: u64,
    /// Name of the root's child whose `reg` has to be filled in.
    pub(crate) patch: Option<String>,
}

pub(crate) fn read(tree: &Tree, config: Option<&Interrupts>, vcpus: u32) -> Result<Gic, Refusal> {
    let node = find(tree, config)?;
    // The rules of a usable node; otherwise the Resource Manager has no controller to give.
    if !node.is_compatible("arm,gic-v3") {
        return Err(Refusal::init("the interrupt controller is not compatible with arm,gic-v3"));
    }
    if !node.has("interrupt-controller") || node.u32("#interrupt-cells") != Some(3) {
        return Err(Refusal::init("the GIC lacks interrupt-controller or has not 3 interrupt cells"));
    }
    if node.u32("#redistributor-regions").is_some_and(|regions| regions > 1) {
        return Err(Refusal::init("the GIC has more than one redistributor region"));
    }
    let stride = number(&node.cells("redistributor-stride"), 2);
    if stride.is_some_and(|stride| stride < REDISTRIBUTOR) {
        return Err(Refusal::init("the GIC's redistributor-stride is below 128 KiB"));
    }
    let needed = REDISTRIBUTOR * u64::from(vcpus);
    if !node.has("reg") {
        return Ok(Gic {
            distributor: DEFAULT_DISTRIBUTOR,
            redistributors: DEFAULT_DISTRIBUTOR - needed,
            patch: Some(node.name.clone()),
        });
    }
    read_frames(node, Cells::of_root(tree), needed)
}

fn find<'a>(tree: &'a Tree, config: Option<&Interrupts>) -> Result<&'a Node, Refusal> {
    let found = match config {
        Some(Interrupts::Path(path)) => tree.at(path),
        Some(Interrupts::Phandle(phandle)) => tree.by_phandle(*phandle),
        None => tree.root.u32("interrupt-parent").and_then(|phandle| tree.by_phandle(phandle)),
    };
    found.ok_or_else(|| Refusal::init("neither interrupts/config nor interrupt-parent leads to a GIC"))
}

fn read_frames(node: &Node, shape: Cells, needed: u64) -> Result<Gic, Refusal> {
    let reg = node.cells("reg");
    let entry = shape.address + shape.size;
    let field = |index: usize, offset: usize, count: usize| {
        reg.get(index * entry + offset..).and_then(|tail| number(tail, count))
    };
    let range = |index| field(index, 0, shape.address).zip(field(index, shape.address, shape.size));
    let Some(((distributor, distributor_size), (redistributors, redistributors_size))) =
        range(0).zip(range(1))
    else {
        return Err(Refusal::init("the GIC's reg has fewer than two ranges"));
    };
    if !distributor.is_multiple_of(FRAME) || !redistributors.is_multiple_of(FRAME) {
        return Err(Refusal::init("the GIC's frames are not 64 KiB aligned"));
    }
    if distributor_size < FRAME || redistributors_size < needed {
        return Err(Refusal::init("the GIC's frames are smaller than 64 KiB and 128 KiB per vCPU"));
    }
    let apart = distributor + FRAME <= redistributors || redistributors + needed <= distributor;
    if !apart {
        return Err(Refusal::init("the GIC's distributor and redistributors overlap"));
    }
    Ok(Gic { distributor, redistributors, patch: None })
}
