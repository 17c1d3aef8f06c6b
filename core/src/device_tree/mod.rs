//! The guest's device tree.
//!
//! Every node comes from the machine's plan, from a device's own description, or from the accelerator: no device is
//! known by name here. `chosen` is the first node, with explicit cells: the Gunyah Resource Manager takes the cell
//! counts of the root's first child for all of the root's children.

mod device;
mod extra;
mod pci;
mod platform;
#[cfg(test)]
pub(crate) mod reader;
#[cfg(test)]
mod test;

use std::io;

use vm_fdt::FdtWriter;

use crate::hypervisor::{self, Accelerator, VmPlan};
use crate::loader::Initrd;

pub use device::PlacedNode;
pub use pci::{PCI_HOST, PciNode};
pub use platform::WINDOW;

/// Longest kernel command line (`COMMAND_LINE_SIZE` of arm64 Linux, which includes a NUL). The kernel cuts a longer
/// one without a word.
pub const MAX_CMDLINE: usize = 2047;

/// The tree's size is a multiple of this, which keeps the Resource Manager's working copy behind it aligned.
const SIZE_ALIGNMENT: usize = 8;

/// What the tree is made from.
pub struct Description<'a> {
    /// The VM.
    pub plan: &'a VmPlan<'a>,
    /// Kernel command line.
    pub cmdline: &'a str,
    /// Where the initrd is.
    pub initrd: Option<Initrd>,
    /// Devices in the order of the command line.
    pub nodes: &'a [PlacedNode],
    /// The PCI host, if there are devices on it.
    pub pci: Option<PciNode>,
    /// Randomness for the guest; without it the same machine always has the same tree.
    pub seed: Option<Seed>,
}

/// Randomness that the guest starts with.
#[derive(Clone)]
pub struct Seed {
    kaslr: [u8; 8],
    rng: [u8; 64],
}

impl Seed {
    /// Takes it from the host's kernel.
    ///
    /// # Errors
    ///
    /// Those of getrandom(2).
    pub fn from_host() -> io::Result<Self> {
        let mut seed = Self { kaslr: [0; 8], rng: [0; 64] };
        for bytes in [&mut seed.kaslr[..], &mut seed.rng[..]] {
            // SAFETY: the pointer and the length are those of a writable slice. Up to 256 bytes come in one piece.
            let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
            if usize::try_from(got) != Ok(bytes.len()) {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(seed)
    }
}

/// Why the tree cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The format does not allow a name or a value.
    #[error("device tree: {0}")]
    Format(#[from] vm_fdt::Error),
    /// The accelerator's nodes.
    #[error(transparent)]
    Accelerator(#[from] hypervisor::Error),
    /// The command line is longer than the kernel takes.
    #[error(
        "the kernel command line has {length} bytes and the kernel takes {MAX_CMDLINE}: shorten --cmdline"
    )]
    LongCmdline {
        /// Its bytes.
        length: usize,
    },
    /// A device's node that the format does not allow.
    #[error("the device-tree node '{node}' of a device: {problem}")]
    Device {
        /// Name of the node.
        node: String,
        /// What is wrong.
        problem: String,
    },
    /// The tree is larger than the guest's firmware or hypervisor takes.
    #[error(
        "the device tree has {size} bytes and may have {limit}: {vcpus} vCPUs take {cpu_bytes} of them, {devices} \
         devices {device_bytes}, and {interrupts} interrupts take {interrupt_bytes} or keep them free for the \
         hypervisor; use fewer of them, or fewer queues, or transport=mmio, which has one interrupt a device"
    )]
    TooLarge {
        /// Bytes of the tree.
        size: usize,
        /// Bytes allowed.
        limit: usize,
        /// Number of vCPUs.
        vcpus: u32,
        /// Bytes of their nodes.
        cpu_bytes: usize,
        /// Number of device nodes.
        devices: usize,
        /// Bytes of these.
        device_bytes: usize,
        /// Number of interrupts.
        interrupts: usize,
        /// Bytes of the accelerator's nodes for them, and of what the hypervisor adds for them.
        interrupt_bytes: usize,
    },
}

/// Builds the tree of a machine on an accelerator.
///
/// # Errors
///
/// Whatever in the machine cannot be said in a device tree of the size that the accelerator takes.
pub fn build(description: &Description<'_>, accelerator: &dyn Accelerator) -> Result<Vec<u8>, Error> {
    let length = description.cmdline.len();
    if length > MAX_CMDLINE {
        return Err(Error::LongCmdline { length });
    }
    let plan = description.plan;
    let tree = write(description, accelerator, plan, description.nodes)?;
    let limit = accelerator.device_tree_limit().saturating_sub(accelerator.device_tree_growth(plan));
    if tree.len() > limit { Err(too_large(description, accelerator, tree.len(), limit)?) } else { Ok(tree) }
}

/// What takes how much of a tree that is too large.
fn too_large(
    description: &Description<'_>,
    accelerator: &dyn Accelerator,
    size: usize,
    limit: usize,
) -> Result<Error, Error> {
    let plan = description.plan;
    let without = |plan: &VmPlan<'_>, nodes| {
        Ok::<_, Error>(size.saturating_sub(write(description, accelerator, plan, nodes)?.len()))
    };
    let without_interrupts = VmPlan { lines: &[], message_spis: 0..0, ..plan.clone() };
    let growth = |plan| accelerator.device_tree_growth(plan);
    Ok(Error::TooLarge {
        size,
        limit,
        vcpus: plan.vcpus,
        cpu_bytes: without(&VmPlan { vcpus: 0, ..plan.clone() }, description.nodes)?,
        devices: description.nodes.len(),
        device_bytes: without(plan, &[])?,
        interrupts: plan.spis().count(),
        interrupt_bytes: without(&without_interrupts, description.nodes)?
            + growth(plan).saturating_sub(growth(&without_interrupts)),
    })
}

fn write(
    description: &Description<'_>,
    accelerator: &dyn Accelerator,
    plan: &VmPlan<'_>,
    nodes: &[PlacedNode],
) -> Result<Vec<u8>, Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", platform::GIC_PHANDLE)?;
    platform::write_chosen(description, &mut fdt)?;
    platform::write_memory(plan, &mut fdt)?;
    let pool = platform::write_window(plan, &mut fdt)?;
    platform::write_cpus(plan.vcpus, &mut fdt)?;
    platform::write_psci(&mut fdt)?;
    platform::write_timer(&mut fdt)?;
    platform::write_gic(plan, description.pci.as_ref(), &mut fdt)?;
    device::write_all(nodes, pool, &mut fdt)?;
    if let Some(host) = &description.pci {
        pci::write_host(host, pool, &mut fdt)?;
    }
    accelerator.describe(plan, &mut fdt)?;
    fdt.end_node(root)?;
    Ok(pad(fdt.finish()?))
}

/// Makes the size a multiple of [`SIZE_ALIGNMENT`]: the strings block, which is the last, may be followed by zeros.
fn pad(mut tree: Vec<u8>) -> Vec<u8> {
    /// `totalsize` in the header (Devicetree Specification 0.4, 5.2).
    const TOTAL_SIZE: std::ops::Range<usize> = 4..8;
    tree.resize(tree.len().next_multiple_of(SIZE_ALIGNMENT), 0);
    // `FdtWriter::finish` checked that the size fits in 32 bits, with room to spare for the padding of a tree that
    // passes the size limit; a larger one is refused.
    let size = (tree.len() as u32).to_be_bytes();
    if let Some(field) = tree.get_mut(TOTAL_SIZE) {
        field.copy_from_slice(&size);
    }
    tree
}
