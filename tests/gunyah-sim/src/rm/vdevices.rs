//! `vdevices {}` (rule 3.3): doorbells and shared memory; the other kinds pass unread.

use crate::fdt::{Node, cells, number};

use super::Refusal;

/// SPIs a VM has (rule 3.2).
const SPIS: u32 = 988;

const KNOWN: &[&str] = &[
    "doorbell",
    "doorbell-source",
    "message-queue",
    "message-queue-pair",
    "rm-rpc",
    "shm",
    "shm-doorbell",
    "virtio-mmio",
    "vrtc-pl031",
];

/// The guest's end of a doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// First cell of `interrupts`: 0 is an SPI.
    pub(crate) kind: u32,
    pub(crate) number: u32,
    /// Level high (trigger 4) instead of rising edge (trigger 1).
    pub(crate) level: bool,
}

/// A doorbell the host rings and the guest hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Doorbell {
    pub(crate) label: u32,
    /// `None` where the tree names no interrupt: START accepts that (rule 9).
    pub(crate) line: Option<Line>,
    /// Path of the node to make.
    pub(crate) generate: Option<String>,
    /// Grants the right to set the masks a LEVEL irqfd needs (rule 5.1).
    pub(crate) source_can_clear: bool,
}

/// A window for a labelled parcel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SharedMemory {
    pub(crate) label: u32,
    /// `None` for allocate-base.
    pub(crate) base: Option<u64>,
    pub(crate) optional: bool,
}

/// Everything read from the node.
#[derive(Debug, Default)]
pub(crate) struct Vdevices {
    pub(crate) doorbells: Vec<Doorbell>,
    pub(crate) shared_memory: Vec<SharedMemory>,
    pub(crate) warnings: Vec<String>,
}

pub(crate) fn read(node: Option<&Node>) -> Result<Vdevices, Refusal> {
    let mut found = Vdevices::default();
    for child in node.map(|node| node.children.as_slice()).unwrap_or_default() {
        let kind = child
            .string("vdevice-type")
            .ok_or_else(|| Refusal::init(format!("vdevice {} has no vdevice-type", child.name)))?;
        if !KNOWN.contains(&kind) {
            return Err(Refusal::init(format!("vdevice {} is of the unknown type {kind:?}", child.name)));
        }
        match kind {
            "doorbell" => {
                let doorbell = read_doorbell(child)?;
                check_unique(&found.doorbells, &doorbell)?;
                if doorbell.line.is_none() {
                    found.warnings.push(format!("doorbell {} names no interrupt", child.name));
                }
                found.doorbells.push(doorbell);
            }
            "shm" => found.shared_memory.push(read_shared_memory(child)?),
            _ => {}
        }
    }
    Ok(found)
}

fn label(node: &Node) -> Result<u32, Refusal> {
    node.u32("label").ok_or_else(|| Refusal::init(format!("vdevice {} has no label", node.name)))
}

fn check_peer(node: &Node) -> Result<(), Refusal> {
    if node.has("peer-default") || node.has("peer") {
        return Ok(());
    }
    Err(Refusal::init(format!("vdevice {} has neither peer-default nor peer", node.name)))
}

fn read_doorbell(node: &Node) -> Result<Doorbell, Refusal> {
    check_peer(node)?;
    let line = match node.cells("interrupts").as_slice() {
        [] => None,
        [kind @ 0..=3, number, trigger @ (1 | 4)] => {
            if *kind == 0 && *number >= SPIS {
                return Err(Refusal::init(format!("doorbell {} uses SPI {number} of {SPIS}", node.name)));
            }
            Some(Line { kind: *kind, number: *number, level: *trigger == 4 })
        }
        other => return Err(Refusal::init(format!("doorbell {} has interrupts {other:?}", node.name))),
    };
    Ok(Doorbell {
        label: label(node)?,
        line,
        generate: node.string("generate").map(str::to_owned),
        source_can_clear: node.has("source-can-clear"),
    })
}

/// Two bells on one label or one interrupt are the usual "code 2" (rule 1.8).
fn check_unique(known: &[Doorbell], new: &Doorbell) -> Result<(), Refusal> {
    if known.iter().any(|bell| bell.label == new.label) {
        return Err(Refusal::init(format!("two doorbells have label {}", new.label)));
    }
    let id = |bell: &Doorbell| bell.line.map(|line| (line.kind, line.number));
    if new.line.is_some() && known.iter().any(|bell| id(bell) == id(new)) {
        return Err(Refusal::init(format!("two doorbells use interrupt {:?}", id(new))));
    }
    Ok(())
}

/// Everything is read in the node `memory`, which has no brother; `base` has the two cells that are the default there.
fn read_shared_memory(node: &Node) -> Result<SharedMemory, Refusal> {
    check_peer(node)?;
    let [memory] = node.children.as_slice() else {
        return Err(Refusal::init(format!("shm {} has not just one node \"memory\"", node.name)));
    };
    if memory.name != "memory" {
        return Err(Refusal::init(format!("shm {} has a node {:?}", node.name, memory.name)));
    }
    let base = memory.property("base").map(cells).filter(|value| value.len() == 2);
    let base = base.and_then(|value| number(&value, 2));
    if base.is_some() == memory.has("allocate-base") {
        return Err(Refusal::init(format!("shm {} has not one of base and allocate-base", node.name)));
    }
    Ok(SharedMemory { label: label(memory)?, base, optional: memory.has("optional") })
}
