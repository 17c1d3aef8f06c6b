//! What the Resource Manager reads in the device tree.
//!
//! It builds the VM from the node `gunyah-vm-config` and takes what is missing or misspelt for a default, in silence:
//! a VM then fails to start for a reason that is nowhere said, or lacks its interrupts. The node's cells are those of
//! the root's first child, which must therefore be one with two address and two size cells.

use vm_fdt::FdtWriter;

use super::layout::{self, Purpose};
use crate::hypervisor::Error;
use crate::hypervisor::plan::{GIC_PATH, VmPlan};

/// Interrupt specifier of GICv3 (Linux bindings, `arm,gic-v3`): a shared peripheral interrupt.
const GIC_SPI: u32 = 0;
/// Interrupt specifier: rising edge.
const EDGE_RISING: u32 = 1;

/// Writes `gunyah-vm-config` at the root of the tree.
pub(crate) fn write(plan: &VmPlan<'_>, fdt: &mut FdtWriter) -> Result<(), Error> {
    let config = fdt.begin_node("gunyah-vm-config")?;
    fdt.property_string("image-name", plan.name)?;
    fdt.property_string("os-type", "linux")?;
    write_memory(plan, fdt)?;

    // The Resource Manager takes a phandle as well, with a warning.
    let interrupts = fdt.begin_node("interrupts")?;
    fdt.property_string("config", GIC_PATH)?;
    fdt.end_node(interrupts)?;

    // vCPUs run when a thread of this process lends them its time.
    let vcpus = fdt.begin_node("vcpus")?;
    fdt.property_string("affinity", "proxy")?;
    fdt.end_node(vcpus)?;

    let vdevices = fdt.begin_node("vdevices")?;
    fdt.property_string("generate", "/hypervisor")?;
    for spi in plan.spis() {
        write_doorbell(spi, fdt)?;
    }
    if let Some(window) = layout::find(plan, Purpose::Window) {
        write_window(window.label(), window.range.base, fdt)?;
    }
    fdt.end_node(vdevices)?;
    fdt.end_node(config)?;
    Ok(())
}

fn write_memory(plan: &VmPlan<'_>, fdt: &mut FdtWriter) -> Result<(), Error> {
    let memory = fdt.begin_node("memory")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    if let Some(ram) = layout::find(plan, Purpose::Ram) {
        let end = layout::find(plan, Purpose::Window).unwrap_or(ram).end();
        fdt.property_u64("base-address", ram.range.base)?;
        fdt.property_u64("size-max", end.saturating_sub(ram.range.base))?;
    }
    if let Some(firmware) = plan.firmware {
        fdt.property_u64("firmware-address", firmware.base)?;
        fdt.property_u64("firmware-size-max", firmware.size)?;
    }
    fdt.end_node(memory)?;
    Ok(())
}

/// The doorbell of an SPI. Its label is what the irqfd names.
fn write_doorbell(spi: u32, fdt: &mut FdtWriter) -> Result<(), Error> {
    let name = format!("bell-{spi:x}");
    let doorbell = fdt.begin_node(&name)?;
    fdt.property_string("vdevice-type", "doorbell")?;
    fdt.property_string("generate", &format!("/hypervisor/{name}"))?;
    fdt.property_u32("label", spi)?;
    fdt.property_null("peer-default")?;
    fdt.property_null("source-can-clear")?;
    fdt.property_array_u32("interrupts", &[GIC_SPI, spi, EDGE_RISING])?;
    fdt.end_node(doorbell)?;
    Ok(())
}

