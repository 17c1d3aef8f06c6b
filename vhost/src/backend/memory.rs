//! Guest memory as the front end shares it.

use std::fs::File;
use std::os::fd::OwnedFd;

use gvmm_plugin_api::memory::{GuestMemory, MemoryRegion};
use vm_memory::{FileOffset, MmapRegion};

use crate::protocol::payload::Region;

/// Most regions at a time; `GET_MAX_MEM_SLOTS`.
pub(super) const MAX_SLOTS: usize = 32;

/// A region that is mapped into this process.
#[derive(Debug)]
struct Mapped {
    region: Region,
    mapping: MmapRegion<()>,
}

impl Mapped {
    fn new(region: Region, fd: OwnedFd) -> Result<Self, String> {
        let Region { guest_address, size, user_address, mmap_offset } = region;
        let refused = |why: &str| format!("memory region {guest_address:#x}+{size:#x}: {why}");
        let wraps = |start: u64| start.checked_add(size).is_none();
        if size == 0 || wraps(guest_address) || wraps(user_address) || wraps(mmap_offset) {
            return Err(refused("it is empty or wraps the address space"));
        }
        let file = File::from(fd);
        let metadata = file.metadata().map_err(|e| refused(&e.to_string()))?;
        // A character device such as device DAX has no size of its own.
        if metadata.is_file() && metadata.len() < mmap_offset + size {
            return Err(refused("its file is shorter"));
        }
        // From the start of the file: huge pages can be mapped only at offsets that are multiples of their size.
        let whole = usize::try_from(mmap_offset + size).map_err(|_| refused("it is too large"))?;
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
        let mapping = MmapRegion::build(Some(FileOffset::new(file, 0)), whole, protection, flags);
        Ok(Self { region, mapping: mapping.map_err(|e| refused(&e.to_string()))? })
    }

    fn view(&self) -> MemoryRegion {
        let Region { guest_address, size, mmap_offset, .. } = self.region;
        // The offset lies within the mapping, whose size fits.
        let host_address = self.mapping.as_ptr().expose_provenance() + mmap_offset as usize;
        // SAFETY: the mapping is readable and writable, and the session stops every queue before it changes the map.
        unsafe { MemoryRegion::new(guest_address, size, host_address, None) }
    }
}

/// All regions that are mapped.
#[derive(Debug, Default)]
pub(super) struct GuestMap(Vec<Mapped>);

impl GuestMap {
    /// Maps the regions of a table, one descriptor each.
    pub(super) fn of_table(regions: &[Region], fds: Vec<OwnedFd>) -> Result<Self, String> {
        if regions.len() != fds.len() {
            return Err(format!("a table of {} regions came with {} descriptors", regions.len(), fds.len()));
        }
        let mapped = regions.iter().zip(fds).map(|(region, fd)| Mapped::new(*region, fd));
        let map = Self(mapped.collect::<Result<_, _>>()?);
        map.check()?;
        Ok(map)
    }

    /// Maps one more region.
    pub(super) fn add(&mut self, region: Region, fd: OwnedFd) -> Result<(), String> {
        if self.0.len() >= MAX_SLOTS {
            return Err(format!("all {MAX_SLOTS} memory slots are taken"));
        }
        self.0.push(Mapped::new(region, fd)?);
        self.check().inspect_err(|_| drop(self.0.pop()))
    }

    /// Unmaps a region, found by its addresses and size.
    pub(super) fn remove(&mut self, region: &Region) -> Result<(), String> {
        let same = |mapped: &Mapped| {
            let other = &mapped.region;
            (other.guest_address, other.user_address, other.size)
                == (region.guest_address, region.user_address, region.size)
        };
        let at = self.0.iter().position(same);
        let at = at.ok_or_else(|| format!("there is no memory region at {:#x}", region.guest_address))?;
        self.0.remove(at);
        Ok(())
    }

