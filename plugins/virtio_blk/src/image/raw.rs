//! Raw image files and block devices: a byte of the disk is the byte of the file at the same place.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use gvmm_plugin_api::memory::{GuestMemory, GuestRange, MemoryError};
use gvmm_plugin_api::queue::{sub_ranges, total_len};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::open::{OpenOptions, visible_size};
use super::{Geometry, Image, Pace, direct};

/// Bytes written at a time where neither the kernel nor the format can zero a range by itself.
pub(super) static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Whether a file lives in memory alone.
fn in_memory(file: &File) -> bool {
    use nix::sys::statfs::{FsType, HUGETLBFS_MAGIC, TMPFS_MAGIC, fstatfs};
    const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);
    fstatfs(file).is_ok_and(|fs| [TMPFS_MAGIC, RAMFS_MAGIC, HUGETLBFS_MAGIC].contains(&fs.filesystem_type()))
}

/// A raw disk.
#[derive(Debug)]
pub(super) struct RawImage {
    file: File,
    /// Bytes in the file when it was last looked at; the capacity may reach up to a sector further.
    size: AtomicU64,
    geometry: Geometry,
    direct: bool,
    durable_writes: bool,
    discard: bool,
    pace: Pace,
    can_read_now: AtomicBool,
    can_punch_hole: AtomicBool,
    can_zero_range: AtomicBool,
    /// Error number of a flush that failed. The kernel reports a lost write once and then forgets it, so every later
    /// flush must fail as well.
    lost: OnceLock<i32>,
}

impl RawImage {
    pub(super) fn new(file: File, size: u64, geometry: Geometry, options: &OpenOptions) -> Self {
        let pace = match in_memory(&file) {
            true => Pace::Memory,
            false if options.direct || options.writethrough => Pace::Device,
            false => Pace::Cached,
        };
        Self {
            file,
            size: AtomicU64::new(size),
            geometry,
            direct: options.direct,
            durable_writes: options.writethrough,
            discard: options.discard,
            pace,
            can_read_now: AtomicBool::new(pace == Pace::Cached),
            can_punch_hole: AtomicBool::new(true),
            can_zero_range: AtomicBool::new(true),
            lost: OnceLock::new(),
        }
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// Asks the kernel to free or zero a range; false when it cannot on this file, which is remembered.
    fn fallocate(
        &self,
        known: &AtomicBool,
        flags: FallocateFlags,
        offset: u64,
        len: u64,
    ) -> io::Result<bool> {
        if !known.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let too_big = |_| io::Error::from_raw_os_error(libc::EFBIG);
        let (start, len) = (i64::try_from(offset).map_err(too_big)?, i64::try_from(len).map_err(too_big)?);
        loop {
            return match fallocate(&self.file, flags | FallocateFlags::FALLOC_FL_KEEP_SIZE, start, len) {
                Ok(()) => Ok(true),
                Err(Errno::EINTR) => continue,
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENODEV) => {
                    known.store(false, Ordering::Relaxed);
                    Ok(false)
                }
                Err(error) => Err(error.into()),
            };
        }
    }

    /// Fills what a read did not: the padding of the last sector and no more.
    fn pad(
        &self,
        memory: &GuestMemory,
        ranges: &[GuestRange],
        offset: u64,
        read: u64,
    ) -> Result<(), MemoryError> {
        let missing = total_len(ranges) - read;
        if missing == 0 {
            return Ok(());
        }
        // More means that the file was cut short meanwhile.
        if offset + read < self.size() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        for range in sub_ranges(ranges, read, missing) {
            memory.fill(range.address, range.len as usize, 0)?;
        }
        Ok(())
    }

    fn write_zero_bytes(&self, mut offset: u64, len: u64) -> io::Result<()> {
        // The part of the last sector behind the end of the file reads as zero already.
        let end = (offset + len).min(self.size().max(offset));
        while offset < end {
            let piece = usize::try_from(end - offset).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
            self.file.write_all_at(&ZEROES[..piece], offset)?;
            offset += piece as u64;
        }
        Ok(())
    }
}

impl Image for RawImage {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn look_at_size(&self) -> io::Result<u64> {
        let size = (&self.file).seek(SeekFrom::End(0))?;
        self.size.store(size, Ordering::Relaxed);
        Ok(visible_size(size, self.geometry.block_size))
    }

    fn read(&self, memory: &GuestMemory, ranges: &[GuestRange], offset: u64) -> Result<(), MemoryError> {
        let read = match memory.read_file_at(ranges, self.file.as_fd(), offset) {
            Err(MemoryError::Io(error)) if self.direct && error.raw_os_error() == Some(libc::EINVAL) => {
                direct::read(&self.file, memory, ranges, offset)?
            }
            other => other?,
        } as u64;
        self.pad(memory, ranges, offset, read)
    }

    fn read_now(
        &self,
        memory: &GuestMemory,
        ranges: &[GuestRange],
        offset: u64,
    ) -> Result<bool, MemoryError> {
        if !self.can_read_now.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match memory.read_file_now(ranges, self.file.as_fd(), offset) {
            Ok(None) => Ok(false),
            Ok(Some(read)) => self.pad(memory, ranges, offset, read as u64).map(|()| true),
            Err(MemoryError::Io(_)) => {
                // Most likely a file system that cannot tell; whatever it is, an ordinary read will say.
                self.can_read_now.store(false, Ordering::Relaxed);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn write(&self, memory: &GuestMemory, ranges: &[GuestRange], offset: u64) -> Result<(), MemoryError> {
        match memory.write_file_at(ranges, self.file.as_fd(), offset) {
            Err(MemoryError::Io(error)) if self.direct && error.raw_os_error() == Some(libc::EINVAL) => {
                direct::write(&self.file, memory, ranges, offset)
            }
            Ok(written) if written as u64 == total_len(ranges) => Ok(()),
            Ok(_) => Err(io::Error::from(io::ErrorKind::WriteZero).into()),
            Err(error) => Err(error),
        }
    }

    fn flush(&self) -> io::Result<()> {
        if let Some(&error) = self.lost.get() {
            return Err(io::Error::from_raw_os_error(error));
        }
        self.file
            .sync_data()
            .inspect_err(|error| self.note_flush_failure(error.raw_os_error().unwrap_or(libc::EIO)))
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn durable_writes(&self) -> bool {
        self.durable_writes
    }

    fn note_flush_failure(&self, error: i32) {
        self.lost.get_or_init(|| error);
    }

    fn has_lost_writes(&self) -> bool {
        self.lost.get().is_some()
    }

    fn pace(&self) -> Pace {
        self.pace
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.discard {
            self.fallocate(&self.can_punch_hole, FallocateFlags::FALLOC_FL_PUNCH_HOLE, offset, len)?;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let unmap = unmap && self.discard;
        if unmap && self.fallocate(&self.can_punch_hole, FallocateFlags::FALLOC_FL_PUNCH_HOLE, offset, len)? {
            return Ok(());
        }
        if self.fallocate(&self.can_zero_range, FallocateFlags::FALLOC_FL_ZERO_RANGE, offset, len)? {
            return Ok(());
        }
        self.write_zero_bytes(offset, len)
    }
}
