//! Running a vCPU.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use kvm_bindings::{
    KVM_EXIT_ARM_NISV, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_run,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::hypervisor::kick::RunPage;
use crate::hypervisor::{End, Error, Exit, Kicker, Vcpu};

/// Offset of `immediate_exit` in `struct kvm_run`.
const IMMEDIATE_EXIT: usize = 1;

/// What a guest did at an address without memory that KVM cannot turn into a register access.
const UNDECODED: &str =
    "it used an instruction that cannot be emulated (a pair, a write-back, an atomic or a vector access)";

/// A vCPU and its run page.
pub(super) struct KvmVcpu {
    page: Arc<RunPage>,
    fd: VcpuFd,
}

impl KvmVcpu {
    /// A vCPU whose run page has so many bytes.
    pub(super) fn new(fd: VcpuFd, run_size: usize) -> Result<Self, Error> {
        // SAFETY: the descriptor is open as long as `fd`.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
        let page = RunPage::map(borrowed, run_size, IMMEDIATE_EXIT);
        let page = page.map_err(|e| Error::Call(format!("mmap of a vCPU's run page: {e}")))?;
        Ok(Self { page, fd })
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> Result<Exit<'_>, Error> {
        match self.fd.run() {
            Ok(VcpuExit::MmioRead(address, data)) => Ok(Exit::MmioRead { address, data }),
            Ok(VcpuExit::MmioWrite(address, data)) => Ok(Exit::MmioWrite { address, data }),
            Ok(VcpuExit::Intr) => Ok(Exit::Interrupted),
            Ok(VcpuExit::SystemEvent(event, data)) => Ok(Exit::Ended(system_event(event, data))),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                Ok(crash(format!("KVM cannot enter the guest: hardware reason {reason:#x} on CPU {cpu}")))
            }
            Ok(VcpuExit::InternalError) => {
                let reason = internal_error(&self.page);
                Ok(crash(format!("KVM reports the internal error {reason}: look at the kernel log")))
            }
            Ok(VcpuExit::Unsupported(KVM_EXIT_ARM_NISV)) => {
                let address = undecoded_address(&self.page);
                Ok(crash(format!("at {address:#x}, where no memory is, {UNDECODED}")))
            }
            Ok(VcpuExit::MemoryFault { gpa, .. }) => {
                Ok(crash(format!("KVM has no memory for guest address {gpa:#x}: the host is out of memory")))
            }
            Ok(other) => {
                Ok(crash(format!("KVM came back with {other:?}, which an arm64 guest does not cause")))
            }
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => {
                    self.page.clear_immediate_exit();
                    Ok(Exit::Interrupted)
                }
                libc::ENOSYS => Ok(crash(format!("at an address without memory {UNDECODED}"))),
                libc::EFAULT | libc::ENOMEM => {
                    Ok(crash(format!("KVM_RUN: {error}: the host has no memory for the guest")))
                }
                _ => Err(Error::Call(format!("KVM_RUN: {error}: look at the kernel log"))),
            },
        }
    }

    fn kicker(&self) -> Result<Kicker, Error> {
        Kicker::for_this_thread(&self.page)
            .map_err(|e| Error::Call(format!("setting up the kick signal: {e}")))
    }
}

/// The guest address of an exit with `KVM_EXIT_ARM_NISV`.
fn undecoded_address(page: &RunPage) -> u64 {
    let run = page.as_ptr().cast::<kvm_run>();
    // SAFETY: the page holds a `kvm_run` and is page-aligned; the vCPU is not running, and so nobody writes to it.
    let exit = unsafe { (*run.as_ptr()).__bindgen_anon_1 };
    // SAFETY: any bytes make a number.
    unsafe { exit.arm_nisv.fault_ipa }
}

/// The `suberror` of an exit with `KVM_EXIT_INTERNAL_ERROR`.
fn internal_error(page: &RunPage) -> u32 {
    let run = page.as_ptr().cast::<kvm_run>();
    // SAFETY: the page holds a `kvm_run` and is page-aligned; the vCPU is not running, and so nobody writes to it.
    let exit = unsafe { (*run.as_ptr()).__bindgen_anon_1 };
    // SAFETY: any bytes make a number.
    unsafe { exit.internal.suberror }
}

fn crash(text: String) -> Exit<'static> {
    Exit::Ended(End::Crash(text))
}

fn system_event(event: u32, data: &[u64]) -> End {
    match event {
        KVM_SYSTEM_EVENT_SHUTDOWN => End::PowerOff,
        KVM_SYSTEM_EVENT_RESET => End::Reset,
        KVM_SYSTEM_EVENT_CRASH => End::Crash("it reported a crash".to_owned()),
        other => End::Crash(format!("KVM reports system event {other} {data:x?}")),
    }
}
