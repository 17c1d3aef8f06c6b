//! Guest memory as a device may see it.
//!
//! A view holds only what the host may touch: memory that is lent to a protected guest is in no view, so an address
//! in it is an error like any address outside RAM. Every access is bounds-checked and volatile; the guest may change
//! any byte at any time, so a device reads each field once and works on the copy.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap, MmapRegion,
    VolatileSlice,
};

/// A piece of guest memory that is mapped into this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRegion {
    guest_address: u64,
    size: u64,
    host_address: usize,
    file: Option<(i32, u64)>,
}

impl MemoryRegion {
    /// A region of `size` bytes, mapped at `host_address`; `file` is a descriptor that other processes can map and the
    /// offset in it, when the memory is not private.
    ///
    /// # Safety
    ///
    /// The range must be mapped readable and writable in this process as long as a copy of the region or anything
    /// made from one is in use, and `file` must stay open as long.
    pub const unsafe fn new(
        guest_address: u64,
        size: u64,
        host_address: usize,
        file: Option<(i32, u64)>,
    ) -> Self {
        Self { guest_address, size, host_address, file }
    }

    /// Guest address of the first byte.
    pub fn guest_address(&self) -> u64 {
        self.guest_address
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Address in this process.
    pub fn host_address(&self) -> usize {
        self.host_address
    }

    /// A descriptor that other processes can map, borrowed from the machine, and the offset of the first byte in it.
    pub fn file(&self) -> Option<(i32, u64)> {
        self.file
    }
}

/// Why guest memory could not be accessed.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The range is not wholly in guest memory that the host may touch.
    #[error("guest range {address:#x}+{size:#x} is not in memory shared with devices")]
    OutOfRange {
        /// Guest address.
        address: u64,
        /// Size in bytes.
        size: usize,
    },
    /// The regions of a view overlap or cannot be described.
    #[error("guest memory regions are unusable: {0}")]
    Regions(String),
    /// A file operation on guest memory failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A view of guest memory. Clones are cheap and show the same memory.
#[derive(Debug, Clone)]
pub struct GuestMemory(Arc<GuestMemoryMmap<()>>);

/// A range of guest memory: address and length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestRange {
    /// Guest address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
}

impl GuestMemory {
    /// A view of regions.
    pub fn new(regions: &[MemoryRegion]) -> Result<Self, MemoryError> {
        let broken = |error: &dyn std::fmt::Display| MemoryError::Regions(error.to_string());
        let mut mapped = Vec::with_capacity(regions.len());
        for region in regions {
            let size = usize::try_from(region.size).map_err(|e| broken(&e))?;
            let host = std::ptr::with_exposed_provenance_mut(region.host_address);
            let (protection, flags) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
            // SAFETY: whoever made the region promised that the range is mapped and stays so (`MemoryRegion::new`).
            let mapping =
                unsafe { MmapRegion::build_raw(host, size, protection, flags) }.map_err(|e| broken(&e))?;
            let region = GuestRegionMmap::new(mapping, GuestAddress(region.guest_address))
                .ok_or_else(|| broken(&"a region wraps the address space"))?;
            mapped.push(region);
        }
        mapped.sort_by_key(|region| vm_memory::GuestMemoryRegion::start_addr(region).raw_value());
        Ok(Self(Arc::new(GuestMemoryMmap::from_regions(mapped).map_err(|e| broken(&e))?)))
    }

    /// The vm-memory object under the view.
    pub(crate) fn inner(&self) -> &GuestMemoryMmap<()> {
        &self.0
    }

    /// Whether the whole range is in the view.
    pub fn contains(&self, address: u64, size: usize) -> bool {
        self.slice(address, size).is_ok()
    }

