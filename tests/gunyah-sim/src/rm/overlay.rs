//! The overlay by which the Resource Manager changes the tree (rule 3.1): only its size matters here.

use crate::fdt::{Node, Tree};

use super::patch::Changes;
use super::vdevices::SharedMemory;

/// Bytes of the overlay. `additions` are the nodes that are added to the root, those of doorbells excepted, and
/// `reserved` the children of `/reserved-memory` that get a handle.
pub(super) fn size(changes: &Changes<'_>, additions: &[Node], reserved: &[String], bells: &[Node]) -> usize {
    let mut overlay = Node::new("");
    let mut add = |target: &str, content: Node| {
        let mut fragment = Node::new(&format!("fragment@{}", overlay.children.len()));
        fragment.set_strings("target-path", &[target]);
        fragment.children.push(content);
        overlay.children.push(fragment);
    };
    for name in reserved {
        let mut content = Node::new("__overlay__");
        content.set_u32("qcom,rm-mem-handle", 0);
        add(&format!("/reserved-memory/{name}"), content);
    }
    let mut chosen = Node::new("__overlay__");
    chosen.set_u64("kaslr-seed", changes.offer.seed);
    add("/chosen", chosen);
    for node in additions {
        add("/", below(node.clone()));
    }
    // Every vdevice is a fragment of its own, with the path to its node.
    for bell in bells {
        let mut hypervisor = Node::new("hypervisor");
        hypervisor.children.push(bell.clone());
        add("/", below(hypervisor));
    }
    for window in changes.windows {
        let mut hypervisor = Node::new("hypervisor");
        hypervisor.children.push(shared_memory(window));
        add("/", below(hypervisor));
    }
    overlay.children.push(Node::new("__fixups__"));
    overlay.children.push(Node::new("__local_fixups__"));
    Tree { root: overlay, ..Tree::default() }.write().len()
}

fn below(node: Node) -> Node {
    let mut content = Node::new("__overlay__");
    content.children.push(node);
    content
}

fn shared_memory(window: &SharedMemory) -> Node {
    let mut node = Node::new("qcom,shm");
    node.set_strings("compatible", &["qcom,shared-memory"]);
    for property in ["buffer", "memory-region", "peer", "qcom,label", "label"] {
        node.set_u32(property, window.label);
    }
    node.set_u64("dma_base", 0);
    node
}
