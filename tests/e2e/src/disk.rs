//! A disk opened past the page cache, and the buffers that this needs.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result};
use nix::fcntl::OFlag;

/// Alignment of addresses and offsets that direct I/O takes on every disk here.
pub(crate) const ALIGNMENT: usize = 4096;

/// A block device or an image file.
pub(crate) struct Disk {
    file: File,
    size: u64,
    is_device: bool,
}

impl Disk {
    /// Opens with `O_DIRECT`, so that what is read comes from the device and not from a cache.
    pub(crate) fn open(path: &Path, writable: bool) -> Result<Self> {
        Self::open_with(path, writable, OFlag::O_DIRECT)
    }

    /// Opens through the page cache: for file systems without direct I/O.
    pub(crate) fn open_cached(path: &Path, writable: bool) -> Result<Self> {
        Self::open_with(path, writable, OFlag::empty())
    }

    fn open_with(path: &Path, writable: bool, flags: OFlag) -> Result<Self> {
        let place = || format!("cannot open {}", path.display());
        let mut options = OpenOptions::new();
        options.read(true).write(writable).custom_flags(flags.bits());
        let mut file = options.open(path).with_context(place)?;
        let is_device = file.metadata().with_context(place)?.file_type().is_block_device();
        let size = file.seek(SeekFrom::End(0)).with_context(place)?;
        Ok(Self { file, size, is_device })
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let length = buffer.len();
        self.file
            .read_exact_at(buffer, offset)
            .with_context(|| format!("reading {length} bytes at {offset:#x}"))
    }

    pub(crate) fn write(&self, buffer: &[u8], offset: u64) -> Result<()> {
        let length = buffer.len();
        self.file
            .write_all_at(buffer, offset)
            .with_context(|| format!("writing {length} bytes at {offset:#x}"))
    }

    /// Returns once all completed writes are durable.
    pub(crate) fn flush(&self) -> Result<()> {
        self.file.sync_data().context("flushing")
    }

    /// Tells the device that content is no longer needed; what is read there afterwards is undefined.
    /// Returns false if the device has no such command.
    pub(crate) fn discard(&self, offset: u64, length: u64) -> Result<bool> {
        // SAFETY: the descriptor is open, and the kernel only reads the two numbers behind the pointer.
        self.range_command(
            unsafe { commands::discard(self.file.as_raw_fd(), &[offset, length]) },
            "discarding",
            offset,
        )
    }

    /// Makes a range read as zeroes. Returns false if this is no block device.
    pub(crate) fn zero(&self, offset: u64, length: u64) -> Result<bool> {
        // SAFETY: the descriptor is open, and the kernel only reads the two numbers behind the pointer.
        self.range_command(
            unsafe { commands::zero(self.file.as_raw_fd(), &[offset, length]) },
            "zeroing",
            offset,
        )
    }

    fn range_command(&self, result: nix::Result<std::ffi::c_int>, what: &str, offset: u64) -> Result<bool> {
        match result {
            Ok(_) => Ok(true),
            Err(nix::Error::EOPNOTSUPP) => Ok(false),
            Err(nix::Error::ENOTTY) if !self.is_device => Ok(false),
            Err(error) => Err(error).with_context(|| format!("{what} at {offset:#x}")),
        }
    }
}

/// `BLKDISCARD` and `BLKZEROOUT` of `include/uapi/linux/fs.h`: a byte offset and a length in bytes.
mod commands {
    nix::ioctl_write_ptr_bad!(discard, nix::request_code_none!(0x12, 119), [u64; 2]);
    nix::ioctl_write_ptr_bad!(zero, nix::request_code_none!(0x12, 127), [u64; 2]);
}

/// Memory aligned for direct I/O.
pub(crate) struct Buffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    pub(crate) fn new(length: usize) -> Self {
        let memory = vec![0; length + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, start, length }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_of_the_length_asked_for() {
        let buffer = Buffer::new(65536);
        assert_eq!(buffer.as_ptr().addr() % ALIGNMENT, 0);
        assert_eq!(buffer.len(), 65536);
    }

    #[test]
    fn a_file_has_no_discard_command() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let disk = Disk::open_cached(file.path(), true).unwrap();
        assert_eq!(disk.size(), 1 << 20);
        assert!(!disk.discard(0, 4096).unwrap());
        assert!(!disk.zero(0, 4096).unwrap());
    }
}
