//! Memory that this process shares with a device: registers, or pages for queues.

use std::ffi::c_void;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use anyhow::{Context, Result};
use nix::sys::mman::{MapFlags, ProtFlags, mlock, mmap, mmap_anonymous, munmap};

const PROTECTION: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);

/// An integer: any bytes are one.
pub(crate) trait Integer: Copy {}
impl Integer for u8 {}
impl Integer for u16 {}
impl Integer for u32 {}
impl Integer for u64 {}

/// Memory of this process that others read and write as well.
pub(crate) struct Mapping {
    start: NonNull<c_void>,
    size: usize,
}

impl Mapping {
    /// The first bytes of a file, such as the registers behind a file of sysfs.
    pub(crate) fn of_file(file: &File, size: u64) -> Result<Self> {
        let size = NonZeroUsize::new(usize::try_from(size)?).context("the file is empty")?;
        // SAFETY: the kernel chooses the address, so nothing of this process is replaced.
        let start = unsafe { mmap(None, size, PROTECTION, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Self { start, size: size.get() })
    }

    /// Zeroed memory that is not swapped out.
    pub(crate) fn locked(size: NonZeroUsize) -> Result<Self> {
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_POPULATE;
        // SAFETY: the kernel chooses the address, so nothing of this process is replaced.
        let start = unsafe { mmap_anonymous(None, size, PROTECTION, flags) }?;
        let mapping = Self { start, size: size.get() };
        // SAFETY: the range was just mapped.
        unsafe { mlock(mapping.start, mapping.size) }.context("cannot lock memory")?;
        Ok(mapping)
    }

    /// Where it begins in this process.
    pub(crate) fn address(&self) -> usize {
        self.start.addr().get()
    }

    /// Reads a value at an offset that is a multiple of its size.
    pub(crate) fn read<T: Integer>(&self, at: usize) -> T {
        // SAFETY: the value lies within the mapping and is aligned (`place`); any bytes are one.
        unsafe { self.place::<T>(at).read_volatile() }
    }

    /// Writes a value at an offset that is a multiple of its size.
    pub(crate) fn write<T: Integer>(&self, at: usize, value: T) {
        // SAFETY: the value lies within the mapping and is aligned (`place`).
        unsafe { self.place::<T>(at).write_volatile(value) }
    }

    fn place<T>(&self, at: usize) -> NonNull<T> {
        let width = size_of::<T>();
        assert!(at.is_multiple_of(width) && at + width <= self.size);
        // SAFETY: the offset lies within the mapping, which begins at a page.
        unsafe { self.start.byte_add(at) }.cast()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the mapping any more.
        let _ = unsafe { munmap(self.start, self.size) };
    }
}
