//! Guest memory by way of a buffer of the host, for I/O that cannot use guest memory itself.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::io;

use gvmm_plugin_api::memory::{GuestMemory, GuestRange, MemoryError};
use gvmm_plugin_api::queue::{sub_ranges, total_len};

/// Bytes of a buffer: the usual size of a cluster.
pub(super) const SIZE: usize = 64 << 10;
/// Alignment of a buffer's start; no device in use wants more.
const ALIGN: usize = 4096;

thread_local! {
    static BUFFER: RefCell<Option<AlignedBuffer>> = const { RefCell::new(None) };
}

/// Reads a piece at a time into a buffer and from there into guest ranges; the number of bytes read.
///
/// `read` fills a buffer from an offset and returns the number of bytes, short only at the end.
pub(super) fn read(
    memory: &GuestMemory,
    ranges: &[GuestRange],
    offset: u64,
    read: impl Fn(&mut [u8], u64) -> io::Result<usize>,
) -> Result<usize, MemoryError> {
    with_buffer(|buffer| {
        let mut done = 0;
        for Piece { at, len } in pieces(total_len(ranges), offset)? {
            let got = read(&mut buffer[..len], at)?;
            let mut data = &buffer[..got];
            for range in sub_ranges(ranges, done as u64, got as u64) {
                let (now, rest) = data.split_at(range.len as usize);
                memory.write(range.address, now)?;
                data = rest;
            }
            done += got;
            if got < len {
                break;
            }
        }
        Ok(done)
    })
}

/// Copies guest ranges into a buffer and writes it, a piece at a time; all bytes or an error.
///
/// `write` writes all of a buffer at an offset.
pub(super) fn write(
    memory: &GuestMemory,
    ranges: &[GuestRange],
    offset: u64,
    write: impl Fn(&[u8], u64) -> io::Result<()>,
) -> Result<(), MemoryError> {
    with_buffer(|buffer| {
        for Piece { at, len } in pieces(total_len(ranges), offset)? {
            let mut filled = 0;
            for range in sub_ranges(ranges, at - offset, len as u64) {
                let end = filled + range.len as usize;
                memory.read(range.address, &mut buffer[filled..end])?;
                filled = end;
            }
            write(&buffer[..len], at)?;
        }
        Ok(())
    })
}

/// A part of a transfer that fits the buffer.
struct Piece {
    at: u64,
    len: usize,
}

/// Cuts a transfer at multiples of the buffer's size, so that no cluster is cut that need not be.
fn pieces(total: u64, offset: u64) -> io::Result<impl Iterator<Item = Piece>> {
    let end = offset.checked_add(total).ok_or_else(|| io::Error::from_raw_os_error(libc::EFBIG))?;
    let mut at = offset;
    Ok(std::iter::from_fn(move || {
        let len = (SIZE as u64 - at % SIZE as u64).min(end - at);
        let piece = Piece { at, len: len as usize };
        at += len;
        (len > 0).then_some(piece)
    }))
}

/// Runs with this thread's buffer.
pub(super) fn with_buffer<T>(body: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with(|buffer| match buffer.try_borrow_mut() {
        Ok(mut buffer) => body(buffer.get_or_insert_with(AlignedBuffer::new).bytes()),
        // In use further up the stack.
        Err(_) => body(AlignedBuffer::new().bytes()),
    })
}

struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
}

impl AlignedBuffer {
    fn new() -> Self {
        let memory = vec![0; SIZE + ALIGN];
        let start = memory.as_ptr().addr().next_multiple_of(ALIGN) - memory.as_ptr().addr();
        Self { memory, start }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..SIZE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_transfer_and_end_at_multiples_of_the_buffer() {
        for (total, offset) in [(0, 5), (1, 0), (1 << 20, 0), (200_000, 512), (64 << 10, (64 << 10) - 512)] {
            let mut at = offset;
            for piece in pieces(total, offset).unwrap() {
                assert_eq!(piece.at, at);
                at += piece.len as u64;
                assert!(at == offset + total || at.is_multiple_of(SIZE as u64));
            }
            assert_eq!(at, offset + total);
        }
        assert!(pieces(2, u64::MAX - 1).is_err());
    }
}
