//! Verified random I/O.
//!
//! Each process owns every n-th chunk of the disk and remembers what it wrote to each block there, so that
//! neighbours are always written by others while nobody's content is in doubt.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::disk::{Buffer, Disk};
use crate::pattern::{self, Random};

/// The unit that is remembered, in bytes.
const BLOCK: u64 = 4096;
/// The largest request, and the unit that processes share the disk by, in bytes.
const CHUNK: u64 = 65536;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Disk to overwrite
    disk: PathBuf,
    /// Processes at work at the same time
    #[arg(long, default_value_t = 4)]
    processes: u64,
    /// Requests of each process
    #[arg(long, default_value_t = 500)]
    requests: u64,
    /// Seed of the random choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Go through the page cache
    #[arg(long)]
    cached: bool,
    /// Be one of the processes
    #[arg(long, hide = true)]
    process: Option<u64>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(options.processes > 0, "--processes must be at least 1");
    match options.process {
        Some(process) => Process::new(options, process)?.run(options.requests),
        None => start_processes(options),
    }
}

fn start_processes(options: &Options) -> Result<()> {
    let program = std::env::current_exe().context("cannot find this program again")?;
    let mut children = Vec::new();
    for process in 0..options.processes {
        let mut arguments = std::env::args_os();
        arguments.next();
        let mut command = Command::new(&program);
        command.args(arguments).args(["--process", &process.to_string()]);
        children.push(command.spawn().context("cannot start a process")?);
    }
    let mut failed = 0;
    for mut child in children {
        failed += u64::from(!child.wait()?.success());
    }
    ensure!(failed == 0, "{failed} of {} processes failed", options.processes);
    println!("verified {} processes with {} requests each", options.processes, options.requests);
    Ok(())
}

/// What a block must hold.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    Unknown,
    Zeroes,
    /// Written with the pattern of this generation.
    Pattern(u32),
}

struct Process {
    disk: Disk,
    random: Random,
    /// Chunk numbers on the disk.
    chunks: Vec<u64>,
    /// For each block of each of `chunks`.
    contents: Vec<Content>,
    generation: u32,
    buffer: Buffer,
}

/// Part of one chunk.
struct Range {
    /// On the disk, in bytes.
    offset: u64,
    /// First block in `contents`.
    block: usize,
    blocks: usize,
}

impl Process {
    fn new(options: &Options, process: u64) -> Result<Self> {
        let disk = if options.cached {
            Disk::open_cached(&options.disk, true)?
        } else {
            Disk::open(&options.disk, true)?
        };
        let chunks: Vec<_> =
            (0..disk.size() / CHUNK).filter(|chunk| chunk % options.processes == process).collect();
        ensure!(
            !chunks.is_empty(),
            "{} is too small for {} processes",
            options.disk.display(),
            options.processes
        );
        let blocks = chunks.len() * (CHUNK / BLOCK) as usize;
        Ok(Self {
            disk,
            random: Random::new(options.seed.wrapping_mul(1000).wrapping_add(process)),
            chunks,
            contents: vec![Content::Unknown; blocks],
            generation: 0,
            buffer: Buffer::new(CHUNK as usize),
        })
    }

    fn run(mut self, requests: u64) -> Result<()> {
        for _ in 0..requests {
            let range = self.pick();
            match self.random.below(20) {
                0..10 => self.write(&range)?,
                10..16 => self.read(&range)?,
                16 | 17 => self.disk.flush()?,
                18 => self.discard(&range)?,
                _ => self.zero(&range)?,
            }
        }
        self.disk.flush()?;
        let blocks_per_chunk = (CHUNK / BLOCK) as usize;
        for (index, chunk) in std::mem::take(&mut self.chunks).into_iter().enumerate() {
            let block = index * blocks_per_chunk;
            self.read(&Range { offset: chunk * CHUNK, block, blocks: blocks_per_chunk })?;
        }
        Ok(())
    }

