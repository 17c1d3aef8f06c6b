//! The driver's calls, one method each. Nothing but the call: no check, no retry of a refusal, no explanation.
//!
//! The unsafe code of the accelerator is here. Every call goes to a descriptor whose type says what it is, with the
//! structure that its request number stands for.

mod run_page;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

pub(crate) use run_page::{RunExit, RunPageView, VmStatus};

use super::uapi::common::{
    ADD_FUNCTION, CREATE_VM, FUNCTION_IOEVENTFD, FUNCTION_IRQFD, FUNCTION_VCPU, FunctionDescription,
    GuestRange, IoeventfdArgument, IrqfdArgument, REMOVE_FUNCTION, SET_DTB_CONFIG, START, VCPU_MMAP_SIZE,
    VCPU_RUN, VcpuArgument,
};
use super::uapi::{Request, a, b, c};

/// How often a call is repeated that a signal interrupted before it did anything. A driver that goes on answering
/// EINTR is broken, and that is then what the user gets to see.
const INTERRUPTED_TRIES: u32 = 100;

/// The device node.
#[derive(Debug)]
pub(crate) struct Node(File);

impl Node {
    /// Opens the node, which does nothing else.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open(path).map(Self)
    }

    /// Makes an empty VM. Until it is started it costs the hypervisor nothing.
    pub(crate) fn create_vm(&self) -> io::Result<VmFd> {
        let fd = uninterrupted(|| ioctl_value(self.0.as_fd(), CREATE_VM, 0))?;
        // SAFETY: the driver returned a new descriptor that belongs to nobody else.
        Ok(VmFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Makes a memory object. Generation B.
    pub(crate) fn create_guest_memory(&self, memory: &b::GuestMemory) -> io::Result<OwnedFd> {
        let fd = uninterrupted(|| ioctl(self.0.as_fd(), b::CREATE_GUEST_MEM, memory))?;
        // SAFETY: the driver returned a new descriptor that belongs to nobody else.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Whether the node knows a call.
    pub(crate) fn knows<T>(&self, request: Request<T>) -> bool {
        knows(self.0.as_fd(), request)
    }
}

/// A VM.
#[derive(Debug)]
pub(crate) struct VmFd(OwnedFd);

impl VmFd {
    /// Whether the VM knows a call.
    pub(crate) fn knows<T>(&self, request: Request<T>) -> bool {
        knows(self.0.as_fd(), request)
    }

    /// Whether the driver says that it has the capability of this number. A driver without the call has none.
    pub(crate) fn has_capability(&self, number: u64) -> bool {
        ioctl_value(self.0.as_fd(), c::CHECK_EXTENSION, number).is_ok_and(|answer| answer > 0)
    }

    /// Gives memory that guest and host share. Generations A and C. The memory must stay mapped as long as the VM.
    pub(crate) fn set_user_memory(&self, region: &a::UserMemoryRegion) -> io::Result<()> {
        uninterrupted(|| ioctl(self.0.as_fd(), a::SET_USER_MEM_REGION, region)).map(drop)
    }

    /// Gives memory to the guest alone. Generations A and C. The memory must stay mapped as long as the VM, and nobody
    /// may touch it.
    pub(crate) fn lend_user_memory(&self, region: &a::UserMemoryRegion) -> io::Result<()> {
        uninterrupted(|| ioctl(self.0.as_fd(), a::LEND_USER_MEM, region)).map(drop)
    }

    /// Gives a part of a memory object. Generation B.
    pub(crate) fn map_memory(&self, mapping: &b::MemoryMapping) -> io::Result<()> {
        uninterrupted(|| ioctl(self.0.as_fd(), b::MAP_MEM, mapping)).map(drop)
    }

    /// Says where the device tree is.
    pub(crate) fn set_dtb_config(&self, range: &GuestRange) -> io::Result<()> {
        uninterrupted(|| ioctl(self.0.as_fd(), SET_DTB_CONFIG, range)).map(drop)
    }

    /// Says where the firmware goes, and that the VM has one.
    pub(crate) fn set_firmware_config(&self, range: &GuestRange) -> io::Result<()> {
        uninterrupted(|| ioctl(self.0.as_fd(), a::SET_FW_CONFIG, range)).map(drop)
    }

    /// Sets a register of the boot vCPU. Generations B and C.
    pub(crate) fn set_boot_register(&self, register: &b::BootRegister) -> io::Result<()> {
        uninterrupted(|| ioctl(self.0.as_fd(), b::SET_BOOT_CONTEXT, register)).map(drop)
    }

    /// Adds the vCPU of this position.
    pub(crate) fn add_vcpu(&self, id: u32) -> io::Result<VcpuFd> {
        let fd = self.function(ADD_FUNCTION, FUNCTION_VCPU, &VcpuArgument { id })?;
        // SAFETY: the driver returned a new descriptor that belongs to nobody else.
        Ok(VcpuFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Lets an eventfd ring a doorbell.
    pub(crate) fn add_irqfd(&self, argument: &IrqfdArgument) -> io::Result<()> {
        self.function(ADD_FUNCTION, FUNCTION_IRQFD, argument).map(drop)
    }

    /// Takes an irqfd back.
    pub(crate) fn remove_irqfd(&self, argument: &IrqfdArgument) -> io::Result<()> {
        self.function(REMOVE_FUNCTION, FUNCTION_IRQFD, argument).map(drop)
    }

    /// Lets a guest write signal an eventfd.
    pub(crate) fn add_ioeventfd(&self, argument: &IoeventfdArgument) -> io::Result<()> {
        self.function(ADD_FUNCTION, FUNCTION_IOEVENTFD, argument).map(drop)
    }

    /// Takes an ioeventfd back. Drivers differ in how much of the argument they compare: give all of it.
    pub(crate) fn remove_ioeventfd(&self, argument: &IoeventfdArgument) -> io::Result<()> {
        self.function(REMOVE_FUNCTION, FUNCTION_IOEVENTFD, argument).map(drop)
    }

    fn function<T>(
        &self,
        request: Request<FunctionDescription>,
        function: u32,
        argument: &T,
    ) -> io::Result<libc::c_int> {
        let number = request.number();
        let description = FunctionDescription {
            function,
            argument_size: size_of::<T>() as u32,
            argument: (&raw const *argument).expose_provenance() as u64,
        };
        uninterrupted(|| ioctl_address(self.0.as_fd(), number, (&raw const description).cast()))
    }

    /// Builds and starts the VM. A signal in between leaves a VM that either is untouched or has started; in both
    /// cases the repetition is right.
    pub(crate) fn start(&self) -> io::Result<()> {
        uninterrupted(|| ioctl_value(self.0.as_fd(), START, 0)).map(drop)
    }
}

/// A vCPU.
#[derive(Debug)]
pub(crate) struct VcpuFd(OwnedFd);

impl AsFd for VcpuFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl VcpuFd {
    /// Runs the vCPU until the run page has an exit. EINTR after a kick or a signal.
    pub(crate) fn run(&self) -> io::Result<()> {
        ioctl_value(self.0.as_fd(), VCPU_RUN, 0).map(drop)
    }

    /// Bytes of the run page.
    pub(crate) fn mmap_size(&self) -> io::Result<usize> {
        let size = uninterrupted(|| ioctl_value(self.0.as_fd(), VCPU_MMAP_SIZE, 0))?;
        usize::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
    }
}

/// Whether a driver knows a call that takes an address: with the address 0 it fails before it does anything, by ENOTTY
/// if it does not know it.
fn knows<T>(fd: BorrowedFd<'_>, request: Request<T>) -> bool {
    match ioctl_address(fd, request.number(), std::ptr::null()) {
        Ok(_) => true,
        Err(error) => error.raw_os_error() != Some(libc::ENOTTY),
    }
}

/// A call whose argument is a structure.
fn ioctl<T>(fd: BorrowedFd<'_>, request: Request<T>, argument: &T) -> io::Result<libc::c_int> {
    ioctl_address(fd, request.number(), (&raw const *argument).cast())
}

/// A call whose argument is an address that the kernel reads from, or 0.
fn ioctl_address(fd: BorrowedFd<'_>, number: u32, argument: *const libc::c_void) -> io::Result<libc::c_int> {
    // SAFETY: the address is null, which the kernel refuses, or that of a structure of the size that the request
    // number holds, borrowed by the caller for the time of the call; so is what the structure points to. The kernel
    // only reads.
    result(unsafe { libc::ioctl(fd.as_raw_fd(), number as libc::Ioctl, argument) })
}

/// A call whose argument is a number.
fn ioctl_value(fd: BorrowedFd<'_>, number: u32, argument: u64) -> io::Result<libc::c_int> {
    // SAFETY: the calls that come here take a number: the kernel follows no address. VCPU_RUN writes to the run page
    // alone, which is reached through volatile accesses.
    result(unsafe { libc::ioctl(fd.as_raw_fd(), number as libc::Ioctl, argument as libc::c_ulong) })
}

fn result(returned: libc::c_int) -> io::Result<libc::c_int> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

fn uninterrupted(mut call: impl FnMut() -> io::Result<libc::c_int>) -> io::Result<libc::c_int> {
    for _ in 1..INTERRUPTED_TRIES {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            answer => return answer,
        }
    }
    call()
}

/// Of a descriptor that stands for a vCPU's.
impl From<OwnedFd> for VcpuFd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}
