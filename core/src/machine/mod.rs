//! The machine: from its description to a running VM, and in order back to nothing.
//!
//! [`devices`] plugs in what the command line names, [`layout`] gives everything its place, [`life`] is one life of the
//! VM from loading to teardown, [`vcpu`] its threads. [`run`] strings lives together over resets.

pub mod cmdline;
pub mod devices;
pub mod layout;
pub mod life;
pub mod pci;
pub mod transport;
pub mod vcpu;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::EventFd;

use crate::exit_code::Code;
use crate::hypervisor::{Accelerator, End, retry};
use crate::stats::Stats;
use devices::Devices;
use life::{Failure, Life};

/// Who may touch the guest's memory, and where it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// Guest and host share all of it.
    Shared,
    /// The guest alone but for a window of so many bytes; with or without the hypervisor's firmware.
    Lent {
        /// Bytes of the window.
        window: u64,
        /// Whether the guest starts in the hypervisor's firmware.
        firmware: bool,
    },
}

/// What stays the same over all lives of a VM.
pub struct Machine {
    /// Name of the VM.
    pub name: String,
    /// Kernel file.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Bytes of RAM.
    pub memory: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Who may touch the memory.
    pub protection: Protection,
    /// Whether the VM is built anew when the guest resets.
    pub restart_on_reset: bool,
    /// What runs the vCPUs.
    pub accelerator: Box<dyn Accelerator>,
    /// The devices.
    pub devices: Arc<Devices>,
}

/// How a machine ended.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code.
    pub code: Code,
    /// What to tell the user, if the code alone does not say it.
    pub message: Option<String>,
}

/// Runs the machine until it ends or `stop` is signalled. `begun` is when gvmm started.
pub fn run(machine: &Machine, stop: &EventFd, begun: Instant, stats: &mut Stats) -> Outcome {
    stats.accelerator = machine.accelerator.name().to_owned();
    let mut first_entry = None;
    let mut outcome = loop {
        stats.lives += 1;
        let wait = |pause| !signalled(stop, pause);
        let life = match retry::start_with_retries(wait, || Life::start(machine)) {
            Ok(life) => life,
            Err(Failure::Usage(message)) => break Outcome { code: Code::Usage, message: Some(message) },
            Err(Failure::Start { message, .. }) => {
                break Outcome { code: Code::StartFailed, message: Some(message) };
            }
        };
        let entered = *first_entry.get_or_insert_with(Instant::now);
        life.wait(machine, stop);
        let (end, counts) = life.finish(machine);
        stats.add_exits(&counts);
        stats.set_times(entered - begun, entered.elapsed());
        match end {
            Some(End::Reset) if machine.restart_on_reset && !signalled(stop, Duration::ZERO) => {
                tracing::info!("the guest reset: the VM is built anew");
            }
            end => break outcome(end, stats),
        }
    };
    if outcome.code == Code::PowerOff && machine.devices.any_failed() {
        let failed = machine.devices.reports().into_iter().filter(|report| report.failed);
        let ids: Vec<String> = failed.map(|report| report.id).collect();
        outcome = Outcome {
            code: Code::LostDevice,
            message: Some(format!("the VM ended, but failed on the way: device {}", ids.join(", "))),
        };
    }
    stats.set_devices(machine.devices.reports(), &machine.devices.accesses());
    outcome
}

fn outcome(end: Option<End>, stats: &mut Stats) -> Outcome {
    let (word, code, message) = match end {
        None => ("stopped", Code::PowerOff, None),
        Some(End::PowerOff) => ("power-off", Code::PowerOff, None),
        Some(End::Reset) => ("reset", Code::Reset, None),
        Some(End::Crash(text)) => ("crash", Code::Crash, Some(format!("the guest crashed: {text}"))),
    };
    stats.end = word.to_owned();
    Outcome { code, message }
}

/// Whether the event is signalled within the time; it stays so.
fn signalled(event: &EventFd, within: Duration) -> bool {
    wait_for(&[event], Some(within)).is_some()
}

/// Waits until one of the events is signalled; its place in the list. They stay signalled.
pub(crate) fn wait_for(events: &[&EventFd], within: Option<Duration>) -> Option<usize> {
    use std::os::fd::{AsRawFd, BorrowedFd};
    let deadline = within.map(|within| Instant::now() + within);
    loop {
        let poll_fd = |event: &&EventFd| {
            // SAFETY: the descriptor is open as long as `events` is borrowed.
            PollFd::new(unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }, PollFlags::POLLIN)
        };
        let mut fds: Vec<PollFd<'_>> = events.iter().map(poll_fd).collect();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout =
            left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        match poll(&mut fds, timeout) {
            Ok(0) if left.is_some_and(|left| left.is_zero()) => return None,
            Ok(n) if n > 0 => return fds.iter().position(|fd| fd.any().unwrap_or(false)),
            // A signal, or a timeout that poll cut short: look at the clock again.
            _ => {}
        }
    }
}
