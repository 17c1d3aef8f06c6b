//! Memory given to a VM (rule 1.4, 2.2 to 2.4).

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::abi::args::{GuestRange, MapMem, MemRegion, map_flags, region_flags};
use crate::abi::{Generation, PAGE};
use crate::errno::Errno;
use crate::rm::Region;

/// Transparent huge pages of a guest-memfd made with ALLOW_HUGEPAGE.
const HUGE_PAGE: u64 = 2 << 20;

/// What the host knows about a range of the program's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostRange {
    /// Some of it is not mapped, or not with the rights asked for.
    Unmapped,
    /// Anonymous or shared memory.
    SwapBacked,
    /// Pages of a file on disk.
    File,
}

/// Where memory comes from.
#[derive(Clone, Debug)]
pub(crate) enum Backing {
    /// The program's own addresses (A and C).
    User { host: u64, kind: HostRange },
    /// A guest-memfd object (B).
    GuestMem { file: Arc<OwnedFd>, inode: u64, offset: u64 },
}

/// One region.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) region: Region,
    pub(crate) backing: Backing,
}

/// The regions of one VM.
pub(crate) struct Memory {
    generation: Generation,
    pub(crate) entries: Vec<Entry>,
}

/// A guest-memfd object as `MAP_MEM` finds it.
pub(crate) struct GuestMem {
    pub(crate) file: Arc<OwnedFd>,
    pub(crate) inode: u64,
    pub(crate) size: u64,
    pub(crate) huge: bool,
}

impl Memory {
    pub(crate) fn new(generation: Generation) -> Memory {
        Memory { generation, entries: Vec::new() }
    }

    /// `SET_USER_MEM_REGION` and `LEND_USER_MEM`. `memlock` is the bytes that may still be locked, where that counts.
    pub(crate) fn add_user(
        &mut self,
        arg: &MemRegion,
        lend: bool,
        kind: HostRange,
        memlock: Option<u64>,
    ) -> Result<(), Errno> {
        if arg.flags & !region_flags::ALL != 0 || arg.size == 0 {
            return Err(Errno::EINVAL);
        }
        if [arg.size, arg.host, arg.guest].iter().any(|value| !value.is_multiple_of(PAGE)) {
            return Err(Errno::EINVAL);
        }
        arg.guest.checked_add(arg.size).ok_or(Errno::EOVERFLOW)?;
        if self.generation == Generation::A
            && self.entries.iter().any(|entry| entry.region.label == arg.label)
        {
            return Err(Errno::EEXIST);
        }
        self.check_overlap(arg.guest, arg.size)?;
        // A pins and charges every page now; C does so page by page on guest touch.
        if self.generation == Generation::A {
            if memlock.is_some_and(|left| arg.size > left) {
                return Err(Errno::ENOMEM);
            }
            if kind == HostRange::Unmapped {
                return Err(Errno::EFAULT);
            }
        }
        let label = if self.generation == Generation::A { arg.label } else { 0 };
        self.entries.push(Entry {
            region: Region {
                label,
                guest: arg.guest,
                size: arg.size,
                lent: lend,
                writable: arg.flags & region_flags::WRITE != 0,
                executable: arg.flags & region_flags::EXEC != 0,
            },
            backing: Backing::User { host: arg.host, kind },
        });
        Ok(())
    }

