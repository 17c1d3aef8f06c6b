//! What runs the vCPUs once a VM has started. A back end knows nothing of the ABI: it hands accesses out and takes
//! their outcome in.

#[cfg(target_arch = "aarch64")]
mod kvm;
mod script;
mod scripted;

use std::sync::Arc;

use crate::abi::run_page::{Access, ExitStatus};
use crate::config::Config;
use crate::driver::functions::{Ioeventfd, Irqfd};
use crate::driver::start::Plan;
use crate::errno::Errno;
use crate::host::guest_memory::GuestMemory;
use crate::host::signals::Blocked;

/// How a vCPU goes on after its last stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resume {
    /// Nothing was pending.
    Go,
    /// The read's value.
    Data(u64),
    /// The write is done; `true` if the program saw it.
    Done(bool),
    /// The access gets an external abort.
    Abort,
    /// The access is to be made again.
    Retry,
}

/// Why a vCPU stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The guest touched an address without memory.
    Access(Access),
    /// The guest's memory at this address cannot be had (positive errno).
    PageFault(u64, Errno),
    /// The VM is over.
    Ended(ExitStatus),
    /// A signal is pending for the thread.
    Signal,
    /// Somebody called [`BackEnd::wake`], or there was nothing to do.
    Woken,
}

/// A running VM's vCPUs.
pub(crate) trait BackEnd: Send + Sync {
    /// Runs a vCPU on the calling thread until it stops. After an access the next call says what became of it.
    fn run(&self, vcpu: u32, resume: Resume, signals: &mut Blocked) -> Stop;

    /// Connects an irqfd to the doorbell of its label, if the tree has one.
    fn bind_irqfd(&self, label: u32, irqfd: &Irqfd) -> Result<(), Errno>;

    fn unbind_irqfd(&self, label: u32, irqfd: &Irqfd);

    /// Takes an ioeventfd over, where the back end can answer writes itself.
    fn add_ioeventfd(&self, ioeventfd: &Ioeventfd);

    fn remove_ioeventfd(&self, ioeventfd: &Ioeventfd);

    /// Makes every vCPU inside [`BackEnd::run`] come back.
    fn wake(&self);
}

/// Starts the back end the settings ask for.
pub(crate) fn start(
    config: &Config,
    plan: &Plan,
    memory: &Arc<GuestMemory>,
) -> Result<Box<dyn BackEnd>, String> {
    match &config.script {
        Some(path) => {
            let script = script::Script::load(path)?;
            Ok(Box::new(
                scripted::Scripted::new(script, plan, Arc::clone(memory)).map_err(|errno| errno.name())?,
            ))
        }
        None => start_kvm(plan, memory),
    }
}

#[cfg(target_arch = "aarch64")]
fn start_kvm(plan: &Plan, memory: &Arc<GuestMemory>) -> Result<Box<dyn BackEnd>, String> {
    Ok(Box::new(kvm::Kvm::new(plan, Arc::clone(memory)).map_err(|error| format!("KVM: {error}"))?))
}

#[cfg(not(target_arch = "aarch64"))]
fn start_kvm(_: &Plan, _: &Arc<GuestMemory>) -> Result<Box<dyn BackEnd>, String> {
    Err("KVM runs arm64 guests on arm64 only: set GUNYAH_SIM_SCRIPT for scripted vCPUs".to_owned())
}
