//! Guest memory while it is being filled.

use std::sync::Arc;

use super::host::HostMemory;
use super::mapping::Mapping;
use super::ram::{GuestRam, MemoryRange, RegionKind};
use super::source::MemorySource;
use super::{Error, REGION_ALIGNMENT};

/// What shared guest memory is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Private anonymous memory with transparent huge pages: the fastest, for machines whose devices all run inside
    /// the VMM.
    Anonymous,
    /// A memfd, for machines with a device in another process.
    Memfd,
}

/// Who may touch guest memory once the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// Guest and host share all of it.
    None,
    /// The guest alone, except for a shared window in the last bytes of RAM through which its devices work.
    Lent {
        /// Bytes of the window, a multiple of [`REGION_ALIGNMENT`].
        window: u64,
    },
}

/// Mapped guest memory that no guest runs on yet, all zero at first.
#[derive(Debug)]
pub struct RamBuilder {
    regions: Vec<BuilderRegion>,
    /// First guest address behind the part of RAM that can hold kernel, device tree and initrd.
    boot_end: u64,
    base: u64,
    origin: Origin,
}

/// What regions are mapped from.
#[derive(Debug)]
struct Origin {
    backing: Backing,
    source: Option<Arc<dyn MemorySource>>,
}

impl Origin {
    /// Memory for a region. What is lent is anonymous, so that the file a device process gets never holds more than
    /// the window.
    fn map(&self, size: u64, kind: RegionKind) -> Result<Mapping, Error> {
        match (&self.source, self.backing, kind) {
            (Some(source), ..) => Mapping::file(size, source.file(size).map_err(Error::Source)?),
            (None, Backing::Memfd, RegionKind::Shared) => Mapping::memfd(size),
            (None, ..) => Mapping::anonymous(size),
        }
    }
}

#[derive(Debug)]
struct BuilderRegion {
    range: MemoryRange,
    mapping: Mapping,
}

impl RamBuilder {
    /// Maps `size` bytes of RAM for the guest addresses from `base` on.
    ///
    /// # Errors
    ///
    /// Sizes and a base that are zero or not multiples of [`REGION_ALIGNMENT`], more memory than the host has, and a
    /// refusal by the host's kernel.
    pub fn new(base: u64, size: u64, backing: Backing, protection: Protection) -> Result<Self, Error> {
        Self::with_source(base, size, backing, protection, None)
    }

    /// Maps RAM from the files of a source; `backing` says what to take without one.
    ///
    /// # Errors
    ///
    /// As [`Self::new`], and a refusal by the source.
    pub fn with_source(
        base: u64,
        size: u64,
        backing: Backing,
        protection: Protection,
        source: Option<Arc<dyn MemorySource>>,
    ) -> Result<Self, Error> {
        check_range("guest memory", base, size)?;
        if let Some(host) = HostMemory::query() {
            host.check(size)?;
        }
        let origin = Origin { backing, source };
        let mut builder = Self { regions: Vec::new(), boot_end: base + size, base, origin };
        match protection {
            Protection::None => builder.add(base, size, RegionKind::Shared)?,
            Protection::Lent { window } => {
                check_range("shared window", base, window)?;
                let lent = size.checked_sub(window).filter(|lent| *lent > 0);
                let lent = lent.ok_or(Error::WindowTooLarge { window, size })?;
                builder.boot_end = base + lent;
                builder.add(base, lent, RegionKind::Lent)?;
                builder.add(base + lent, window, RegionKind::Shared)?;
            }
        }
        Ok(builder)
    }

    /// Adds lent memory outside of RAM, such as that of a protected VM's firmware.
    ///
    /// # Errors
    ///
    /// As [`Self::with_source`], and for a range that overlaps another region.
    pub fn add_lent(&mut self, base: u64, size: u64) -> Result<(), Error> {
        check_range("lent memory", base, size)?;
        self.add(base, size, RegionKind::Lent)
    }

    fn add(&mut self, base: u64, size: u64, kind: RegionKind) -> Result<(), Error> {
        let place = self.regions.partition_point(|region| region.range.base < base);
        let before = place.checked_sub(1).and_then(|index| self.regions.get(index));
        let overlapping = before
            .filter(|region| region.range.base + region.range.size > base)
            .or_else(|| self.regions.get(place).filter(|region| region.range.base < base + size));
        if let Some(other) = overlapping {
            return Err(Error::Overlap { base, other: other.range.base });
        }
        let mapping = self.origin.map(size, kind)?;
        self.regions.insert(place, BuilderRegion { range: MemoryRange { base, size, kind }, mapping });
        Ok(())
    }

    /// Every range by ascending guest address.
    pub fn ranges(&self) -> Vec<MemoryRange> {
        self.regions.iter().map(|region| region.range).collect()
    }

    /// First guest address of RAM.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// First guest address behind the part of RAM that holds kernel, device tree and initrd: the shared window, or
    /// the end of RAM.
    pub fn boot_end(&self) -> u64 {
        self.boot_end
    }