    /// `MAP_MEM` (B).
    pub(crate) fn map_guest_mem(&mut self, arg: &MapMem, object: &GuestMem) -> Result<(), Errno> {
        let access = arg.flags & map_flags::ACCESS_MASK;
        if arg.flags & !(map_flags::RWX | map_flags::UNMAP | map_flags::ACCESS_MASK) != 0
            || arg.flags & map_flags::RWX == 0
            || !matches!(access, map_flags::DEFAULT | map_flags::LEND | map_flags::SHARE)
        {
            return Err(Errno::EINVAL);
        }
        let unit = if object.huge { HUGE_PAGE } else { PAGE };
        if [arg.guest, arg.offset, arg.size].iter().any(|value| !value.is_multiple_of(unit)) || arg.size == 0
        {
            return Err(Errno::EINVAL);
        }
        if arg.flags & map_flags::UNMAP != 0 {
            return self.unmap_guest_mem(arg, object.inode);
        }
        let end = arg.offset.checked_add(arg.size).ok_or(Errno::EINVAL)?;
        if end > object.size || arg.guest.checked_add(arg.size).is_none() {
            return Err(Errno::EINVAL);
        }
        self.check_overlap(arg.guest, arg.size)?;
        // One page serves one guest address (guest-memfd rule of list v15).
        let again = self.entries.iter().any(|entry| match &entry.backing {
            Backing::GuestMem { inode, offset, .. } => {
                *inode == object.inode && arg.offset < offset + entry.region.size && *offset < end
            }
            Backing::User { .. } => false,
        });
        if again {
            return Err(Errno::EEXIST);
        }
        self.entries.push(Entry {
            region: Region {
                label: 0,
                guest: arg.guest,
                size: arg.size,
                // DEFAULT means lent: every VM is protected (list v15).
                lent: access != map_flags::SHARE,
                writable: arg.flags & map_flags::WRITE != 0,
                executable: arg.flags & map_flags::EXEC != 0,
            },
            backing: Backing::GuestMem {
                file: Arc::clone(&object.file),
                inode: object.inode,
                offset: arg.offset,
            },
        });
        Ok(())
    }

    /// Whole mappings only; the driver's shrinking of part of one is not modelled.
    fn unmap_guest_mem(&mut self, arg: &MapMem, object: u64) -> Result<(), Errno> {
        let found = self.entries.iter().position(|entry| {
            entry.region.guest == arg.guest
                && entry.region.size == arg.size
                && matches!(&entry.backing, Backing::GuestMem { inode, offset, .. }
                    if *inode == object && *offset == arg.offset)
        });
        self.entries.remove(found.ok_or(Errno::ENOENT)?);
        Ok(())
    }

    /// `RECLAIM_REGION` (C): page-aligned, inside what was given.
    pub(crate) fn check_reclaim(&self, range: GuestRange) -> Result<(), Errno> {
        if !range.guest.is_multiple_of(PAGE) || !range.size.is_multiple_of(PAGE) || range.size == 0 {
            return Err(Errno::EINVAL);
        }
        range.guest.checked_add(range.size).ok_or(Errno::EOVERFLOW)?;
        self.find(range).map(|_| ()).ok_or(Errno::EINVAL)
    }

    fn check_overlap(&self, guest: u64, size: u64) -> Result<(), Errno> {
        let overlaps =
            |region: &Region| guest < region.guest + region.size && region.guest < guest.saturating_add(size);
        if self.entries.iter().any(|entry| overlaps(&entry.region)) { Err(Errno::EEXIST) } else { Ok(()) }
    }

    /// The entry that holds a whole range.
    pub(crate) fn find(&self, range: GuestRange) -> Option<usize> {
        self.entries.iter().position(|entry| entry.region.contains(range))
    }

