//! The guest's address map below RAM, and its interrupt numbers. The same on every accelerator.
//!
//! | addresses | what |
//! |---|---|
//! | 0x0802_0000 .. 0x0802_1000 | GICv2m frame |
//! | 0x0900_0000 .. 0x1000_0000 | register windows of devices, whole pages, in the order of the devices |
//! | 0x1000_0000 .. 0x2000_0000 | BARs of PCI devices |
//! | 0x3000_0000 .. 0x3010_0000 | configuration space of the PCI bus |
//! | below 0x3fff_0000 | GIC redistributors, 128 KiB a vCPU |
//! | 0x3fff_0000 .. 0x4000_0000 | GIC distributor |
//! | 0x8000_0000 .. | RAM |
//!
//! Everything that is emulated lies below 1 GiB: under Gunyah no access above it reaches the VMM.

use std::ops::Range;

use crate::hypervisor::GicLayout;
use crate::hypervisor::plan::GIC_REDISTRIBUTOR_SIZE;

/// The frame that messages of PCI devices go to.
pub const V2M_FRAME: u64 = 0x0802_0000;
/// Where BARs are.
pub const PCI_WINDOW: Range<u64> = 0x1000_0000..0x2000_0000;
/// Configuration space of the PCI bus.
pub const PCI_ECAM: u64 = 0x3000_0000;

/// First address of device windows.
const DEVICES_BASE: u64 = 0x0900_0000;
/// First address behind device windows.
const DEVICES_END: u64 = 0x1000_0000;
/// Granule of device windows.
const PAGE: u64 = 0x1000;
/// GIC distributor.
const GIC_DISTRIBUTOR: u64 = 0x3fff_0000;
/// First SPI given to a device.
const FIRST_SPI: u32 = 1;
/// Number of SPIs that a GICv3 of a Gunyah VM has (INTIDs 32 to 1019).
const SPIS: u32 = 988;
/// Largest number of vCPUs that the map has room for.
pub const MAX_VCPUS: u32 = 512;

/// Where the GIC of a machine is.
pub fn gic(vcpus: u32) -> GicLayout {
    GicLayout {
        distributor: GIC_DISTRIBUTOR,
        redistributors: GIC_DISTRIBUTOR - u64::from(vcpus.min(MAX_VCPUS)) * GIC_REDISTRIBUTOR_SIZE,
    }
}

/// Hands out device windows and SPIs, each once.
#[derive(Debug)]
pub struct Allocator {
    next_window: u64,
    next_spi: u32,
}

impl Default for Allocator {
    fn default() -> Self {
        Self { next_window: DEVICES_BASE, next_spi: FIRST_SPI }
    }
}

impl Allocator {
    /// A window of at least `size` bytes: base and size, both whole pages.
    pub fn window(&mut self, size: u64) -> Result<(u64, u64), String> {
        let base = self.next_window;
        let rounded = size.max(1).checked_next_multiple_of(PAGE).filter(|size| *size <= DEVICES_END - base);
        let size = rounded.ok_or_else(|| {
            format!(
                "its register window of {size:#x} bytes does not fit into the {:#x} bytes left",
                DEVICES_END - base
            )
        })?;
        self.next_window += size;
        Ok((base, size))
    }

    /// An interrupt number.
    pub fn spi(&mut self) -> Result<u32, String> {
        self.spis(1).map(|spis| spis.start)
    }

    /// Interrupt numbers in a row.
    pub fn spis(&mut self, count: u32) -> Result<Range<u32>, String> {
        let first = self.next_spi;
        if count > SPIS - first {
            return Err(format!("all {SPIS} interrupt lines of the machine are taken"));
        }
        self.next_spi += count;
        Ok(first..self.next_spi)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::plan::GIC_DISTRIBUTOR_SIZE;
    use crate::pci::host::ECAM_SIZE;
    use crate::pci::v2m::FRAME_SIZE;

    #[test]
    fn windows_are_whole_pages_that_do_not_overlap() {
        let mut map = Allocator::default();
        assert_eq!(map.window(1).unwrap(), (DEVICES_BASE, PAGE));
        assert_eq!(map.window(PAGE + 1).unwrap(), (DEVICES_BASE + PAGE, 2 * PAGE));
        assert_eq!(map.window(0).unwrap(), (DEVICES_BASE + 3 * PAGE, PAGE));
    }

    #[test]
    fn a_window_that_does_not_fit_is_refused_with_the_numbers() {
        let error = Allocator::default().window(u64::MAX).unwrap_err();
        assert_eq!(
            error,
            "its register window of 0xffffffffffffffff bytes does not fit into the 0x7000000 bytes left"
        );
    }

    #[test]
    fn interrupt_numbers_run_out_with_a_message() {
        let mut map = Allocator::default();
        let last = std::iter::from_fn(|| map.spi().ok()).last();
        assert_eq!(last, Some(SPIS - 1));
        assert_eq!(map.spi().unwrap_err(), "all 988 interrupt lines of the machine are taken");
    }

    #[test]
    fn the_parts_of_the_largest_machine_do_not_overlap() {
        assert!(gic(MAX_VCPUS).redistributors >= PCI_ECAM + ECAM_SIZE);
        const {
            assert!(V2M_FRAME + FRAME_SIZE <= DEVICES_BASE && DEVICES_END <= PCI_WINDOW.start);
            assert!(PCI_WINDOW.end <= PCI_ECAM);
            // Gunyah's trap window.
            assert!(
                PCI_ECAM + ECAM_SIZE < GIC_DISTRIBUTOR && GIC_DISTRIBUTOR + GIC_DISTRIBUTOR_SIZE <= 1 << 30
            );
        }
    }

    #[test]
    fn interrupt_numbers_in_a_row_are_nobody_elses() {
        let mut map = Allocator::default();
        assert_eq!(map.spi(), Ok(1));
        assert_eq!(map.spis(5), Ok(2..7));
        assert_eq!(map.spi(), Ok(7));
        assert!(map.spis(SPIS).is_err());
    }
}
