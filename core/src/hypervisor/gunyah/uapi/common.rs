//! What generations A, B and C have in common.

use super::{Request, io, iow};

/// Type byte of the calls that were posted to the kernel lists.
pub(crate) const GUNYAH: u8 = b'G';
/// Type byte of the calls that Android added.
pub(crate) const ANDROID: u8 = b'A';

/// On the device node, argument 0: returns the descriptor of a new VM.
pub(crate) const CREATE_VM: u32 = io(GUNYAH, 0);
/// On a VM: where the device tree is, a [`GuestRange`].
pub(crate) const SET_DTB_CONFIG: Request<GuestRange> = iow(GUNYAH, 2);
/// On a VM: builds and starts it. Once only.
pub(crate) const START: u32 = io(GUNYAH, 3);
/// On a VM: adds the function that a [`FunctionDescription`] names. Returns a descriptor for a vCPU, 0 otherwise.
pub(crate) const ADD_FUNCTION: Request<FunctionDescription> = iow(GUNYAH, 4);
/// On a vCPU: runs it until it needs user space.
pub(crate) const VCPU_RUN: u32 = io(GUNYAH, 5);
/// On a vCPU: returns the bytes to map from its descriptor.
pub(crate) const VCPU_MMAP_SIZE: u32 = io(GUNYAH, 6);
/// On a VM: takes back what [`ADD_FUNCTION`] added.
pub(crate) const REMOVE_FUNCTION: Request<FunctionDescription> = iow(GUNYAH, 7);

/// A range of guest addresses: of the device tree, of a firmware, or to be reclaimed.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GuestRange {
    /// First guest address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// Argument of [`ADD_FUNCTION`] and [`REMOVE_FUNCTION`].
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct FunctionDescription {
    /// One of the `FUNCTION_` numbers.
    pub function: u32,
    /// Bytes at `argument`, at most 256.
    pub argument_size: u32,
    /// Address of the function's own argument.
    pub argument: u64,
}

/// A [`VcpuArgument`] follows.
pub(crate) const FUNCTION_VCPU: u32 = 1;
/// An [`IrqfdArgument`] follows.
pub(crate) const FUNCTION_IRQFD: u32 = 2;
/// An [`IoeventfdArgument`] follows.
pub(crate) const FUNCTION_IOEVENTFD: u32 = 3;

/// Names a vCPU by its position in the device tree.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VcpuArgument {
    /// Position among the nodes of `/cpus`.
    pub id: u32,
}

/// Ties an eventfd to a doorbell.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IrqfdArgument {
    /// Descriptor of the eventfd.
    pub fd: u32,
    /// `label` of the doorbell in the device tree.
    pub label: u32,
    /// Bit 0 makes the doorbell level-triggered. gvmm's are edge-triggered: 0.
    pub flags: u32,
    /// 0.
    pub padding: u32,
}

/// Ties a guest write to an eventfd.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IoeventfdArgument {
    /// Value that must be written if [`IOEVENTFD_DATAMATCH`] is set.
    pub datamatch: u64,
    /// Guest address of the write, exact.
    pub address: u64,
    /// Bytes of the write: 1, 2, 4 or 8, or 0 for any.
    pub length: u32,
    /// Descriptor of the eventfd.
    pub fd: i32,
    /// 0 or [`IOEVENTFD_DATAMATCH`].
    pub flags: u32,
    /// 0.
    pub padding: u32,
}

/// The value written must equal `datamatch`, and `length` must not be 0.
pub(crate) const IOEVENTFD_DATAMATCH: u32 = 1;

