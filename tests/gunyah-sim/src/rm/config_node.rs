//! `/gunyah-vm-config` (rule 3.2).

use crate::fdt::{Node, Tree, cells, number};

use super::{Cells, Refusal};

/// Longest image name, its end included.
const NAME_MAX: usize = 80;

/// The configuration node's contents.
#[derive(Debug)]
pub(crate) struct Config<'a> {
    pub(crate) image_name: String,
    pub(crate) memory: MemoryConfig,
    /// Path of the processors' node.
    pub(crate) processors: String,
    pub(crate) interrupts: Option<Interrupts>,
    pub(crate) vdevices: Option<&'a Node>,
    pub(crate) warnings: Vec<String>,
}

/// Where the configuration says the interrupt controller is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Interrupts {
    Path(String),
    Phandle(u32),
}

/// `memory {}`. A property of the wrong cell count reads as absent (rule 9).
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct MemoryConfig {
    pub(crate) base_address: Option<u64>,
    pub(crate) size_max: Option<u64>,
    pub(crate) firmware_address: Option<u64>,
    pub(crate) firmware_size_max: Option<u64>,
}

pub(crate) fn read(tree: &Tree) -> Result<Config<'_>, Refusal> {
    let node = tree
        .root
        .child("gunyah-vm-config")
        .or_else(|| tree.root.child("qcom,vm-config"))
        .ok_or_else(|| Refusal::init("there is no /gunyah-vm-config"))?;
    let image_name = node.string("image-name").ok_or_else(|| Refusal::init("image-name is missing"))?;
    if image_name.len() >= NAME_MAX {
        return Err(Refusal::init(format!("image-name is longer than {} bytes", NAME_MAX - 1)));
    }
    let vcpus = node.child("vcpus").ok_or_else(|| Refusal::init("vcpus is missing"))?;
    // A user-space VMM lends its threads: anything but "proxy" wants an affinity map (rule 3.2).
    let affinity = vcpus.string("affinity").unwrap_or("static");
    if affinity != "proxy" {
        return Err(Refusal::init(format!("vcpus/affinity is {affinity:?}, not \"proxy\"")));
    }
    let mut warnings = Vec::new();
    let interrupts = node.child("interrupts").and_then(|node| read_interrupts(node, &mut warnings));
    Ok(Config {
        image_name: image_name.to_owned(),
        memory: read_memory(node, Cells::of_configuration(tree), &mut warnings)?,
        processors: vcpus.string("config").unwrap_or("/cpus").to_owned(),
        interrupts,
        vdevices: node.child("vdevices"),
        warnings,
    })
}

/// A phandle is accepted with a warning; a path is what the Resource Manager wants.
fn read_interrupts(node: &Node, warnings: &mut Vec<String>) -> Option<Interrupts> {
    let value = node.property("config")?;
    if value.first() == Some(&b'/') {
        return node.string("config").map(|path| Interrupts::Path(path.to_owned()));
    }
    warnings.push("interrupts/config is a phandle, not a path".to_owned());
    node.u32("config").map(Interrupts::Phandle)
}

fn read_memory(node: &Node, shape: Cells, warnings: &mut Vec<String>) -> Result<MemoryConfig, Refusal> {
    let memory = node.child("memory").ok_or_else(|| Refusal::init("memory is missing"))?;
    let mut value = |name: &str, count: usize| {
        let given = cells(memory.property(name)?);
        if given.len() != count {
            warnings.push(format!(
                "memory/{name} has {} cells where the first child of the root implies {count}: ignored",
                given.len()
            ));
            return None;
        }
        number(&given, count)
    };
    Ok(MemoryConfig {
        base_address: value("base-address", shape.address),
        size_max: value("size-max", shape.size),
        firmware_address: value("firmware-address", shape.address),
        firmware_size_max: value("firmware-size-max", shape.size),
    })
}