    /// A whole chunk or one block of it.
    fn pick(&mut self) -> Range {
        let index = self.random.below(self.chunks.len() as u64);
        let blocks_per_chunk = CHUNK / BLOCK;
        let (first, blocks) = if self.random.below(4) == 0 {
            (0, blocks_per_chunk)
        } else {
            (self.random.below(blocks_per_chunk), 1)
        };
        Range {
            offset: self.chunks[index as usize] * CHUNK + first * BLOCK,
            block: (index * blocks_per_chunk + first) as usize,
            blocks: blocks as usize,
        }
    }

    fn write(&mut self, range: &Range) -> Result<()> {
        self.generation += 1;
        let length = range.blocks * BLOCK as usize;
        for (index, block) in self.buffer[..length].chunks_mut(BLOCK as usize).enumerate() {
            pattern::fill(block, range.offset + index as u64 * BLOCK, self.generation);
        }
        self.disk.write(&self.buffer[..length], range.offset)?;
        self.remember(range, Content::Pattern(self.generation));
        Ok(())
    }

    fn read(&mut self, range: &Range) -> Result<()> {
        let length = range.blocks * BLOCK as usize;
        self.disk.read(&mut self.buffer[..length], range.offset)?;
        for (index, block) in self.buffer[..length].chunks(BLOCK as usize).enumerate() {
            let offset = range.offset + index as u64 * BLOCK;
            let wrong = match self.contents[range.block + index] {
                Content::Unknown => None,
                Content::Zeroes => block.iter().position(|&byte| byte != 0),
                Content::Pattern(generation) => pattern::mismatch(block, offset, generation),
            };
            if let Some(at) = wrong {
                bail!("the block at {offset:#x} differs from what was written from byte {at} on");
            }
        }
        Ok(())
    }

    fn discard(&mut self, range: &Range) -> Result<()> {
        if self.disk.discard(range.offset, range.blocks as u64 * BLOCK)? {
            self.remember(range, Content::Unknown);
        }
        Ok(())
    }

    fn zero(&mut self, range: &Range) -> Result<()> {
        if self.disk.zero(range.offset, range.blocks as u64 * BLOCK)? {
            self.remember(range, Content::Zeroes);
        }
        Ok(())
    }

    fn remember(&mut self, range: &Range, content: Content) {
        self.contents[range.block..range.block + range.blocks].fill(content);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn process_on(file: &tempfile::NamedTempFile, process: u64) -> Process {
        let options = Options {
            disk: file.path().to_path_buf(),
            processes: 2,
            requests: 0,
            seed: 7,
            cached: true,
            process: Some(process),
        };
        Process::new(&options, process).unwrap()
    }

    fn image() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(16 * CHUNK).unwrap();
        file
    }

    #[test]
    fn a_disk_that_keeps_what_is_written_passes_for_all_processes() {
        let file = image();
        process_on(&file, 0).run(300).unwrap();
        process_on(&file, 1).run(300).unwrap();
    }

    #[test]
    fn processes_share_no_chunk() {
        let file = image();
        let (first, second) = (process_on(&file, 0), process_on(&file, 1));
        assert_eq!(first.chunks.len() + second.chunks.len(), 16);
        assert!(first.chunks.iter().all(|chunk| !second.chunks.contains(chunk)));
    }

    #[test]
    fn one_byte_changed_behind_its_back_is_found() {
        let file = image();
        let mut process = process_on(&file, 0);
        let range = process.pick();
        process.write(&range).unwrap();
        process.read(&range).unwrap();
        let mut byte = [0];
        file.as_file().read_exact_at(&mut byte, range.offset + 100).unwrap();
        file.as_file().write_all_at(&[!byte[0]], range.offset + 100).unwrap();
        let error = process.read(&range).unwrap_err().to_string();
        assert!(error.contains("from byte 100 on"), "{error}");
    }

    #[test]
    fn a_lost_write_is_found() {
        let file = image();
        let mut process = process_on(&file, 0);
        let range = process.pick();
        process.write(&range).unwrap();
        process.remember(&range, Content::Pattern(process.generation + 1));
        assert!(process.read(&range).is_err());
    }
}
