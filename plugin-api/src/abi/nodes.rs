//! The extension `gvmm.nodes/1`. Frozen.
#![allow(non_local_definitions, reason = "abi_stable's derive puts impls into functions")]

use std::sync::Arc;

use abi_stable::StableAbi;
use abi_stable::sabi_trait;
use abi_stable::std_types::{RArc, ROption, RResult, RString, RVec};

use super::contain;
use super::extension::Extension;
use super::mmio::RawProperty;
use crate::fdt::ExtraNode;
use crate::log::Scope;
use crate::mmio::MmioDevice;

/// The further nodes of an MMIO device across the boundary.
#[sabi_trait]
pub trait RawNodes: Send + Sync {
    /// See [`MmioDevice::nodes_below`].
    fn below(&self) -> RResult<RVec<RawExtraNode>, RString>;
    /// See [`MmioDevice::nodes_beside`].
    #[sabi(last_prefix_field)]
    fn beside(&self) -> RResult<RVec<RawExtraNode>, RString>;
}

/// A shared [`RawNodes`].
pub type RawNodesArc = RawNodes_TO<'static, RArc<()>>;

/// An [`ExtraNode`] without its children. These follow it, each with what is below it.
#[repr(C)]
#[derive(StableAbi)]
pub struct RawExtraNode {
    /// Number of nodes of the list that it is below.
    depth: u32,
    name: RString,
    compatible: RVec<RString>,
    properties: RVec<RawProperty>,
    references: RVec<RawReference>,
}

/// A property that refers to the device.
#[repr(C)]
#[derive(StableAbi)]
pub struct RawReference {
    name: RString,
    specifiers: RVec<RVec<u32>>,
}

/// The plugin's side: the nodes of a device for the boundary.
struct Export(Arc<dyn MmioDevice>, Scope);

impl RawNodes for Export {
    fn below(&self) -> RResult<RVec<RawExtraNode>, RString> {
        contain(self.1, || flatten(self.0.nodes_below())).map_err(RString::from).into()
    }

    fn beside(&self) -> RResult<RVec<RawExtraNode>, RString> {
        contain(self.1, || flatten(self.0.nodes_beside())).map_err(RString::from).into()
    }
}

/// The extension for a device's `gvmm.nodes/1`.
pub(crate) fn export(device: Arc<dyn MmioDevice>, scope: Scope) -> ROption<Extension> {
    let object = RawNodes_TO::from_ptr(RArc::new(Export(device, scope)), sabi_trait::TD_Opaque);
    ROption::RSome(Extension::wrap(object))
}

/// Nodes in a list, each before its children.
fn flatten(nodes: Vec<ExtraNode>) -> RVec<RawExtraNode> {
    let mut list = RVec::new();
    // The next node to write is the last.
    let mut waiting: Vec<_> = nodes.into_iter().rev().map(|node| (0, node)).collect();
    while let Some((depth, node)) = waiting.pop() {
        waiting.extend(node.children.into_iter().rev().map(|child| (depth + 1, child)));
        let reference = |(name, cells): (String, Vec<Vec<u32>>)| RawReference {
            name: name.into(),
            specifiers: cells.into_iter().map(RVec::from).collect(),
        };
        list.push(RawExtraNode {
            depth,
            name: node.name.into(),
            compatible: node.compatible.into_iter().map(RString::from).collect(),
            properties: node.properties.into_iter().map(RawProperty::from).collect(),
            references: node.references.into_iter().map(reference).collect(),
        });
    }
    list
}

#[cfg(feature = "host")]
pub(crate) use import::{Room, import};

/// The host's side. A list may be anything.
#[cfg(feature = "host")]
mod import {
    use super::super::mmio::property;
    use super::{ExtraNode, RString, RVec, RawExtraNode, RawReference};
    use crate::fdt::FdtValue;

    /// The nodes of a list. `room` is what the device may still have of nodes and bytes, and has less afterwards.
    pub(crate) fn import(list: RVec<RawExtraNode>, room: &mut Room) -> Result<Vec<ExtraNode>, String> {
        let mut roots = Vec::new();
        // Nodes that may still get children, each below the one before it.
        let mut open: Vec<ExtraNode> = Vec::new();
        for raw in list {
            let depth = raw.depth as usize;
            if depth > open.len() {
                return Err(format!("the extra node '{}' is below none", raw.name));
            }
            if depth >= ExtraNode::MAX_DEPTH {
                return Err(format!("extra nodes are more than {} deep", ExtraNode::MAX_DEPTH));
            }
            close(&mut open, depth, &mut roots);
            let node = node(raw)?;
            room.take(&node)?;
            open.push(node);
        }
        close(&mut open, 0, &mut roots);
        Ok(roots)
    }

    /// Puts open nodes below the ones before them until `depth` of them are left.
    fn close(open: &mut Vec<ExtraNode>, depth: usize, roots: &mut Vec<ExtraNode>) {
        while open.len() > depth {
            let Some(node) = open.pop() else { return };
            open.last_mut().map_or(&mut *roots, |parent| &mut parent.children).push(node);
        }
    }