    /// Copies guest memory into `data`.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        let size = data.len();
        self.0.read_slice(data, GuestAddress(address)).map_err(|_| MemoryError::OutOfRange { address, size })
    }

    /// Copies `data` into guest memory.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        let size = data.len();
        self.0.write_slice(data, GuestAddress(address)).map_err(|_| MemoryError::OutOfRange { address, size })
    }

    /// Fills a range with a byte.
    pub fn fill(&self, address: u64, size: usize, byte: u8) -> Result<(), MemoryError> {
        let slice = self.slice(address, size)?;
        let guard = slice.ptr_guard_mut();
        // SAFETY: the slice is mapped, writable and `size` bytes long; the guest may race, which the bytes bear.
        unsafe { std::ptr::write_bytes(guard.as_ptr(), byte, size) };
        Ok(())
    }

    fn slice(&self, address: u64, size: usize) -> Result<VolatileSlice<'_, impl BitmapSlice>, MemoryError> {
        self.0.get_slice(GuestAddress(address), size).map_err(|_| MemoryError::OutOfRange { address, size })
    }

    /// Reads from a file straight into guest ranges; the number of bytes read, short only at the end of the file.
    pub fn read_file_at(
        &self,
        ranges: &[GuestRange],
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> Result<usize, MemoryError> {
        self.transfer(ranges, offset, |iov, offset| {
            // SAFETY: the vectors name mapped guest memory, checked by `transfer`.
            unsafe { libc::preadv(file.as_raw_fd(), iov.as_ptr(), count(iov), offset) }
        })
    }

    /// Reads from a file straight into guest ranges if that takes no waiting: the data is in the page cache. `None`
    /// when it is not all there, when another read is to be done; an error where the file system cannot tell.
    pub fn read_file_now(
        &self,
        ranges: &[GuestRange],
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> Result<Option<usize>, MemoryError> {
        let read = self.transfer(ranges, offset, |iov, offset| {
            let fd = file.as_raw_fd();
            // SAFETY: the vectors name mapped guest memory, checked by `transfer`.
            unsafe { libc::preadv2(fd, iov.as_ptr(), count(iov), offset, libc::RWF_NOWAIT) }
        });
        match read {
            Err(MemoryError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            other => other.map(Some),
        }
    }

    /// Writes guest ranges straight to a file; all bytes or an error.
    pub fn write_file_at(
        &self,
        ranges: &[GuestRange],
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> Result<usize, MemoryError> {
        self.transfer(ranges, offset, |iov, offset| {
            // SAFETY: the vectors name mapped guest memory, checked by `transfer`.
            unsafe { libc::pwritev(file.as_raw_fd(), iov.as_ptr(), count(iov), offset) }
        })
    }

    /// Reads a stream once (socket, pipe, tap) into guest ranges; the number of bytes read, 0 at its end.
    pub fn read_stream(&self, ranges: &[GuestRange], stream: BorrowedFd<'_>) -> Result<usize, MemoryError> {
        let iov = self.io_vectors(ranges)?;
        // SAFETY: the vectors name mapped guest memory, checked by `io_vectors`.
        Ok(checked(|| unsafe { libc::readv(stream.as_raw_fd(), iov.as_ptr(), count(&iov)) })?)
    }

    /// Writes guest ranges to a stream once; the number of bytes that it took.
    pub fn write_stream(&self, ranges: &[GuestRange], stream: BorrowedFd<'_>) -> Result<usize, MemoryError> {
        let iov = self.io_vectors(ranges)?;
        // SAFETY: the vectors name mapped guest memory, checked by `io_vectors`.
        Ok(checked(|| unsafe { libc::writev(stream.as_raw_fd(), iov.as_ptr(), count(&iov)) })?)
    }

    /// Host vectors for guest ranges, for I/O interfaces that take pointers (io_uring).
    pub fn io_vectors(&self, ranges: &[GuestRange]) -> Result<Vec<libc::iovec>, MemoryError> {
        ranges.iter().map(|range| self.io_vector(range)).collect()
    }

    /// Fills a list with host vectors for guest ranges, neighbours joined and empty ones left out.
    pub fn collect_io_vectors(
        &self,
        ranges: &[GuestRange],
        vectors: &mut Vec<libc::iovec>,
    ) -> Result<(), MemoryError> {
        vectors.clear();
        vectors.resize(ranges.len(), NO_VECTOR);
        let used = self.fill_vectors(ranges, vectors)?.len();
        vectors.truncate(used);
        Ok(())
    }

    fn io_vector(&self, range: &GuestRange) -> Result<libc::iovec, MemoryError> {
        let slice = self.slice(range.address, range.len as usize)?;
        Ok(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: range.len as usize })
    }

    /// Repeats a vectored file operation until all ranges are done or the file ends.
    fn transfer(
        &self,
        ranges: &[GuestRange],
        offset: u64,
        mut operation: impl FnMut(&[libc::iovec], i64) -> isize,
    ) -> Result<usize, MemoryError> {
        let mut vectors = [NO_VECTOR; MAX_VECTORS];
        let mut done = 0;
        for piece in ranges.chunks(MAX_VECTORS) {
            let mut rest = self.fill_vectors(piece, &mut vectors)?;
            while !rest.is_empty() {
                let position = offset.checked_add(done as u64).and_then(|at| i64::try_from(at).ok());
                let position = position.ok_or_else(|| io::Error::from_raw_os_error(libc::EFBIG))?;
                let moved = checked(|| operation(rest, position))?;
                if moved == 0 {
                    return Ok(done);
                }
                done += moved;
                rest = advance(rest, moved);
            }
        }
        Ok(done)
    }

    /// Host vectors for as many guest ranges as there is room for, neighbours joined and empty ones left out.
    fn fill_vectors<'v>(
        &self,
        ranges: &[GuestRange],
        vectors: &'v mut [libc::iovec],
    ) -> Result<&'v mut [libc::iovec], MemoryError> {
        let mut used = 0;
        for vector in ranges.iter().map(|range| self.io_vector(range)) {
            let vector = vector?;
            let end = |before: &libc::iovec| before.iov_base.wrapping_byte_add(before.iov_len);
            match vectors[..used].last_mut() {
                _ if vector.iov_len == 0 => {}
                Some(before) if end(before) == vector.iov_base => before.iov_len += vector.iov_len,
                _ => {
                    vectors[used] = vector;
                    used += 1;
                }
            }
        }
        Ok(&mut vectors[..used])
    }
}