    /// `length` bytes of guest memory at `address`, to be read and filled in place.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] for a range that is not inside one region.
    pub fn slice_mut(&mut self, address: u64, length: u64) -> Result<&mut [u8], Error> {
        let out_of_range = || Error::OutOfRange { address, length };
        let region = self
            .regions
            .iter_mut()
            .find(|region| address >= region.range.base && address - region.range.base < region.range.size)
            .ok_or_else(out_of_range)?;
        let start = address - region.range.base;
        let end =
            start.checked_add(length).filter(|end| *end <= region.range.size).ok_or_else(out_of_range)?;
        // SAFETY: the builder owns the mapping and has given neither its address nor its file to anybody; the slice
        // borrows the builder, so `finish` comes after its last use.
        let bytes = unsafe { region.mapping.bytes_mut() };
        // Both fit in a usize: the region is mapped in this process.
        bytes.get_mut(start as usize..end as usize).ok_or_else(out_of_range)
    }

    /// Copies `bytes` to `address`.
    ///
    /// # Errors
    ///
    /// As [`Self::slice_mut`].
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        self.slice_mut(address, bytes.len() as u64)?.copy_from_slice(bytes);
        Ok(())
    }

    /// Ends the filling: from now on the memory is the guest's.
    pub fn finish(self) -> GuestRam {
        GuestRam::new(self.regions.into_iter().map(|region| (region.range, region.mapping)).collect())
    }
}

