//! What a hostile guest puts into the queues of a device: descriptors, chains and rings that no driver would make, some of
//! them changed while the device looks at them.
//!
//! Whatever the device believes, it must not reach memory of this guest that is not this program's, or the guest would harm
//! itself: addresses are either of pages of this process or of no memory at all.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::unistd::{SysconfVar, sysconf};

use crate::mapping::Mapping;
use crate::pattern::Random;
use crate::virtio_pci::{Registers, Rings, status};

/// Addresses of no memory: registers, the space between them and RAM, and the ends of the address space.
const NOWHERE: [u64; 8] = [0, 0x10, 0x0802_0040, 0x3fff_fff8, 0x7fff_fff8, 1 << 40, 1 << 63, u64::MAX - 7];
/// Lengths beyond the end of RAM from anywhere in it.
const TOO_LONG: [u32; 3] = [1 << 30, i32::MAX as u32, u32::MAX];
/// Entries of each queue, if it may have so many.
const SIZE: u16 = 16;
/// Entries of an indirect table.
const INDIRECT: u16 = 32;
/// Most bytes of a buffer, and of its distance from the start of a page: whatever half of a descriptor the device sees
/// changed, the buffer ends within its page.
const HALF_PAGE: u64 = 2048;
/// Places in the page of a queue.
const AVAILABLE_AT: usize = 0x100;
const USED_AT: usize = 0x200;
const INDIRECT_AT: usize = 0x400;
/// Bytes of a descriptor, and its flags (virtio 1.2, 2.7.5).
const DESCRIPTOR: usize = 16;
const WRITE_FLAG: u16 = 2;
const INDIRECT_FLAG: u16 = 4;
/// `VIRTIO_F_VERSION_1`, without which no device takes features.
const VERSION_1: u64 = 1 << 32;
/// Pages that descriptors point into.
const DATA_PAGES: usize = 4;
/// Kicks of each queue between two resets.
const KICKS: u32 = 4;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The device, /sys/bus/pci/devices/FUNCTION, enabled and without a driver
    function: PathBuf,
    /// How often the device is reset and set up anew
    #[arg(long, default_value_t = 40)]
    rounds: u32,
    /// Seed of the random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Prints `garbled N queues ROUNDS times, M of them to the end of the device`.
pub(crate) fn run(options: &Options) -> Result<()> {
    // Where a page is must not change any more.
    std::fs::write("/proc/sys/vm/compact_unevictable_allowed", "0").context("cannot keep pages in place")?;
    let registers = Registers::open(&options.function)?;
    let queues = registers.queues();
    let pages = (0..usize::from(queues) + DATA_PAGES).map(|_| Page::new()).collect::<Result<Vec<_>>>()?;
    let (queue_pages, data) = pages.split_at(queues.into());
    let mut random = Random::new(options.seed);
    let mut ended = 0;
    for round in 0..options.rounds {
        set_up(&registers, queue_pages, &mut random)?;
        // A chain that cannot be followed is the end of its queue: in every other round there are none.
        let garbage = if round % 2 == 0 { Garbage::Buffers } else { Garbage::Chains };
        for _ in 0..KICKS {
            for (index, page) in (0..).zip(queue_pages) {
                page.garble(garbage, data, &mut random);
                registers.kick(index, registers.doorbell(index));
                page.garble(garbage, data, &mut random);
            }
            sleep(Duration::from_millis(1));
        }
        ended += u32::from(registers.status() & status::NEEDS_RESET != 0);
    }
    registers.set_status(0);
    println!("garbled {queues} queues {} times, {ended} of them to the end of the device", options.rounds);
    Ok(())
}

/// What is wrong with what a queue holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Garbage {
    /// Where buffers are and how long.
    Buffers,
    /// That, and how descriptors are chained, and which of them are available.
    Chains,
}

/// Resets the device and starts it with queues that are where they should be, or not.
fn set_up(registers: &Registers, pages: &[Page], random: &mut Random) -> Result<()> {
    registers.set_status(0);
    registers.set_status(status::ACKNOWLEDGE | status::DRIVER);
    registers.accept_features(registers.offered_features() & random.next() | VERSION_1);
    registers.set_status(status::FEATURES_OK);
    ensure!(registers.status() & status::FEATURES_OK != 0, "the device takes no features");
    for (index, page) in (0..).zip(pages) {
        page.memory.write(AVAILABLE_AT + 2, 0_u16);
        let mut rings = page.rings();
        // Mostly good ones, or nothing further is seen.
        match random.below(16) {
            0 => rings.descriptors = nowhere(random),
            1 => rings.available = nowhere(random),
            2 => rings.used = nowhere(random),
            3 => rings.used += 1,
            _ => {}
        }
        registers.enable_queue(index, SIZE, rings);
    }
    registers.set_status(status::DRIVER_OK);
    Ok(())
}

