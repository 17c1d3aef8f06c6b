//! A vCPU's file: the run page and `VCPU_RUN` (rule 4).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::abi::run_page::{Access, ResumeAction, RunPage};
use crate::abi::{Generation, Request};
use crate::back_end::{Resume, Stop};
use crate::errno::Errno;
use crate::host::shared_page::SharedPage;
use crate::host::signals::{self, Blocked, Pending};
use crate::report;
use crate::rm::TRAP_WINDOW_END;
use crate::trace::Call;

use super::vm::{Machine, Vm};
use super::{injector, strike};

/// Why RUN came back last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Read {
        len: u8,
    },
    Write,
    /// A page fault was reported: the access is made again.
    Fault,
    /// RUN came back between taking the outcome of an access and entering the guest, and the outcome is gone: the
    /// driver keeps it in a local variable.
    Lost(Resume),
    Down,
}

/// A vCPU. Keeps its VM alive.
pub(crate) struct Vcpu {
    id: u32,
    vm: Arc<Vm>,
    page: RunPage,
    state: Mutex<State>,
    removed: Arc<AtomicBool>,
}

/// What one turn of the run loop led to.
enum Turn {
    Go(Resume),
    Back(Result<i64, Errno>),
}

impl Vcpu {
    /// `VM_ADD_FUNCTION` of a vCPU.
    pub(crate) fn add(vm: &Arc<Vm>, id: u32) -> Result<Vcpu, Errno> {
        let page = RunPage::new(SharedPage::new()?, vm.generation());
        let removed = vm.add_vcpu(id)?;
        Ok(Vcpu { id, vm: Arc::clone(vm), page, state: Mutex::new(State::Ready), removed })
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn vm_id(&self) -> u64 {
        self.vm.id()
    }

    pub(crate) fn generation(&self) -> Generation {
        self.vm.generation()
    }

    pub(crate) fn page(&self) -> &RunPage {
        &self.page
    }

    /// `VCPU_RUN`. A signal that is pending on the way out turns any outcome into EINTR, or begins anew where its
    /// handler says SA_RESTART: an exit already described in the run page stays there unreported.
    pub(crate) fn run(&self, call: &mut Call) -> Result<i64, Errno> {
        call.set("vm", self.vm.id());
        call.set("vcpu", self.id);
        let mut signals = Blocked::new();
        // With signals blocked: one injected here is pending when the driver looks.
        strike(Request::VcpuRun.name(), call)?;
        loop {
            let result = self.run_once(&mut signals, call);
            if let Some(signal) = result.ok().and_then(|_| injector().late_signal()) {
                signals::raise(signal);
            }
            match signals.pending() {
                None => return result,
                Some(Pending::Interrupt) => return Err(Errno::EINTR),
                Some(Pending::Restart) => signals.deliver(),
            }
        }
    }

    fn run_once(&self, signals: &mut Blocked, call: &mut Call) -> Result<i64, Errno> {
        let machine = self.machine()?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if *state == State::Down {
            call.set("exit", "status again");
            return Ok(0);
        }
        let mut resume = self.take_outcome(*state)?;
        *state = State::Ready;
        // C runs vCPUs for the process that made the VM only (rule 1.4).
        if self.vm.generation() == Generation::C {
            self.vm.check_owner()?;
        }
        loop {
            if self.page.immediate_exit() || signals.pending().is_some() {
                *state = lost(resume);
                return Err(Errno::EINTR);
            }
            if self.removed.load(Ordering::Acquire) {
                return Err(Errno::ENODEV);
            }
            let turn = match self.before_entry(resume, machine, &mut state, signals, call) {
                Some(turn) => turn,
                None => {
                    let stop = machine.back_end.run(self.id, resume, signals);
                    self.after_exit(stop, &mut state, call)
                }
            };
            match turn {
                Turn::Go(next) => resume = next,
                Turn::Back(result) => return result,
            }
        }
    }

    /// The VM's machine, once it runs and has this vCPU.
    fn machine(&self) -> Result<&Machine, Errno> {
        if self.removed.load(Ordering::Acquire) {
            return Err(Errno::ENODEV);
        }
        let machine = self.vm.machine().ok_or(Errno::ENODEV)?;
        if self.id >= machine.vcpus {
            // The kernel oopses when the VM ends (rule 9).
            report::problem(format!("RUN of vCPU {}, which the tree does not have", self.id));
            return Err(Errno::ENODEV);
        }
        Ok(machine)
    }

    /// What the program made of the last exit.
    fn take_outcome(&self, state: State) -> Result<Resume, Errno> {
        let (handled, write) = match state {
            State::Ready | State::Down => return Ok(Resume::Go),
            State::Fault => return Ok(Resume::Retry),
            State::Lost(resume) => return Ok(resume),
            State::Read { len } => (Resume::Data(self.page.read_data(len)), false),
            State::Write => (Resume::Done(true), true),
        };
        match self.page.resume_action() {
            ResumeAction::Handled => Ok(handled),
            ResumeAction::Fault => Ok(Resume::Abort),
            ResumeAction::Other(action) => {
                let kind = if write { "write" } else { "read" };
                report::problem(format!("resume_action {action} for a {kind}"));
                Err(Errno::EINVAL)
            }
        }
    }

    /// What keeps the guest from being entered at all.
    fn before_entry(
        &self,
        resume: Resume,
        machine: &Machine,
        state: &mut State,
        signals: &mut Blocked,
        call: &mut Call,
    ) -> Option<Turn> {
        if let Some(exit) = self.vm.ended() {
            if injector().loses_exit() {
                // The exit never arrives (rule 9): the thread waits for a signal.
                let _ = signals.wait(&[], None);
                return Some(Turn::Go(resume));
            }
            if self.vm.is_busy() {
                return Some(Turn::Back(Err(Errno::EBUSY)));
            }
            call.set("exit", "status");
            call.set("status", exit.status);
            call.set("type", exit.exit_type);
            self.page.report_status(exit);
            *state = State::Down;
            return Some(Turn::Back(Ok(0)));
        }
        if self.vm.generation() == Generation::A || !matches!(resume, Resume::Go | Resume::Retry) {
            return None;
        }
        let standing = machine.fault.filter(|_| self.id == 0).map(|fault| (fault.addr, fault.errno));
        let injected = || injector().page_fault(self.id).map(|fault| (fault.addr, fault.errno));
        let (addr, errno) = standing.or_else(injected)?;
        // Nothing was handed out, so a retry that was due stays due.
        let kept = if resume == Resume::Retry { State::Fault } else { State::Ready };
        Some(self.report_fault(addr, errno, kept, state, call))
    }

    fn report_fault(&self, addr: u64, errno: Errno, next: State, state: &mut State, call: &mut Call) -> Turn {
        call.set("exit", "page fault");
        call.hex("addr", addr);
        call.set("attempt", -errno.0);
        self.page.report_page_fault(addr, errno.0);
        *state = next;
        Turn::Back(Ok(0))
    }

    fn after_exit(&self, stop: Stop, state: &mut State, call: &mut Call) -> Turn {
        match stop {
            Stop::Access(access) => self.route(access, state, call),
            // A pins its memory; what it still cannot map is fatal for the access.
            Stop::PageFault(..) if self.vm.generation() == Generation::A => Turn::Go(Resume::Abort),
            Stop::PageFault(addr, errno) => self.report_fault(addr, errno, State::Fault, state, call),
            Stop::Ended(exit) => {
                self.vm.end(exit);
                Turn::Go(Resume::Go)
            }
            Stop::Signal | Stop::Woken => Turn::Go(Resume::Go),
        }
    }

    /// An access without memory behind it (rule 3.5, 9).
    fn route(&self, access: Access, state: &mut State, call: &mut Call) -> Turn {
        let end = access.addr.saturating_add(u64::from(access.len));
        if end > TRAP_WINDOW_END {
            return match self.vm.generation() {
                Generation::A => Turn::Go(Resume::Abort),
                // Nothing is bound there: the kernel's own attempt ends with ENOENT.
                Generation::B | Generation::C => {
                    self.report_fault(access.addr, Errno::ENOENT, State::Fault, state, call)
                }
            };
        }
        if let Some(value) = access.write {
            let driver = self.vm.driver();
            if let Some(event) = driver.functions.event_for_write(access.addr, access.len, value) {
                event.signal();
                return Turn::Go(Resume::Done(false));
            }
        }
        call.set("exit", "mmio");
        call.hex("addr", access.addr);
        call.set("len", access.len);
        if let Some(value) = access.write {
            call.hex("write", value);
        }
        self.page.report_access(access);
        *state = match access.write {
            Some(_) => State::Write,
            None => State::Read { len: access.len },
        };
        Turn::Back(Ok(0))
    }
}

/// What becomes of an outcome the guest never got: a read gives zero, a fault is forgotten.
fn lost(resume: Resume) -> State {
    match resume {
        Resume::Go => State::Ready,
        Resume::Retry => State::Fault,
        Resume::Data(_) | Resume::Abort => State::Lost(Resume::Data(0)),
        Resume::Done(seen) => State::Lost(Resume::Done(seen)),
    }
}
