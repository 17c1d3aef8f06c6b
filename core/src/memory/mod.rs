//! Guest memory: built and filled once, then out of the VMM's reach.
//!
//! A [`RamBuilder`] maps the memory and lets the loader fill it; [`RamBuilder::finish`] turns it into a [`GuestRam`],
//! which cannot be read or written at all. Accelerators take its [`Region`]s to give them to the hypervisor, devices
//! get a [`SharedMemory`], which holds the regions that the host may touch and no others. That memory lent to a
//! protected guest is never touched is thus a property of the types.

mod builder;
mod host;
mod image;
mod mapping;
mod ram;
mod source;

use gvmm_plugin_api::options::show_size;

pub use builder::{Backing, Protection, RamBuilder};
pub use image::RegisterImage;
pub use ram::{GuestRam, MemoryRange, Region, RegionKind, SharedMemory, SharedRegion};
pub use source::MemorySource;

/// Guest address of the first byte of RAM. Everything the VMM emulates lies below 1 GiB.
pub const RAM_BASE: u64 = 0x8000_0000;

/// Sizes and bases of regions are multiples of this: one huge page of a host with 4 KiB pages, which is what keeps
/// second-stage faults rare, and the granule to which Gunyah's Resource Manager rounds the base of an image.
pub const REGION_ALIGNMENT: u64 = 0x20_0000;

/// Why guest memory could not be set up or filled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A region of no bytes.
    #[error("{what} of 0 bytes: give at least 2 MiB")]
    Empty {
        /// Which region.
        what: &'static str,
    },
    /// Not a multiple of [`REGION_ALIGNMENT`].
    #[error("{what} {} is not a multiple of 2M: use {}", show_size(*value), show_size(*suggestion))]
    Unaligned {
        /// Which size or address.
        what: &'static str,
        /// What was asked for.
        value: u64,
        /// The next multiple.
        suggestion: u64,
    },
    /// The end of a region is not an address.
    #[error("{size} bytes of memory at {base:#x} end beyond the address space: give less")]
    OutOfAddressSpace {
        /// Guest address.
        base: u64,
        /// Bytes.
        size: u64,
    },
    /// Two regions claim one address.
    #[error("memory region at {base:#x} overlaps the one at {other:#x}")]
    Overlap {
        /// Guest address of the region to be added.
        base: u64,
        /// Guest address of the region that is there.
        other: u64,
    },
    /// Guest memory cannot be backed by this host.
    #[error(
        "guest memory of {wanted_mib} MiB is more than the {total_mib} MiB of this host ({available_mib} MiB available): give less"
    )]
    MoreThanHost {
        /// Guest memory.
        wanted_mib: u64,
        /// `MemTotal` of the host.
        total_mib: u64,
        /// `MemAvailable` of the host.
        available_mib: u64,
    },
    /// The shared window leaves nothing to lend.
    #[error(
        "a shared window of {} takes all of the {} of guest memory: make it smaller, or give more memory", show_size(*window), show_size(*size)
    )]
    WindowTooLarge {
        /// Bytes of the window.
        window: u64,
        /// Bytes of guest memory.
        size: u64,
    },
    /// The host refused the memory.
    #[error(
        "cannot map {size_mib} MiB of guest memory ({call}): {source}; give less, or free memory on the host"
    )]
    Map {
        /// Mebibytes of the region.
        size_mib: u64,
        /// System call that failed.
        call: &'static str,
        /// Its error.
        source: std::io::Error,
    },
    /// The hypervisor made no memory.
    #[error("{0}")]
    Source(String),
    /// An address range that is not inside one region.
    #[error("guest memory has no {length:#x} bytes at {address:#x}")]
    OutOfRange {
        /// Guest address.
        address: u64,
        /// Bytes.
        length: u64,
    },
}
