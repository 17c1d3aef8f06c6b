//! Accelerators: what runs the vCPUs of a guest.
//!
//! The traits are shaped by Gunyah, the hypervisor with the strictest rules: a VM is declared as a whole (vCPUs,
//! memory, interrupt lines, doorbells) before it starts, an eventfd is the only way to interrupt it, memory that is
//! lent to it is out of reach afterwards, and a reset means a new VM. KVM follows the same shape without effort.
//! What a running VM can still change is which eventfd is behind an interrupt or a write that it has; see [`Wiring`].
//! Nothing above this module knows an ioctl or a generation of the driver.

pub mod gunyah;
pub mod kick;
pub mod kvm;
pub mod plan;
pub mod retry;

use std::sync::Arc;

use vm_fdt::FdtWriter;

use crate::memory::{GuestRam, MemorySource};

pub use kick::Kicker;
pub use plan::{Boot, DoorbellWrite, FirmwareRange, GicLayout, InterruptLine, ReadableRegisters, VmPlan};

/// Why an accelerator could not do what it was asked.
///
/// The text is complete: it names the call, the cause as far as it is known and what the user can do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This machine, or this user on it, cannot use the accelerator at all.
    #[error("{0}")]
    Unavailable(String),
    /// The VM as planned breaks a rule of the accelerator; found before anything was started.
    #[error("{0}")]
    Plan(String),
    /// A call to the hypervisor failed.
    #[error("{0}")]
    Call(String),
    /// The hypervisor refused to start the VM for a reason that may pass by itself, such as an earlier VM that is
    /// still being taken down. Worth another try, with guest memory loaded anew; see [`retry`].
    #[error("{0}")]
    Transient(String),
    /// Writing the device tree failed.
    #[error("device tree: {0}")]
    DeviceTree(#[from] vm_fdt::Error),
}

/// A hypervisor that can run guests on this machine.
///
/// Making a value opens nothing: `--dump-dtb` works on machines without the hypervisor.
pub trait Accelerator: Send + Sync {
    /// The word that selects it on the command line.
    fn name(&self) -> &'static str;

    /// Whether a VM could be started here; the error says why not and what to do. Starts nothing.
    fn probe(&self) -> Result<(), Error>;

    /// Where guest memory must come from; `None` where any memory will do.
    fn memory_source(&self) -> Option<Arc<dyn MemorySource>> {
        None
    }

    /// Adds the nodes that this accelerator needs to the root of the guest's device tree, on top of the nodes that
    /// every machine has (GIC, timer, PSCI and CPUs, which [`crate::device_tree`] writes).
    fn describe(&self, plan: &VmPlan<'_>, fdt: &mut FdtWriter) -> Result<(), Error>;

    /// Largest device tree in bytes that the guest may be started with, [`Self::device_tree_growth`] included.
    fn device_tree_limit(&self) -> usize;

    /// Bytes at most that the hypervisor adds to the tree of this plan before the guest sees it.
    fn device_tree_growth(&self, _plan: &VmPlan<'_>) -> usize {
        0
    }

    /// Whether an exit costs so much that no guest should be asked to print character by character.
    fn exits_are_dear(&self) -> bool {
        false
    }

    /// Checks the plan, then builds and starts the VM. Guest memory must already hold the kernel and the device tree.
    ///
    /// Guest memory is used up by the call, even by one that fails: the hypervisor may have changed the device tree in
    /// it, or cleared it. Whoever tries again loads it anew, see [`retry`].
    ///
    /// The vCPUs come in index order and stand still until [`Vcpu::run`] is called; each must be run by a thread of
    /// its own, the secondaries included: the guest powers them on through PSCI.
    fn start(&self, plan: &VmPlan<'_>, ram: &GuestRam) -> Result<StartedVm, Error>;
}

/// What [`Accelerator::start`] hands over.
pub struct StartedVm {
    /// The VM itself. Dropped after the vCPUs.
    pub vm: Box<dyn Vm>,
    /// One object a vCPU, in index order.
    pub vcpus: Vec<Box<dyn Vcpu>>,
    /// Connects eventfds while the VM runs.
    pub wiring: Arc<dyn Wiring>,
}

/// Eventfds of a VM that is running, and registers that its guest reads as memory: a guest sets up messages and moves
/// registers while it runs.
///
/// Any thread may call. After [`Vm::teardown`] every call fails; dropping this value does nothing to the VM.
pub trait Wiring: Send + Sync {
    /// Has the eventfd of a line raise its SPI, which is one of [`VmPlan::lines`] or [`VmPlan::message_spis`] and has
    /// no eventfd. A signal from before may or may not be seen.
    fn connect(&self, line: &InterruptLine) -> Result<(), Error>;

    /// Takes the eventfd from its SPI; from then on signals stay in it.
    fn disconnect(&self, line: &InterruptLine) -> Result<(), Error>;

    /// Turns a write into an eventfd signal.
    fn add_doorbell(&self, doorbell: &DoorbellWrite) -> Result<(), Error>;

    /// Leaves the write to the VMM again.
    fn remove_doorbell(&self, doorbell: &DoorbellWrite) -> Result<(), Error>;

    /// Whether registers can be shown to the guest; where not, its reads of them are exits.
    fn shows_registers(&self) -> bool;

    /// Has the guest read registers as memory. They overlap none that are shown, nor guest memory.
    fn show_registers(&self, registers: &ReadableRegisters) -> Result<(), Error>;

    /// Makes reads of the registers that are shown from an address on exits again.
    fn hide_registers(&self, base: u64) -> Result<(), Error>;
}

/// A started VM.
pub trait Vm: Send {
    /// Ends the VM and gives its memory back. Called after every vCPU thread has ended and every [`Vcpu`] is
    /// dropped; guest memory is unmapped only after this returned. Bounded in time; an error says what may be left.
    fn teardown(self: Box<Self>) -> Result<(), Error>;
}

/// One vCPU, run by one thread.
pub trait Vcpu: Send {
    /// Runs the guest until something needs the VMM.
    ///
    /// An [`Exit::MmioRead`] is completed by filling its `data` before the next call.
    fn run(&mut self) -> Result<Exit<'_>, Error>;

    /// A handle by which other threads make [`Vcpu::run`] return [`Exit::Interrupted`].
    /// Made on the thread that will run the vCPU.
    fn kicker(&self) -> Result<Kicker, Error>;
}

/// Why [`Vcpu::run`] returned.
#[derive(Debug)]
pub enum Exit<'a> {
    /// The guest reads from an address in the trap window; 1, 2, 4 or 8 bytes.
    MmioRead {
        /// Guest physical address.
        address: u64,
        /// Filled by the caller, little endian.
        data: &'a mut [u8],
    },
    /// The guest writes to an address in the trap window; 1, 2, 4 or 8 bytes.
    MmioWrite {
        /// Guest physical address.
        address: u64,
        /// The bytes written, little endian.
        data: &'a [u8],
    },
    /// A kick or a signal; the caller looks at its own flags.
    Interrupted,
    /// The accelerator handled something by itself (a page fault that was cured); the text names it for statistics.
    Handled(&'static str),
    /// The VM has ended. Seen by at least one vCPU.
    Ended(End),
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// PSCI SYSTEM_OFF.
    PowerOff,
    /// PSCI SYSTEM_RESET or SYSTEM_RESET2.
    Reset,
    /// The guest, or the hypervisor under it, failed; the text says how and what to look at.
    Crash(String),
}
