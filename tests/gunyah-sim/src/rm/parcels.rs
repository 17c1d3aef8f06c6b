//! Where memory lands and which memory is refused (rule 2.5, 3.2, 9).

use crate::abi::Generation;
use crate::abi::args::GuestRange;
use crate::fdt::{Node, Tree, number};

use super::config_node::MemoryConfig;
use super::vdevices::SharedMemory;
use super::{Build, Cells, Offer, Refusal, Region, TRAP_WINDOW_END};

/// Where an image without a base address goes; the platform's devices are there (rule 9).
const DEFAULT_BASE: u64 = 0x2880_0000;
/// Unaligned bases are rounded up to this.
const BASE_ALIGN: u64 = 0x20_0000;
/// The VM-info page, and behind it parcels that nothing gives an address (rule 9).
const INFO_PAGE: u64 = TRAP_WINDOW_END;
const INFO_PAGE_SIZE: u64 = 0x1000;
/// Parcels of one VM in the open-source build.
const PARCELS_MAX: usize = 64;
/// Default of `firmware-size-max`.
const FIRMWARE_SIZE_MAX: u64 = 4 << 20;

/// Guest address bits: 36 on the open-source platform, 40 assumed elsewhere (rule 2.8).
fn address_limit(build: Build) -> u64 {
    match build {
        Build::Debug => 1 << 36,
        Build::Production => 1 << 40,
    }
}

/// The outcome of placing every region.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Guest address of each region.
    pub(crate) placed: Vec<u64>,
    /// What `/memory` lists: accepted memory, neighbours merged.
    pub(crate) ranges: Vec<(u64, u64)>,
    /// Regions that become no-map buffers.
    pub(crate) buffers: Vec<usize>,
}

pub(crate) fn place(
    offer: &Offer<'_>,
    config: &MemoryConfig,
    windows: &[SharedMemory],
    tree: &Tree,
) -> Result<Memory, Refusal> {
    check_image(offer)?;
    check_firmware(offer, config)?;
    let memory = match offer.generation {
        Generation::A => place_parcels(offer, config, windows)?,
        Generation::B | Generation::C => keep_addresses(offer, windows)?,
    };
    check_overlaps(offer, &memory.placed)?;
    check_reserved(offer, &memory.placed, tree)?;
    Ok(memory)
}

/// The image parcel is exclusive and the guest may do anything with it (rule 2.5).
fn check_image(offer: &Offer<'_>) -> Result<(), Refusal> {
    let Some(image) = offer.regions.get(offer.image) else {
        return Err(Refusal::config_image("no memory holds the device tree"));
    };
    if !image.writable || !image.executable {
        return Err(Refusal::init("the image parcel is not readable, writable and executable for the guest"));
    }
    if !image.lent && offer.build == Build::Production {
        return Err(Refusal::init("the image parcel is shared: this Resource Manager wants it lent"));
    }
    Ok(())
}

fn check_firmware(offer: &Offer<'_>, config: &MemoryConfig) -> Result<(), Refusal> {
    let Some(range) = offer.firmware else { return Ok(()) };
    let region = offer.regions.iter().find(|region| region.contains(range));
    if !region.is_some_and(|region| region.lent) {
        return Err(Refusal::init("the firmware is not in lent memory"));
    }
    let limit = config.firmware_size_max.unwrap_or(FIRMWARE_SIZE_MAX);
    if range.size > limit {
        return Err(Refusal::init(format!("the firmware's {:#x} bytes exceed {limit:#x}", range.size)));
    }
    Ok(())
}

/// Generation A: every region is a parcel, and the address the program gave is ignored.
fn place_parcels(
    offer: &Offer<'_>,
    config: &MemoryConfig,
    windows: &[SharedMemory],
) -> Result<Memory, Refusal> {
    if offer.regions.len() > PARCELS_MAX {
        return Err(Refusal::init(format!("{} parcels, {PARCELS_MAX} at most", offer.regions.len())));
    }
    let base = image_base(offer, config)?;
    let mut memory = Memory { placed: Vec::new(), ranges: Vec::new(), buffers: Vec::new() };
    let mut unplaced = INFO_PAGE + INFO_PAGE_SIZE;
    for (index, region) in offer.regions.iter().enumerate() {
        let window = windows.iter().find(|window| window.label == region.label);
        let firmware = offer.firmware.filter(|range| region.contains(*range)).zip(config.firmware_address);
        let address = match (index == offer.image, firmware, window) {
            (true, _, _) => base,
            (_, Some((range, address)), _) => address.saturating_sub(range.guest - region.guest),
            (_, _, Some(SharedMemory { base: Some(window), .. })) => *window,
            _ if offer.build == Build::Production => {
                return Err(Refusal::init(format!(
                    "parcel {} has no shm vdevice of its label",
                    region.label
                )));
            }
            _ => {
                memory.buffers.push(index);
                let address = unplaced;
                unplaced = unplaced.saturating_add(region.size);
                address
            }
        };
        memory.placed.push(address);
        if firmware.is_none() && !memory.buffers.contains(&index) {
            memory.ranges.push((address, region.size));
        }
    }
    check_windows(windows, |label| offer.regions.iter().any(|region| region.label == label))?;
    check_size(offer, config, base)?;
    memory.ranges = merged(memory.ranges);
    Ok(memory)
}