fn nowhere(random: &mut Random) -> u64 {
    NOWHERE[random.below(NOWHERE.len() as u64) as usize]
}

/// A page and its address for devices.
struct Page {
    memory: Mapping,
    physical: u64,
}

impl Page {
    fn new() -> Result<Self> {
        let size = sysconf(SysconfVar::PAGE_SIZE)?.context("the system has no page size")?;
        let size = NonZeroUsize::new(usize::try_from(size)?).context("a page size of 0")?;
        let memory = Mapping::locked(size)?;
        let physical = physical(memory.address(), size.get())?;
        Ok(Self { memory, physical })
    }

    fn rings(&self) -> Rings {
        let available = self.physical + AVAILABLE_AT as u64;
        Rings { descriptors: self.physical, available, used: self.physical + USED_AT as u64 }
    }

    /// Fills the tables with garbage and makes some of it available.
    fn garble(&self, garbage: Garbage, data: &[Self], random: &mut Random) {
        for index in 0..usize::from(SIZE) {
            self.descriptor(index * DESCRIPTOR, SIZE, garbage, data, random);
        }
        for index in 0..usize::from(INDIRECT) {
            self.descriptor(INDIRECT_AT + index * DESCRIPTOR, INDIRECT, garbage, data, random);
        }
        let heads = u64::from(SIZE) + u64::from(garbage == Garbage::Chains);
        for entry in 0..usize::from(SIZE) {
            self.memory.write(AVAILABLE_AT + 4 + 2 * entry, random.below(heads) as u16);
        }
        let (flags, next) = (AVAILABLE_AT, AVAILABLE_AT + 2);
        self.memory.write(flags, random.below(2) as u16);
        let wild = garbage == Garbage::Chains && random.below(16) == 0;
        let ahead = if wild { random.next() as u16 } else { random.below(5) as u16 };
        self.memory.write(next, self.memory.read::<u16>(next).wrapping_add(ahead));
    }

    fn descriptor(&self, at: usize, entries: u16, garbage: Garbage, data: &[Self], random: &mut Random) {
        let mut flags = match garbage {
            Garbage::Buffers => [0, WRITE_FLAG][random.below(2) as usize],
            Garbage::Chains => random.below(8) as u16,
        };
        let (address, len) = match random.below(4) {
            // These alone would let the device write behind a page.
            _ if at.is_multiple_of(8 * DESCRIPTOR) => {
                flags &= !WRITE_FLAG;
                (data[0].physical, TOO_LONG[random.below(TOO_LONG.len() as u64) as usize])
            }
            0 => (nowhere(random), random.below(HALF_PAGE + 1) as u32),
            _ if flags & INDIRECT_FLAG != 0 => {
                let entries = random.below(u64::from(INDIRECT) + 1) as u32;
                // Now and then a table of a size that is none.
                let odd = u32::from(random.below(4) == 0);
                (self.physical + INDIRECT_AT as u64, (entries * DESCRIPTOR as u32).saturating_sub(odd))
            }
            _ => {
                let page = &data[random.below(data.len() as u64) as usize];
                (page.physical + random.below(HALF_PAGE), random.below(HALF_PAGE + 1) as u32)
            }
        };
        self.memory.write(at, address);
        self.memory.write(at + 8, len);
        self.memory.write(at + 12, flags);
        self.memory.write(at + 14, random.below(u64::from(entries) + 1) as u16);
    }
}

/// The address for devices of a page of this process (Linux, `Documentation/admin-guide/mm/pagemap.rst`).
fn physical(address: usize, page_size: usize) -> Result<u64> {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;
    let map = File::open("/proc/self/pagemap").context("cannot open /proc/self/pagemap")?;
    let mut entry = [0; size_of::<u64>()];
    map.read_exact_at(&mut entry, (address / page_size * size_of::<u64>()) as u64)?;
    let entry = u64::from_le_bytes(entry);
    ensure!(entry & PRESENT != 0 && entry & FRAME != 0, "the kernel hides where pages are: be root");
    Ok((entry & FRAME) * page_size as u64)
}
