//! What can be wrong with the files of a guest.

use std::io;
use std::path::{Path, PathBuf};

use super::{DTB_ALIGNMENT, DTB_SLOT_SIZE};
use crate::memory::{self, RamBuilder};

const MIB: u64 = 1 << 20;

/// Why a guest's files could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened.
    #[error("cannot open the {what} {}: {source}", path.display())]
    Open {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file cannot be read.
    #[error("cannot read the {what} {}: {source}", path.display())]
    Read {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file has no content.
    #[error("the {what} {} is empty: was it copied completely?", path.display())]
    Empty {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// A compressed kernel whose content cannot be unpacked.
    #[error("the kernel {} cannot be unpacked ({compression}: {source}): it is damaged or incomplete, copy it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Name of the compression.
        compression: &'static str,
        /// The decoder's error.
        source: io::Error,
    },
    /// A kernel that is shorter than its own headers say.
    #[error("the kernel {} is incomplete: it has {length} of {expected} bytes, copy it again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes that are there.
        length: u64,
        /// Bytes that its headers claim.
        expected: u64,
    },
    /// Something other than a kernel for this machine.
    #[error("{} is not an arm64 kernel Image but {found}: {advice}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: String,
        /// The way out.
        advice: &'static str,
    },
    /// An arm64 kernel that the machine cannot run.
    #[error("the kernel {} {problem}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is wrong and the way out.
        problem: String,
    },
    /// Kernel and device tree do not fit.
    #[error(
        "the kernel {} and its device tree need {} MiB of guest memory, and there are {} MiB: give more with --memory",
        path.display(), needed.div_ceil(MIB), room / MIB
    )]
    KernelTooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes needed from the base of RAM.
        needed: u64,
        /// Bytes there are.
        room: u64,
    },
    /// The initrd does not fit.
    #[error(
        "the initrd {} of {} MiB does not fit into the {} MiB of guest memory behind the kernel: give more with --memory",
        path.display(), size.div_ceil(MIB), room / MIB
    )]
    InitrdTooLarge {
        /// The file.
        path: PathBuf,
        /// Its bytes, at least.
        size: u64,
        /// Bytes there are.
        room: u64,
    },
    /// Guest memory refused an address.
    #[error(transparent)]
    Memory(#[from] memory::Error),
}

impl Error {
    /// For a kernel that uses `size` bytes from the base of RAM on.
    pub(super) fn kernel_too_large(path: &Path, ram: &RamBuilder, size: u64) -> Self {
        let needed =
            size.checked_next_multiple_of(DTB_ALIGNMENT).unwrap_or(size).saturating_add(DTB_SLOT_SIZE);
        Self::KernelTooLarge { path: path.to_owned(), needed, room: ram.boot_end() - ram.base() }
    }
}
