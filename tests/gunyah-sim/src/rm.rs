//! The Resource Manager: what it demands of a VM's tree and parcels, what it refuses, how it patches the tree.
//!
//! Pure: it reads bytes and facts about parcels and hands back a [`Description`] or a [`Refusal`].

mod config_node;
mod gic;
mod overlay;
mod parcels;
mod patch;
mod processors;
mod vdevices;

pub(crate) use gic::Gic;
pub(crate) use vdevices::Doorbell;
#[cfg(target_arch = "aarch64")]
pub(crate) use vdevices::Line;

use crate::abi::args::GuestRange;
use crate::abi::{Generation, PAGE};
use crate::errno::Errno;
use crate::fdt::{Node, Tree};

/// First guest address that cannot trap: the window of emulated devices is 0 .. 1 GiB (rule 3.5).
pub(crate) const TRAP_WINDOW_END: u64 = 0x4000_0000;

/// Which build answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Build {
    /// The open-source build: accepts a shared image parcel (rule 2.5, 9).
    Debug,
    /// What phones ship: the image parcel must be lent.
    Production,
}

/// Error codes of the Resource Manager's replies (rule 1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    NoResource = 2,
    Denied = 3,
    ArgumentInvalid = 6,
    /// A message that this Resource Manager does not know.
    Unimplemented = -1,
}

/// Messages a refusal can answer (rule 1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    ConfigImage = 0x5600_0009,
    Init = 0x5600_000b,
    SetBootContext = 0x5600_0031,
}

/// A request the Resource Manager turned down.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) message: Message,
    pub(crate) code: Code,
    /// What a real log never says.
    pub(crate) why: String,
}

impl Refusal {
    /// The usual answer: code 2 to INIT, whatever was wrong (rule 1.8).
    fn init(why: impl Into<String>) -> Refusal {
        Refusal { message: Message::Init, code: Code::NoResource, why: why.into() }
    }

    fn denied(why: impl Into<String>) -> Refusal {
        Refusal { message: Message::Init, code: Code::Denied, why: why.into() }
    }

    fn config_image(why: impl Into<String>) -> Refusal {
        Refusal { message: Message::ConfigImage, code: Code::ArgumentInvalid, why: why.into() }
    }

    /// What the kernel driver makes of the code (rule 1.4).
    pub(crate) fn errno(&self) -> Errno {
        match self.code {
            Code::NoResource => Errno::ENODEV,
            Code::Denied => Errno::EPERM,
            Code::ArgumentInvalid => Errno::EINVAL,
            Code::Unimplemented => Errno::EOPNOTSUPP,
        }
    }
}

/// Memory offered to the VM, as the program gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// Label of the parcel in A; 0 where there is none.
    pub(crate) label: u32,
    pub(crate) guest: u64,
    pub(crate) size: u64,
    pub(crate) lent: bool,
    pub(crate) writable: bool,
    pub(crate) executable: bool,
}

impl Region {
    pub(crate) fn contains(&self, range: GuestRange) -> bool {
        range.guest >= self.guest
            && range
                .guest
                .checked_add(range.size)
                .is_some_and(|end| end <= self.guest.saturating_add(self.size))
    }
}

/// Everything START hands over.
pub(crate) struct Offer<'a> {
    pub(crate) generation: Generation,
    pub(crate) android: bool,
    pub(crate) build: Build,
    pub(crate) cores: u32,
    pub(crate) regions: &'a [Region],
    /// Index of the region that holds the tree.
    pub(crate) image: usize,
    pub(crate) tree: GuestRange,
    pub(crate) tree_bytes: &'a [u8],
    pub(crate) firmware: Option<GuestRange>,
    /// For `/chosen/kaslr-seed`.
    pub(crate) seed: u64,
}

/// The VM as the Resource Manager will make it.
#[derive(Clone, Debug)]
pub(crate) struct Description {
    /// Guest address of each region of the offer, in its order.
    pub(crate) placed: Vec<u64>,
    pub(crate) vcpus: u32,
    /// Whether PSCI 0.2 and later is on.
    #[cfg_attr(not(target_arch = "aarch64"), allow(dead_code, reason = "scripted vCPUs make no PSCI calls"))]
    pub(crate) psci: bool,
    #[cfg_attr(not(target_arch = "aarch64"), allow(dead_code, reason = "scripted vCPUs have no controller"))]
    pub(crate) gic: Gic,
    pub(crate) doorbells: Vec<Doorbell>,
    /// Where the tree lies for the guest.
    pub(crate) tree_address: u64,
    pub(crate) firmware_address: Option<u64>,
    /// The tree as the guest finds it.
    pub(crate) patched_tree: Vec<u8>,
    /// Log lines that are no refusal.
    pub(crate) warnings: Vec<String>,
}

/// Cell counts the Resource Manager reads the configuration with: those of the *first* child of the root, whatever
/// later siblings say (rule 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cells {
    address: usize,
    size: usize,
}

