//! What is where in the BARs of a function: registers of the device, the MSI-X table, the pending bits.

use std::ops::Range;

use gvmm_plugin_api::mmio::Width;

use super::config::{BARS, ConfigError};

/// Each structure in a BAR begins at a page of its own.
const PAGE: u64 = 0x1000;

/// Registers of a device in a BAR, from offset 0 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegisterBar {
    /// Which BAR.
    pub index: usize,
    /// Bytes of registers; the BAR is the next power of two, or larger.
    pub registers: u64,
}

/// A BAR as it is divided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BarLayout {
    pub(super) index: usize,
    pub(super) registers: Range<u64>,
    /// Empty but in the BAR that has the MSI-X structures.
    pub(super) table: Range<u64>,
    pub(super) pending: Range<u64>,
    pub(super) size: u32,
}

/// What an access to a BAR is for, with the offset in that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Registers(u64),
    Table(u64),
    Pending(u64),
    Nothing,
}

/// The BARs of a function with MSI-X structures of these sizes. They are behind the registers of BAR `shared`, if that is
/// said, or else in the last BAR that the device leaves free. Without structures there is no BAR for them.
pub(super) fn layouts(
    bars: &[RegisterBar],
    shared: Option<usize>,
    table: u64,
    pending: u64,
) -> Result<Vec<BarLayout>, ConfigError> {
    let free = || (0..BARS).rev().find(|index| bars.iter().all(|bar| bar.index != *index));
    let structures = match (table > 0, shared.or_else(free)) {
        (false, _) => None,
        (true, Some(index)) => Some(index),
        (true, None) => return Err(ConfigError::NoBarLeft),
    };
    let apart = structures.filter(|index| bars.iter().all(|bar| bar.index != *index));
    let of_structures = apart.map(|index| RegisterBar { index, registers: 0 });
    let layout = |bar: &RegisterBar| match structures == Some(bar.index) {
        true => BarLayout::new(*bar, table, pending),
        false => BarLayout::new(*bar, 0, 0),
    };
    bars.iter().chain(of_structures.as_ref()).map(layout).collect()
}

impl BarLayout {
    fn new(bar: RegisterBar, table: u64, pending: u64) -> Result<Self, ConfigError> {
        let RegisterBar { index, registers } = bar;
        let mut end = registers;
        let (mut table_at, mut pending_at) = (0, 0);
        if table > 0 {
            // A device has at most 2^32 bytes of registers: more are no BAR, which is found below.
            table_at = registers.saturating_add(PAGE - 1) / PAGE * PAGE;
            pending_at = table_at.saturating_add(table).saturating_add(PAGE - 1) / PAGE * PAGE;
            end = pending_at.saturating_add(pending);
        }
        let size = u32::try_from(end).ok().and_then(u32::checked_next_power_of_two);
        let size = size.ok_or(ConfigError::Bar { index, size: u32::MAX })?;
        let range = |at: u64, len: u64| if table > 0 { at..at + len } else { 0..0 };
        let (table, pending) = (range(table_at, table), range(pending_at, pending));
        Ok(Self { index, registers: 0..registers, table, pending, size })
    }

    /// What an access is for.
    pub(super) fn place(&self, offset: u64, width: Width) -> Place {
        if let Some(offset) = within(&self.registers, offset, width) {
            return Place::Registers(offset);
        }
        if let Some(offset) = within(&self.table, offset, width) {
            return Place::Table(offset);
        }
        within(&self.pending, offset, width).map_or(Place::Nothing, Place::Pending)
    }
}

/// The offset of an access from the start of a range that holds all of it.
fn within(range: &Range<u64>, offset: u64, width: Width) -> Option<u64> {
    let end = offset.checked_add(width.bytes() as u64)?;
    (offset >= range.start && end <= range.end).then(|| offset - range.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(index: usize, registers: u64) -> RegisterBar {
        RegisterBar { index, registers }
    }

    #[test]
    fn structures_that_share_a_bar_have_pages_behind_its_registers() {
        let bars = layouts(&[bar(0, 0x2040)], Some(0), 32, 8).unwrap();
        let [BarLayout { index: 0, registers, table, pending, size: 0x8000 }] = &bars[..] else {
            panic!("{bars:?}");
        };
        assert_eq!((registers, table, pending), (&(0..0x2040), &(0x3000..0x3020), &(0x4000..0x4008)));
        assert_eq!(bars[0].place(0x203c, Width::Word), Place::Registers(0x203c));
        assert_eq!(bars[0].place(0x203c, Width::Double), Place::Nothing);
        assert_eq!(bars[0].place(0x3018, Width::Double), Place::Table(0x18));
        assert_eq!(bars[0].place(0x4000, Width::Double), Place::Pending(0));
    }

    #[test]
    fn structures_of_a_device_that_shares_no_bar_are_in_the_last_free_one() {
        let bars = layouts(&[bar(1, 16), bar(5, 0x1000)], None, 16, 8).unwrap();
        let sizes: Vec<_> = bars.iter().map(|bar| (bar.index, bar.size, bar.table.clone())).collect();
        assert_eq!(sizes, [(1, 16, 0..0), (5, 0x1000, 0..0), (4, 0x2000, 0..16)]);
        assert_eq!(bars[1].place(0, Width::Word), Place::Registers(0));
        assert_eq!(bars[2].place(0, Width::Word), Place::Table(0));
    }

    #[test]
    fn a_function_without_vectors_has_the_devices_bars_alone() {
        assert_eq!(layouts(&[bar(3, 16)], None, 0, 0).unwrap().len(), 1);
        let all: Vec<_> = (0..BARS).map(|index| bar(index, 16)).collect();
        assert_eq!(layouts(&all, None, 0, 0).unwrap().len(), BARS);
        assert_eq!(layouts(&all, None, 16, 8), Err(ConfigError::NoBarLeft));
    }

    #[test]
    fn registers_without_bounds_are_refused() {
        let refused = ConfigError::Bar { index: 2, size: u32::MAX };
        for registers in [1 << 32, u64::MAX - 1, u64::MAX] {
            assert_eq!(layouts(&[bar(2, registers)], Some(2), 16, 8), Err(refused));
            assert_eq!(layouts(&[bar(2, registers)], None, 16, 8), Err(refused));
        }
    }
}