/// The shared window: without this node the Resource Manager of generation A maps its parcel elsewhere.
fn write_window(label: u32, base: u64, fdt: &mut FdtWriter) -> Result<(), Error> {
    let window = fdt.begin_node(&format!("shm-{label:x}"))?;
    fdt.property_string("vdevice-type", "shm")?;
    fdt.property_null("peer-default")?;
    fdt.property_u64("dma_base", 0)?;
    let memory = fdt.begin_node("memory")?;
    fdt.property_null("optional")?;
    fdt.property_u32("label", label)?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u64("base", base)?;
    fdt.end_node(memory)?;
    fdt.end_node(window)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::gunyah::fixture::{Fixture, MIB};
    use crate::memory::RAM_BASE;

    /// The tree that the node alone makes, as `path/property` and value.
    fn tree(fixture: &Fixture) -> Vec<(String, Vec<u8>)> {
        let mut fdt = FdtWriter::new().unwrap();
        let root = fdt.begin_node("").unwrap();
        write(&fixture.plan(), &mut fdt).unwrap();
        fdt.end_node(root).unwrap();
        properties(&fdt.finish().unwrap())
    }

    /// Reads a tree back (Devicetree Specification 0.4, 5).
    fn properties(blob: &[u8]) -> Vec<(String, Vec<u8>)> {
        let word = |at: usize| u32::from_be_bytes(blob[at..at + 4].try_into().unwrap()) as usize;
        let text = |at: usize| {
            let end = at + blob[at..].iter().position(|byte| *byte == 0).unwrap();
            String::from_utf8(blob[at..end].to_vec()).unwrap()
        };
        let (mut at, strings) = (word(8), word(12));
        let (mut path, mut found) = (Vec::new(), Vec::new());
        loop {
            let token = word(at);
            at += 4;
            match token {
                1 => {
                    path.push(text(at));
                    at = (at + path.last().unwrap().len() + 1).next_multiple_of(4);
                }
                2 => {
                    path.pop();
                }
                3 => {
                    let (length, name) = (word(at), text(strings + word(at + 4)));
                    let value = blob[at + 8..at + 8 + length].to_vec();
                    found.push((format!("{}/{name}", path.join("/")), value));
                    at = (at + 8 + length).next_multiple_of(4);
                }
                9 => return found,
                _ => {}
            }
        }
    }

    fn value(tree: &[(String, Vec<u8>)], path: &str) -> Option<Vec<u8>> {
        let full = format!("/gunyah-vm-config/{path}");
        tree.iter().find(|(name, _)| *name == full).map(|(_, value)| value.clone())
    }

    #[test]
    fn names_what_the_resource_manager_requires() {
        let tree = tree(&Fixture::shared());
        assert_eq!(value(&tree, "image-name").unwrap(), b"guest\0");
        assert_eq!(value(&tree, "os-type").unwrap(), b"linux\0");
        assert_eq!(value(&tree, "memory/base-address").unwrap(), RAM_BASE.to_be_bytes());
        assert_eq!(value(&tree, "memory/size-max").unwrap(), (16 * MIB).to_be_bytes());
        assert_eq!(value(&tree, "interrupts/config").unwrap(), b"/intc\0");
        assert_eq!(value(&tree, "vcpus/affinity").unwrap(), b"proxy\0");
        assert_eq!(value(&tree, "vdevices/generate").unwrap(), b"/hypervisor\0");
        assert!(value(&tree, "memory/firmware-address").is_none());
    }

    #[test]
    fn gives_every_line_an_edge_triggered_doorbell_of_its_label() {
        let tree = tree(&Fixture::shared());
        assert_eq!(value(&tree, "vdevices/bell-5/vdevice-type").unwrap(), b"doorbell\0");
        assert_eq!(value(&tree, "vdevices/bell-5/generate").unwrap(), b"/hypervisor/bell-5\0");
        assert_eq!(value(&tree, "vdevices/bell-5/label").unwrap(), [0, 0, 0, 5]);
        assert_eq!(value(&tree, "vdevices/bell-5/peer-default").unwrap(), b"");
        assert_eq!(value(&tree, "vdevices/bell-5/source-can-clear").unwrap(), b"");
        assert_eq!(value(&tree, "vdevices/bell-5/interrupts").unwrap(), [0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1]);
        assert!(value(&tree, "vdevices/bell-1/label").is_some());
    }

    #[test]
    fn gives_every_message_interrupt_a_doorbell() {
        let fixture = Fixture { message_spis: 6..8, ..Fixture::shared() };
        let tree = tree(&fixture);
        assert_eq!(value(&tree, "vdevices/bell-6/label").unwrap(), [0, 0, 0, 6]);
        assert_eq!(value(&tree, "vdevices/bell-7/interrupts").unwrap(), [0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1]);
        assert!(value(&tree, "vdevices/bell-8/label").is_none());
    }

    #[test]
    fn places_the_window_of_a_protected_guest() {
        let tree = tree(&Fixture::lent());
        assert_eq!(value(&tree, "vdevices/shm-1/vdevice-type").unwrap(), b"shm\0");
        assert_eq!(value(&tree, "vdevices/shm-1/memory/label").unwrap(), [0, 0, 0, 1]);
        let window = RAM_BASE + 12 * MIB;
        assert_eq!(value(&tree, "vdevices/shm-1/memory/base").unwrap(), window.to_be_bytes());
        assert_eq!(value(&tree, "memory/size-max").unwrap(), (16 * MIB).to_be_bytes());
    }

    #[test]
    fn says_where_firmware_goes() {
        let tree = tree(&Fixture::with_firmware());
        assert_eq!(value(&tree, "memory/firmware-address").unwrap(), 0x7fc0_0000u64.to_be_bytes());
        assert_eq!(value(&tree, "memory/base-address").unwrap(), RAM_BASE.to_be_bytes());
    }
}
