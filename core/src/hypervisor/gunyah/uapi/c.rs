//! Generation C: Android 15's 6.6 and Android 16's 6.12 kernels.
//!
//! Memory is memory of the VMM again, given by the calls of generation A, but only noted by them: pages come in one by
//! one as the guest touches them. The boot vCPU's registers are set as in generation B.

use super::common::{ANDROID, GuestRange};
use super::{Request, io, iow};

/// On a VM: takes a [`GuestRange`] back while the VM runs.
pub(crate) const RECLAIM_REGION: Request<GuestRange> = iow(ANDROID, 0x13);
/// On a VM: gives memory from a contiguous area set aside at boot, a [`CmaMapping`].
pub(crate) const MAP_CMA_MEM: Request<CmaMapping> = iow(ANDROID, 0x15);
/// On a VM: who authenticates its image, an [`AuthDescription`].
pub(crate) const SET_AUTH_TYPE: Request<AuthDescription> = iow(ANDROID, 0x16);
/// On a VM: whether the driver has the capability whose number is the argument; positive if it has.
pub(crate) const CHECK_EXTENSION: u32 = io(ANDROID, 0x17);

/// Capability number: the Resource Manager can leave the wake-up of blocked vCPUs by their timers to the VMM's host.
pub(crate) const CAPABILITY_TIMER_WAKEUP: u64 = 0;

/// Memory from a contiguous area. gvmm asks whether the driver knows the call and does not use it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CmaMapping {
    /// Label of the parcel.
    pub label: u32,
    /// First guest address.
    pub guest_address: u64,
    /// Access, in bits that are not those of generation B's first version.
    pub flags: u32,
    /// Descriptor of the area.
    pub fd: u32,
    /// First byte in the area.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// Who authenticates a VM. gvmm asks whether the driver knows the call and does not use it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AuthDescription {
    /// Kind of authentication.
    pub kind: u32,
    /// Bytes at `argument`.
    pub argument_size: u32,
    /// Address of the kind's own argument.
    pub argument: u64,
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn has_the_request_numbers_of_the_kernel() {
        assert_eq!(RECLAIM_REGION.number(), 0x4010_4113);
        assert_eq!(MAP_CMA_MEM.number(), 0x4028_4115);
        assert_eq!(SET_AUTH_TYPE.number(), 0x4010_4116);
        assert_eq!(CHECK_EXTENSION, 0x4117);
    }

    #[test]
    fn lays_structures_out_as_the_kernel_does() {
        assert_eq!(size_of::<CmaMapping>(), 40);
        assert_eq!(offset_of!(CmaMapping, label), 0);
        assert_eq!(offset_of!(CmaMapping, guest_address), 8);
        assert_eq!(offset_of!(CmaMapping, flags), 16);
        assert_eq!(offset_of!(CmaMapping, fd), 20);
        assert_eq!(offset_of!(CmaMapping, offset), 24);
        assert_eq!(offset_of!(CmaMapping, size), 32);

        assert_eq!(size_of::<AuthDescription>(), 16);
        assert_eq!(offset_of!(AuthDescription, kind), 0);
        assert_eq!(offset_of!(AuthDescription, argument_size), 4);
        assert_eq!(offset_of!(AuthDescription, argument), 8);
    }
}
