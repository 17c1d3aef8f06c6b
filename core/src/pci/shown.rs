//! Registers in a BAR that the guest reads as memory, wherever the BAR answers.

use std::sync::Arc;

use crate::hypervisor::{ReadableRegisters, Wiring};
use crate::memory::RegisterImage;

/// A part of a BAR, of whole pages, and its content.
pub(super) struct ShownPart {
    bar: usize,
    offset: u64,
    image: Arc<RegisterImage>,
    /// Where the guest has it for the moment.
    base: Option<u64>,
}

impl ShownPart {
    /// A part of a BAR that answers nowhere so far.
    pub(super) fn new(bar: usize, offset: u64, image: Arc<RegisterImage>) -> Self {
        Self { bar, offset, image, base: None }
    }

    /// Which BAR it is of.
    pub(super) fn bar(&self) -> usize {
        self.bar
    }

    /// Has it shown in a BAR that answers at an address now, or nowhere.
    pub(super) fn follow(&mut self, bar: Option<u64>, wiring: &dyn Wiring, device: &str) {
        let new = bar.map(|base| base + self.offset);
        if new == self.base {
            return;
        }
        if let Some(old) = self.base.take()
            && let Err(error) = wiring.hide_registers(old)
        {
            tracing::warn!("device {device}: its registers are still seen at {old:#x}: {error}");
        }
        let Some(base) = new else { return };
        match wiring.show_registers(&ReadableRegisters { base, image: self.image.clone() }) {
            Ok(()) => self.base = new,
            // The guest's reads are exits then, and work.
            Err(error) => tracing::debug!("device {device}: reads of its registers are exits: {error}"),
        }
    }
}