fn check_range(what: &'static str, base: u64, size: u64) -> Result<(), Error> {
    if size == 0 {
        return Err(Error::Empty { what });
    }
    for value in [size, base] {
        if !value.is_multiple_of(REGION_ALIGNMENT) {
            let suggestion = value.checked_next_multiple_of(REGION_ALIGNMENT);
            let suggestion = suggestion.unwrap_or(value - value % REGION_ALIGNMENT);
            return Err(Error::Unaligned { what, value, suggestion });
        }
    }
    base.checked_add(size).map(|_| ()).ok_or(Error::OutOfAddressSpace { base, size })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::memory::RAM_BASE;

    const MIB: u64 = 1 << 20;

    fn ram(backing: Backing, protection: Protection) -> RamBuilder {
        RamBuilder::new(RAM_BASE, 16 * MIB, backing, protection).unwrap()
    }

    fn error_of(size: u64, protection: Protection) -> String {
        RamBuilder::new(RAM_BASE, size, Backing::Anonymous, protection).unwrap_err().to_string()
    }

    #[test]
    fn maps_unprotected_memory_as_one_shared_region_on_a_huge_page_boundary() {
        let ram = ram(Backing::Anonymous, Protection::None).finish();
        let regions: Vec<_> = ram.regions().collect();
        assert_eq!(regions.len(), 1);
        assert_eq!((regions[0].guest_base, regions[0].size), (RAM_BASE, 16 * MIB));
        assert_eq!(regions[0].kind, RegionKind::Shared);
        assert_eq!(regions[0].host_address % REGION_ALIGNMENT, 0);
        assert!(regions[0].memfd.is_none());
        assert!(!ram.shared().is_restricted());
    }

    #[test]
    fn shows_devices_nothing_but_the_window_of_lent_memory() {
        let ram = ram(Backing::Memfd, Protection::Lent { window: 4 * MIB }).finish();
        let kinds: Vec<_> =
            ram.regions().map(|r| (r.guest_base, r.size, r.kind, r.memfd.is_some())).collect();
        let window = RAM_BASE + 12 * MIB;
        assert_eq!(
            kinds,
            [(RAM_BASE, 12 * MIB, RegionKind::Lent, false), (window, 4 * MIB, RegionKind::Shared, true)]
        );
        let shared = ram.shared();
        assert_eq!(shared.regions().len(), 1);
        assert_eq!((shared.regions()[0].guest_base, shared.regions()[0].size), (window, 4 * MIB));
        assert!(shared.is_restricted());
    }

    #[test]
    fn keeps_boot_data_below_the_window() {
        assert_eq!(ram(Backing::Anonymous, Protection::None).boot_end(), RAM_BASE + 16 * MIB);
        let protected = ram(Backing::Anonymous, Protection::Lent { window: 4 * MIB });
        assert_eq!(protected.boot_end(), RAM_BASE + 12 * MIB);
    }

    #[test]
    fn puts_written_bytes_where_another_process_finds_them() {
        let mut builder = ram(Backing::Memfd, Protection::None);
        builder.write(RAM_BASE + 0x1234, b"kernel").unwrap();
        let ram = builder.finish();
        let shared = ram.shared();
        let fd = shared.regions()[0].memfd.as_ref().unwrap().as_fd().try_clone_to_owned().unwrap();
        let mut seen = [0; 6];
        // mmap and read see the same pages only for ordinary pages; hugetlbfs files can be read as well.
        std::fs::File::from(fd).read_exact_at(&mut seen, 0x1234).unwrap();
        assert_eq!(&seen, b"kernel");
    }

    #[test]
    fn seals_the_size_of_the_memfd() {
        let ram = ram(Backing::Memfd, Protection::None).finish();
        let memfd = ram.regions().next().unwrap().memfd.clone().unwrap();
        assert_eq!(nix::unistd::ftruncate(&memfd, 0), Err(nix::errno::Errno::EPERM));
    }

    #[test]
    fn keeps_shared_memory_mapped_for_a_device_that_outlives_the_machine() {
        let shared = ram(Backing::Anonymous, Protection::None).finish().shared();
        let address = shared.regions()[0].host_address;
        // SAFETY: `shared` keeps the region mapped, and no guest or other thread uses it.
        let byte = unsafe { std::ptr::with_exposed_provenance::<u8>(address as usize).read_volatile() };
        assert_eq!(byte, 0);
    }

    /// Gives out memfds and counts them.
    #[derive(Debug, Default)]
    struct Files(std::sync::Mutex<Vec<u64>>);

    impl MemorySource for Files {
        fn file(&self, size: u64) -> Result<std::os::fd::OwnedFd, String> {
            let mut sizes = self.0.lock().unwrap();
            if sizes.len() == 3 {
                return Err("no more".to_owned());
            }
            sizes.push(size);
            let file = tempfile::tempfile().unwrap();
            file.set_len(size).unwrap();
            Ok(file.into())
        }
    }

    #[test]
    fn takes_a_file_of_the_source_for_every_region() {
        let files = Arc::new(Files::default());
        let protection = Protection::Lent { window: 4 * MIB };
        let source = Some(files.clone() as Arc<dyn MemorySource>);
        let mut builder =
            RamBuilder::with_source(RAM_BASE, 16 * MIB, Backing::Anonymous, protection, source).unwrap();
        builder.add_lent(0x7fc0_0000, 4 * MIB).unwrap();
        assert_eq!(*files.0.lock().unwrap(), [12 * MIB, 4 * MIB, 4 * MIB]);
        let error = builder.add_lent(0x7000_0000, 4 * MIB).unwrap_err().to_string();
        assert_eq!(error, "no more");
        assert!(builder.finish().regions().all(|region| region.memfd.is_some()));
    }

    #[test]
    fn takes_firmware_memory_below_ram() {
        let mut builder = ram(Backing::Anonymous, Protection::Lent { window: 2 * MIB });
        builder.add_lent(0x7fc0_0000, 4 * MIB).unwrap();
        builder.write(0x7fc0_0000, b"firmware").unwrap();
        let ram = builder.finish();
        let bases: Vec<_> = ram.regions().map(|region| region.guest_base).collect();
        assert_eq!(bases, [0x7fc0_0000, RAM_BASE, RAM_BASE + 14 * MIB]);
        assert_eq!(ram.shared().regions().len(), 1);
    }

    #[test]
    fn refuses_regions_that_overlap() {
        let mut builder = ram(Backing::Anonymous, Protection::None);
        let error = builder.add_lent(RAM_BASE - 2 * MIB, 4 * MIB).unwrap_err().to_string();
        assert_eq!(error, "memory region at 0x7fe00000 overlaps the one at 0x80000000");
        let error = builder.add_lent(RAM_BASE + 14 * MIB, 4 * MIB).unwrap_err().to_string();
        assert_eq!(error, "memory region at 0x80e00000 overlaps the one at 0x80000000");
    }

    #[test]
    fn refuses_sizes_that_make_no_memory() {
        assert_eq!(error_of(0, Protection::None), "guest memory of 0 bytes: give at least 2 MiB");
        assert_eq!(error_of(3 * MIB, Protection::None), "guest memory 3M is not a multiple of 2M: use 4M");
        assert!(
            error_of(u64::MAX - MIB - (MIB - 1), Protection::None).contains("end beyond the address space")
        );
        assert!(
            error_of(1 << 50, Protection::None).starts_with("guest memory of 1073741824 MiB is more than")
        );
    }

    #[test]
    fn refuses_windows_that_leave_nothing_to_lend() {
        let error = error_of(4 * MIB, Protection::Lent { window: 4 * MIB });
        assert!(error.starts_with("a shared window of 4M takes all"), "{error}");
        assert_eq!(
            error_of(4 * MIB, Protection::Lent { window: 0 }),
            "shared window of 0 bytes: give at least 2 MiB"
        );
    }

    #[test]
    fn refuses_to_write_outside_of_one_region() {
        let mut builder = ram(Backing::Anonymous, Protection::Lent { window: 2 * MIB });
        let end = RAM_BASE + 16 * MIB;
        for (address, length) in
            [(RAM_BASE - 1, 1), (end, 1), (end - 1, 2), (builder.boot_end() - 1, 2), (RAM_BASE, u64::MAX)]
        {
            assert!(matches!(builder.slice_mut(address, length), Err(Error::OutOfRange { .. })));
        }
        assert!(builder.slice_mut(end - 1, 1).is_ok());
    }
}
