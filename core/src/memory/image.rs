//! Memory that shows registers: the guest reads it without an exit, and the VMM alone writes it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use super::mapping::Reservation;

/// Granule of guest pages. Hosts with larger pages have no images.
const PAGE: usize = 0x1000;
/// Bytes of ones in the file; a larger image maps them again and again.
const ONES: usize = 0x8000;

/// An image of registers. Pages of its own have those that change; in a [sparse](RegisterImage::sparse) one all others
/// share their memory.
#[derive(Debug)]
pub struct RegisterImage {
    reservation: Reservation,
    size: usize,
    /// Offsets of the pages that can be written.
    own: Vec<usize>,
}

// SAFETY: the pointer in the reservation names memory that belongs to this value alone and is mapped for the whole
// process; it is written through atomics only.
unsafe impl Send for RegisterImage {}
// SAFETY: as above.
unsafe impl Sync for RegisterImage {}

impl RegisterImage {
    /// An image of ones, as on a bus that nobody answers on, of a multiple of 32 KiB, in which the pages at the offsets
    /// `own` can be written.
    ///
    /// # Errors
    ///
    /// Sizes and offsets that are no such multiples, hosts whose pages are not of 4 KiB, and a refusal by the host's
    /// kernel.
    pub fn sparse(size: usize, own: Vec<usize>) -> io::Result<Self> {
        let inside = |at: &usize| at.is_multiple_of(PAGE) && *at < size;
        if !size.is_multiple_of(ONES) || !own.iter().all(inside) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let file = memfd()?;
        file.write_all_at(&vec![0xff; ONES + own.len() * PAGE], 0)?;
        let image = Self::reserve(size, own)?;
        for at in (0..size).step_by(ONES) {
            image.place(at, ONES, libc::PROT_READ, &file, 0)?;
        }
        for (number, at) in image.own.iter().enumerate() {
            image.place(*at, PAGE, libc::PROT_READ | libc::PROT_WRITE, &file, ONES + number * PAGE)?;
        }
        Ok(image)
    }

    /// An image of zeroes for registers that take so many bytes, in whole pages, all of which can be written.
    ///
    /// # Errors
    ///
    /// No bytes, hosts whose pages are not of 4 KiB, and a refusal by the host's kernel.
    pub fn blank(registers: usize) -> io::Result<Self> {
        let size = registers.checked_next_multiple_of(PAGE).ok_or(io::ErrorKind::Unsupported)?;
        let file = memfd()?;
        file.set_len(size as u64)?;
        let image = Self::reserve(size, (0..size).step_by(PAGE).collect())?;
        image.place(0, size, libc::PROT_READ | libc::PROT_WRITE, &file, 0)?;
        Ok(image)
    }

    fn reserve(size: usize, own: Vec<usize>) -> io::Result<Self> {
        if size == 0 || host_page() != Some(PAGE) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        Ok(Self { reservation: Reservation::map(size, libc::PROT_NONE, flags, None)?, size, own })
    }

    /// Bytes of the image.
    pub fn size(&self) -> u64 {
        self.size as u64
    }

    /// Address of the first byte in this process, for the hypervisor.
    pub fn host_address(&self) -> u64 {
        self.reservation.start().as_ptr().addr() as u64
    }

    /// Shows four bytes at a multiple of four in one of the own pages; anywhere else nothing changes. The guest sees
    /// them at once.
    pub fn show(&self, offset: usize, word: u32) {
        let page = offset - offset % PAGE;
        if !offset.is_multiple_of(4) || !self.own.contains(&page) {
            return;
        }
        let place = self.at(offset).cast::<u32>();
        // SAFETY: the place is aligned and in a page that is mapped for writing as long as `self` lives, and nobody
        // reads or writes it in this process but through atomics.
        unsafe { AtomicU32::from_ptr(place.as_ptr()) }.store(word.to_le(), Ordering::Release);
        clean(place);
    }

