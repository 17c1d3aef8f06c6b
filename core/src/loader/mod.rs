//! Loading kernel and initrd into guest memory.
//!
//! RAM begins with the kernel, for under Gunyah the first byte of RAM is the guest's first instruction. Behind it come
//! the place of the device tree and the initrd:
//!
//! | from | what |
//! |---|---|
//! | base of RAM | the kernel, `image_size` bytes; a kernel with a `text_offset` has a branch to it there |
//! | next 2 MiB boundary | 64 KiB for the device tree |
//! | right behind | the initrd |
//!
//! Everything is read straight into its place; compressed kernels are unpacked there.

mod compression;
mod error;
mod format;
mod image;
mod source;
#[cfg(test)]
mod test;

use std::path::Path;

use crate::hypervisor::Boot;
use crate::memory::RamBuilder;

pub use error::Error;
use format::Format;
use image::ImageHeader;
use source::{Filled, Source};

/// Bytes kept for the device tree: more than four times the largest tree, for the Gunyah Resource Manager may need
/// twice the size of the tree that it has grown, in whole pages.
pub const DTB_SLOT_SIZE: u64 = 0x1_0000;

/// The device tree must not cross a boundary of 2 MiB (Linux, Documentation/arch/arm64/booting).
const DTB_ALIGNMENT: u64 = 0x20_0000;

/// Where the initrd lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initrd {
    /// Guest address, page-aligned.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// What has been loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Where the guest starts, and the place of the device tree.
    pub boot: Boot,
    /// The initrd, if there is one.
    pub initrd: Option<Initrd>,
}

/// Looks at the beginning of the files, so that a wrong one is told before anything is set up. What can be read once
/// only, such as a pipe, is left to [`load`].
pub fn check(kernel: &Path, initrd: Option<&Path>) -> Result<(), Error> {
    let once = |path: &Path| path.metadata().is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir());
    if !once(kernel) {
        let source = open_kernel(kernel)?;
        ImageHeader::parse(source.head(), kernel)?;
    }
    if let Some(initrd) = initrd.filter(|initrd| !once(initrd)) {
        Source::open("initrd", initrd)?;
    }
    Ok(())
}

/// Loads the files into guest memory.
///
/// # Errors
///
/// Files that cannot be read, kernels that this machine does not run, and files that do not fit.
pub fn load(ram: &mut RamBuilder, kernel: &Path, initrd: Option<&Path>) -> Result<Loaded, Error> {
    let kernel_end = load_kernel(ram, kernel)?;
    let dtb_address = kernel_end.next_multiple_of(DTB_ALIGNMENT);
    let dtb_end = dtb_address + DTB_SLOT_SIZE;
    if dtb_end > ram.boot_end() {
        return Err(Error::kernel_too_large(kernel, ram, kernel_end - ram.base()));
    }
    let initrd = initrd.map(|path| load_initrd(ram, path, dtb_end)).transpose()?;
    Ok(Loaded { boot: Boot { entry: ram.base(), dtb_address, dtb_size: DTB_SLOT_SIZE }, initrd })
}

/// Loads the kernel and returns the first address behind it.
fn load_kernel(ram: &mut RamBuilder, path: &Path) -> Result<u64, Error> {
    place_image(ram, open_kernel(path)?)
}

/// Opens a kernel; what is read is an Image, unpacked if need be.
fn open_kernel(path: &Path) -> Result<Source, Error> {
    let mut source = Source::open("kernel", path)?;
    let mut format = Format::of(source.head());
    if let Format::Compressed { compression, payload } = format {
        source = source.unpack(compression, payload)?;
        format = Format::of(source.head());
    }
    match format {
        Format::Image => Ok(source),
        Format::Compressed { compression, .. } => {
            Err(source.foreign(&format!("data compressed with {}", compression.name()), "unpack it by hand"))
        }
        Format::Foreign { found, advice } => Err(source.foreign(&found, advice)),
    }
}

/// Reads an Image to its place: `text_offset` bytes behind the base of RAM.
fn place_image(ram: &mut RamBuilder, source: Source) -> Result<u64, Error> {
    let path = source.path().to_owned();
    let header = ImageHeader::parse(source.head(), &path)?;
    let room = ram.boot_end() - ram.base();
    let needed = header.text_offset.saturating_add(header.image_size);
    if needed > room {
        return Err(Error::kernel_too_large(&path, ram, needed));
    }
    if let Some(branch) = header.branch_from_base() {
        ram.write(ram.base(), &branch.to_le_bytes())?;
    }
    let address = ram.base() + header.text_offset;
    let file_size = source.file_size();
    let length = match source.fill(ram.slice_mut(address, ram.boot_end() - address)?)? {
        Filled::Whole(length) => length,
        Filled::Part => {
            let least = file_size.unwrap_or(room - header.text_offset + 1);
            return Err(Error::kernel_too_large(&path, ram, header.text_offset + least));
        }
    };
    if length < header.file_extent {
        return Err(Error::Truncated { path, length, expected: header.file_extent });
    }
    Ok(address + length.max(header.image_size))
}

fn load_initrd(ram: &mut RamBuilder, path: &Path, address: u64) -> Result<Initrd, Error> {
    let source = Source::open("initrd", path)?;
    let file_size = source.file_size();
    let room = ram.boot_end() - address;
    match source.fill(ram.slice_mut(address, room)?)? {
        Filled::Whole(size) => Ok(Initrd { address, size }),
        Filled::Part => {
            Err(Error::InitrdTooLarge { path: path.to_owned(), size: file_size.unwrap_or(room + 1), room })
        }
    }
}
