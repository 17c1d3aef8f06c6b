//! The device-tree nodes of a device with registers.

use std::collections::BTreeSet;

use gvmm_plugin_api::fdt::{ExtraNode, FdtNode};

use super::report::Verdict;
use super::subject::Subject;

/// Longest name of a node or a property (Devicetree Specification 0.4, 2.2.1 and 2.2.4).
const MAX_NAME: usize = 31;
/// Properties that the machine adds.
const MACHINES: [&str; 8] = [
    "reg",
    "interrupts",
    "interrupt-parent",
    "interrupts-extended",
    "compatible",
    "phandle",
    "linux,phandle",
    "memory-region",
];
/// Those of them with which an extra node may refer to the device.
const MAY_REFER: [&str; 2] = ["interrupt-parent", "interrupts-extended"];

pub(super) fn node(subject: &Subject) -> Result<Verdict, String> {
    let Some((_, device)) = subject.mmio()? else {
        return Ok(Verdict::Skip("the transport makes the nodes of virtio devices".to_owned()));
    };
    check_node(&device.node())?;
    device.nodes_below().iter().try_for_each(|node| check_extra(node, MAX_NAME, &["reg"]))?;
    device.nodes_beside().iter().try_for_each(|node| check_extra(node, ExtraNode::MAX_NAME_BESIDE, &[]))?;
    Ok(Verdict::Pass)
}

fn check_node(node: &FdtNode) -> Result<(), String> {
    check_name(&node.name, MAX_NAME)?;
    if node.compatible.is_empty() {
        return Err("no driver finds a node without `compatible`".to_owned());
    }
    check_compatible(&node.compatible)?;
    let mut names = BTreeSet::new();
    node.properties.iter().try_for_each(|(name, _)| check_property(name, &[], &mut names))
}

/// Checks an extra node and all below it. `free` are properties of the machine that it may have.
fn check_extra(node: &ExtraNode, longest: usize, free: &[&str]) -> Result<(), String> {
    let of_node = |error| format!("extra node '{}': {error}", node.name);
    // A node with an address on the device's bus has that in its name too.
    let name =
        if free.is_empty() { node.name.as_str() } else { node.name.split('@').next().unwrap_or_default() };
    check_name(name, longest)?;
    check_compatible(&node.compatible).map_err(of_node)?;
    let mut names = BTreeSet::new();
    for (name, _) in &node.properties {
        check_property(name, free, &mut names).map_err(of_node)?;
    }
    for (name, _) in &node.references {
        check_property(name, &MAY_REFER, &mut names).map_err(of_node)?;
    }
    node.children.iter().try_for_each(|child| check_extra(child, MAX_NAME, &["reg"]))
}

fn check_name(name: &str, longest: usize) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || ",._+-".contains(c);
    let begins = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic());
    if !begins || name.len() > longest || !name.chars().all(good) {
        return Err(format!("node name '{name}' is not 1 to {longest} letters, digits and ',._+-'"));
    }
    Ok(())
}

fn check_compatible(list: &[String]) -> Result<(), String> {
    match list.iter().find(|text| text.is_empty() || text.contains('\0')) {
        Some(text) => Err(format!("no driver is found by the `compatible` string {text:?}")),
        None => Ok(()),
    }
}

fn check_property<'n>(name: &'n str, free: &[&str], names: &mut BTreeSet<&'n str>) -> Result<(), String> {
    if MACHINES.contains(&name) && !free.contains(&name) {
        return Err(format!("property '{name}' is the machine's to set"));
    }
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(format!("property name '{name}' is not 1 to {MAX_NAME} characters long"));
    }
    if !names.insert(name) {
        return Err(format!("property '{name}' is there twice"));
    }
    Ok(())
}
