//! What a hostile guest does to a device: random writes, and reads, of every width wherever they are possible.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::mapping::Mapping;
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
        let registers = Mapping::of_file(&file, size).with_context(|| format!("cannot map {name}"))?;
        for _ in 0..options.count {
            let width = 1 << random.below(4);
            let at = random.below(size / width) * width;
            access(&registers, at, width, value(&mut random), random.below(4) > 0);
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

/// One access at an offset that is a multiple of the width.
fn access(registers: &Mapping, at: u64, width: u64, value: u64, write: bool) {
    let at = at as usize;
    match (width, write) {
        (1, true) => registers.write(at, value as u8),
        (2, true) => registers.write(at, value as u16),
        (4, true) => registers.write(at, value as u32),
        (_, true) => registers.write(at, value),
        (1, false) => _ = registers.read::<u8>(at),
        (2, false) => _ = registers.read::<u16>(at),
        (4, false) => _ = registers.read::<u32>(at),
        (_, false) => _ = registers.read::<u64>(at),
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