/// Offsets of the fields of the page that a vCPU's descriptor maps.
///
/// The fields from 16 on depend on the exit reason and overlap. The used part ends at [`run_page::SIZE`].
pub(crate) mod run_page {
    /// `u8`, written by user space: not 0 makes [`super::VCPU_RUN`] return EINTR.
    pub(crate) const IMMEDIATE_EXIT: usize = 0;
    /// `u32`: one of the `EXIT_` numbers.
    pub(crate) const EXIT_REASON: usize = 8;
    /// `u64`, after [`super::EXIT_MMIO`]: guest address of the access.
    pub(crate) const MMIO_ADDRESS: usize = 16;
    /// `[u8; 8]`: what the guest wrote, or what user space answers to a read.
    pub(crate) const MMIO_DATA: usize = 24;
    /// `u32`: bytes of the access.
    pub(crate) const MMIO_LENGTH: usize = 32;
    /// `u8`: whether the guest wrote.
    pub(crate) const MMIO_IS_WRITE: usize = 36;
    /// `u32`, after [`super::EXIT_STATUS`]: one of the `STATUS_` numbers.
    pub(crate) const STATUS: usize = 16;
    /// `u16`: one of the `EXIT_TYPE_` numbers.
    pub(crate) const STATUS_EXIT_TYPE: usize = 20;
    /// `u32`: bytes of the reason that are valid.
    pub(crate) const STATUS_REASON_SIZE: usize = 24;
    /// `[u8; 8]`: what the guest or the hypervisor gave as the reason.
    pub(crate) const STATUS_REASON: usize = 28;
    /// `u64`, after [`super::EXIT_PAGE_FAULT`]: guest address of the access.
    pub(crate) const FAULT_ADDRESS: usize = 16;
    /// `i32`: negative errno of the driver's own attempt to bring the page in.
    pub(crate) const FAULT_ATTEMPT: usize = 24;
    /// Bytes in use.
    pub(crate) const SIZE: usize = 40;
}

/// No reason given; never written by the driver.
pub(crate) const EXIT_UNKNOWN: u32 = 0;
/// The guest accessed an address of the trap window.
pub(crate) const EXIT_MMIO: u32 = 1;
/// The VM is no longer running.
pub(crate) const EXIT_STATUS: u32 = 2;
/// The driver could not bring in memory that the guest touched. Generations B and C.
pub(crate) const EXIT_PAGE_FAULT: u32 = 3;

/// The VM could not be loaded.
pub(crate) const STATUS_LOAD_FAILED: u32 = 1;
/// The VM has ended; the exit type says how.
pub(crate) const STATUS_EXITED: u32 = 2;
/// The VM is in a state that the driver does not know.
pub(crate) const STATUS_CRASHED: u32 = 3;

