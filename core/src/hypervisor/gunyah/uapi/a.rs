//! Generation A: version 14 of the posted driver (June 2023), as in Android 14's 6.1 kernels and the open-source build
//! for QEMU. The names in its header start with `GH_`.
//!
//! Memory is memory of the VMM: it is pinned as a whole by the call that gives it and handed to the Resource Manager
//! as parcels at start. Lending and firmware are additions of Android, so that a driver may lack them.

use super::common::{ANDROID, GUNYAH, GuestRange};
use super::{Request, iow};

/// On a VM: gives a [`UserMemoryRegion`] that guest and host share.
pub(crate) const SET_USER_MEM_REGION: Request<UserMemoryRegion> = iow(GUNYAH, 1);
/// On a VM: gives a [`UserMemoryRegion`] that the host loses while the VM lives.
pub(crate) const LEND_USER_MEM: Request<UserMemoryRegion> = iow(ANDROID, 0x11);
/// On a VM: the [`GuestRange`] into which the Resource Manager copies the firmware.
pub(crate) const SET_FW_CONFIG: Request<GuestRange> = iow(ANDROID, 0x12);

/// Memory of the VMM that becomes guest memory. All but the label is a multiple of the page size.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UserMemoryRegion {
    /// Label of the parcel, unique in the VM; generation C ignores it.
    pub label: u32,
    /// What the guest may do: a sum of the `ALLOW_` bits.
    pub flags: u32,
    /// First guest address.
    pub guest_address: u64,
    /// Bytes.
    pub size: u64,
    /// First address in the VMM.
    pub host_address: u64,
}

/// The guest may read.
pub(crate) const ALLOW_READ: u32 = 1;
/// The guest may write.
pub(crate) const ALLOW_WRITE: u32 = 2;
/// The guest may fetch instructions.
pub(crate) const ALLOW_EXECUTE: u32 = 4;

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn has_the_request_numbers_of_the_kernel() {
        assert_eq!(SET_USER_MEM_REGION.number(), 0x4020_4701);
        assert_eq!(LEND_USER_MEM.number(), 0x4020_4111);
        assert_eq!(SET_FW_CONFIG.number(), 0x4010_4112);
    }

    #[test]
    fn lays_structures_out_as_the_kernel_does() {
        assert_eq!(size_of::<UserMemoryRegion>(), 32);
        assert_eq!(offset_of!(UserMemoryRegion, label), 0);
        assert_eq!(offset_of!(UserMemoryRegion, flags), 4);
        assert_eq!(offset_of!(UserMemoryRegion, guest_address), 8);
        assert_eq!(offset_of!(UserMemoryRegion, size), 16);
        assert_eq!(offset_of!(UserMemoryRegion, host_address), 24);
    }
}
