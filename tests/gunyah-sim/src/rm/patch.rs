//! What the Resource Manager adds to the tree, and whether there is room for it (rule 3.1, 3.4, 9).

use crate::fdt::{Node, Tree};

use super::overlay;
use super::parcels::Memory;
use super::vdevices::{Doorbell, SharedMemory};
use super::{Build, Cells, Gic, Offer, Refusal};

/// Up to this the final tree is made on the Resource Manager's heap.
const HEAP_MAX: usize = 16 * 1024;
/// Identity the guest reads back; numbers of the measured build.
const VMID: u32 = 45;
const OWNER_VMID: u32 = 3;
/// Capability numbers are per-VM and random in 64 bits: they have to differ, and node names to be as long as there.
const FIRST_CAPABILITY: u64 = 0x9d3e_6a51_c840_1000;

/// What is to be added.
pub(crate) struct Changes<'a> {
    pub(crate) offer: &'a Offer<'a>,
    pub(crate) image_name: &'a str,
    pub(crate) memory: &'a Memory,
    pub(crate) doorbells: &'a [Doorbell],
    pub(crate) windows: &'a [SharedMemory],
    pub(crate) gic: &'a Gic,
}

/// Applies the changes and returns the tree's new bytes.
pub(crate) fn apply(mut tree: Tree, changes: &Changes<'_>) -> Result<Vec<u8>, Refusal> {
    let shape = Cells::of_root(&tree);
    if !matches!((shape.address, shape.size), (1 | 2, 1 | 2)) {
        return Err(Refusal::init("the root has neither 1 nor 2 cells"));
    }
    let before = crate::fdt::total_size(changes.offer.tree_bytes).unwrap_or_default();
    patch_chosen(&mut tree, changes.offer.seed);
    patch_memory(&mut tree, shape, changes.memory);
    let reserved = patch_reserved(&mut tree, shape, changes);
    patch_gic(&mut tree, shape, changes);
    let (mut hypervisor, bells) = (hypervisor(changes), bells(changes));
    // The overlay has all of this whatever the tree had of it.
    let made = ["memory", "reserved-memory"].into_iter().filter_map(|name| tree.root.child(name).cloned());
    let additions: Vec<Node> = made.chain([vsoc(), hypervisor.clone()]).collect();
    let overlay = overlay::size(changes, &additions, &reserved, &bells);
    hypervisor.children.extend(bells);
    tree.root.children.push(hypervisor);
    tree.root.children.push(vsoc());
    let patched = tree.write();
    check_room(changes.offer, before, overlay, patched.len())?;
    Ok(patched)
}

/// rule 3.1. `after` is what the two become together.
fn check_room(offer: &Offer<'_>, before: usize, overlay: usize, after: usize) -> Result<(), Refusal> {
    let room = usize::try_from(offer.tree.size).unwrap_or(usize::MAX);
    let last = before.next_multiple_of(4) + overlay;
    let in_place = last > HEAP_MAX && offer.build == Build::Debug;
    if in_place && room < 2 * last {
        return Err(Refusal::denied(format!(
            "the final tree of {last} bytes is made in place and wants {} bytes of room, not {room}",
            2 * last
        )));
    }
    if in_place && !last.is_multiple_of(8) {
        return Err(Refusal::denied(format!("the working copy at offset {last} is not 8-byte aligned")));
    }
    if room < after {
        return Err(Refusal::denied(format!("the final tree of {after} bytes exceeds its range of {room}")));
    }
    Ok(())
}

fn patch_chosen(tree: &mut Tree, seed: u64) {
    if let Some(chosen) = tree.root.child_mut("chosen") {
        chosen.set_u64("kaslr-seed", seed);
    }
}

fn push_number(cells: &mut Vec<u8>, value: u64, count: usize) {
    let bytes = value.to_be_bytes();
    cells.extend(bytes.get(8 - 4 * count.min(2)..).unwrap_or_default());
}

fn reg(shape: Cells, ranges: &[(u64, u64)]) -> Vec<u8> {
    let mut value = Vec::new();
    for (address, size) in ranges {
        push_number(&mut value, *address, shape.address);
        push_number(&mut value, *size, shape.size);
    }
    value
}

