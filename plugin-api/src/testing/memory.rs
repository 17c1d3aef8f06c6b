//! Guest memory that is ordinary memory of the test.

use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::unistd::ftruncate;

use crate::memory::{GuestMemory, MemoryRegion};

/// A page of the largest size that Linux uses on aarch64: mappings are page-aligned.
const PAGE: usize = 65536;

/// Memory that stays mapped, and the file behind it.
#[derive(Debug)]
struct Buffer {
    address: usize,
    size: usize,
    file: OwnedFd,
}

impl Buffer {
    fn new(size: usize) -> Self {
        let file = memfd_create(c"fake-memory", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&file, i64::try_from(size).unwrap()).unwrap();
        let length = NonZeroUsize::new(size).unwrap();
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &file, 0) };
        Self { address: address.unwrap().as_ptr().expose_provenance(), size, file }
    }
}

/// Buffers are never unmapped but used again, so that a region stays mapped whatever a device under test keeps.
static SPARE: Mutex<Vec<Buffer>> = Mutex::new(Vec::new());

/// Zeroed guest memory, one region, which other processes can map.
#[derive(Debug)]
pub struct FakeMemory {
    region: MemoryRegion,
    view: GuestMemory,
    buffer: Option<Buffer>,
}

impl FakeMemory {
    /// Guest address of the first byte.
    pub const BASE: u64 = 0x8000_0000;

    /// Memory of at least `size` bytes at [`FakeMemory::BASE`].
    pub fn new(size: usize) -> Self {
        let size = size.next_multiple_of(PAGE);
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        let found = spare.iter().position(|buffer| buffer.size == size);
        let buffer = found.map_or_else(|| Buffer::new(size), |at| spare.swap_remove(at));
        let file = Some((buffer.file.as_raw_fd(), 0));
        // SAFETY: the buffer is never unmapped, only handed to other tests.
        let region = unsafe { MemoryRegion::new(Self::BASE, size as u64, buffer.address, file) };
        let view = GuestMemory::new(&[region]).unwrap();
        view.fill(Self::BASE, size, 0).unwrap();
        Self { region, view, buffer: Some(buffer) }
    }

    /// The region, for a queue's set-up.
    pub fn region(&self) -> MemoryRegion {
        self.region
    }

    /// A view, for reading and writing as the guest would.
    pub fn view(&self) -> &GuestMemory {
        &self.view
    }

    /// Copies bytes out.
    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.view.read(address, &mut data).unwrap();
        data
    }

    /// Copies bytes in.
    pub fn write(&self, address: u64, data: &[u8]) {
        self.view.write(address, data).unwrap();
    }
}

impl Drop for FakeMemory {
    fn drop(&mut self) {
        SPARE.lock().unwrap_or_else(PoisonError::into_inner).extend(self.buffer.take());
    }
}
