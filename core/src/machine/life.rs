//! One life of a VM: memory, images, device tree, start; then vCPUs; then teardown in the order that hypervisors need.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::vcpu::{ExitCounts, VcpuThreads};
use super::{Machine, Protection, cmdline, layout, pci, wait_for};
use crate::device_tree::Seed;
use crate::host::resident;
use crate::hypervisor::plan::{FIRMWARE_BASE, FIRMWARE_SIZE};
use crate::hypervisor::retry::MaybeTransient;
use crate::hypervisor::{self, End, FirmwareRange, Vm, VmPlan};
use crate::memory::{self, Backing, GuestRam, RAM_BASE, RamBuilder};
use crate::{device_tree, eventfd, loader};

/// Why a VM did not come to life.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// What was asked for cannot be done; nothing was started.
    #[error("{0}")]
    Usage(String),
    /// The hypervisor refused.
    #[error("{message}")]
    Start {
        /// The accelerator's words.
        message: String,
        /// Whether another try may succeed.
        transient: bool,
    },
}

impl MaybeTransient for Failure {
    fn is_transient(&self) -> bool {
        matches!(self, Self::Start { transient: true, .. })
    }
}

impl From<hypervisor::Error> for Failure {
    fn from(error: hypervisor::Error) -> Self {
        let message = error.to_string();
        match error {
            hypervisor::Error::Unavailable(_)
            | hypervisor::Error::Plan(_)
            | hypervisor::Error::DeviceTree(_) => Self::Usage(message),
            hypervisor::Error::Call(_) => Self::Start { message, transient: false },
            hypervisor::Error::Transient(_) => Self::Start { message, transient: true },
        }
    }
}

impl From<memory::Error> for Failure {
    fn from(error: memory::Error) -> Self {
        let message = error.to_string();
        match error {
            memory::Error::Source(_) => Self::Start { message, transient: false },
            _ => Self::Usage(message),
        }
    }
}

impl From<loader::Error> for Failure {
    fn from(error: loader::Error) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<device_tree::Error> for Failure {
    fn from(error: device_tree::Error) -> Self {
        Self::Usage(error.to_string())
    }
}

/// What the user is told about a protected guest's kernel without the driver of the window.
const NO_WINDOW_DRIVER: &str = "the kernel lacks CONFIG_DMA_RESTRICTED_POOL: a protected guest boots without it, and its \
                                virtio devices (disks, network, hvc0) do not work";
/// How long a guest may be silent before the user is told how to hear of it.
const LONGEST_SILENCE: Duration = Duration::from_secs(30);
const EARLY_CONSOLE: &str = "earlycon";

/// Shortest time between two at which a VM gives back unused memory.
const SHORTEST_TRIM_PAUSE: Duration = Duration::from_millis(250);
/// There is no time after a pause of this length.
const LONGEST_TRIM_PAUSE: Duration = Duration::from_secs(64);

/// A VM that runs.
pub struct Life {
    threads: VcpuThreads,
    vm: Box<dyn Vm>,
    ended: Arc<EventFd>,
    /// Dropped last: the hypervisor gives memory back before it is unmapped.
    ram: GuestRam,
}

impl Life {
    /// Loads memory, starts the VM and its vCPUs.
    pub fn start(machine: &Machine) -> Result<Self, Failure> {
        let failed = |message| Failure::Start { message, transient: false };
        let mut ram = new_ram(machine)?;
        let loaded = load(machine, &mut ram)?;
        let ranges = ram.ranges();
        let plan = plan(machine, &ranges, &loaded);
        let seed =
            Seed::from_host().map_err(|e| failed(format!("cannot get randomness for the guest: {e}")))?;
        let cmdline = cmdline(machine, &mut ram, &loaded)?;
        if machine.devices.pci.is_some() && !pci::kernel_knows_host(kernel(&mut ram, &loaded)?) {
            tracing::warn!("{}", pci::UNKNOWN_HOST);
        }
        let needs_window = is_lent(machine) && machine.devices.use_memory();
        if needs_window && !has_window_driver(kernel(&mut ram, &loaded)?) {
            tracing::warn!("{NO_WINDOW_DRIVER}");
        }
        ram.write(loaded.boot.dtb_address, &tree(machine, &plan, &loaded, &cmdline, Some(seed))?)?;
        let ram = ram.finish();
        machine.devices.attach(&ram.shared());
        let started = machine.accelerator.start(&plan, &ram).inspect_err(|_| machine.devices.detach())?;
        machine.devices.wire(&started.wiring);
        let ended = Arc::new(eventfd::new().map_err(|e| failed(format!("cannot make an eventfd: {e}")))?);
        resident::trim();
        match VcpuThreads::start(started.vcpus, &machine.devices, ended.clone()) {
            Ok(threads) => Ok(Self { threads, vm: started.vm, ended, ram }),
            Err(message) => {
                machine.devices.detach();
                tear_down(started.vm);
                Err(failed(message))
            }
        }
    }

    /// Waits until the VM ends by itself or is asked to stop.
    ///
    /// Meanwhile it gives back what the guest's start alone needed. Nothing tells when a start is over, so that is
    /// done again and again for some time.
    pub fn wait(&self, machine: &Machine, stop: &EventFd) {
        let events = [&*self.ended, stop];
        let (since, mut may_be_silent) = (Instant::now(), true);
        loop {
            let pause = trim_pause(since.elapsed());
            if wait_for(&events, (pause <= LONGEST_TRIM_PAUSE).then_some(pause)).is_some() {
                return;
            }
            if may_be_silent && since.elapsed() >= LONGEST_SILENCE {
                may_be_silent = false;
                tell_of_silence(machine);
            }
            resident::trim();
        }
    }

