//! The page through which a vCPU's exits are told.

use std::sync::Arc;

use super::super::uapi::common::{EXIT_MMIO, EXIT_PAGE_FAULT, EXIT_STATUS, EXIT_UNKNOWN, run_page as field};
use crate::hypervisor::kick::RunPage;

/// Why a vCPU came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunExit {
    /// Nothing since [`RunPageView::forget_exit`].
    None,
    /// An access to the trap window.
    Mmio {
        /// Guest address.
        address: u64,
        /// Bytes as the driver says; 1, 2, 4 or 8 from one that works.
        length: u32,
        /// Bytes written by the guest, low address first; `None` for a read.
        written: Option<[u8; 8]>,
    },
    /// The VM is no longer running.
    Status(VmStatus),
    /// Memory could not be brought in.
    PageFault {
        /// Guest address.
        address: u64,
        /// Negative errno.
        attempt: i32,
    },
    /// A number that no generation knows.
    Unknown(u32),
}

/// What the driver says about a VM that is no longer running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VmStatus {
    /// Load failed, exited or crashed.
    pub status: u32,
    /// How it exited.
    pub exit_type: u16,
    /// The first bytes of the reason, those beyond the valid ones 0.
    pub reason: [u8; 8],
}

/// The fields of a vCPU's run page.
///
/// The driver writes them during a run call of this vCPU alone, which the thread that owns the view makes itself. The
/// accesses are volatile because they are to memory that the kernel changes.
#[derive(Debug)]
pub(crate) struct RunPageView {
    page: Arc<RunPage>,
}

impl RunPageView {
    /// A view of a page; `None` if it is too small to be one.
    pub(crate) fn new(page: Arc<RunPage>) -> Option<Self> {
        (page.size() >= field::SIZE).then_some(Self { page })
    }

    /// The page itself.
    pub(crate) fn page(&self) -> &Arc<RunPage> {
        &self.page
    }

    /// Makes the page hold no exit, so that one can be told from none after the next run call.
    pub(crate) fn forget_exit(&self) {
        self.write(field::EXIT_REASON, EXIT_UNKNOWN);
    }

    /// The exit that the page holds.
    pub(crate) fn exit(&self) -> RunExit {
        match self.read::<u32>(field::EXIT_REASON) {
            EXIT_UNKNOWN => RunExit::None,
            EXIT_MMIO => RunExit::Mmio {
                address: self.read(field::MMIO_ADDRESS),
                length: self.read(field::MMIO_LENGTH),
                written: (self.read::<u8>(field::MMIO_IS_WRITE) != 0).then(|| self.read(field::MMIO_DATA)),
            },
            EXIT_STATUS => RunExit::Status(self.status()),
            EXIT_PAGE_FAULT => RunExit::PageFault {
                address: self.read(field::FAULT_ADDRESS),
                attempt: self.read(field::FAULT_ATTEMPT),
            },
            other => RunExit::Unknown(other),
        }
    }

    fn status(&self) -> VmStatus {
        let mut reason: [u8; 8] = self.read(field::STATUS_REASON);
        let valid = (self.read::<u32>(field::STATUS_REASON_SIZE) as usize).min(reason.len());
        reason[valid..].fill(0);
        VmStatus { status: self.read(field::STATUS), exit_type: self.read(field::STATUS_EXIT_TYPE), reason }
    }

    /// Answers a read: the driver takes as many bytes as the guest asked for at the next run call.
    pub(crate) fn answer_read(&self, data: [u8; 8]) {
        self.write(field::MMIO_DATA, data);
    }

    /// Puts in a read by the guest, as a driver does during a run call.
    pub(crate) fn put_guest_read(&self, address: u64, length: u32) {
        self.write(field::EXIT_REASON, EXIT_MMIO);
        self.write(field::MMIO_ADDRESS, address);
        self.write(field::MMIO_LENGTH, length);
        self.write(field::MMIO_IS_WRITE, 0u8);
    }

    /// The answer to it.
    pub(crate) fn answer(&self) -> [u8; 8] {
        self.read(field::MMIO_DATA)
    }

    fn read<T: Plain>(&self, offset: usize) -> T {
        // SAFETY: `new` checked that every field lies inside the page, which `self` keeps mapped.
        let address = unsafe { self.page.as_ptr().add(offset) }.cast::<T>();
        debug_assert!(address.is_aligned() && offset + size_of::<T>() <= field::SIZE);
        // SAFETY: the page begins at a page boundary and the offsets are multiples of the alignment of their types,
        // all of which may hold any bits; nobody writes to the field now.
        unsafe { address.read_volatile() }
    }

    fn write<T: Plain>(&self, offset: usize, value: T) {
        // SAFETY: as in `read`.
        let address = unsafe { self.page.as_ptr().add(offset) }.cast::<T>();
        debug_assert!(address.is_aligned() && offset + size_of::<T>() <= field::SIZE);
        // SAFETY: as in `read`, and nobody reads the field now.
        unsafe { address.write_volatile(value) };
    }
}

/// Types of which any bits are a value.
trait Plain: Copy {}

impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for u64 {}
impl Plain for i32 {}
impl Plain for [u8; 8] {}