fn image_base(offer: &Offer<'_>, config: &MemoryConfig) -> Result<u64, Refusal> {
    let base = config.base_address.unwrap_or(DEFAULT_BASE);
    let base = base.checked_next_multiple_of(BASE_ALIGN).unwrap_or(u64::MAX);
    if base < TRAP_WINDOW_END {
        return Err(Refusal::init(format!("the image at {base:#x} overlaps the device range")));
    }
    let size = offer.regions.get(offer.image).map_or(0, |region| region.size);
    if overlap((base, size), (INFO_PAGE, INFO_PAGE_SIZE)) {
        return Err(Refusal::init(format!("the image at {base:#x} overlaps the VM-info page")));
    }
    if base.checked_add(size).is_none_or(|end| end > address_limit(offer.build)) {
        return Err(Refusal::init(format!("the image at {base:#x} ends beyond the guest's addresses")));
    }
    Ok(base)
}

fn check_size(offer: &Offer<'_>, config: &MemoryConfig, base: u64) -> Result<(), Refusal> {
    let limit = config.size_max.unwrap_or(address_limit(offer.build) - base);
    let size = offer.regions.get(offer.image).map_or(0, |region| region.size);
    if size > limit {
        return Err(Refusal::init(format!("{size:#x} bytes of memory exceed size-max {limit:#x}")));
    }
    Ok(())
}

/// Generations B and C: the kernel maps memory itself, where the program wants it.
fn keep_addresses(offer: &Offer<'_>, windows: &[SharedMemory]) -> Result<Memory, Refusal> {
    for region in offer.regions {
        let end = region.guest.checked_add(region.size);
        if region.guest < TRAP_WINDOW_END {
            return Err(Refusal::init(format!("memory at {:#x} lies in the trap window", region.guest)));
        }
        if end.is_none_or(|end| end > address_limit(Build::Production)) {
            return Err(Refusal::init(format!(
                "memory at {:#x} lies beyond the guest's addresses",
                region.guest
            )));
        }
    }
    // No shared region is a parcel here, so no window finds one: it has to be optional.
    check_windows(windows, |_| false)?;
    let is_firmware = |region: &Region| offer.firmware.is_some_and(|range| region.contains(range));
    let ranges = offer.regions.iter().filter(|region| !is_firmware(region));
    Ok(Memory {
        placed: offer.regions.iter().map(|region| region.guest).collect(),
        ranges: merged(ranges.map(|region| (region.guest, region.size)).collect()),
        buffers: Vec::new(),
    })
}

fn check_windows(windows: &[SharedMemory], has_parcel: impl Fn(u32) -> bool) -> Result<(), Refusal> {
    match windows.iter().find(|window| !window.optional && !has_parcel(window.label)) {
        Some(window) => Err(Refusal::init(format!("no parcel has the label of shm {}", window.label))),
        None => Ok(()),
    }
}

fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.0.saturating_add(b.1) && b.0 < a.0.saturating_add(a.1)
}

fn check_overlaps(offer: &Offer<'_>, placed: &[u64]) -> Result<(), Refusal> {
    let ranges: Vec<(u64, u64)> =
        placed.iter().zip(offer.regions).map(|(address, region)| (*address, region.size)).collect();
    for (index, first) in ranges.iter().enumerate() {
        if let Some(second) = ranges.iter().skip(index + 1).find(|second| overlap(*first, **second)) {
            return Err(Refusal::init(format!("memory at {:#x} and {:#x} overlaps", first.0, second.0)));
        }
    }
    Ok(())
}

/// Children of `/reserved-memory` that have `reg`.
fn check_reserved(offer: &Offer<'_>, placed: &[u64], tree: &Tree) -> Result<(), Refusal> {
    let children: &[Node] = tree.root.child("reserved-memory").map_or(&[], |node| node.children.as_slice());
    let shape = Cells::of_root(tree);
    let accepted: Vec<(u64, &Region)> = placed.iter().copied().zip(offer.regions).collect();
    let mut named = Vec::new();
    for child in children.iter().filter(|child| child.has("reg")) {
        let reg = child.cells("reg");
        let sizes = reg.get(shape.address..).unwrap_or_default();
        let range = number(&reg, shape.address).zip(number(sizes, shape.size));
        let Some((guest, size)) = range.filter(|_| reg.len() == shape.address + shape.size) else {
            return Err(Refusal::init(format!("{} does not have exactly one range", child.name)));
        };
        let range = GuestRange { guest, size };
        let parcel = accepted.iter().find(|(address, region)| match offer.generation {
            // One parcel, exactly.
            Generation::A => *address == guest && region.size == size,
            // crosvm's restricted-dma-pool names memory the Resource Manager never hears of, and starts.
            Generation::B | Generation::C => region.contains(range),
        });
        let Some((_, region)) = parcel else {
            return Err(Refusal::init(format!(
                "{} ({guest:#x}, {size:#x}) is no accepted parcel",
                child.name
            )));
        };
        if child.has("reusable") && !region.lent {
            return Err(Refusal::init(format!("{} is reusable but its memory is shared", child.name)));
        }
        named.push((guest, size));
    }
    // Android's generation A: every shared parcel wants its own child (rule 2.5).
    if offer.generation == Generation::A && offer.android && offer.build == Build::Production {
        let unnamed = accepted.iter().enumerate().find(|(index, (address, region))| {
            *index != offer.image && !region.lent && !named.contains(&(*address, region.size))
        });
        if let Some((_, (address, _))) = unnamed {
            return Err(Refusal::init(format!(
                "the shared parcel at {address:#x} has no reserved-memory child"
            )));
        }
    }
    Ok(())
}

/// Sorted ranges with neighbours joined.
fn merged(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (start, size) in ranges {
        match joined.last_mut() {
            Some(last) if last.0 + last.1 == start => last.1 += size,
            _ => joined.push((start, size)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_merged_whatever_their_order() {
        let ranges = vec![(0x9000, 0x1000), (0x8000, 0x1000), (0xb000, 0x1000)];
        assert_eq!(merged(ranges), [(0x8000, 0x2000), (0xb000, 0x1000)]);
    }
}
