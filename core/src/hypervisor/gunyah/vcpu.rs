//! Running a vCPU.
//!
//! The hypervisor does not schedule the vCPUs of these VMs: a vCPU runs while a thread is inside its run call.

use std::io;
use std::time::{Duration, Instant};

use super::explain::{Call, Refusal};
use super::faults::{Faults, Verdict};
use super::probe::Generation;
use super::sys::{RunExit, RunPageView, VcpuFd, VmStatus};
use super::uapi::common as uapi;
use crate::hypervisor::{End, Error, Exit, Kicker, Vcpu};

/// How long a run call may be answered in a way that should pass by itself. A VM that is shut down answers EBUSY until
/// its end is known, a VM that has just been started may answer ENODEV for a moment.
const MOST_PATIENCE: Duration = Duration::from_secs(5);
/// Wait between such answers.
const PAUSE: Duration = Duration::from_millis(10);

/// A vCPU and its run page. The page is unmapped before the descriptor is closed.
#[derive(Debug)]
pub(crate) struct GunyahVcpu {
    page: RunPageView,
    fd: VcpuFd,
    id: u32,
    generation: Generation,
    /// Bytes of the access that the last exit was about.
    data: [u8; 8],
    /// Whether `data` answers a read and the driver has not got it yet.
    read_answered: bool,
    faults: Faults,
    /// Since when run calls have been answered in a way that should pass.
    impatient_since: Option<Instant>,
    end: Option<End>,
}

impl GunyahVcpu {
    /// A vCPU that has been added to a VM.
    pub(crate) fn new(id: u32, generation: Generation, fd: VcpuFd, page: RunPageView) -> Self {
        Self {
            page,
            fd,
            id,
            generation,
            data: [0; 8],
            read_answered: false,
            faults: Faults::default(),
            impatient_since: None,
            end: None,
        }
    }

    /// Hands the driver what it takes at the next run call; false if that call must not be made now.
    pub(super) fn prepare_run(&mut self) -> bool {
        if self.read_answered {
            // The driver takes the answer before it looks at the flag, and then forgets it: the guest would read 0.
            if self.page.page().is_kicked() {
                self.page.page().clear_immediate_exit();
                return false;
            }
            self.page.answer_read(self.data);
            self.read_answered = false;
        }
        self.page.forget_exit();
        true
    }

    /// Turns what the run page holds into an exit.
    pub(super) fn exit(&mut self) -> Result<Exit<'_>, Error> {
        let exit = self.page.exit();
        if !matches!(exit, RunExit::PageFault { .. }) {
            self.faults.passed();
        }
        if exit != RunExit::None {
            self.impatient_since = None;
        }
        match exit {
            RunExit::Mmio { address, length, written } => self.access(address, length, written),
            RunExit::Status(status) => Ok(self.ended(end_of(status))),
            RunExit::PageFault { address, attempt } => match self.faults.judge(address, attempt) {
                Verdict::Retry(wait) => {
                    std::thread::sleep(wait);
                    Ok(Exit::Handled("page fault"))
                }
                Verdict::GiveUp(end) => Ok(self.ended(end)),
            },
            RunExit::None => self.wait_for_better(&io::Error::from_raw_os_error(libc::ENODATA)),
            RunExit::Unknown(reason) => Err(self.broken(&format!("exit reason {reason}"))),
        }
    }

    fn access(&mut self, address: u64, length: u32, written: Option<[u8; 8]>) -> Result<Exit<'_>, Error> {
        let size = match length {
            1 | 2 | 4 | 8 => length as usize,
            _ => return Err(self.broken(&format!("an access of {length} bytes at {address:#x}"))),
        };
        self.data = written.unwrap_or_default();
        self.read_answered = written.is_none();
        // `size` is at most the eight bytes of `data`.
        let data = &mut self.data[..size];
        Ok(match written {
            Some(_) => Exit::MmioWrite { address, data },
            None => Exit::MmioRead { address, data },
        })
    }

    fn ended(&mut self, end: End) -> Exit<'static> {
        self.end = Some(end.clone());
        Exit::Ended(end)
    }

    /// After an answer that should pass by itself.
    fn wait_for_better(&mut self, error: &io::Error) -> Result<Exit<'_>, Error> {
        let since = *self.impatient_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= MOST_PATIENCE {
            return Err(self.refused(error));
        }
        std::thread::sleep(PAUSE);
        Ok(Exit::Handled("wait for the driver"))
    }

    fn refused(&self, error: &io::Error) -> Error {
        Refusal::new(Call::VcpuRun, self.generation, &format!("vCPU {}", self.id), error).into()
    }

    fn broken(&self, what: &str) -> Error {
        Error::Call(format!(
            "{} of vCPU {} came back with {what}, which no driver of generation {} is known to do",
            Call::VcpuRun.name(self.generation),
            self.id,
            self.generation
        ))
    }
}

