//! Why a disk cannot be used.
#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;

/// Why a disk cannot be opened. The text names the file and the way out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("disk {0} does not exist; make an empty one with: truncate -s 1G {0}", .path.display())]
    Missing { path: PathBuf },
    #[error("disk {} is a directory; name an image file or a block device", .path.display())]
    Directory { path: PathBuf },
    #[error("disk {} is a {kind}; name an image file or a block device", .path.display())]
    Kind { path: PathBuf, kind: &'static str },
    #[error("disk {0} is empty; give it a size with: truncate -s 1G {0}", .path.display())]
    Empty { path: PathBuf },
    #[error("disk {} cannot be opened for {access}: {source}; {hint}", .path.display())]
    Denied { path: PathBuf, access: &'static str, source: io::Error, hint: &'static str },
    #[error(
        "disk {} is open {how} in {holder}; two writers would destroy it. \
         Stop the other one, or add lock=off if sharing is meant",
        .path.display()
    )]
    Locked { path: PathBuf, how: &'static str, holder: String },
    #[error(
        "block device {} is in use on this host (mounted, or part of a volume or array); \
         release it, add readonly=on, or add lock=off if sharing is meant",
        .path.display()
    )]
    InUse { path: PathBuf },
    #[error("disk {} is a {format} image and not a raw disk; {hint}", .path.display())]
    Format { path: PathBuf, format: &'static str, hint: String },
    #[error("option 'backing': disk {} has no backing file, it is not opened with format=qcow2", .path.display())]
    Backing { path: PathBuf },
    #[error("disk {} {reason}", .path.display())]
    Refused { path: PathBuf, reason: String },
    #[error("disk {}: its file system offers no direct I/O; leave out direct=on", .path.display())]
    NoDirect { path: PathBuf },
    #[error(
        "option 'logical-block-size': disk {} needs blocks of at least {least} bytes, not {asked}; \
         leave the option out",
        .path.display()
    )]
    BlockSize { path: PathBuf, asked: u32, least: u32 },
    #[error(
        "disk {} has {size} bytes, which is not a multiple of its block size of {block_size}; \
         extend it with: truncate -s %{block_size} {}",
        .path.display(), .path.display()
    )]
    Unaligned { path: PathBuf, size: u64, block_size: u32 },
    #[error("disk {}: cannot {what}: {source}", .path.display())]
    Io { path: PathBuf, what: &'static str, source: io::Error },
}
