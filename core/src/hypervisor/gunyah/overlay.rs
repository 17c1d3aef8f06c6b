//! What the Resource Manager adds to a VM's device tree.
//!
//! It writes an overlay, in which every doorbell is a fragment of its own, and applies it to a copy of the tree. The copy
//! is made on its heap as long as tree and overlay have [`GROWN_TREE`] bytes together. A larger one is made behind the
//! tree in guest memory, at an offset that depends on the overlay's length: where that is not a multiple of 8, the
//! overlay cannot be applied and the VM does not start. Nobody but the Resource Manager knows that length, and so the
//! sum has to stay within the limit.

use crate::hypervisor::plan::VmPlan;
use crate::memory::RegionKind;

/// Bytes that tree and overlay may have together (`MAX_DTB_ALLOC_SIZE` of the Resource Manager).
pub(super) const GROWN_TREE: usize = 16 << 10;

/// Bytes of an overlay without doorbells and windows, but for the VM's name: seed, memory, identity.
const BASE: usize = 1120;
/// Bytes of a doorbell: a fragment with a node of five properties, named by a capability of 16 digits.
const DOORBELL: usize = 248;
/// Bytes of the nodes for a shared window, and of the handle that its `reserved-memory` gets.
const WINDOW: usize = 512;

/// Bytes at most of the overlay for a plan.
pub(super) fn size(plan: &VmPlan<'_>) -> usize {
    let lent = plan.memory.iter().any(|range| range.kind == RegionKind::Lent);
    let window = if lent { WINDOW } else { 0 };
    BASE + plan.name.len().next_multiple_of(4) + plan.spis().count() * DOORBELL + window
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::gunyah::fixture::Fixture;

    #[test]
    fn counts_lines_and_messages_alike() {
        let of = |spis| {
            let fixture = Fixture { message_spis: spis, ..Fixture::shared() };
            size(&fixture.plan())
        };
        assert_eq!(of(6..8) - of(0..0), 2 * DOORBELL);
        assert_eq!(of(0..0), BASE + 8 + 2 * DOORBELL);
    }

    #[test]
    fn counts_the_window_of_a_protected_guest() {
        let size_of = |fixture: Fixture| size(&fixture.plan());
        assert_eq!(size_of(Fixture::lent()) - size_of(Fixture::shared()), WINDOW);
    }
}
