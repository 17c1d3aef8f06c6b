//! A guest that starts a kernel in place of its own: the devices stay as the old kernel left them.
//!
//! Kernel, initrd and device tree go to where they were when the machine started, or behind it, so that the tree needs no
//! change.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::sys::reboot::{RebootMode, reboot};

/// `image_size` in the header of an arm64 Image (Linux, arch/arm64/booting).
const IMAGE_SIZE: std::ops::Range<usize> = 16..24;
const PAGE: usize = 4096;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Kernel to start, a plain arm64 Image
    kernel: PathBuf,
    /// The initrd that the machine started with; what follows it in the file is left out
    initrd: PathBuf,
}

/// What the kernel copies to an address when it leaves (`struct kexec_segment`).
#[repr(C)]
struct Segment {
    buffer: *const u8,
    buffer_size: usize,
    address: usize,
    size: usize,
}

impl Segment {
    /// Bytes for an address, with room behind them up to `size`.
    fn new(content: &[u8], address: usize, size: usize) -> Self {
        let size = size.max(content.len()).next_multiple_of(PAGE);
        Self { buffer: content.as_ptr(), buffer_size: content.len(), address, size }
    }

    fn end(&self) -> usize {
        self.address + self.size
    }
}

/// Starts the kernel; returns only if that failed.
pub(crate) fn run(options: &Options) -> Result<()> {
    let (mut initrd, kernel) = (read(&options.initrd)?, read(&options.kernel)?);
    let tree = read(Path::new("/sys/firmware/fdt"))?;
    let ram = address("memory/reg")?;
    let initrd_at = address("chosen/linux,initrd-start")?;
    initrd.truncate(address("chosen/linux,initrd-end")? - initrd_at);
    let image_size = kernel.get(IMAGE_SIZE).and_then(|bytes| bytes.try_into().ok());
    let image_size = usize::try_from(u64::from_le_bytes(image_size.context("the kernel is no Image")?))?;

    let kernel = Segment::new(&kernel, ram, image_size);
    let initrd = Segment::new(&initrd, initrd_at, 0);
    let tree = Segment::new(&tree, initrd.end().max(kernel.end()), 0);
    let entry = entry_code(tree.address, kernel.address);
    let entry = Segment::new(&entry, tree.end(), 0);
    load(entry.address, &[kernel, initrd, tree, entry])?;
    match reboot(RebootMode::RB_KEXEC).context("cannot start the kernel that is loaded")? {}
}

fn load(entry: usize, segments: &[Segment]) -> Result<()> {
    // SAFETY: the buffers of the segments outlive the call, which reads them and no more.
    let loaded = unsafe { libc::syscall(libc::SYS_kexec_load, entry, segments.len(), segments.as_ptr(), 0) };
    Errno::result(loaded).map(drop).context("kexec_load")
}

/// Code that goes to a kernel as a boot loader does: x0 is the device tree, x1 to x3 are zero (Linux, arch/arm64/booting).
fn entry_code(tree: usize, kernel: usize) -> Vec<u8> {
    let code: [u32; 6] = [
        0x5800_00c0, // ldr x0, tree
        0x5800_00e4, // ldr x4, kernel
        0xaa1f_03e1, // mov x1, xzr
        0xaa1f_03e2, // mov x2, xzr
        0xaa1f_03e3, // mov x3, xzr
        0xd61f_0080, // br x4
    ];
    let mut bytes: Vec<u8> = code.iter().flat_map(|instruction| instruction.to_le_bytes()).collect();
    for literal in [tree, kernel] {
        bytes.extend((literal as u64).to_le_bytes());
    }
    bytes
}

/// The first number of a property of the device tree.
fn address(property: &str) -> Result<usize> {
    let bytes = read(&Path::new("/proc/device-tree").join(property))?;
    let Some(number) = bytes.first_chunk() else { bail!("{property} in the device tree is no address") };
    Ok(usize::try_from(u64::from_be_bytes(*number))?)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}