/// `/memory` is made or its reg replaced with the accepted memory.
fn patch_memory(tree: &mut Tree, shape: Cells, memory: &Memory) {
    if tree.root.child("memory").is_none() {
        tree.root.children.push(Node::new("memory"));
    }
    if let Some(node) = tree.root.child_mut("memory") {
        node.set_strings("device_type", &["memory"]);
        node.set("reg", reg(shape, &memory.ranges));
    }
}

/// The names of the children that got a handle.
fn patch_reserved(tree: &mut Tree, shape: Cells, changes: &Changes<'_>) -> Vec<String> {
    if tree.root.child("reserved-memory").is_none() {
        let mut node = Node::new("reserved-memory");
        node.set_u32("#address-cells", shape.address as u32);
        node.set_u32("#size-cells", shape.size as u32);
        node.set("ranges", Vec::new());
        tree.root.children.push(node);
    }
    let mut named = Vec::new();
    let Some(node) = tree.root.child_mut("reserved-memory") else { return named };
    for (handle, child) in node.children.iter_mut().filter(|child| child.has("reg")).enumerate() {
        child.set_u32("qcom,rm-mem-handle", handle as u32 + 1);
        named.push(child.name.clone());
    }
    for index in &changes.memory.buffers {
        let (Some(address), Some(region)) =
            (changes.memory.placed.get(*index), changes.offer.regions.get(*index))
        else {
            continue;
        };
        let mut buffer = Node::new(&format!("buffer@{address:x}"));
        buffer.set("reg", reg(shape, &[(*address, region.size)]));
        buffer.set("no-map", Vec::new());
        buffer.set_u32("qcom,label", region.label);
        node.children.push(buffer);
    }
    named
}

/// A GIC without `reg` gets the frames the Resource Manager chose.
fn patch_gic(tree: &mut Tree, shape: Cells, changes: &Changes<'_>) {
    let Some(name) = &changes.gic.patch else { return };
    let vcpus = changes.gic.distributor.saturating_sub(changes.gic.redistributors);
    if let Some(node) = tree.root.child_mut(name) {
        node.set(
            "reg",
            reg(shape, &[(changes.gic.distributor, 0x1_0000), (changes.gic.redistributors, vcpus)]),
        );
    }
}

fn vsoc() -> Node {
    let mut node = Node::new("vsoc");
    node.set_u32("#address-cells", 2);
    node.set_u32("#size-cells", 2);
    node.set_strings("compatible", &["simple-bus"]);
    node.set("ranges", Vec::new());
    node
}

fn hypervisor(changes: &Changes<'_>) -> Node {
    let mut node = Node::new("hypervisor");
    node.set_u32("#address-cells", 2);
    node.set_u32("#size-cells", 0);
    let compatible =
        ["gunyah-hypervisor", "qcom,gunyah-hypervisor-1.0", "qcom,gunyah-hypervisor", "simple-bus"];
    node.set_strings("compatible", &compatible);
    let mut identity = Node::new("qcom,gunyah-vm");
    identity.set_strings("compatible", &["qcom,gunyah-vm-id-1.0", "qcom,gunyah-vm-id"]);
    identity.set_u32("qcom,vmid", VMID);
    identity.set_u32("qcom,owner-vmid", OWNER_VMID);
    identity.set_strings("qcom,vendor", &["Qualcomm"]);
    identity.set_strings("qcom,image-name", &[changes.image_name]);
    node.children.push(identity);
    node
}

fn bells(changes: &Changes<'_>) -> Vec<Node> {
    let numbered = changes.doorbells.iter().zip(FIRST_CAPABILITY..);
    numbered.map(|(bell, capability)| doorbell(bell, capability)).collect()
}

/// The node of a bell: the last component of `generate`, at its capability.
fn doorbell(bell: &Doorbell, capability: u64) -> Node {
    let name = bell.generate.as_deref().and_then(|path| path.rsplit('/').next()).unwrap_or("doorbell");
    let mut node = Node::new(&format!("{name}@{capability:x}"));
    node.set_strings("compatible", &["qcom,gunyah-doorbell", "qcom,gunyah-capability"]);
    node.set_u64("reg", capability);
    node.set_u32("qcom,label", bell.label);
    node.set_u32("label", bell.label);
    if let Some(line) = bell.line {
        let cells = [line.kind, line.number, if line.level { 4 } else { 1 }];
        node.set("interrupts", cells.iter().flat_map(|cell| cell.to_be_bytes()).collect());
    }
    node
}
