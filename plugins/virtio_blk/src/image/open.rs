//! Opening a disk: what it is, whether it may be used, and how large it is.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions as FileOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use gvmm_plugin_api::tracing::warn;

use super::null::NullImage;
use super::qcow2::{self, Qcow2Image};
use super::raw::RawImage;
use super::{Geometry, Image, ImageError, direct, lock};
use crate::config::SECTOR_SIZE;

/// What the bytes of the file mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// They are the disk.
    Raw,
    /// They are a qcow2 image.
    Qcow2,
    /// Nothing: the disk is as large as the file, and keeps nothing.
    Null,
}

/// How to open a disk.
#[derive(Debug, Clone)]
pub(crate) struct OpenOptions {
    /// Image file or block device.
    pub(crate) path: PathBuf,
    /// What the user says it is. Without that a file that looks like an image of another format is refused: it cannot
    /// be told apart from a raw disk on which the guest wrote such a header.
    pub(crate) format: Option<Format>,
    /// File or folder in which an image may have its backing files.
    pub(crate) backing: Option<PathBuf>,
    /// For reading only.
    pub(crate) readonly: bool,
    /// Bypass the page cache.
    pub(crate) direct: bool,
    /// Keep other writers away.
    pub(crate) lock: bool,
    /// Every write is durable when it returns.
    pub(crate) writethrough: bool,
    /// Give discarded space back.
    pub(crate) discard: bool,
    /// Logical block size in bytes, a power of two from 512 to 4096; what the disk wants when it is left open.
    pub(crate) block_size: Option<u32>,
}

/// Opens a disk.
pub(crate) fn open(options: &OpenOptions) -> Result<Box<dyn Image>, ImageError> {
    let path = &options.path;
    let block_device = is_block_device(path)?;
    let mut file = open_file(options, block_device)?;
    if options.lock {
        lock::lock(&file, path, !options.readonly)?;
    }
    let failed = |what| move |source| ImageError::Io { path: path.to_owned(), what, source };
    let size = file.seek(SeekFrom::End(0)).map_err(failed("find out its size"))?;
    if size == 0 {
        return Err(ImageError::Empty { path: path.to_owned() });
    }
    let probe = direct::probe(&file).map_err(failed("read it"))?;
    let probe = probe.ok_or_else(|| ImageError::NoDirect { path: path.to_owned() })?;
    if options.format.is_none() {
        refuse_other_formats(&probe.start, path)?;
    }
    let metadata = file.metadata().map_err(failed("look at it"))?;
    let limits = if block_device { BlockLimits::of(metadata.rdev()) } else { BlockLimits::default() };
    let least = limits.logical_block_size.unwrap_or(SECTOR_SIZE as u32).max(probe.unit);
    let block_size = options.block_size.unwrap_or(least);
    if block_size < least {
        return Err(ImageError::BlockSize { path: path.to_owned(), asked: block_size, least });
    }
    if options.format == Some(Format::Qcow2) {
        return Ok(Box::new(Qcow2Image::open(file, options, block_size)?));
    }
    if options.backing.is_some() {
        return Err(ImageError::Backing { path: path.to_owned() });
    }
    let preferred = u32::try_from(metadata.blksize()).unwrap_or(0).clamp(SECTOR_SIZE as u32, 4096);
    let geometry = Geometry {
        capacity: capacity(path, size, block_size)?,
        block_size,
        physical_block_size: limits.physical_block_size.unwrap_or(preferred).max(block_size),
        optimal_io_size: limits.optimal_io_size.unwrap_or(0),
    };
    Ok(match options.format {
        Some(Format::Null) => Box::new(NullImage::new(geometry)),
        _ => Box::new(RawImage::new(file, size, geometry, options)),
    })
}

/// The size that the guest sees at first.
fn capacity(path: &Path, size: u64, block_size: u32) -> Result<u64, ImageError> {
    let capacity = visible_size(size, block_size);
    if capacity < size {
        return Err(ImageError::Unaligned { path: path.to_owned(), size, block_size });
    }
    if capacity > size {
        let path = path.display();
        warn!(
            "disk {path} has {size} bytes, not a multiple of 512; the guest sees {capacity}, the rest reads as zero"
        );
    }
    Ok(capacity)
}

