//! Building, starting and taking down a VM.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::explain::{Call, Refusal};
use super::kernel_log::KernelLog;
use super::layout;
use super::memory;
use super::probe::Generation;
use super::sys::{Node, RunPageView, VcpuFd, VmFd};
use super::uapi::b::{BOOT_PC, BootRegister};
use super::uapi::common::{GuestRange, IoeventfdArgument, IrqfdArgument, run_page};
use super::vcpu::GunyahVcpu;
use super::wiring::{self, GunyahWiring};
use crate::host::memlock;
use crate::hypervisor::kick::RunPage;
use crate::hypervisor::plan::VmPlan;
use crate::hypervisor::{Error, StartedVm, Vcpu, Vm};
use crate::memory::GuestRam;

/// How long the driver may take to close a VM. It waits for the Resource Manager, without a limit of its own.
const LONGEST_CLOSE: Duration = Duration::from_secs(10);
/// How long a driver that takes VMs down in the background may take for it.
const LONGEST_RECLAIM: Duration = Duration::from_secs(10);
/// Pause between looks at its progress.
const RECLAIM_PAUSE: Duration = Duration::from_millis(5);

/// A VM, started or on its way there.
#[derive(Debug)]
pub(crate) struct GunyahVm {
    fd: Arc<VmFd>,
    generation: Generation,
    irqfds: Vec<IrqfdArgument>,
    ioeventfds: Vec<IoeventfdArgument>,
    /// Memory that this process had locked before it gave any to the VM.
    locked_before: Option<u64>,
}

/// Builds a VM from a plan that keeps to the rules, and starts it. `doubts` are reasons for which the Resource Manager
/// is likely to refuse it.
pub(crate) fn start(
    node: &Node,
    generation: Generation,
    plan: &VmPlan<'_>,
    ram: &GuestRam,
    doubts: &[String],
) -> Result<StartedVm, Error> {
    let locked_before = memlock::locked_now();
    let fd = node.create_vm().map_err(|error| Refusal::new(Call::CreateVm, generation, "", &error))?;
    let fd = Arc::new(fd);
    let wiring = Arc::new(GunyahWiring::new(&fd, generation));
    let mut vm = GunyahVm { fd, generation, irqfds: Vec::new(), ioeventfds: Vec::new(), locked_before };
    let mut log = KernelLog::from_now_on();
    match vm.build(plan, ram).and_then(|vcpus| vm.start(&mut log, doubts).map(|()| vcpus)) {
        Ok(vcpus) => Ok(StartedVm { vm: Box::new(vm), vcpus, wiring }),
        Err(error) => {
            // Not left to the drop, so that its memory is back before anybody tries again.
            if let Err(left) = vm.take_down() {
                tracing::warn!("{left}");
            }
            Err(error)
        }
    }
}

impl GunyahVm {
    /// Everything that comes before the start.
    fn build(&mut self, plan: &VmPlan<'_>, ram: &GuestRam) -> Result<Vec<Box<dyn Vcpu>>, Error> {
        memory::give(&self.fd, self.generation, &layout::ranges(plan), ram)?;
        let vcpus = (0..plan.vcpus).map(|id| self.add_vcpu(id)).collect::<Result<Vec<_>, _>>()?;
        self.add_irqfds(plan)?;
        self.add_ioeventfds(plan)?;
        self.configure(plan)?;
        Ok(vcpus)
    }

