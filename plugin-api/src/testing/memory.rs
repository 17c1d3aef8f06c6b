//! Guest memory that is ordinary memory of the test.

use std::sync::{Mutex, PoisonError};

use crate::memory::{GuestMemory, MemoryRegion};

/// A page of the largest size that Linux uses on aarch64: mappings are page-aligned.
#[derive(Debug, Clone)]
#[repr(C, align(65536))]
struct Page([u8; PAGE]);

const PAGE: usize = 65536;

/// Buffers are never freed but used again, so that a region stays mapped whatever a device under test keeps.
static SPARE: Mutex<Vec<&'static mut [Page]>> = Mutex::new(Vec::new());

/// Zeroed guest memory, one region.
#[derive(Debug)]
pub struct FakeMemory {
    region: MemoryRegion,
    view: GuestMemory,
    buffer: Option<&'static mut [Page]>,
}

impl FakeMemory {
    /// Guest address of the first byte.
    pub const BASE: u64 = 0x8000_0000;

    /// Memory of at least `size` bytes at [`FakeMemory::BASE`].
    pub fn new(size: usize) -> Self {
        let pages = size.div_ceil(PAGE);
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        let found = spare.iter().position(|buffer| buffer.len() == pages);
        let buffer = found.map_or_else(
            || Box::leak(vec![Page([0; PAGE]); pages].into_boxed_slice()),
            |at| spare.swap_remove(at),
        );
        buffer.fill(Page([0; PAGE]));
        let address = buffer.as_mut_ptr().expose_provenance();
        // SAFETY: the buffer is never freed, only handed to other tests.
        let region = unsafe { MemoryRegion::new(Self::BASE, (pages * PAGE) as u64, address, None) };
        let view = GuestMemory::new(&[region]).unwrap();
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
