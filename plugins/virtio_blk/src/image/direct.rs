//! Direct I/O: finding out what alignment it wants, and buffers for guest memory that has another one.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use gvmm_plugin_api::memory::{GuestMemory, GuestRange, MemoryError};
use nix::errno::Errno;
use nix::sys::uio::{pread, pwrite};

/// Bytes of an aligned buffer.
const BUFFER_SIZE: usize = 64 << 10;
/// Alignment of the buffer's start; no device in use wants more.
const BUFFER_ALIGN: usize = 4096;

/// What a first read of a file shows.
#[derive(Debug)]
pub(super) struct Probe {
    /// The smallest unit of offsets and lengths that the file takes, in bytes: more than a sector only for direct I/O.
    pub(super) unit: u32,
    /// The first bytes; zeros where the file is shorter.
    pub(super) start: [u8; 8],
}

/// Reads the first sector of a file; `None` when direct I/O on it takes no unit at all.
pub(super) fn probe(file: &File) -> io::Result<Option<Probe>> {
    let mut buffer = AlignedBuffer::new();
    for unit in [512_u16, 1024, 2048, 4096] {
        let bytes = &mut buffer.bytes()[..unit.into()];
        match pread(file.as_fd(), bytes, 0) {
            Ok(_) => {
                let mut start = [0; 8];
                start.copy_from_slice(&bytes[..8]);
                return Ok(Some(Probe { unit: unit.into(), start }));
            }
            Err(Errno::EINVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// Reads through an aligned buffer; the number of bytes read, short only at the end of the file.
pub(super) fn read(
    file: &File,
    memory: &GuestMemory,
    ranges: &[GuestRange],
    offset: u64,
) -> Result<usize, MemoryError> {
    let mut buffer = AlignedBuffer::new();
    let mut done = 0;
    while let Some(want) = next_piece(ranges, done) {
        let bytes = &mut buffer.bytes()[..want];
        let got = pread(file.as_fd(), bytes, position(offset, done)?).map_err(io::Error::from)?;
        scatter(memory, ranges, done, &bytes[..got])?;
        done += got;
        if got < want {
            break;
        }
    }
    Ok(done)
}

/// Writes through an aligned buffer; all bytes or an error.
pub(super) fn write(
    file: &File,
    memory: &GuestMemory,
    ranges: &[GuestRange],
    offset: u64,
) -> Result<(), MemoryError> {
    let mut buffer = AlignedBuffer::new();
    let mut done = 0;
    while let Some(want) = next_piece(ranges, done) {
        let bytes = &mut buffer.bytes()[..want];
        gather(memory, ranges, done, bytes)?;
        let put = pwrite(file.as_fd(), bytes, position(offset, done)?).map_err(io::Error::from)?;
        if put == 0 {
            return Err(io::Error::from(io::ErrorKind::WriteZero).into());
        }
        done += put;
    }
    Ok(())
}

fn next_piece(ranges: &[GuestRange], done: usize) -> Option<usize> {
    let total = gvmm_plugin_api::queue::total_len(ranges);
    let left = total.saturating_sub(done as u64);
    (left > 0).then(|| usize::try_from(left).map_or(BUFFER_SIZE, |left| left.min(BUFFER_SIZE)))
}

fn position(offset: u64, done: usize) -> io::Result<i64> {
    offset
        .checked_add(done as u64)
        .and_then(|at| i64::try_from(at).ok())
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EFBIG))
}

fn scatter(
    memory: &GuestMemory,
    ranges: &[GuestRange],
    skip: usize,
    mut data: &[u8],
) -> Result<(), MemoryError> {
    for range in gvmm_plugin_api::queue::sub_ranges(ranges, skip as u64, data.len() as u64) {
        let (piece, rest) = data.split_at(range.len as usize);
        memory.write(range.address, piece)?;
        data = rest;
    }
    Ok(())
}

fn gather(
    memory: &GuestMemory,
    ranges: &[GuestRange],
    skip: usize,
    data: &mut [u8],
) -> Result<(), MemoryError> {
    let mut done = 0;
    for range in gvmm_plugin_api::queue::sub_ranges(ranges, skip as u64, data.len() as u64) {
        let len = range.len as usize;
        memory.read(range.address, &mut data[done..done + len])?;
        done += len;
    }
    Ok(())
}

/// A buffer whose start is aligned for any device.
struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
}

impl AlignedBuffer {
    fn new() -> Self {
        let memory = vec![0; BUFFER_SIZE + BUFFER_ALIGN];
        let start = memory.as_ptr().addr().next_multiple_of(BUFFER_ALIGN) - memory.as_ptr().addr();
        Self { memory, start }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..BUFFER_SIZE]
    }
}
