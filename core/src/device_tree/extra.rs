//! The further nodes of devices, which refer to the device's own.

use std::collections::BTreeSet;

use gvmm_plugin_api::fdt::{ExtraNode, FdtValue};
use vm_fdt::FdtWriter;

use super::device::{OF_THE_MACHINE, Phandles, PlacedNode, write_property};

/// Properties of the machine that an extra node may have if they refer to the device.
const MAY_REFER: [&str; 2] = ["interrupt-parent", "interrupts-extended"];

/// Whether a device has nodes that refer to its own.
pub(super) fn refer_to_device(placed: &PlacedNode) -> bool {
    all(placed).iter().any(|node| !node.references.is_empty())
}

/// The properties of a device's extra nodes that do not refer to it.
pub(super) fn properties(placed: &PlacedNode) -> impl Iterator<Item = &(String, FdtValue)> {
    all(placed).into_iter().flat_map(|node| &node.properties)
}

/// The extra nodes of a device on all levels.
fn all(placed: &PlacedNode) -> Vec<&ExtraNode> {
    let mut found: Vec<_> = placed.below.iter().chain(&placed.beside).collect();
    let mut at = 0;
    while let Some(node) = found.get(at) {
        found.extend(&node.children);
        at += 1;
    }
    found
}

/// Writes the extra nodes of one device.
pub(super) struct ExtraWriter<'a> {
    pub(super) phandles: &'a Phandles<'a>,
    pub(super) fdt: &'a mut FdtWriter,
}

impl ExtraWriter<'_> {
    /// Writes nodes below one that is open.
    pub(super) fn write_below(&mut self, nodes: &[ExtraNode]) -> Result<(), String> {
        let mut names = BTreeSet::new();
        for node in nodes {
            if !names.insert(&node.name) {
                return Err(format!("the extra node '{}' is there twice", node.name));
            }
            self.write(node, &node.name, &["reg"])?;
        }
        Ok(())
    }

    /// Writes a device's nodes under the root.
    pub(super) fn write_beside(&mut self, placed: &PlacedNode) -> Result<(), String> {
        let mut names = BTreeSet::new();
        for node in &placed.beside {
            let name = &node.name;
            let Some((base, _)) = placed.windows.first() else {
                return Err(format!(
                    "the extra node '{name}': only a device with registers has nodes beside its own"
                ));
            };
            if !names.insert(name) {
                return Err(format!("the extra node '{name}' is there twice"));
            }
            if name.contains('@') || name.len() > ExtraNode::MAX_NAME_BESIDE {
                let longest = ExtraNode::MAX_NAME_BESIDE;
                return Err(format!(
                    "the extra node '{name}': a name beside a device's has no '@' and up to {longest} bytes"
                ));
            }
            self.write(node, &format!("{name}-{base:x}"), &[])?;
        }
        Ok(())
    }

    /// Writes a node and what is below it. `free` are properties of the machine that the node may have.
    fn write(&mut self, node: &ExtraNode, name: &str, free: &[&str]) -> Result<(), String> {
        let failed = |problem: String| format!("the extra node '{}': {problem}", node.name);
        let format = |error: vm_fdt::Error| failed(error.to_string());
        if node.name.is_empty() {
            return Err("an extra node has no name".to_owned());
        }
        let open = self.fdt.begin_node(name).map_err(format)?;
        if !node.compatible.is_empty() {
            self.fdt.property_string_list("compatible", node.compatible.clone()).map_err(format)?;
        }
        self.write_properties(node, free).map_err(failed)?;
        self.write_below(&node.children)?;
        self.fdt.end_node(open).map_err(format)
    }

    fn write_properties(&mut self, node: &ExtraNode, free: &[&str]) -> Result<(), String> {
        let mut written = BTreeSet::new();
        let mut check = |name: &String, free: &[&str]| {
            if OF_THE_MACHINE.contains(&name.as_str()) && !free.contains(&name.as_str()) {
                return Err(format!("the property '{name}' is the machine's to give"));
            }
            if written.insert(name.clone()) {
                Ok(())
            } else {
                Err(format!("the property '{name}' is there twice"))
            }
        };
        let bad = |name: &str, error: vm_fdt::Error| format!("property '{name}': {error}");
        for (name, value) in &node.properties {
            check(name, free)?;
            write_property(name, value, self.phandles.clocks, self.fdt).map_err(|error| bad(name, error))?;
        }
        for (name, specifiers) in &node.references {
            check(name, &MAY_REFER)?;
            let device = self.phandles.device.iter();
            let cells = specifiers.iter().flat_map(|cells| device.clone().chain(cells)).copied();
            let cells: Vec<u32> = cells.collect();
            self.fdt.property_array_u32(name, &cells).map_err(|error| bad(name, error))?;
        }
        Ok(())
    }
}
