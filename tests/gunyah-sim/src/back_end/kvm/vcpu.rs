//! One vCPU: its registers at the start, its exits, and how it goes on after them.

use std::os::fd::AsRawFd;

use kvm_bindings::{
    KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_SIZE_U64, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
    KVMIO, kvm_signal_mask, kvm_vcpu_events,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::ioctl_iow_nr;

use crate::abi::run_page::{Access, ExitStatus, STATUS_EXITED};
use crate::back_end::{Resume, Stop};
use crate::driver::boot::BootState;
use crate::host::signals::{self, Blocked};
use crate::report;

/// KVM's exit for an access without a decoded syndrome (include/uapi/linux/kvm.h).
const EXIT_ARM_NISV: u32 = 28;
/// Flag of a reset event: it was PSCI SYSTEM_RESET2.
const RESET_FLAG_RESET2: u64 = 1;
/// Anything but KVM_EXIT_MMIO: makes KVM enter the guest without completing the access.
const EXIT_UNKNOWN: u32 = 0;
/// Index of PC among the 32-bit units of the core registers; X0 is at 0, and each register takes two.
const PC: u64 = 64;

ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, kvm_signal_mask);

/// `kvm_signal_mask` with a kernel signal set behind it.
#[repr(C)]
struct SignalMask {
    len: u32,
    set: [u8; 8],
}

/// A vCPU and what has been told to KVM about its thread.
pub(crate) struct Vcpu {
    fd: VcpuFd,
    mask: Option<u64>,
}

/// The mask for the time inside the guest: the program's, with the kick let through.
fn kernel_mask(signals: &Blocked) -> u64 {
    (1..=64)
        .filter(|signal| *signal != signals::kick_signal() && signals.blocks(*signal))
        .fold(0, |mask, signal| mask | 1 << (signal - 1))
}

impl Vcpu {
    pub(crate) fn new(fd: VcpuFd) -> Vcpu {
        Vcpu { fd, mask: None }
    }

    pub(crate) fn set_boot_state(&mut self, boot: &BootState) -> Result<(), kvm_ioctls::Error> {
        let core = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | u64::from(KVM_REG_ARM_CORE);
        let set = |unit: u64, value: u64| self.fd.set_one_reg(core | unit, &value.to_le_bytes()).map(|_| ());
        for (register, value) in boot.x.iter().filter(|(register, _)| **register < 31) {
            set(u64::from(*register) * 2, *value)?;
        }
        set(PC, boot.pc)
    }

    /// Applies the outcome of the last exit.
    pub(crate) fn resume(&mut self, resume: Resume) {
        match resume {
            Resume::Go | Resume::Done(_) => {}
            Resume::Data(value) => self.fd.get_kvm_run().__bindgen_anon_1.mmio.data = value.to_le_bytes(),
            Resume::Retry => self.fd.get_kvm_run().exit_reason = EXIT_UNKNOWN,
            Resume::Abort => self.abort(),
        }
    }

    /// Gives the guest an external abort for the access it has just made.
    fn abort(&mut self) {
        self.fd.get_kvm_run().exit_reason = EXIT_UNKNOWN;
        let mut events = kvm_vcpu_events::default();
        events.exception.ext_dabt_pending = 1;
        if let Err(error) = self.fd.set_vcpu_events(&events) {
            report::problem(format!("KVM cannot inject an external abort: {error}"));
        }
    }

    pub(crate) fn run(&mut self, signals: &Blocked) -> Stop {
        if let Err(error) = self.set_mask(kernel_mask(signals)) {
            report::problem(format!("KVM_SET_SIGNAL_MASK: {error}"));
        }
        loop {
            let stop = match self.fd.run() {
                Ok(exit) => translate(exit),
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Some(Stop::Signal),
                Err(error) => {
                    report::problem(format!("KVM_RUN: {error}"));
                    Some(hypervisor_error())
                }
            };
            match stop {
                Some(stop) => return stop,
                None => self.abort(),
            }
        }
    }

    fn set_mask(&mut self, mask: u64) -> std::io::Result<()> {
        if self.mask == Some(mask) {
            return Ok(());
        }
        let argument = SignalMask { len: 8, set: mask.to_le_bytes() };
        // SAFETY: the structure is a kvm_signal_mask with the 8 bytes it announces.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_SET_SIGNAL_MASK(), &raw const argument) };
        if result < 0 {
            return Err(std::io::Error::last_os_error());
        }
        self.mask = Some(mask);
        Ok(())
    }
}

fn ended(exit_type: u16) -> Stop {
    Stop::Ended(ExitStatus { status: STATUS_EXITED, exit_type })
}

/// `exit_info.type` 5 (rule 1.3).
fn hypervisor_error() -> Stop {
    ended(5)
}

/// `None` where the guest's access gets an external abort: only plain loads and stores leave the guest
/// (rule 9).
fn translate(exit: VcpuExit<'_>) -> Option<Stop> {
    let stop = match exit {
        VcpuExit::MmioRead(addr, data) => Stop::Access(Access { addr, len: data.len() as u8, write: None }),
        VcpuExit::MmioWrite(addr, data) => {
            let mut value = [0; 8];
            value.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
            let write = Some(u64::from_le_bytes(value));
            Stop::Access(Access { addr, len: data.len() as u8, write })
        }
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => ended(1),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, data) => {
            let reset2 = data.first().is_some_and(|flags| flags & RESET_FLAG_RESET2 != 0);
            ended(if reset2 { 3 } else { 2 })
        }
        VcpuExit::SystemEvent(..) => hypervisor_error(),
        VcpuExit::Intr => Stop::Signal,
        VcpuExit::Unsupported(EXIT_ARM_NISV) => return None,
        other => {
            report::problem(format!("KVM exit {other:?}"));
            hypervisor_error()
        }
    };
    Some(stop)
}
