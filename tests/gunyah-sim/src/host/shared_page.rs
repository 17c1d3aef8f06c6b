//! One page of memory that the program maps too.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::abi::PAGE;
use crate::errno::Errno;

/// A zeroed shared page. Both sides may write any byte at any time.
pub(crate) struct SharedPage(NonNull<libc::c_void>);

// SAFETY: every access goes through an atomic byte.
unsafe impl Send for SharedPage {}
// SAFETY: as above.
unsafe impl Sync for SharedPage {}

impl SharedPage {
    pub(crate) fn new() -> Result<SharedPage, Errno> {
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing memory.
        let at = unsafe {
            super::real::mmap(
                std::ptr::null_mut(),
                PAGE as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        match NonNull::new(at).filter(|at| at.as_ptr() != libc::MAP_FAILED) {
            Some(at) => Ok(SharedPage(at)),
            None => Err(Errno::last()),
        }
    }

    /// Maps the same page over the program's mapping at `at`, with its protection.
    pub(crate) fn map_over(&self, at: *mut libc::c_void, protection: i32) -> Result<(), Errno> {
        // SAFETY: an old size of 0 duplicates the shared page (mremap(2)); the program just mapped the target for it.
        let mapped = unsafe {
            libc::mremap(self.0.as_ptr(), 0, PAGE as usize, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, at)
        };
        if mapped == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        // SAFETY: the page is the mapping just made.
        match unsafe { libc::mprotect(at, PAGE as usize, protection) } {
            0 => Ok(()),
            _ => Err(Errno::last()),
        }
    }

    fn byte(&self, offset: usize) -> &AtomicU8 {
        assert!(offset < PAGE as usize, "offset {offset} lies outside the run page");
        // SAFETY: the offset is inside the page, which lives as long as `self`.
        let byte = unsafe { self.0.as_ptr().cast::<u8>().add(offset) };
        // SAFETY: the byte is valid for reads and writes for that long, and shared memory is only used atomically.
        unsafe { AtomicU8::from_ptr(byte) }
    }

    pub(crate) fn load(&self, offset: usize) -> u8 {
        self.byte(offset).load(Ordering::Acquire)
    }

    pub(crate) fn store(&self, offset: usize, value: u8) {
        self.byte(offset).store(value, Ordering::Release);
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone; the program's duplicates are mappings of their own.
        unsafe { super::real::munmap(self.0.as_ptr(), PAGE as usize) };
    }
}