    fn start(&self, log: &mut KernelLog, doubts: &[String]) -> Result<(), Error> {
        let Err(error) = self.fd.start() else { return Ok(()) };
        let refusal = Refusal::new(Call::Start, self.generation, "", &error);
        let text = Refusal { findings: doubts, kernel_log: &log.lines(), ..refusal }.to_string();
        let may_pass = matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EBUSY)) && doubts.is_empty();
        Err(if may_pass { Error::Transient(text) } else { Error::Call(text) })
    }

    fn refused(&self, call: Call, subject: &str) -> impl FnOnce(std::io::Error) -> Error {
        let (generation, subject) = (self.generation, subject.to_owned());
        move |error| Refusal::new(call, generation, &subject, &error).into()
    }

    fn add_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, Error> {
        let subject = format!("vCPU {id}");
        let fd = self.fd.add_vcpu(id).map_err(self.refused(Call::AddVcpu, &subject))?;
        let page = self.map_run_page(&fd, &subject)?;
        Ok(Box::new(GunyahVcpu::new(id, self.generation, fd, page)))
    }

    fn map_run_page(&self, fd: &VcpuFd, subject: &str) -> Result<RunPageView, Error> {
        let size = fd.mmap_size().map_err(self.refused(Call::VcpuMmapSize, subject))?;
        let page = RunPage::map(fd, size, run_page::IMMEDIATE_EXIT)
            .map_err(self.refused(Call::MapRunPage, subject))?;
        RunPageView::new(page).ok_or_else(|| {
            Error::Call(format!("the driver gives {subject} a run page of {size} bytes, which is no page"))
        })
    }

    fn add_irqfds(&mut self, plan: &VmPlan<'_>) -> Result<(), Error> {
        for line in plan.lines {
            let argument = wiring::irqfd(line);
            let subject = wiring::line_subject(line);
            self.fd.add_irqfd(&argument).map_err(self.refused(Call::AddIrqfd, &subject))?;
            self.irqfds.push(argument);
        }
        Ok(())
    }

    fn add_ioeventfds(&mut self, plan: &VmPlan<'_>) -> Result<(), Error> {
        for doorbell in plan.doorbells {
            let argument = wiring::ioeventfd(doorbell);
            let subject = wiring::doorbell_subject(doorbell);
            self.fd.add_ioeventfd(&argument).map_err(self.refused(Call::AddIoeventfd, &subject))?;
            self.ioeventfds.push(argument);
        }
        Ok(())
    }

    fn configure(&self, plan: &VmPlan<'_>) -> Result<(), Error> {
        let boot = plan.boot;
        let tree = GuestRange { address: boot.dtb_address, size: boot.dtb_size };
        self.fd.set_dtb_config(&tree).map_err(self.refused(Call::SetDtbConfig, ""))?;
        if let Some(firmware) = plan.firmware {
            let range = GuestRange { address: firmware.base, size: firmware.size };
            // The first instruction is then the firmware's, which the Resource Manager knows.
            return self.fd.set_firmware_config(&range).map_err(self.refused(Call::SetFwConfig, ""));
        }
        if self.generation == Generation::A {
            // The first byte of the region that holds the device tree, which is the first of RAM.
            return Ok(());
        }
        let register = BootRegister { register: BOOT_PC, reserved: 0, value: boot.entry };
        self.fd
            .set_boot_register(&register)
            .map_err(self.refused(Call::SetBootContext, "the program counter"))
    }

    /// Takes the VM down. The vCPUs are gone: their threads have ended, their pages are unmapped and their descriptors
    /// closed, each of which would keep the VM alive. Guest memory is still mapped.
    fn take_down(self) -> Result<(), Error> {
        for argument in &self.irqfds {
            if let Err(error) = self.fd.remove_irqfd(argument) {
                tracing::debug!("irqfd of SPI {} stays until the VM is closed: {error}", argument.label);
            }
        }
        for argument in &self.ioeventfds {
            if let Err(error) = self.fd.remove_ioeventfd(argument) {
                tracing::debug!("ioeventfd at {:#x} stays until the VM is closed: {error}", argument.address);
            }
        }
        let Self { fd, generation, locked_before, .. } = self;
        close_within(fd, LONGEST_CLOSE)?;
        match (generation, locked_before) {
            (Generation::A, Some(before)) => wait_for_reclaim(before),
            _ => Ok(()),
        }
    }
}

impl Vm for GunyahVm {
    fn teardown(self: Box<Self>) -> Result<(), Error> {
        self.take_down()
    }
}

/// Closes a VM, which generation C takes down within the call.
fn close_within(fd: Arc<VmFd>, limit: Duration) -> Result<(), Error> {
    let (report, closed) = mpsc::channel();
    let close = move || {
        drop(fd);
        // Nobody listens any more after the limit.
        let _ = report.send(());
    };
    // Where no thread can be had, the closure is dropped, and the descriptor closed with it.
    let Ok(closer) = thread::Builder::new().name("gunyah-close".to_owned()).spawn(close) else {
        return Ok(());
    };
    if closed.recv_timeout(limit).is_err() {
        return Err(Error::Call(format!(
            "the driver has not closed the VM within {} s: it waits for the Resource Manager, which may have lost the \
             VM's end. The VM's memory is not free, and gvmm may not end until it is; look at the kernel log",
            limit.as_secs()
        )));
    }
    // It has nothing left to do.
    let _ = closer.join();
    Ok(())
}

/// Waits until the driver of generation A, which takes VMs down in the background, has given the memory back.
fn wait_for_reclaim(locked_before: u64) -> Result<(), Error> {
    let since = Instant::now();
    while let Some(locked) = memlock::locked_now().filter(|locked| *locked > locked_before) {
        if since.elapsed() >= LONGEST_RECLAIM {
            return Err(Error::Call(format!(
                "the driver has not given back {} MiB of the VM's memory within {} s; look at the kernel log",
                (locked - locked_before) >> 20,
                LONGEST_RECLAIM.as_secs()
            )));
        }
        thread::sleep(RECLAIM_PAUSE);
    }
    Ok(())
}