impl Cells {
    fn of_configuration(tree: &Tree) -> Cells {
        let first = tree.root.children.first();
        let count =
            |name, default| first.and_then(|node| node.u32(name)).map_or(default, |count| count as usize);
        Cells { address: count("#address-cells", 2), size: count("#size-cells", 1) }
    }

    /// The cells of the root itself, which its children's `reg` uses.
    fn of_root(tree: &Tree) -> Cells {
        let count = |name, default| tree.root.u32(name).map_or(default, |count| count as usize);
        Cells { address: count("#address-cells", 2), size: count("#size-cells", 1) }
    }
}

/// Checks an offer the way CONFIG_IMAGE and INIT do.
pub(crate) fn describe(offer: &Offer<'_>) -> Result<Description, Refusal> {
    check_tree_range(offer)?;
    let tree = Tree::read(offer.tree_bytes).map_err(|error| Refusal {
        message: Message::Init,
        code: Code::ArgumentInvalid,
        why: format!("the device tree cannot be read: {error}"),
    })?;
    check_nodes(&tree)?;
    let config = config_node::read(&tree)?;
    let vcpus = processors::read(&tree, &config.processors, offer.cores)?;
    let mut warnings = config.warnings;
    let gic = gic::read(&tree, config.interrupts.as_ref(), vcpus.count)?;
    let vdevices = vdevices::read(config.vdevices)?;
    warnings.extend(vdevices.warnings);
    let memory = parcels::place(offer, &config.memory, &vdevices.shared_memory, &tree)?;
    if offer.firmware.is_some() && config.memory.firmware_address.is_none() {
        return Err(Refusal::init("firmware is given but memory/firmware-address is missing"));
    }
    let patched_tree = patch::apply(
        tree.clone(),
        &patch::Changes {
            offer,
            image_name: &config.image_name,
            memory: &memory,
            doorbells: &vdevices.doorbells,
            windows: &vdevices.shared_memory,
            gic: &gic,
        },
    )?;
    let image_base = memory.placed.get(offer.image).copied().unwrap_or_default();
    let image_start = offer.regions.get(offer.image).map_or(0, |region| region.guest);
    Ok(Description {
        tree_address: image_base + (offer.tree.guest - image_start),
        placed: memory.placed,
        vcpus: vcpus.count,
        psci: vcpus.psci,
        gic,
        doorbells: vdevices.doorbells,
        firmware_address: config.memory.firmware_address.filter(|_| offer.firmware.is_some()),
        patched_tree,
        warnings,
    })
}

/// CONFIG_IMAGE wants whole pages (rule 9; for C also 2.3).
fn check_tree_range(offer: &Offer<'_>) -> Result<(), Refusal> {
    let start = offer.regions.get(offer.image).map_or(0, |region| region.guest);
    let offset = offer.tree.guest.saturating_sub(start);
    if !offset.is_multiple_of(PAGE) || !offer.tree.size.is_multiple_of(PAGE) || offer.tree.size == 0 {
        return Err(Refusal::config_image(format!(
            "the device tree's address {:#x} and size {:#x} are not whole pages",
            offer.tree.guest, offer.tree.size
        )));
    }
    Ok(())
}

/// Nodes that must and must not be there (rule 3.4 and 9).
fn check_nodes(tree: &Tree) -> Result<(), Refusal> {
    if tree.root.child("chosen").is_none() {
        return Err(Refusal::denied("there is no /chosen for the overlay to change"));
    }
    if tree.root.child("hypervisor").is_some() {
        return Err(Refusal::init("/hypervisor exists: the Resource Manager makes that node"));
    }
    let is_memory = |node: &&Node| node.string("device_type") == Some("memory");
    let permitted = |node: &&Node| {
        node.name == "memory" && tree.root.children.iter().any(|child| std::ptr::eq(child, *node))
    };
    if let Some(node) = tree.root.walk().into_iter().filter(is_memory).find(|node| !permitted(node)) {
        return Err(Refusal::init(format!("{} is a memory node and not /memory", node.name)));
    }
    check_first_children(&tree.root, true)
}

/// The cells of the first child at each level are read with its `ranges`, as long as addresses are physical; more than
/// two stop the Resource Manager itself (rule 9).
fn check_first_children(node: &Node, physical: bool) -> Result<(), Refusal> {
    let Some(first) = node.children.first().filter(|_| physical) else { return Ok(()) };
    let has_ranges = first.property("ranges").is_some_and(|ranges| !ranges.is_empty());
    if has_ranges && first.u32("#address-cells").is_some_and(|cells| cells > 2) {
        return Err(Refusal::init(format!("the Resource Manager stops at the ranges of {}", first.name)));
    }
    check_first_children(first, first.has("ranges"))
}

#[cfg(test)]
pub(crate) mod tests;