/// The guest ended itself through a hypercall.
pub(crate) const EXIT_TYPE_VM_EXIT: u16 = 0;
/// PSCI SYSTEM_OFF.
pub(crate) const EXIT_TYPE_POWER_OFF: u16 = 1;
/// PSCI SYSTEM_RESET.
pub(crate) const EXIT_TYPE_RESET: u16 = 2;
/// PSCI SYSTEM_RESET2.
pub(crate) const EXIT_TYPE_RESET2: u16 = 3;
/// The hypervisor's watchdog of the VM expired.
pub(crate) const EXIT_TYPE_WATCHDOG: u16 = 4;
/// The hypervisor met an error while it ran the VM.
pub(crate) const EXIT_TYPE_HYPERVISOR_ERROR: u16 = 5;
/// An asynchronous external abort hit the VM.
pub(crate) const EXIT_TYPE_ASYNC_ABORT: u16 = 6;
/// The Resource Manager stopped the VM.
pub(crate) const EXIT_TYPE_FORCE_STOPPED: u16 = 7;

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn has_the_request_numbers_of_the_kernel() {
        assert_eq!(CREATE_VM, 0x4700);
        assert_eq!(SET_DTB_CONFIG.number(), 0x4010_4702);
        assert_eq!(START, 0x4703);
        assert_eq!(ADD_FUNCTION.number(), 0x4010_4704);
        assert_eq!(VCPU_RUN, 0x4705);
        assert_eq!(VCPU_MMAP_SIZE, 0x4706);
        assert_eq!(REMOVE_FUNCTION.number(), 0x4010_4707);
    }

    #[test]
    fn lays_structures_out_as_the_kernel_does() {
        assert_eq!(size_of::<GuestRange>(), 16);
        assert_eq!(offset_of!(GuestRange, address), 0);
        assert_eq!(offset_of!(GuestRange, size), 8);

        assert_eq!(size_of::<FunctionDescription>(), 16);
        assert_eq!(offset_of!(FunctionDescription, function), 0);
        assert_eq!(offset_of!(FunctionDescription, argument_size), 4);
        assert_eq!(offset_of!(FunctionDescription, argument), 8);

        assert_eq!(size_of::<VcpuArgument>(), 4);

        assert_eq!(size_of::<IrqfdArgument>(), 16);
        assert_eq!(offset_of!(IrqfdArgument, fd), 0);
        assert_eq!(offset_of!(IrqfdArgument, label), 4);
        assert_eq!(offset_of!(IrqfdArgument, flags), 8);
        assert_eq!(offset_of!(IrqfdArgument, padding), 12);

        assert_eq!(size_of::<IoeventfdArgument>(), 32);
        assert_eq!(offset_of!(IoeventfdArgument, datamatch), 0);
        assert_eq!(offset_of!(IoeventfdArgument, address), 8);
        assert_eq!(offset_of!(IoeventfdArgument, length), 16);
        assert_eq!(offset_of!(IoeventfdArgument, fd), 20);
        assert_eq!(offset_of!(IoeventfdArgument, flags), 24);
        assert_eq!(offset_of!(IoeventfdArgument, padding), 28);
    }

    #[test]
    fn keeps_the_ioeventfd_flag_in_bit_zero() {
        // The kernel's header defines the bit, not its number; shifting it once more makes every call fail.
        assert_eq!(IOEVENTFD_DATAMATCH, 1);
    }

    /// The run page as the kernel's header declares it, to check the offsets against.
    #[repr(C)]
    struct RunPage {
        immediate_exit: u8,
        padding: [u8; 7],
        exit_reason: u32,
        exit: Exit,
    }

    #[repr(C)]
    union Exit {
        mmio: Mmio,
        status: Status,
        fault: Fault,
    }

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Mmio {
        address: u64,
        data: [u8; 8],
        length: u32,
        is_write: u8,
        resume_action: u8,
    }

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Status {
        status: u32,
        exit_type: u16,
        padding: u16,
        reason_size: u32,
        reason: [u8; 8],
    }

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Fault {
        address: u64,
        attempt: i32,
        resume_action: u8,
    }

    #[test]
    fn finds_the_fields_of_the_run_page_where_the_kernel_puts_them() {
        assert_eq!(run_page::IMMEDIATE_EXIT, offset_of!(RunPage, immediate_exit));
        assert_eq!(run_page::EXIT_REASON, offset_of!(RunPage, exit_reason));
        let exit = offset_of!(RunPage, exit);
        assert_eq!(exit, 16);
        assert_eq!(run_page::MMIO_ADDRESS, exit + offset_of!(Mmio, address));
        assert_eq!(run_page::MMIO_DATA, exit + offset_of!(Mmio, data));
        assert_eq!(run_page::MMIO_LENGTH, exit + offset_of!(Mmio, length));
        assert_eq!(run_page::MMIO_IS_WRITE, exit + offset_of!(Mmio, is_write));
        assert_eq!(run_page::STATUS, exit + offset_of!(Status, status));
        assert_eq!(run_page::STATUS_EXIT_TYPE, exit + offset_of!(Status, exit_type));
        assert_eq!(run_page::STATUS_REASON_SIZE, exit + offset_of!(Status, reason_size));
        assert_eq!(run_page::STATUS_REASON, exit + offset_of!(Status, reason));
        assert_eq!(run_page::FAULT_ADDRESS, exit + offset_of!(Fault, address));
        assert_eq!(run_page::FAULT_ATTEMPT, exit + offset_of!(Fault, attempt));
        assert_eq!(run_page::SIZE, size_of::<RunPage>());
    }
}
