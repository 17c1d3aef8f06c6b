//! Host memory behind one region, mapped at a huge-page boundary.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::{Error, REGION_ALIGNMENT};

/// A mapping that is unmapped when it is dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    /// Everything that was mapped: the usable part and the inaccessible rest in front of and behind it.
    _reservation: Reservation,
    start: NonNull<u8>,
    size: usize,
    memfd: Option<Arc<OwnedFd>>,
}

// SAFETY: the pointers name memory that belongs to this value alone and is mapped for the whole process; nothing in
// here depends on a thread.
unsafe impl Send for Mapping {}
// SAFETY: a shared `Mapping` gives out addresses and a descriptor and reads or writes none of the memory.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Private anonymous memory with transparent huge pages.
    pub(super) fn anonymous(size: u64) -> Result<Self, Error> {
        let length = usize::try_from(size).map_err(|_| Error::OutOfAddressSpace { base: 0, size })?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let mapping = Self::aligned(length, flags, None).map_err(|source| refused(size, "mmap", source))?;
        mapping.advise_huge_pages();
        Ok(mapping)
    }

    /// A memfd that other processes can map: of huge pages if the kernel has enough of them set aside, otherwise of
    /// ordinary pages with the request for huge ones.
    ///
    /// The file is sealed against a change of its size: a process that it is given to could otherwise cut it short
    /// and kill the VMM by SIGBUS.
    pub(super) fn memfd(size: u64) -> Result<Self, Error> {
        let length = usize::try_from(size).map_err(|_| Error::OutOfAddressSpace { base: 0, size })?;
        match sealed_memfd(size, libc::MFD_HUGETLB | libc::MFD_HUGE_2MB)
            .and_then(|fd| Self::hugetlb(length, fd))
        {
            Ok(mapping) => return Ok(mapping),
            Err(error) => tracing::debug!(
                "no reserved huge pages for guest memory ({error}); asking for transparent ones"
            ),
        }
        let fd = sealed_memfd(size, 0).map_err(|source| refused(size, "memfd_create", source))?;
        let mapping = Self::aligned(length, libc::MAP_SHARED, Some(fd))
            .map_err(|source| refused(size, "mmap", source))?;
        mapping.advise_huge_pages();
        Ok(mapping)
    }

    /// A file of the hypervisor's, which decides on its pages itself.
    pub(super) fn file(size: u64, file: OwnedFd) -> Result<Self, Error> {
        let length = usize::try_from(size).map_err(|_| Error::OutOfAddressSpace { base: 0, size })?;
        let mapping = Self::aligned(length, libc::MAP_SHARED, Some(file))
            .map_err(|source| refused(size, "mmap", source))?;
        mapping.advise_huge_pages();
        Ok(mapping)
    }

    /// Maps a file of reserved huge pages, which the kernel aligns by itself.
    fn hugetlb(length: usize, fd: OwnedFd) -> io::Result<Self> {
        let reservation =
            Reservation::map(length, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, Some(&fd))?;
        let start = reservation.start;
        Ok(Self { _reservation: reservation, start, size: length, memfd: Some(Arc::new(fd)) })
    }

    /// Maps `length` bytes at a multiple of [`REGION_ALIGNMENT`], with inaccessible pages on both sides.
    fn aligned(length: usize, flags: libc::c_int, fd: Option<OwnedFd>) -> io::Result<Self> {
        let alignment = REGION_ALIGNMENT as usize;
        // One granule to align in, and one so that a guard is left behind the region in every case.
        let reserved = length.checked_add(2 * alignment).ok_or(io::ErrorKind::OutOfMemory)?;
        let reservation = Reservation::map(
            reserved,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            None,
        )?;
        let offset = alignment - (reservation.start.as_ptr().addr() % alignment);
        // SAFETY: offset is at most one granule, and the reservation is two granules longer than the region.
        let target = unsafe { reservation.start.add(offset) };
        let raw_fd = fd.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        // SAFETY: the target range lies inside the reservation, which belongs to this function, so that MAP_FIXED
        // replaces nothing but inaccessible pages of our own.
        let mapped = unsafe {
            libc::mmap(
                target.as_ptr().cast(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                flags | libc::MAP_FIXED,
                raw_fd,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            // The failed call may have left a hole that another thread has filled since: unmapping the range could
            // hit that thread's memory, and keeping it costs address space alone.
            std::mem::forget(reservation);
            return Err(error);
        }
        Ok(Self { _reservation: reservation, start: target, size: length, memfd: fd.map(Arc::new) })
    }

    /// Asks for transparent huge pages and keeps guest memory out of core dumps and forked children. All three are
    /// requests: the memory works without them.
    fn advise_huge_pages(&self) {
        // A child that shares the pages copy-on-write would make pages that a hypervisor has pinned diverge from the
        // ones mapped here.
        for advice in [libc::MADV_HUGEPAGE, libc::MADV_DONTDUMP, libc::MADV_DONTFORK] {
            // SAFETY: the range is the mapping of this value; none of the advices changes its content.
            if unsafe { libc::madvise(self.start.as_ptr().cast(), self.size, advice) } != 0 {
                tracing::debug!("madvise({advice}) on guest memory: {}", io::Error::last_os_error());
            }
        }
    }

    /// Address of the first byte in this process.
    pub(super) fn host_address(&self) -> u64 {
        self.start.as_ptr().addr() as u64
    }

    /// The file behind the memory, from its first byte.
    pub(super) fn memfd_handle(&self) -> Option<&Arc<OwnedFd>> {
        self.memfd.as_ref()
    }

    /// The memory itself.
    ///
    /// # Safety
    ///
    /// No guest runs on the memory and nobody else has been given its address or its file.
    pub(super) unsafe fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the range is mapped readable and writable for the life of `self`, zero-filled by the kernel; that
        // nobody else touches it is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.size) }
    }
}

/// A range of addresses taken by one `mmap`.
#[derive(Debug)]
pub(super) struct Reservation {
    start: NonNull<u8>,
    length: usize,
}

impl Reservation {
    /// The first byte.
    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Maps wherever there is room.
    pub(super) fn map(
        length: usize,
        protection: libc::c_int,
        flags: libc::c_int,
        fd: Option<&OwnedFd>,
    ) -> io::Result<Self> {
        let raw_fd = fd.map_or(-1, AsRawFd::as_raw_fd);
        // SAFETY: without MAP_FIXED the kernel picks a free range; no memory in use is changed.
        let start = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, raw_fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map` and belongs to this value; whoever got an address in it keeps the
        // `Mapping` alive.
        if unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) } != 0 {
            tracing::error!("munmap of guest memory: {}", io::Error::last_os_error());
        }
    }
}

/// A memfd of `size` bytes whose size cannot change any more.
fn sealed_memfd(size: u64, flags: libc::c_uint) -> io::Result<OwnedFd> {
    let flags = flags | libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C string; the call has no other memory arguments.
    let fd = unsafe { libc::memfd_create(c"gvmm-ram".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and belongs to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let length = libc::off_t::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
    nix::unistd::ftruncate(&fd, length)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: F_ADD_SEALS takes an integer.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

fn refused(size: u64, call: &'static str, source: io::Error) -> Error {
    Error::Map { size_mib: size >> 20, call, source }
}
