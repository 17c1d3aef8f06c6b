//! What a hostile guest does to a device: random writes, and reads, of every width wherever they are possible.

use std::fs::{File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::ptr::NonNull;

use anyhow::{Context, Result};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::pattern::Random;

/// Values that mean something to some register, beside random ones: bits, queue sizes, addresses of the frame and RAM.
const TELLING: [u64; 10] = [0, 1, 2, 4, 0x8000, 0xc000, 0xffff_ffff, 0x0802_0040, 0x8000_0000, 40];
/// Bytes of a PCI function's header; the command register is in it.
const HEADER: u64 = 0x40;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// A file below /sys/bus/pci/devices/FUNCTION: `config`, or with --mapped `resource0`
    file: PathBuf,
    /// Map the file and access it as memory
    #[arg(long)]
    mapped: bool,
    /// Accesses to make
    #[arg(long, default_value_t = 2000)]
    count: u64,
    /// Seed of the random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Makes the accesses and prints `scribbled N`.
pub(crate) fn run(options: &Options) -> Result<()> {
    let name = options.file.display();
    let file = OpenOptions::new().read(true).write(true).open(&options.file);
    let file = file.with_context(|| format!("cannot open {name}"))?;
    let size = file.metadata()?.len();
    let mut random = Random::new(options.seed);
    if options.mapped {
        let memory = Mapping::new(&file, size).with_context(|| format!("cannot map {name}"))?;
        for _ in 0..options.count {
            let width = 1 << random.below(4);
            let at = random.below(size / width) * width;
            memory.access(at, width, value(&mut random), random.below(4) > 0);
        }
    } else {
        for _ in 0..options.count {
            let width = 1 << random.below(3);
            // The header stays, so that the function is still one.
            let at = HEADER + random.below((size - HEADER) / width) * width;
            let bytes = value(&mut random).to_le_bytes();
            file.write_at(&bytes[..width as usize], at).with_context(|| format!("cannot write {name}"))?;
        }
    }
    println!("scribbled {}", options.count);
    Ok(())
}

fn value(random: &mut Random) -> u64 {
    match random.below(3) {
        0 => random.next(),
        _ => TELLING[random.below(TELLING.len() as u64) as usize],
    }
}

/// Registers in this process.
struct Mapping {
    start: NonNull<std::ffi::c_void>,
    size: usize,
}

impl Mapping {
    fn new(file: &File, size: u64) -> Result<Self> {
        let size = NonZeroUsize::new(usize::try_from(size)?).context("the file is empty")?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses the address, so nothing of this process is replaced.
        let start = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Self { start, size: size.get() })
    }

    /// One access at an offset that is a multiple of the width.
    fn access(&self, at: u64, width: u64, value: u64, write: bool) {
        let value = write.then_some(value);
        match width {
            1 => self.access_as(at, value.map(|value| value as u8)),
            2 => self.access_as(at, value.map(|value| value as u16)),
            4 => self.access_as(at, value.map(|value| value as u32)),
            _ => self.access_as(at, value),
        }
    }

    /// Writes the value, or reads without one.
    fn access_as<T: Copy>(&self, at: u64, value: Option<T>) {
        let (at, width) = (at as usize, size_of::<T>());
        assert!(at.is_multiple_of(width) && at + width <= self.size);
        // SAFETY: the offset lies within the mapping.
        let place = unsafe { self.start.as_ptr().byte_add(at) }.cast::<T>();
        match value {
            // SAFETY: the value lies within the mapping, and is aligned, as the mapping begins at a page.
            Some(value) => unsafe { place.write_volatile(value) },
            // SAFETY: as above; `T` is an integer, for which any bytes will do.
            None => _ = unsafe { place.read_volatile() },
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the mapping any more.
        let _ = unsafe { munmap(self.start, self.size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_access_stays_within_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("registers");
        std::fs::write(&file, [0; 8192]).unwrap();
        for mapped in [true, false] {
            run(&Options { file: file.clone(), mapped, count: 5000, seed: 7 }).unwrap();
            assert_eq!(std::fs::metadata(&file).unwrap().len(), 8192);
        }
        let content = std::fs::read(&file).unwrap();
        assert!(content[..64].iter().chain(&content[8000..]).any(|byte| *byte != 0));
    }
}
