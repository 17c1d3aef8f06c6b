//! What each range of guest memory is for.

use crate::hypervisor::plan::VmPlan;
use crate::memory::{MemoryRange, RegionKind};

/// What a range of guest memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// RAM, with kernel, device tree and initrd in it.
    Ram,
    /// The shared window of a VM whose RAM is lent.
    Window,
    /// Where the Resource Manager puts the firmware.
    Firmware,
    /// Nothing that Gunyah has a place for.
    Other,
}

/// A range with its purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlacedRange {
    /// The range.
    pub range: MemoryRange,
    /// What it is for.
    pub purpose: Purpose,
}

impl PlacedRange {
    /// The label of its parcel. The Resource Manager wants 0 for RAM, and for the window that of its vdevice in the
    /// device tree; the driver of generation A wants no label twice.
    pub(crate) fn label(&self) -> u32 {
        match self.purpose {
            Purpose::Ram => 0,
            Purpose::Window => 1,
            Purpose::Firmware => 2,
            Purpose::Other => 3,
        }
    }

    /// For messages.
    pub(crate) fn describe(&self) -> String {
        let what = match self.purpose {
            Purpose::Ram => "RAM",
            Purpose::Window => "the shared window",
            Purpose::Firmware => "firmware memory",
            Purpose::Other => "memory",
        };
        format!("{what} of {} MiB at {:#x}", self.range.size >> 20, self.range.base)
    }

    /// Whether the guest alone may touch it.
    pub(crate) fn is_lent(&self) -> bool {
        self.range.kind == RegionKind::Lent
    }

    /// Whether a guest address is in it.
    pub(crate) fn holds(&self, address: u64) -> bool {
        holds(&self.range, address)
    }

    /// First guest address behind it.
    pub(crate) fn end(&self) -> u64 {
        self.range.base.saturating_add(self.range.size)
    }
}

/// The ranges of a VM: RAM, which holds the first instruction, first.
pub(crate) fn ranges(plan: &VmPlan<'_>) -> Vec<PlacedRange> {
    let holds_entry = |range: &MemoryRange| holds(range, plan.boot.entry);
    let ram_is_lent = plan.memory.iter().any(|range| holds_entry(range) && range.kind == RegionKind::Lent);
    let purpose = |range: &MemoryRange| {
        if holds_entry(range) {
            Purpose::Ram
        } else if plan.firmware.is_some_and(|firmware| holds(range, firmware.base)) {
            Purpose::Firmware
        } else if ram_is_lent && range.kind == RegionKind::Shared {
            Purpose::Window
        } else {
            Purpose::Other
        }
    };
    let mut ranges: Vec<_> =
        plan.memory.iter().map(|range| PlacedRange { range: *range, purpose: purpose(range) }).collect();
    ranges.sort_by_key(PlacedRange::label);
    ranges
}

/// The range of this purpose, if there is one.
pub(crate) fn find(plan: &VmPlan<'_>, purpose: Purpose) -> Option<PlacedRange> {
    ranges(plan).into_iter().find(|range| range.purpose == purpose)
}

fn holds(range: &MemoryRange, address: u64) -> bool {
    address.checked_sub(range.base).is_some_and(|offset| offset < range.size)
}
