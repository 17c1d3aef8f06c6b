//! Load on a disk, for measurements: random or sequential, reads or writes, from some threads.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::disk::{ALIGNMENT, Buffer, Disk};
use crate::pattern::Random;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Disk to use; its content is lost with --write
    disk: PathBuf,
    /// Write instead of reading
    #[arg(long)]
    write: bool,
    /// One request after the other from the start of the disk on, instead of random places
    #[arg(long)]
    sequential: bool,
    /// Size of a request in bytes
    #[arg(long, default_value_t = 4096)]
    block: usize,
    /// Threads, each with one request at a time
    #[arg(long, default_value_t = 1)]
    threads: u64,
    /// How long, in seconds
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
}

/// Prints `@load IOPS N MB/s N requests N`.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(options.threads > 0 && options.block > 0, "--threads and --block must be at least 1");
    ensure!(options.block.is_multiple_of(ALIGNMENT), "--block must be a multiple of {ALIGNMENT}");
    let disk = Disk::open(&options.disk, options.write)?;
    let blocks = disk.size() / options.block as u64;
    ensure!(blocks >= options.threads, "{} is too small", options.disk.display());
    let started = Instant::now();
    let end = started + Duration::try_from_secs_f64(options.seconds)?;
    let requests = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads)
            .map(|thread| {
                scope.spawn({
                    let disk = &disk;
                    move || requests_until(end, options, disk, blocks, thread)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a thread panicked")))
            .sum::<Result<u64>>()
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let bytes = requests as f64 * options.block as f64;
    let rate = requests as f64 / seconds;
    println!("@load IOPS {rate:.0} MB/s {:.1} requests {requests}", bytes / seconds / 1e6);
    Ok(())
}

fn requests_until(end: Instant, options: &Options, disk: &Disk, blocks: u64, thread: u64) -> Result<u64> {
    let mut buffer = Buffer::new(options.block);
    let mut random = Random::new(thread + 1);
    let mut requests = 0;
    while Instant::now() < end {
        let block = if options.sequential {
            (thread + requests * options.threads) % blocks
        } else {
            random.below(blocks)
        };
        let offset = block * options.block as u64;
        if options.write {
            disk.write(&buffer, offset)?;
        } else {
            disk.read(&mut buffer, offset)?;
        }
        requests += 1;
    }
    Ok(requests)
}
