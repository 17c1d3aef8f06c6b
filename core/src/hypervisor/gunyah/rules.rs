//! What a VM must keep to, checked before the driver is asked.
//!
//! The driver checks little, and the Resource Manager answers most mistakes with one and the same code, after which
//! the VM is beyond repair. What can be known beforehand is therefore refused here, with its name.

use super::layout::{self, PlacedRange, Purpose};
use super::overlay;
use super::probe::{Driver, Generation};
use crate::hypervisor::Error;
use crate::hypervisor::plan::{DoorbellWrite, GIC_DISTRIBUTOR_SIZE, GIC_REDISTRIBUTOR_SIZE, VmPlan};

/// Bytes of the names that the Resource Manager takes, its terminating zero included.
const NAME_SIZE: usize = 80;
/// SPIs that the Resource Manager gives a VM; INTIDs from 1020 on are special (Arm IHI 0069, 2.2).
const SPIS: u32 = 988;
/// End of the addresses whose accesses reach the VMM. Beyond it there is RAM or nothing.
pub(crate) const TRAP_WINDOW_END: u64 = 1 << 30;
/// The Resource Manager rounds the address of RAM up to a multiple of this.
const RAM_ALIGNMENT: u64 = 2 << 20;
/// The first address for RAM: the 2 MiB behind the trap window hold a page of the Resource Manager's.
const RAM_START: u64 = TRAP_WINDOW_END + RAM_ALIGNMENT;
/// Register windows of the GIC are aligned to its frames.
const GIC_ALIGNMENT: u64 = 0x1_0000;

/// Checks a plan against the rules of the driver and the Resource Manager.
///
/// # Errors
///
/// [`Error::Plan`] with everything that is wrong.
pub(crate) fn check(plan: &VmPlan<'_>, driver: &Driver, page: u64) -> Result<(), Error> {
    let mut broken = Vec::new();
    let ranges = layout::ranges(plan);
    check_name(plan.name, &mut broken);
    if plan.vcpus == 0 {
        broken.push("a VM needs at least one vCPU".to_owned());
    }
    check_kind(plan, driver, &ranges, &mut broken);
    check_memory(&ranges, page, &mut broken);
    check_boot(plan, &ranges, page, &mut broken);
    check_gic(plan, &mut broken);
    check_lines(plan, &mut broken);
    check_doorbells(plan, &mut broken);
    match broken.as_slice() {
        [] => Ok(()),
        [one] => Err(Error::Plan(one.clone())),
        several => {
            Err(Error::Plan(format!("this VM cannot run under Gunyah:\n  - {}", several.join("\n  - "))))
        }
    }
}

fn check_name(name: &str, broken: &mut Vec<String>) {
    if name.is_empty() || name.len() >= NAME_SIZE || name.contains('\0') {
        broken.push(format!(
            "the name of a VM has 1 to {} bytes, none of them 0; {name:?} has not",
            NAME_SIZE - 1
        ));
    }
}

/// Shared, lent or with firmware: what the driver can do and what the guest could run in.
fn check_kind(plan: &VmPlan<'_>, driver: &Driver, ranges: &[PlacedRange], broken: &mut Vec<String>) {
    let generation = driver.generation;
    let lent = ranges.iter().any(PlacedRange::is_lent);
    if lent && !driver.lend {
        broken.push(format!(
            "the Gunyah driver of this kernel (generation {generation}) cannot lend memory, and so runs no protected \
             VM: leave --protected out"
        ));
    }
    if !lent && !generation.runs_in_shared_memory() {
        broken.push(format!(
            "the Gunyah driver of this kernel (generation {generation}) lets no guest execute memory that it shares \
             with the host: add --protected, and --swiotlb SIZE for the window of its devices"
        ));
    }
    if plan.firmware.is_none() {
        return;
    }
    if !driver.firmware {
        broken.push(format!(
            "the Gunyah driver of this kernel (generation {generation}) starts no firmware: leave \
             --protected-firmware out"
        ));
    }
    if !ranges.iter().any(|placed| placed.purpose == Purpose::Firmware && placed.is_lent()) {
        broken.push("a VM with firmware needs lent memory for it".to_owned());
    }
}

fn check_memory(ranges: &[PlacedRange], page: u64, broken: &mut Vec<String>) {
    for (index, placed) in ranges.iter().enumerate() {
        let range = placed.range;
        let what = placed.describe();
        if range.size == 0 || !range.base.is_multiple_of(page) || !range.size.is_multiple_of(page) {
            broken.push(format!("{what} does not begin and end at pages of {page} bytes"));
        }
        if range.base.checked_add(range.size).is_none() {
            broken.push(format!("{what} ends beyond the address space"));
        }
        if placed.purpose == Purpose::Other {
            broken.push(format!("{what} is neither RAM nor its shared window nor for firmware"));
        }
        let overlaps = |other: &&PlacedRange| range.base < other.end() && other.range.base < placed.end();
        for other in ranges.iter().skip(index + 1).filter(overlaps) {
            broken.push(format!("{what} overlaps {}", other.describe()));
        }
    }
    let Some(ram) = ranges.iter().find(|placed| placed.purpose == Purpose::Ram) else { return };
    let base = ram.range.base;
    if base < RAM_START || !base.is_multiple_of(RAM_ALIGNMENT) {
        broken.push(format!("RAM at {base:#x} is not at a multiple of 2 MiB from {RAM_START:#x} on"));
    }
}