    /// Bytes given so far.
    pub(crate) fn total(&self) -> u64 {
        self.entries.iter().map(|entry| entry.region.size).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(label: u32, guest: u64, size: u64) -> MemRegion {
        MemRegion { label, flags: 7, guest, size, host: 0x10_0000 }
    }

    fn add(memory: &mut Memory, arg: &MemRegion) -> Result<(), Errno> {
        memory.add_user(arg, false, HostRange::SwapBacked, None)
    }

    #[test]
    fn malformed_regions_are_invalid() {
        let good = region(0, 0x8000_0000, PAGE);
        for bad in [
            MemRegion { size: 0, ..good },
            MemRegion { size: 100, ..good },
            MemRegion { guest: 0x8000_0001, ..good },
            MemRegion { host: 0x10_0001, ..good },
            MemRegion { flags: 8, ..good },
        ] {
            assert_eq!(add(&mut Memory::new(Generation::A), &bad), Err(Errno::EINVAL), "{bad:?}");
        }
        let wrapping = MemRegion { guest: u64::MAX - 0xfff, size: 2 * PAGE, ..good };
        assert_eq!(add(&mut Memory::new(Generation::C), &wrapping), Err(Errno::EOVERFLOW));
    }

    #[test]
    fn a_label_counts_in_generation_a_only() {
        for (generation, outcome) in [(Generation::A, Err(Errno::EEXIST)), (Generation::C, Ok(()))] {
            let mut memory = Memory::new(generation);
            add(&mut memory, &region(1, 0x8000_0000, PAGE)).unwrap();
            assert_eq!(add(&mut memory, &region(1, 0x9000_0000, PAGE)), outcome);
            assert_eq!(add(&mut memory, &region(2, 0x8000_0000, PAGE)), Err(Errno::EEXIST));
        }
    }

    #[test]
    fn generation_a_pins_at_once_and_c_later() {
        let arg = region(0, 0x8000_0000, 2 * PAGE);
        let mut a = Memory::new(Generation::A);
        assert_eq!(a.add_user(&arg, false, HostRange::SwapBacked, Some(PAGE)), Err(Errno::ENOMEM));
        assert_eq!(a.add_user(&arg, false, HostRange::Unmapped, None), Err(Errno::EFAULT));
        let mut c = Memory::new(Generation::C);
        assert_eq!(c.add_user(&arg, false, HostRange::Unmapped, Some(PAGE)), Ok(()));
    }

    fn object(huge: bool) -> GuestMem {
        let file = std::fs::File::open("/dev/null").unwrap();
        GuestMem { file: Arc::new(file.into()), inode: 1, size: 4 << 20, huge }
    }

    fn map(flags: u32, guest: u64, offset: u64) -> MapMem {
        MapMem { guest, flags, fd: 0, offset, size: HUGE_PAGE }
    }

    #[test]
    fn mapped_memory_is_lent_unless_shared() {
        let mut memory = Memory::new(Generation::B);
        memory.map_guest_mem(&map(map_flags::RWX, 0x8000_0000, 0), &object(false)).unwrap();
        let shared = map(map_flags::RWX | map_flags::SHARE, 0x9000_0000, HUGE_PAGE);
        memory.map_guest_mem(&shared, &object(false)).unwrap();
        assert_eq!(memory.entries.iter().map(|entry| entry.region.lent).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn bad_mappings_are_invalid() {
        for (arg, huge) in [
            (map(0, 0x8000_0000, 0), false),
            (map(map_flags::RWX | 3, 0x8000_0000, 0), false),
            (map(map_flags::RWX | 0x200, 0x8000_0000, 0), false),
            (map(map_flags::RWX, 0x8000_0001, 0), false),
            (map(map_flags::RWX, 0x8000_1000, 0), true),
            (map(map_flags::RWX, 0x8000_0000, 4 << 20), false),
        ] {
            let outcome = Memory::new(Generation::B).map_guest_mem(&arg, &object(huge));
            assert_eq!(outcome, Err(Errno::EINVAL), "{arg:?}");
        }
    }

    #[test]
    fn a_page_of_an_object_serves_one_guest_address() {
        let mut memory = Memory::new(Generation::B);
        memory.map_guest_mem(&map(map_flags::RWX, 0x8000_0000, 0), &object(false)).unwrap();
        let again = map(map_flags::RWX, 0x9000_0000, 0);
        assert_eq!(memory.map_guest_mem(&again, &object(false)), Err(Errno::EEXIST));
        let unmap = map(map_flags::RWX | map_flags::UNMAP, 0x8000_0000, 0);
        assert_eq!(memory.map_guest_mem(&unmap, &object(false)), Ok(()));
        assert_eq!(memory.map_guest_mem(&again, &object(false)), Ok(()));
    }
}