impl Vcpu for GunyahVcpu {
    fn run(&mut self) -> Result<Exit<'_>, Error> {
        if let Some(end) = &self.end {
            return Ok(Exit::Ended(end.clone()));
        }
        if !self.prepare_run() {
            return Ok(Exit::Interrupted);
        }
        let Err(error) = self.fd.run() else { return self.exit() };
        match error.raw_os_error() {
            // The driver reports a signal even when it has an exit to tell, and does not tell it again.
            Some(libc::EINTR) if self.page.exit() != RunExit::None => self.exit(),
            Some(libc::EINTR) => {
                self.page.page().clear_immediate_exit();
                Ok(Exit::Interrupted)
            }
            Some(libc::EBUSY | libc::EAGAIN | libc::ENODEV) => self.wait_for_better(&error),
            _ => Err(self.refused(&error)),
        }
    }

    fn kicker(&self) -> Result<Kicker, Error> {
        Kicker::for_this_thread(self.page.page()).map_err(|error| {
            Error::Call(format!("cannot set up the interruption of vCPU {}: {error}", self.id))
        })
    }
}

/// How a VM ended.
fn end_of(status: VmStatus) -> End {
    let reason = match status.reason {
        [0, 0, 0, 0, 0, 0, 0, 0] => String::new(),
        bytes => format!(" (reason {:#x})", u64::from_le_bytes(bytes)),
    };
    let crash = |text: &str| End::Crash(format!("{text}{reason}"));
    match (status.status, status.exit_type) {
        (uapi::STATUS_EXITED, uapi::EXIT_TYPE_POWER_OFF | uapi::EXIT_TYPE_VM_EXIT) => End::PowerOff,
        (uapi::STATUS_EXITED, uapi::EXIT_TYPE_RESET | uapi::EXIT_TYPE_RESET2) => End::Reset,
        (uapi::STATUS_EXITED, uapi::EXIT_TYPE_WATCHDOG) => crash(
            "the hypervisor's watchdog of the VM expired: the guest hangs, or its vCPUs did not get to run",
        ),
        (uapi::STATUS_EXITED, uapi::EXIT_TYPE_HYPERVISOR_ERROR) => {
            crash("the hypervisor met an error while it ran the guest: look at its log, or the kernel's")
        }
        (uapi::STATUS_EXITED, uapi::EXIT_TYPE_ASYNC_ABORT) => crash(
            "an asynchronous external abort hit the guest: it touched an address without memory or device",
        ),
        (uapi::STATUS_EXITED, uapi::EXIT_TYPE_FORCE_STOPPED) => crash("the Resource Manager stopped the VM"),
        (uapi::STATUS_EXITED, other) => {
            crash(&format!("the VM exited in a way that gvmm does not know, type {other}"))
        }
        (uapi::STATUS_LOAD_FAILED, _) => {
            crash("the Resource Manager could not load the VM: look at the kernel log")
        }
        (uapi::STATUS_CRASHED, _) => crash("the VM crashed: look at the kernel log"),
        (other, _) => crash(&format!("the VM is in a state that gvmm does not know, {other}")),
    }
}

#[cfg(test)]
#[path = "vcpu_test.rs"]
mod tests;