/// Vectors in one file operation, which live on the stack; below `UIO_MAXIOV` of Linux (1024).
const MAX_VECTORS: usize = 64;

const NO_VECTOR: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

fn count(iov: &[libc::iovec]) -> i32 {
    // At most MAX_VECTORS for files; the kernel refuses longer lists for streams.
    i32::try_from(iov.len()).unwrap_or(i32::MAX)
}

/// Runs a system call until it is not interrupted.
fn checked(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(n) = usize::try_from(call()) {
            return Ok(n);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// The vectors that remain after `moved` bytes.
fn advance(mut iov: &mut [libc::iovec], mut moved: usize) -> &mut [libc::iovec] {
    while let Some(first) = iov.first_mut() {
        if moved < first.iov_len {
            first.iov_base = first.iov_base.wrapping_byte_add(moved);
            first.iov_len -= moved;
            break;
        }
        moved -= first.iov_len;
        iov = &mut iov[1..];
    }
    iov
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;
    use crate::testing::FakeMemory;

    /// More ranges than one system call takes, of odd lengths, some empty, some next to each other.
    fn scattered() -> Vec<GuestRange> {
        let range = |i: u64| GuestRange { address: FakeMemory::BASE + 256 * i, len: (i * 7 % 257) as u32 };
        (0..3 * MAX_VECTORS as u64).map(range).collect()
    }

    fn file_of(data: &[u8]) -> File {
        let path = std::env::temp_dir().join(format!("gvmm-memory-{:?}", std::thread::current().id()));
        std::fs::write(&path, data).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }

    #[test]
    fn file_operations_take_any_number_of_ranges() {
        let ranges = scattered();
        let total = crate::queue::total_len(&ranges) as usize;
        let data: Vec<u8> = (0..total + 3).map(|i| (i % 253) as u8).collect();
        let (from, to) = (file_of(&data), file_of(&[]));
        let memory = FakeMemory::new(1 << 20);
        assert_eq!(memory.view().read_file_at(&ranges, from.as_fd(), 3).unwrap(), total);
        assert_eq!(memory.view().write_file_at(&ranges, to.as_fd(), 0).unwrap(), total);
        let mut copy = vec![0; total];
        std::os::unix::fs::FileExt::read_exact_at(&to, &mut copy, 0).unwrap();
        assert_eq!(copy, data[3..]);
    }

    #[test]
    fn a_read_is_short_at_the_end_of_the_file() {
        let file = file_of(&[1; 1000]);
        let memory = FakeMemory::new(1 << 20);
        let ranges = [GuestRange { address: FakeMemory::BASE, len: 2000 }];
        assert_eq!(memory.view().read_file_at(&ranges, file.as_fd(), 300).unwrap(), 700);
        assert_eq!(memory.view().read_file_at(&ranges, file.as_fd(), 1000).unwrap(), 0);
    }

    #[test]
    fn ranges_and_offsets_out_of_bounds_are_errors() {
        let file = file_of(&[1; 1000]);
        let memory = FakeMemory::new(1 << 20);
        let bad = GuestRange { address: FakeMemory::BASE + (1 << 20) - 8, len: 9 };
        let error = memory.view().read_file_at(&[bad], file.as_fd(), 0).unwrap_err();
        assert!(matches!(error, MemoryError::OutOfRange { size: 9, .. }), "{error}");
        let good = GuestRange { address: FakeMemory::BASE, len: 9 };
        assert!(memory.view().read_file_at(&[good], file.as_fd(), u64::MAX).is_err());
    }
}