    /// The guest address of an address of the front end's process.
    pub(super) fn guest_address(&self, user_address: u64) -> Option<u64> {
        let regions = self.0.iter().map(|mapped| mapped.region);
        regions
            .filter_map(|region| Some((user_address.checked_sub(region.user_address)?, region)))
            .find(|(offset, region)| *offset < region.size)
            .map(|(offset, region)| region.guest_address + offset)
    }

    /// The regions, for a queue.
    pub(super) fn regions(&self) -> Vec<MemoryRegion> {
        self.0.iter().map(Mapped::view).collect()
    }

    /// Whether nothing is mapped.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether guest memory can be made of the regions: they must not overlap.
    fn check(&self) -> Result<(), String> {
        GuestMemory::new(&self.regions()).map(drop).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    /// Where the front end has guest address 0.
    const USER: u64 = 0x7000_0000_0000;

    fn memfd(size: u64) -> OwnedFd {
        let fd = memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&fd, i64::try_from(size).unwrap()).unwrap();
        fd
    }

    fn region(guest_address: u64, size: u64, mmap_offset: u64) -> Region {
        Region { guest_address, size, user_address: guest_address.wrapping_add(USER), mmap_offset }
    }

    #[test]
    fn addresses_of_the_front_end_are_translated_within_regions_only() {
        let regions = [region(0x1000, 0x2000, 0), region(0x10000, 0x1000, 0x2000)];
        let map = GuestMap::of_table(&regions, vec![memfd(0x2000), memfd(0x3000)]).unwrap();
        assert_eq!(map.guest_address(0x7000_0000_1000), Some(0x1000));
        assert_eq!(map.guest_address(0x7000_0000_2fff), Some(0x2fff));
        assert_eq!(map.guest_address(0x7000_0001_0008), Some(0x10008));
        for outside in [0, 0x7000_0000_0fff, 0x7000_0000_3000, u64::MAX] {
            assert_eq!(map.guest_address(outside), None, "{outside:#x}");
        }
    }

    #[test]
    fn regions_begin_at_their_offset_in_the_file() {
        let fd = memfd(0x3000);
        nix::sys::uio::pwrite(&fd, b"here", 0x1000).unwrap();
        let map = GuestMap::of_table(&[region(0, 0x1000, 0x1000)], vec![fd]).unwrap();
        let mut seen = [0; 4];
        GuestMemory::new(&map.regions()).unwrap().read(0, &mut seen).unwrap();
        assert_eq!(&seen, b"here");
    }

    #[test]
    fn regions_that_cannot_be_are_refused() {
        let refused =
            |region: Region, file: u64| GuestMap::of_table(&[region], vec![memfd(file)]).unwrap_err();
        assert_eq!(
            refused(region(0, 0x2000, 0x1000), 0x2fff),
            "memory region 0x0+0x2000: its file is shorter"
        );
        for bad in [region(0, 0, 0), region(0, u64::MAX, 2), region(u64::MAX - 1, 4096, 0)] {
            assert!(refused(bad, 4096).ends_with("it is empty or wraps the address space"));
        }
        let error = GuestMap::of_table(&[region(0, 4096, 0)], vec![]).unwrap_err();
        assert_eq!(error, "a table of 1 regions came with 0 descriptors");
        let overlapping = [region(0, 0x2000, 0), region(0x1000, 0x2000, 0)];
        assert!(GuestMap::of_table(&overlapping, vec![memfd(0x2000), memfd(0x2000)]).is_err());
    }

    #[test]
    fn slots_are_added_and_removed_one_by_one_up_to_the_limit() {
        let mut map = GuestMap::default();
        let slot = |i: usize| region(0x10000 * i as u64, 4096, 0);
        for i in 0..MAX_SLOTS {
            map.add(slot(i), memfd(4096)).unwrap();
        }
        assert!(map.add(slot(MAX_SLOTS), memfd(4096)).is_err());
        map.remove(&slot(3)).unwrap();
        assert!(map.remove(&slot(3)).is_err());
        assert!(map.add(slot(4), memfd(4096)).is_err(), "it is there already");
        map.add(slot(3), memfd(4096)).unwrap();
        assert_eq!(map.regions().len(), MAX_SLOTS);
    }
}