    /// Four bytes at a multiple of four, as the guest sees them.
    pub fn shown(&self, offset: usize) -> u32 {
        assert!(offset.is_multiple_of(4) && offset < self.size, "no word of an image: {offset:#x}");
        // SAFETY: the place is aligned and mapped as long as `self` lives.
        let word = unsafe { self.at(offset).cast::<u32>().as_ptr().read_volatile() };
        u32::from_le(word)
    }

    fn at(&self, offset: usize) -> NonNull<u8> {
        debug_assert!(offset < self.size);
        // SAFETY: the offset is below the size of the reservation.
        unsafe { self.reservation.start().add(offset) }
    }

    fn place(&self, at: usize, length: usize, protection: i32, file: &File, offset: usize) -> io::Result<()> {
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        let target = self.at(at).as_ptr().cast();
        // SAFETY: the range lies inside the reservation, which belongs to `self`, and nobody has its address yet.
        let placed = unsafe { libc::mmap(target, length, protection, flags, file.as_raw_fd(), offset) };
        if placed == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Bytes of a page of this host.
fn host_page() -> Option<usize> {
    // SAFETY: the call has no memory arguments.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()
}

/// An empty memfd.
fn memfd() -> io::Result<File> {
    // SAFETY: the name is a C string; the call has no other memory arguments.
    let fd = unsafe { libc::memfd_create(c"gvmm-registers".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

/// Brings a word from the caches to memory. The guest maps registers as device memory, and its reads pass the caches by
/// on processors that do not force them (Arm ARM, FEAT_S2FWB).
fn clean(place: NonNull<u32>) {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: Linux lets programs clean lines of memory that they have mapped (SCTLR_EL1.UCI); no content changes.
    unsafe {
        std::arch::asm!("dc cvac, {0}", "dsb sy", in(reg) place.as_ptr(), options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "aarch64"))]
    let _ = place;
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 4 * ONES;

    /// Machines whose pages are not of 4 KiB have no images.
    fn image(own: Vec<usize>) -> Option<RegisterImage> {
        let image = RegisterImage::sparse(SIZE, own);
        assert_eq!(image.is_ok(), host_page() == Some(PAGE), "{image:?}");
        image.ok()
    }

    #[test]
    fn shows_ones_but_for_what_was_written_to_pages_of_its_own() {
        let Some(image) = image(vec![0, ONES, SIZE - PAGE]) else { return };
        for offset in (0..SIZE).step_by(4) {
            assert_eq!(image.shown(offset), u32::MAX);
        }
        image.show(8, 0x1234_5678);
        image.show(SIZE - 4, 7);
        assert_eq!(
            [8, SIZE - 4, ONES + 8, PAGE + 8].map(|at| image.shown(at)),
            [0x1234_5678, 7, u32::MAX, u32::MAX]
        );
    }

    #[test]
    fn writes_nothing_that_others_share() {
        let Some(image) = image(vec![ONES]) else { return };
        for offset in [0, ONES - 4, ONES + 2, ONES + PAGE, SIZE, usize::MAX - 3] {
            image.show(offset, 0);
        }
        for offset in (0..SIZE).step_by(4) {
            assert_eq!(image.shown(offset), u32::MAX);
        }
    }

    #[test]
    fn a_blank_one_shows_zeroes_but_for_what_was_written() {
        let Ok(image) = RegisterImage::blank(PAGE + 1) else { return };
        assert_eq!(image.size(), 2 * PAGE as u64);
        image.show(PAGE, 5);
        assert_eq!([0, PAGE - 4, PAGE, 2 * PAGE - 4].map(|at| image.shown(at)), [0, 0, 5, 0]);
        image.show(2 * PAGE, 7);
    }

    #[test]
    fn refuses_what_it_cannot_map() {
        assert!(RegisterImage::blank(0).is_err());
        assert!(RegisterImage::blank(usize::MAX).is_err());
        for (size, own) in [(0, vec![]), (ONES + PAGE, vec![]), (ONES, vec![ONES]), (ONES, vec![4])] {
            assert!(RegisterImage::sparse(size, own).is_err());
        }
    }
}
