//! Lent memory: taken from the program's addresses, which answer with SIGBUS until the VM is gone (rule 2.1).

use std::sync::{Mutex, PoisonError};

use crate::errno::Errno;

use super::{maps, real};

/// Alignment kept between old and new addresses, so that huge pages stay whole.
const HUGE_PAGE: u64 = 2 << 20;

fn pointer(address: u64) -> *mut libc::c_void {
    std::ptr::with_exposed_provenance_mut(address as usize)
}

/// Ranges of the program's addresses whose memory is here, by start; `false` once the program reused them.
static RANGES: Mutex<Vec<(u64, u64, bool)>> = Mutex::new(Vec::new());

fn ranges() -> std::sync::MutexGuard<'static, Vec<(u64, u64, bool)>> {
    RANGES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes that the program unmapped a range or mapped something over it: nothing is put back there.
pub(crate) fn forget(start: u64, length: u64) {
    let end = start.saturating_add(length);
    for (known, size, ours) in ranges().iter_mut() {
        if *known < end && start < *known + *size {
            *ours = false;
        }
    }
}

/// Covers a range with a mapping of an empty file: any touch raises SIGBUS, any system call on it gets EFAULT.
pub(crate) fn forbid(start: u64, length: u64) -> Result<(), Errno> {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"gunyah-sim-lent".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(Errno::last());
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
    // SAFETY: the caller owns the range in the sense of mmap(2): it replaces the program's mapping, as lending does.
    let mapped = unsafe { real::mmap(pointer(start), length as usize, protection, flags, fd, 0) };
    let failed = (mapped == libc::MAP_FAILED).then(Errno::last);
    // SAFETY: the descriptor is ours and the mapping keeps the file.
    unsafe { real::close(fd) };
    failed.map_or(Ok(()), Err)
}

/// A range of the program's memory while it belongs to a VM.
#[derive(Debug)]
pub(crate) struct Lent {
    start: u64,
    length: u64,
    /// The reservation the memory was moved into.
    reserved: (u64, u64),
    moved: u64,
    pieces: Vec<maps::Piece>,
    /// Whether the memory is cleaned on its way back.
    sanitise: bool,
}

impl Lent {
    /// Takes `length` bytes at `start` away from the program.
    pub(crate) fn take(start: u64, length: u64, sanitise: bool) -> Result<Lent, Errno> {
        let pieces = maps::pieces(start, length);
        if pieces.is_empty() {
            return Err(Errno::EFAULT);
        }
        let size = length + HUGE_PAGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let reserved =
            unsafe { real::mmap(std::ptr::null_mut(), size as usize, libc::PROT_NONE, flags, -1, 0) };
        if reserved == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let reserved = reserved.expose_provenance() as u64;
        let moved = reserved + (start.wrapping_sub(reserved) & (HUGE_PAGE - 1));
        let lent = Lent { start, length, reserved: (reserved, size), moved, pieces, sanitise };
        for piece in &lent.pieces {
            lent.take_piece(piece)?;
        }
        ranges().push((start, length, true));
        Ok(lent)
    }

    /// Moves one mapping. The old range stays reserved until the cover lies over it, so no other thread gets it.
    fn take_piece(&self, piece: &maps::Piece) -> Result<(), Errno> {
        let length = (piece.end - piece.start) as usize;
        let target = pointer(self.moved + (piece.start - self.start));
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
        // SAFETY: source is a mapping of the program that is being lent, target lies in our own reservation.
        let moved = unsafe { libc::mremap(pointer(piece.start), length, length, flags, target) };
        if moved == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        forbid(piece.start, piece.end - piece.start)
    }

    /// Where the memory is now.
    pub(crate) fn moved(&self) -> u64 {
        self.moved
    }

    fn clean(&self, piece: &maps::Piece) {
        let at = pointer(self.moved + (piece.start - self.start));
        // SAFETY: the range is writable memory that nobody else uses while it is ours.
        unsafe { std::ptr::write_bytes(at.cast::<u8>(), 0, (piece.end - piece.start) as usize) };
    }

    fn give_back(&self, piece: &maps::Piece) {
        let length = (piece.end - piece.start) as usize;
        let from = pointer(self.moved + (piece.start - self.start));
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: the source is ours; the target is the cover we laid there and the program has not touched since.
        unsafe { libc::mremap(from, length, length, flags, pointer(piece.start)) };
    }
}

impl Drop for Lent {
    /// Reclaims: the memory goes back to the program unless it has unmapped its place.
    fn drop(&mut self) {
        let mut ranges = ranges();
        let found =
            ranges.iter().position(|(start, length, _)| (*start, *length) == (self.start, self.length));
        let ours = found.is_some_and(|at| ranges.swap_remove(at).2);
        if ours {
            for piece in &self.pieces {
                if self.sanitise {
                    self.clean(piece);
                }
                self.give_back(piece);
            }
        }
        // SAFETY: the reservation is ours; what was moved out of it again is no longer in it.
        unsafe { real::munmap(pointer(self.reserved.0), self.reserved.1 as usize) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::user;

    const LENGTH: u64 = 8 * 4096;

    fn map(flags: i32) -> u64 {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), LENGTH as usize, protection, flags | libc::MAP_ANONYMOUS, -1, 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        at.expose_provenance() as u64
    }

    #[test]
    fn lent_memory_cannot_be_reached_and_comes_back() {
        for flags in [libc::MAP_PRIVATE, libc::MAP_SHARED] {
            let start = map(flags);
            user::write(start + 4096, b"kept").unwrap();
            let lent = Lent::take(start, LENGTH, false).unwrap();
            assert_eq!(user::read(start + 4096, 4).err(), Some(Errno::EFAULT));
            assert_eq!(user::read(lent.moved() + 4096, 4).unwrap(), b"kept");
            drop(lent);
            assert_eq!(user::read(start + 4096, 4).unwrap(), b"kept");
        }
    }

    #[test]
    fn a_mapping_of_several_pieces_is_lent_whole() {
        let start = map(libc::MAP_PRIVATE);
        // A different right on one page splits the mapping.
        // SAFETY: the page belongs to the mapping just made.
        assert_eq!(unsafe { libc::mprotect(pointer(start + 4096), 4096, libc::PROT_READ) }, 0);
        user::write(start + 2 * 4096, b"third").unwrap();
        let lent = Lent::take(start, LENGTH, false).unwrap();
        assert_eq!(user::read(lent.moved() + 2 * 4096, 5).unwrap(), b"third");
    }

    #[test]
    fn memory_of_an_authenticated_vm_is_cleaned() {
        let start = map(libc::MAP_PRIVATE);
        user::write(start, b"secret").unwrap();
        drop(Lent::take(start, LENGTH, true).unwrap());
        assert_eq!(user::read(start, 6).unwrap(), [0; 6]);
    }

    #[test]
    fn memory_the_program_unmapped_meanwhile_is_not_put_back() {
        let start = map(libc::MAP_PRIVATE);
        let lent = Lent::take(start, LENGTH, false).unwrap();
        // SAFETY: the mapping is this test's own.
        assert_eq!(unsafe { libc::munmap(pointer(start), LENGTH as usize) }, 0);
        forget(start, LENGTH);
        drop(lent);
        assert!(maps::pieces(start, LENGTH).is_empty());
    }
}
