//! Direct I/O: finding out what alignment it wants, and a way for guest memory that has another one.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use gvmm_plugin_api::memory::{GuestMemory, GuestRange, MemoryError};
use nix::errno::Errno;
use nix::sys::uio::{pread, pwrite};

use super::bounce;

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
    bounce::with_buffer(|buffer| {
        for unit in [512_u16, 1024, 2048, 4096] {
            let bytes = &mut buffer[..unit.into()];
            bytes.fill(0);
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
    })
}

/// Reads through an aligned buffer; the number of bytes read, short only at the end of the file.
pub(super) fn read(
    file: &File,
    memory: &GuestMemory,
    ranges: &[GuestRange],
    offset: u64,
) -> Result<usize, MemoryError> {
    bounce::read(memory, ranges, offset, |bytes, at| Ok(pread(file.as_fd(), bytes, position(at)?)?))
}

/// Writes through an aligned buffer; all bytes or an error.
pub(super) fn write(
    file: &File,
    memory: &GuestMemory,
    ranges: &[GuestRange],
    offset: u64,
) -> Result<(), MemoryError> {
    bounce::write(memory, ranges, offset, |bytes, at| {
        match pwrite(file.as_fd(), bytes, position(at)?)? == bytes.len() {
            true => Ok(()),
            false => Err(io::Error::from(io::ErrorKind::WriteZero)),
        }
    })
}

fn position(at: u64) -> io::Result<i64> {
    i64::try_from(at).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}