    /// Ends the VM: vCPU threads, then the devices' work, then the VM, then its memory. How it had ended by itself, if
    /// it had, and its exits.
    pub fn finish(self, machine: &Machine) -> (Option<End>, ExitCounts) {
        match self.threads.finish() {
            Ok((end, counts)) => {
                machine.devices.detach();
                tear_down(self.vm);
                drop(self.ram);
                (end, counts)
            }
            Err(error) => {
                // A thread that is still in the guest holds the VM and its memory: they are left to the end of the
                // process, which follows.
                machine.devices.detach();
                std::mem::forget((self.vm, self.ram));
                (Some(End::Crash(format!("the VM does not stop: {error}"))), ExitCounts::default())
            }
        }
    }
}

/// How long to wait before memory is given back again, so long after the guest's start: a fixed share of that time, so
/// that it is soon done after a start of any length and costs a guest that works little.
fn trim_pause(since: Duration) -> Duration {
    (since / 8).max(SHORTEST_TRIM_PAUSE)
}

/// Says how to hear of a guest that has shown nothing, if it was not asked to speak early.
fn tell_of_silence(machine: &Machine) {
    let early = machine.cmdline.split_whitespace().any(|word| word.starts_with(EARLY_CONSOLE));
    if !early && machine.accelerator.exits_are_dear() && machine.devices.are_silent() {
        tracing::warn!(
            "the guest has shown nothing so far: with {EARLY_CONSOLE} on --cmdline its kernel tells what it does from \
             the first line on, at three exits a character"
        );
    }
}

fn tear_down(vm: Box<dyn Vm>) {
    if let Err(error) = vm.teardown() {
        tracing::error!("{error}");
    }
}

/// The device tree that the guest would get. Nothing is started.
pub fn device_tree(machine: &Machine) -> Result<Vec<u8>, Failure> {
    let mut ram = new_ram(machine)?;
    let loaded = load(machine, &mut ram)?;
    let cmdline = cmdline(machine, &mut ram, &loaded)?;
    let ranges = ram.ranges();
    tree(machine, &plan(machine, &ranges, &loaded), &loaded, &cmdline, None)
}

fn new_ram(machine: &Machine) -> Result<RamBuilder, Failure> {
    let (protection, firmware) = match machine.protection {
        Protection::Shared => (memory::Protection::None, false),
        Protection::Lent { window, firmware } => (memory::Protection::Lent { window }, firmware),
    };
    let source = machine.accelerator.memory_source();
    let backing = if machine.devices.share_memory { Backing::Memfd } else { Backing::Anonymous };
    let mut ram = RamBuilder::with_source(RAM_BASE, machine.memory, backing, protection, source)?;
    if firmware {
        ram.add_lent(FIRMWARE_BASE, FIRMWARE_SIZE)?;
    }
    Ok(ram)
}

fn load(machine: &Machine, ram: &mut RamBuilder) -> Result<loader::Loaded, Failure> {
    Ok(loader::load(ram, &machine.kernel, machine.initrd.as_deref())?)
}

/// The command line for the kernel that has been loaded.
fn cmdline(machine: &Machine, ram: &mut RamBuilder, loaded: &loader::Loaded) -> Result<String, Failure> {
    let early = !machine.accelerator.exits_are_dear();
    Ok(cmdline::complete(&machine.cmdline, &machine.devices.cmdline, kernel(ram, loaded)?, early))
}

fn is_lent(machine: &Machine) -> bool {
    matches!(machine.protection, Protection::Lent { .. })
}

fn has_window_driver(kernel: &[u8]) -> bool {
    memchr::memmem::find(kernel, device_tree::WINDOW.as_bytes()).is_some()
}

/// The kernel that has been loaded.
fn kernel<'a>(ram: &'a mut RamBuilder, loaded: &loader::Loaded) -> Result<&'a [u8], Failure> {
    Ok(ram.slice_mut(RAM_BASE, loaded.boot.dtb_address - RAM_BASE)?)
}

fn plan<'a>(machine: &'a Machine, ranges: &'a [memory::MemoryRange], loaded: &loader::Loaded) -> VmPlan<'a> {
    let firmware = matches!(machine.protection, Protection::Lent { firmware: true, .. });
    let host = machine.devices.pci.as_deref();
    VmPlan {
        name: &machine.name,
        vcpus: machine.vcpus,
        memory: ranges,
        boot: loaded.boot,
        firmware: firmware.then_some(FirmwareRange { base: FIRMWARE_BASE, size: FIRMWARE_SIZE }),
        gic: layout::gic(machine.vcpus),
        lines: &machine.devices.lines,
        message_spis: host.map_or(0..0, |host| host.frame().spis()),
        doorbells: &machine.devices.doorbells,
    }
}

fn tree(
    machine: &Machine,
    plan: &VmPlan<'_>,
    loaded: &loader::Loaded,
    cmdline: &str,
    seed: Option<Seed>,
) -> Result<Vec<u8>, Failure> {
    let description = device_tree::Description {
        plan,
        cmdline,
        initrd: loaded.initrd,
        nodes: &machine.devices.nodes,
        pci: machine.devices.pci.as_deref().map(pci::node),
        seed,
    };
    Ok(device_tree::build(&description, machine.accelerator.as_ref())?)
}
