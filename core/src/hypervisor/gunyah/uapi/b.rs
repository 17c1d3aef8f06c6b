//! Generation B: versions 15 to 17 of the posted driver (from December 2023), found in kernels outside of Android.
//!
//! Memory is an object of the driver's that the VMM maps to fill it. An object that is lent to a VM cannot be shared
//! with it in part, and so each region has one of its own.

use super::common::GUNYAH;
use super::{Request, iow};

/// On the device node: returns the descriptor of a new memory object, described by a [`GuestMemory`].
pub(crate) const CREATE_GUEST_MEM: Request<GuestMemory> = iow(GUNYAH, 8);
/// On a VM: gives the part of an object that a [`MemoryMapping`] names.
pub(crate) const MAP_MEM: Request<MemoryMapping> = iow(GUNYAH, 9);
/// On a VM: sets a register of the boot vCPU, a [`BootRegister`]. Generations B and C.
pub(crate) const SET_BOOT_CONTEXT: Request<BootRegister> = iow(GUNYAH, 0xa);

/// A memory object to be made.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GuestMemory {
    /// A sum of the `MEMORY_` bits.
    pub flags: u64,
    /// Bytes, a multiple of the page size.
    pub size: u64,
    /// 0.
    pub reserved: [u64; 6],
}

/// The descriptor is closed on exec.
pub(crate) const MEMORY_CLOEXEC: u64 = 1;
/// The object may be made of huge pages; everything about it must then be a multiple of their size.
pub(crate) const MEMORY_ALLOW_HUGE_PAGE: u64 = 2;

/// A part of a memory object that becomes guest memory. Addresses and sizes are multiples of the page size.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryMapping {
    /// First guest address.
    pub guest_address: u64,
    /// Access, in one of the encodings of [`MapFlags`].
    pub flags: u32,
    /// Descriptor of the object.
    pub fd: u32,
    /// First byte in the object.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// The bits of [`MemoryMapping::flags`], which moved between versions of the driver.
///
/// Each version refuses every sum of the other's bits that gvmm uses with EINVAL, so that trying one after the other
/// is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MapFlags {
    lend: u32,
    share: u32,
    read: u32,
    write: u32,
    execute: u32,
}

impl MapFlags {
    /// Version 15: the kind of access in the low bits.
    pub(crate) const V15: Self = Self { lend: 1, share: 2, read: 0x10, write: 0x20, execute: 0x40 };
    /// Later versions: the rights in the low bits.
    pub(crate) const LATER: Self = Self { lend: 0x10, share: 0x20, read: 1, write: 2, execute: 4 };

    /// Memory that the host loses while the VM lives.
    pub(crate) const fn lent(self) -> u32 {
        self.lend | self.read | self.write | self.execute
    }

    /// Memory that guest and host share. The driver never lets a guest execute it.
    pub(crate) const fn shared(self) -> u32 {
        self.share | self.read | self.write
    }
}

/// A register of the boot vCPU. Settable before the start only.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BootRegister {
    /// Register set in bits 8..15, index in bits 0..7; [`BOOT_PC`] is the one that gvmm sets.
    pub register: u32,
    /// 0.
    pub reserved: u32,
    /// Value at the first instruction.
    pub value: u64,
}

/// The program counter: set 1, index 0.
pub(crate) const BOOT_PC: u32 = 1 << 8;

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn has_the_request_numbers_of_the_kernel() {
        assert_eq!(CREATE_GUEST_MEM.number(), 0x4040_4708);
        assert_eq!(MAP_MEM.number(), 0x4020_4709);
        assert_eq!(SET_BOOT_CONTEXT.number(), 0x4010_470a);
    }

    #[test]
    fn lays_structures_out_as_the_kernel_does() {
        assert_eq!(size_of::<GuestMemory>(), 64);
        assert_eq!(offset_of!(GuestMemory, flags), 0);
        assert_eq!(offset_of!(GuestMemory, size), 8);
        assert_eq!(offset_of!(GuestMemory, reserved), 16);

        assert_eq!(size_of::<MemoryMapping>(), 32);
        assert_eq!(offset_of!(MemoryMapping, guest_address), 0);
        assert_eq!(offset_of!(MemoryMapping, flags), 8);
        assert_eq!(offset_of!(MemoryMapping, fd), 12);
        assert_eq!(offset_of!(MemoryMapping, offset), 16);
        assert_eq!(offset_of!(MemoryMapping, size), 24);

        assert_eq!(size_of::<BootRegister>(), 16);
        assert_eq!(offset_of!(BootRegister, register), 0);
        assert_eq!(offset_of!(BootRegister, reserved), 4);
        assert_eq!(offset_of!(BootRegister, value), 8);
    }

    #[test]
    fn encodes_access_as_each_version_reads_it() {
        assert_eq!(MapFlags::V15.lent(), 0x71);
        assert_eq!(MapFlags::V15.shared(), 0x32);
        assert_eq!(MapFlags::LATER.lent(), 0x17);
        assert_eq!(MapFlags::LATER.shared(), 0x23);
    }

    #[test]
    fn uses_no_flags_that_the_other_version_would_accept() {
        // What each driver takes: an access kind of 0, 1 or 2 in its own field, and at least one right.
        let accepts = |kind_mask: u32, kind_shift: u32, rights: u32, flags: u32| {
            let kind = (flags & kind_mask) >> kind_shift;
            flags & !(kind_mask | rights) == 0 && kind <= 2 && flags & rights != 0
        };
        let v15 = |flags| accepts(0x07, 0, 0x70, flags);
        let later = |flags| accepts(0x70, 4, 0x07, flags);
        for flags in [MapFlags::V15.lent(), MapFlags::V15.shared()] {
            assert!(v15(flags) && !later(flags), "{flags:#x}");
        }
        for flags in [MapFlags::LATER.lent(), MapFlags::LATER.shared()] {
            assert!(later(flags) && !v15(flags), "{flags:#x}");
        }
    }
}