    fn node(raw: RawExtraNode) -> Result<ExtraNode, String> {
        let reference = |raw: RawReference| {
            let specifiers = raw.specifiers.into_iter().map(RVec::into_vec).collect();
            (raw.name.into_string(), specifiers)
        };
        let name = raw.name.into_string();
        let properties = raw.properties.into_iter().map(property).collect::<Result<_, _>>();
        Ok(ExtraNode {
            properties: properties.map_err(|error| format!("the extra node '{name}': {error}"))?,
            name,
            compatible: raw.compatible.into_iter().map(RString::into_string).collect(),
            references: raw.references.into_iter().map(reference).collect(),
            children: Vec::new(),
        })
    }

    /// What a device may still have of extra nodes.
    pub(crate) struct Room {
        nodes: usize,
        bytes: usize,
    }

    impl Default for Room {
        fn default() -> Self {
            Self { nodes: ExtraNode::MAX_NODES, bytes: ExtraNode::MAX_BYTES }
        }
    }

    impl Room {
        fn take(&mut self, node: &ExtraNode) -> Result<(), String> {
            let fewer = self.nodes.checked_sub(1);
            self.nodes = fewer.ok_or(format!("more than {} extra nodes", ExtraNode::MAX_NODES))?;
            let less = self.bytes.checked_sub(size(node));
            self.bytes = less.ok_or(format!("more than {} bytes of extra nodes", ExtraNode::MAX_BYTES))?;
            Ok(())
        }
    }

    /// Bytes of a node's names and values, but not of its children.
    fn size(node: &ExtraNode) -> usize {
        const CELL: usize = 4;
        let strings = |list: &[String]| list.iter().map(|text| text.len() + 1).sum::<usize>();
        let value = |value: &FdtValue| match value {
            FdtValue::Empty => 0,
            FdtValue::U32s(list) | FdtValue::FixedClocks(list) => list.len() * CELL,
            FdtValue::U64s(list) => list.len() * 2 * CELL,
            FdtValue::Strings(list) => strings(list),
            FdtValue::Bytes(list) => list.len(),
        };
        let properties = node.properties.iter().map(|(name, of)| name.len() + CELL + value(of));
        // The phandle is a cell too.
        let cells = |list: &[Vec<u32>]| list.iter().map(|cells| (cells.len() + 1) * CELL).sum::<usize>();
        let references = node.references.iter().map(|(name, of)| name.len() + CELL + cells(of));
        node.name.len() + strings(&node.compatible) + properties.sum::<usize>() + references.sum::<usize>()
    }
}

#[cfg(all(test, feature = "host"))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

    use super::*;
    use crate::fdt::FdtValue;

    fn taken(nodes: Vec<ExtraNode>) -> Result<Vec<ExtraNode>, String> {
        import(flatten(nodes), &mut Room::default())
    }

    fn named(name: &str) -> ExtraNode {
        ExtraNode::new(name, &["test,node"])
    }

    #[test]
    fn nodes_cross_the_boundary_with_all_they_have() {
        let key = ExtraNode::new("key", &[])
            .with("linux,code", FdtValue::U32s(vec![116]))
            .with_device("gpios", &[&[3, 0], &[]]);
        let first = named("first").with_child(key.clone()).with_child(named("b").with_child(named("c")));
        let nodes = vec![first, named("second").with_child(key), named("third")];
        assert_eq!(taken(nodes.clone()), Ok(nodes));
    }

    #[test]
    fn a_list_that_is_no_tree_is_refused() {
        let mut list = flatten(vec![named("top").with_child(named("stray"))]);
        list[1].depth = 2;
        let error = import(list, &mut Room::default()).unwrap_err();
        assert_eq!(error, "the extra node 'stray' is below none");
        let mut list = flatten(vec![named("top")]);
        list[0].depth = u32::MAX;
        assert!(import(list, &mut Room::default()).is_err());
    }

    #[test]
    fn depth_number_and_size_are_bounded() {
        let deep = |depth| (1..depth).fold(named("a"), |node, _| named("a").with_child(node));
        assert!(taken(vec![deep(ExtraNode::MAX_DEPTH)]).is_ok());
        let error = taken(vec![deep(ExtraNode::MAX_DEPTH + 1)]).unwrap_err();
        assert_eq!(error, "extra nodes are more than 4 deep");
        let many = |number| (0..number).map(|_| named("a")).collect();
        assert!(taken(many(ExtraNode::MAX_NODES)).is_ok());
        assert_eq!(taken(many(ExtraNode::MAX_NODES + 1)), Err("more than 64 extra nodes".to_owned()));
        let large = named("a").with("blob", FdtValue::Bytes(vec![0; ExtraNode::MAX_BYTES]));
        assert_eq!(taken(vec![large]), Err("more than 16384 bytes of extra nodes".to_owned()));
        let large = named("a").with_device("refers", &[&[0; ExtraNode::MAX_BYTES / 4]]);
        assert!(taken(vec![large]).is_err());
    }
}