fn check_boot(plan: &VmPlan<'_>, ranges: &[PlacedRange], page: u64, broken: &mut Vec<String>) {
    let boot = plan.boot;
    let Some(ram) = ranges.iter().find(|placed| placed.purpose == Purpose::Ram) else {
        broken.push(format!("the guest starts at {:#x}, where it has no memory", boot.entry));
        return;
    };
    if boot.entry != ram.range.base {
        broken.push(format!(
            "the guest starts at {:#x} and not at the first byte of RAM, {:#x}",
            boot.entry, ram.range.base
        ));
    }
    if boot.dtb_size == 0 || !boot.dtb_address.is_multiple_of(page) || !boot.dtb_size.is_multiple_of(page) {
        broken.push(format!(
            "the device tree, {:#x} bytes at {:#x}, does not begin and end at pages of {page} bytes",
            boot.dtb_size, boot.dtb_address
        ));
    }
    let end = boot.dtb_address.checked_add(boot.dtb_size);
    if !ram.holds(boot.dtb_address) || end.is_none_or(|end| end > ram.end()) {
        broken.push(format!(
            "the device tree at {:#x} is not in the region of RAM that holds the kernel",
            boot.dtb_address
        ));
    }
    // Without memory for a copy of its own it makes one behind the tree.
    let room = 2 * overlay::GROWN_TREE as u64;
    if boot.dtb_size < room {
        broken.push(format!(
            "the device tree has {:#x} bytes of room, and the Resource Manager may need {room:#x} to extend it",
            boot.dtb_size
        ));
    }
}

fn check_gic(plan: &VmPlan<'_>, broken: &mut Vec<String>) {
    let gic = plan.gic;
    let windows = [
        ("distributor", gic.distributor, GIC_DISTRIBUTOR_SIZE),
        ("redistributors", gic.redistributors, GIC_REDISTRIBUTOR_SIZE.saturating_mul(plan.vcpus.into())),
    ];
    for (what, base, size) in windows {
        if !base.is_multiple_of(GIC_ALIGNMENT) || base.saturating_add(size) > TRAP_WINDOW_END {
            broken.push(format!("the GIC's {what} at {base:#x} are not at a multiple of 64 KiB below 1 GiB"));
        }
    }
    let [(_, first, first_size), (_, second, second_size)] = windows;
    if first < second.saturating_add(second_size) && second < first.saturating_add(first_size) {
        broken.push(format!("the GIC's distributor at {first:#x} and redistributors at {second:#x} overlap"));
    }
}

fn check_lines(plan: &VmPlan<'_>, broken: &mut Vec<String>) {
    for (index, line) in plan.lines.iter().enumerate() {
        if line.spi >= SPIS {
            broken.push(format!("SPI {} of {} is not below {SPIS}", line.spi, line.device));
        }
        if let Some(other) = plan.lines.iter().take(index).find(|other| other.spi == line.spi) {
            broken.push(format!(
                "{} and {} are both on SPI {}: under Gunyah each line belongs to one device",
                other.device, line.device, line.spi
            ));
        }
        if plan.message_spis.contains(&line.spi) {
            broken.push(format!("SPI {} of {} is also one of messages", line.spi, line.device));
        }
    }
    if plan.message_spis.end > SPIS {
        broken
            .push(format!("the SPIs of messages, up to {}, are not below {SPIS}", plan.message_spis.end - 1));
    }
}

fn check_doorbells(plan: &VmPlan<'_>, broken: &mut Vec<String>) {
    for (index, doorbell) in plan.doorbells.iter().enumerate() {
        let DoorbellWrite { address, datamatch, device, .. } = doorbell;
        let length = datamatch.map_or(8, |(_, length)| u64::from(length));
        if address.saturating_add(length) > TRAP_WINDOW_END {
            broken.push(format!(
                "the doorbell of {device} at {address:#x} is not below 1 GiB, where writes can be seen"
            ));
        }
        if let Some((value, length)) = datamatch {
            let fits = matches!(length, 1 | 2 | 4 | 8) && (*length == 8 || value >> (length * 8) == 0);
            if !fits {
                broken.push(format!(
                    "the doorbell of {device} at {address:#x} matches {value:#x} in {length} bytes"
                ));
            }
        }
        // One that matches any write takes the address for itself.
        let clash = |other: &&DoorbellWrite| {
            other.address == *address
                && (other.datamatch.is_none() || datamatch.is_none() || other.datamatch == *datamatch)
        };
        if let Some(other) = plan.doorbells.iter().take(index).find(clash) {
            broken.push(format!("{} and {device} have the same doorbell at {address:#x}", other.device));
        }
    }
}

/// Bytes that the driver charges to this process as locked memory.
pub(crate) fn locked_bytes(plan: &VmPlan<'_>, generation: Generation) -> u64 {
    match generation {
        // A pins everything at once, C page by page as the guest touches it.
        Generation::A | Generation::C => plan.memory.iter().map(|range| range.size).sum(),
        Generation::B => 0,
    }
}

/// Bytes of the list of pages that the driver of generation A makes of the largest region, in one piece: eight a page.
pub(crate) fn page_list_bytes(plan: &VmPlan<'_>, page: u64) -> u64 {
    let largest = plan.memory.iter().map(|range| range.size).max().unwrap_or(0);
    (largest / page.max(1)).saturating_mul(8)
}

/// What makes a refusal by the Resource Manager likely, and a second try pointless.
///
/// The Resource Manager takes as many vCPUs as the platform has cores. The kernel may see fewer cores than there are,
/// and so it is left to answer for itself.
pub(crate) fn doubts(plan: &VmPlan<'_>, cores: Option<u32>) -> Vec<String> {
    let mut doubts = Vec::new();
    if let Some(cores) = cores.filter(|cores| plan.vcpus > *cores) {
        doubts.push(format!(
            "this VM has {} vCPUs and the host {cores} cores; the Resource Manager takes no more vCPUs than the \
             platform has cores: try --cpus {cores}",
            plan.vcpus
        ));
    }
    doubts
}

#[cfg(test)]
#[path = "rules_test.rs"]
mod tests;
