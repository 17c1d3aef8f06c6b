//! `/cpus` (rule 3.2) and whether PSCI is on.

use crate::fdt::{Node, Tree};

use super::Refusal;

/// What the processor nodes amount to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Processors {
    pub(crate) count: u32,
    pub(crate) psci: bool,
}

pub(crate) fn read(tree: &Tree, path: &str, cores: u32) -> Result<Processors, Refusal> {
    let node = tree.at(path).ok_or_else(|| Refusal::init(format!("there is no {path}")))?;
    let processors: Vec<&Node> =
        node.children.iter().filter(|child| child.string("device_type") == Some("cpu")).collect();
    let count = u32::try_from(processors.len()).unwrap_or(u32::MAX);
    if count == 0 {
        return Err(Refusal::init(format!("{path} has no cpu")));
    }
    if count > cores {
        return Err(Refusal::init(format!("invalid vcpu cnt({count}) vs max cores({cores})")));
    }
    for node in &processors {
        let known = node.string("status").is_none_or(|status| matches!(status, "okay" | "disabled" | "fail"));
        if !known {
            return Err(Refusal::init(format!("{} has an unknown status", node.name)));
        }
    }
    let boot = processors.iter().position(|node| matches!(node.string("status"), None | Some("okay")));
    let boot = boot.ok_or_else(|| Refusal::init("no cpu is left to boot on"))?;
    for (position, node) in processors.iter().enumerate() {
        // PSCI or the vendor's hypercall form (rule 3.2, 9).
        let method = node.string("enable-method");
        if position != boot && !matches!(method, Some("psci" | "qcom,gunyah-hvc")) {
            return Err(Refusal::init(format!("secondary {} has no enable-method \"psci\"", node.name)));
        }
    }
    Ok(Processors { count, psci: has_psci(tree, &processors) })
}

/// With neither a node nor a processor that names PSCI, SYSTEM_OFF returns -1 to the guest (rule 9).
fn has_psci(tree: &Tree, processors: &[&Node]) -> bool {
    let by_node = tree
        .root
        .walk()
        .iter()
        .any(|node| node.is_compatible("arm,psci-0.2") || node.is_compatible("arm,psci-1.0"));
    by_node || processors.iter().any(|node| node.string("enable-method") == Some("psci"))
}
