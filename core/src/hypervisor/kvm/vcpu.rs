//! Running a vCPU.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::hypervisor::kick::RunPage;
use crate::hypervisor::{End, Error, Exit, Kicker, Vcpu};

/// Offset of `immediate_exit` in `struct kvm_run`.
const IMMEDIATE_EXIT: usize = 1;

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
            Ok(VcpuExit::FailEntry(reason, cpu)) => Ok(crash(format!(
                "KVM cannot enter the guest: hardware reason {reason:#x} on CPU {cpu}"
            ))),
            Ok(VcpuExit::InternalError) => {
                Ok(crash("KVM reports an internal error; look at the kernel log".to_owned()))
            }
            Ok(VcpuExit::MemoryFault { gpa, .. }) => {
                Ok(crash(format!("KVM has no memory for guest address {gpa:#x}: the host is out of memory")))
            }
            Ok(other) => Ok(crash(format!("KVM came back with {other:?}, which an arm64 guest does not cause"))),
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => {
                    self.page.clear_immediate_exit();
                    Ok(Exit::Interrupted)
                }
                libc::ENOSYS => Ok(crash(
                    "it accessed a device register or missing memory with an instruction that cannot be emulated \
                     (a pair, a write-back or a vector access)"
                        .to_owned(),
                )),
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
