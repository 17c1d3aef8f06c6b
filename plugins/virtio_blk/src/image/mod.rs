//! The disk on the host's side.
#![forbid(unsafe_code)]

mod bounce;
mod direct;
mod error;
mod lock;
mod null;
mod open;
mod qcow2;
mod raw;

use std::io;
use std::os::fd::BorrowedFd;

use gvmm_plugin_api::memory::{GuestMemory, GuestRange, MemoryError};

pub(crate) use error::ImageError;
pub(crate) use open::{Format, OpenOptions, open};

/// What can be done with a disk. Offsets and lengths are in bytes and lie within the capacity; any thread may call.
pub(crate) trait Image: Send + Sync + std::fmt::Debug {
    /// What the disk is like.
    fn geometry(&self) -> Geometry;

    /// Looks anew how large the disk is: its capacity by now.
    fn look_at_size(&self) -> io::Result<u64>;

    /// Reads into guest ranges, all of them.
    fn read(&self, memory: &GuestMemory, ranges: &[GuestRange], offset: u64) -> Result<(), MemoryError>;

    /// Reads into guest ranges if that takes no waiting; false when another read is to be done.
    fn read_now(&self, memory: &GuestMemory, ranges: &[GuestRange], offset: u64)
    -> Result<bool, MemoryError>;

    /// Writes guest ranges, all of them.
    fn write(&self, memory: &GuestMemory, ranges: &[GuestRange], offset: u64) -> Result<(), MemoryError>;

    /// Makes every completed write durable.
    fn flush(&self) -> io::Result<()>;

    /// Hands to the kernel what is only in this process, so that it survives the process; durable it is not.
    fn write_back(&self) -> io::Result<()> {
        Ok(())
    }

    /// The file whose bytes are the disk's bytes, if there is one: others may then read, write and sync it.
    fn file(&self) -> Option<BorrowedFd<'_>>;

    /// Whether every write is durable when it returns.
    fn durable_writes(&self) -> bool;

    /// Notes that a sync of [`Image::file`] failed with this error number: every later flush must fail as well.
    fn note_flush_failure(&self, error: i32);

    /// Whether a flush has failed, so that [`Image::flush`] fails at once.
    fn has_lost_writes(&self) -> bool;

    /// How long its operations take.
    fn pace(&self) -> Pace;

    /// Gives the space of a range back to the host; what it reads as afterwards is open. A disk that cannot do it
    /// leaves the range as it is.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes a range read as zero; its space may be given back when `unmap` is set.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;
}

/// How long operations of a disk take, as far as it is known beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// None waits for a device: the disk is in memory.
    Memory,
    /// Reads may be cached, writes go to the page cache.
    Cached,
    /// All wait for a device.
    Device,
}

/// Size and block sizes of a disk in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Size, a multiple of `block_size`.
    pub(crate) capacity: u64,
    /// Logical block size, a power of two.
    pub(crate) block_size: u32,
    /// Physical block size, a power of two and not below the logical one.
    pub(crate) physical_block_size: u32,
    /// Best transfer size, 0 when none is known.
    pub(crate) optimal_io_size: u32,
}