/// The part of a file that is whole blocks; but a last sector that the file fills in part only is shown in full,
/// padded with zeros.
pub(super) fn visible_size(size: u64, block_size: u32) -> u64 {
    match u64::from(block_size) {
        SECTOR_SIZE => size.next_multiple_of(SECTOR_SIZE),
        block => size - size % block,
    }
}

fn is_block_device(path: &Path) -> Result<bool, ImageError> {
    let kind = match std::fs::metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(source) => return Err(refusal(path, "reading", source)),
    };
    let refused = |kind| Err(ImageError::Kind { path: path.to_owned(), kind });
    if kind.is_dir() {
        return Err(ImageError::Directory { path: path.to_owned() });
    } else if kind.is_char_device() {
        return refused("character device");
    } else if kind.is_fifo() {
        return refused("named pipe");
    } else if kind.is_socket() {
        return refused("socket");
    }
    Ok(kind.is_block_device())
}

fn open_file(options: &OpenOptions, block_device: bool) -> Result<File, ImageError> {
    // The path may have changed since it was looked at: never wait for the other end of a pipe.
    let mut flags = libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK;
    if options.direct {
        flags |= libc::O_DIRECT;
    }
    if options.writethrough {
        flags |= libc::O_DSYNC;
    }
    if block_device && options.lock && !options.readonly {
        // Refused by the kernel while the device is mounted or claimed.
        flags |= libc::O_EXCL;
    }
    let access = if options.readonly { "reading" } else { "writing" };
    let opened =
        FileOptions::new().read(true).write(!options.readonly).custom_flags(flags).open(&options.path);
    opened.map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) if block_device => ImageError::InUse { path: options.path.clone() },
        Some(libc::EINVAL) if options.direct => ImageError::NoDirect { path: options.path.clone() },
        _ => refusal(&options.path, access, source),
    })
}

fn refusal(path: &Path, access: &'static str, source: io::Error) -> ImageError {
    let path = path.to_owned();
    let hint = match source.raw_os_error() {
        Some(libc::ENOENT) => return ImageError::Missing { path },
        Some(libc::EACCES | libc::EPERM | libc::EROFS) if access == "writing" => {
            "give this user write permission, or add readonly=on"
        }
        Some(libc::EACCES | libc::EPERM) => "give this user permission to read it",
        Some(libc::ETXTBSY) => "it is a program or swap file in use on this host",
        Some(libc::ENOTDIR) => "a part of the path is not a directory",
        _ => return ImageError::Io { path, what: "open it", source },
    };
    ImageError::Denied { path, access, source, hint }
}

/// Refuses images of formats that a guest would see as a broken disk.
fn refuse_other_formats(start: &[u8; 8], path: &Path) -> Result<(), ImageError> {
    const FORMATS: [(&[u8], &str); 4] =
        [(qcow2::MAGIC, "qcow2"), (b"KDMV", "vmdk"), (b"vhdxfile", "vhdx"), (b"conectix", "vhd")];
    let Some((_, format)) = FORMATS.iter().find(|(magic, _)| start.starts_with(magic)) else { return Ok(()) };
    let name = path.display();
    let hint = match *format {
        "qcow2" => "add format=qcow2".to_owned(),
        _ => format!("convert it with: qemu-img convert -O raw {name} {name}.raw"),
    };
    Err(ImageError::Format { path: path.to_owned(), format, hint })
}

/// What the kernel tells of a block device; all unknown where `/sys` is closed to this process.
#[derive(Debug, Default)]
struct BlockLimits {
    logical_block_size: Option<u32>,
    physical_block_size: Option<u32>,
    optimal_io_size: Option<u32>,
}

impl BlockLimits {
    fn of(device: u64) -> Self {
        let folder = format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device));
        // A partition has its limits in the folder of the whole disk.
        let limit = |name: &str| {
            let text = std::fs::read_to_string(format!("{folder}/queue/{name}"))
                .or_else(|_| std::fs::read_to_string(format!("{folder}/../queue/{name}")));
            text.ok()?.trim().parse::<u32>().ok()
        };
        let power = |name: &str| limit(name).filter(|size| size.is_power_of_two());
        Self {
            logical_block_size: power("logical_block_size"),
            physical_block_size: power("physical_block_size"),
            optimal_io_size: limit("optimal_io_size"),
        }
    }
}

#[cfg(test)]
#[path = "open_test.rs"]
mod tests;
