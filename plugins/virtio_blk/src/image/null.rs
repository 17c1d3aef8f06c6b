//! A disk that keeps nothing: what a request costs without one.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;

use gvmm_plugin_api::memory::{GuestMemory, GuestRange, MemoryError};

use super::{Geometry, Image, Pace};

/// A disk that reads as zero, whatever is written to it.
#[derive(Debug)]
pub(super) struct NullImage {
    geometry: Geometry,
}

impl NullImage {
    pub(super) fn new(geometry: Geometry) -> Self {
        Self { geometry }
    }
}

impl Image for NullImage {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn look_at_size(&self) -> io::Result<u64> {
        Ok(self.geometry.capacity)
    }

    fn read(&self, memory: &GuestMemory, ranges: &[GuestRange], _: u64) -> Result<(), MemoryError> {
        ranges.iter().try_for_each(|range| memory.fill(range.address, range.len as usize, 0))
    }

    fn read_now(
        &self,
        memory: &GuestMemory,
        ranges: &[GuestRange],
        offset: u64,
    ) -> Result<bool, MemoryError> {
        self.read(memory, ranges, offset).map(|()| true)
    }

    fn write(&self, _: &GuestMemory, _: &[GuestRange], _: u64) -> Result<(), MemoryError> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn durable_writes(&self) -> bool {
        false
    }

    fn note_flush_failure(&self, _: i32) {}

    fn has_lost_writes(&self) -> bool {
        false
    }

    fn pace(&self) -> Pace {
        Pace::Memory
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{TestDisk, pattern};

    #[test]
    fn the_disk_has_the_size_of_the_file_reads_as_zero_and_keeps_nothing() {
        let content = pattern(8192);
        let disk = TestDisk::new(&content);
        let mut machine = disk.start(&[("format", "null")]);
        assert_eq!(machine.read(0, 8192), Ok(vec![0; 8192]));
        assert_eq!(machine.write(8, &[7; 512]), 0);
        assert_eq!(machine.flush(), 0);
        assert_eq!(machine.read(8, 512), Ok(vec![0; 512]));
        assert!(machine.read(16, 512).is_err(), "behind the end");
        drop(machine);
        assert_eq!(disk.content(), content);
    }
}
