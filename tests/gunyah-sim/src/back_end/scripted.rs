//! vCPUs that do what a script says: fast, on any machine.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::abi::run_page::{Access, ExitStatus, STATUS_EXITED};
use crate::driver::boot::BootState;
use crate::driver::functions::{Ioeventfd, Irqfd};
use crate::driver::start::Plan;
use crate::errno::Errno;
use crate::host::event::Event;
use crate::host::guest_memory::GuestMemory;
use crate::host::signals::{Blocked, Wake};
use crate::{report, trace};

use super::script::{Number, Script, Step};
use super::{BackEnd, Resume, Stop};

/// `exit_info.type` of a hypervisor error (rule 1.3).
const HYP_ERROR: u16 = 5;
/// Pause between two reads of a step that reads until a value comes.
const READ_AGAIN: Duration = Duration::from_millis(1);

/// A list of steps being worked through.
struct Frame {
    steps: Arc<[Step]>,
    at: usize,
    /// Rounds left after this one; `None` is without end.
    rounds: Option<u64>,
}

/// Where a vCPU is in its script.
struct Runner {
    id: u32,
    frames: Vec<Frame>,
    /// The step has handed out an access and waits for its outcome.
    waiting: bool,
    /// When the current step began, for steps that wait.
    begun: Option<Instant>,
    /// Times the current step has been taken, for steps that count.
    taken: u64,
}

struct Vcpu {
    runner: Mutex<Runner>,
    on: AtomicBool,
    wake: Event,
}

/// The scripted back end.
pub(crate) struct Scripted {
    vcpus: Vec<Vcpu>,
    memory: Arc<GuestMemory>,
    boot: BootState,
    /// Labels the tree has doorbells for.
    bells: BTreeSet<u32>,
    bound: Mutex<BTreeMap<u32, Arc<Event>>>,
}

/// What a step led to.
enum Outcome {
    Next,
    Again,
    Stop(Stop),
    /// The script expected something else.
    Failed(String),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ended(exit_type: u16) -> Outcome {
    Outcome::Stop(Stop::Ended(ExitStatus { status: STATUS_EXITED, exit_type }))
}

impl Runner {
    fn new(id: u32, steps: &[Step]) -> Runner {
        let frame = Frame { steps: steps.into(), at: 0, rounds: Some(0) };
        Runner { id, frames: vec![frame], waiting: false, begun: None, taken: 0 }
    }

    /// The step to take; enters and leaves repetitions. `None` at the end of the script.
    fn current(&mut self) -> Option<Step> {
        loop {
            let frame = self.frames.last_mut()?;
            match frame.steps.get(frame.at) {
                Some(Step::Repeat { times: Some(0), .. }) => frame.at += 1,
                Some(Step::Repeat { steps, .. }) if steps.is_empty() => frame.at += 1,
                Some(Step::Repeat { times, steps }) => {
                    let inner =
                        Frame { steps: steps.as_slice().into(), at: 0, rounds: times.map(|times| times - 1) };
                    frame.at += 1;
                    self.frames.push(inner);
                }
                Some(step) => return Some(step.clone()),
                None if frame.rounds == Some(0) => {
                    self.frames.pop();
                }
                None => {
                    frame.rounds = frame.rounds.map(|rounds| rounds - 1);
                    frame.at = 0;
                }
            }
        }
    }

    fn advance(&mut self) {
        if let Some(frame) = self.frames.last_mut() {
            frame.at += 1;
        }
        (self.waiting, self.begun, self.taken) = (false, None, 0);
    }

    /// Time left of a limit that began with the step.
    fn left(&mut self, limit_ms: u64) -> Duration {
        let begun = *self.begun.get_or_insert_with(Instant::now);
        Duration::from_millis(limit_ms).saturating_sub(begun.elapsed())
    }
}

impl Scripted {
    pub(crate) fn new(script: Script, plan: &Plan, memory: Arc<GuestMemory>) -> Result<Scripted, Errno> {
        let bells = plan.description.doorbells.iter().filter(|bell| bell.line.is_some());
        let bells = bells.map(|bell| bell.label).collect();
        Scripted::build(&script, plan.description.vcpus, plan.boot.clone(), bells, memory)
    }

    fn build(
        script: &Script,
        count: u32,
        boot: BootState,
        bells: BTreeSet<u32>,
        memory: Arc<GuestMemory>,
    ) -> Result<Scripted, Errno> {
        let vcpus: Result<Vec<Vcpu>, Errno> = (0..count)
            .map(|id| {
                let steps = script.vcpus.get(id as usize).map_or(&[][..], Vec::as_slice);
                Ok(Vcpu {
                    runner: Mutex::new(Runner::new(id, steps)),
                    on: AtomicBool::new(id == 0),
                    wake: Event::new()?,
                })
            })
            .collect();
        Ok(Scripted { vcpus: vcpus?, memory, boot, bells, bound: Mutex::default() })
    }

    /// Waits for more than the vCPU's wake-up.
    fn pause(
        vcpu: &Vcpu,
        extra: Option<BorrowedFd<'_>>,
        limit: Option<Duration>,
        signals: &mut Blocked,
    ) -> Result<Wake, Stop> {
        let fds: Vec<BorrowedFd<'_>> = std::iter::once(vcpu.wake.as_fd()).chain(extra).collect();
        match signals.wait(&fds, limit) {
            Ok(Wake::Signal) | Err(_) => Err(Stop::Signal),
            Ok(_) if vcpu.wake.drain() > 0 => Err(Stop::Woken),
            Ok(wake) => Ok(wake),
        }
    }

    fn take(
        &self,
        step: &Step,
        vcpu: &Vcpu,
        runner: &mut Runner,
        resume: Option<Resume>,
        signals: &mut Blocked,
    ) -> Outcome {
        match step {
            Step::Write { addr, len, value, exits, aborts } => {
                let access = Access { addr: addr.0, len: *len, write: Some(value.0) };
                settle_write(runner, access, resume, *exits, *aborts)
            }
            Step::Read { addr, len, aborts, .. } => {
                let access = Access { addr: addr.0, len: *len, write: None };
                match resume {
                    Some(Resume::Data(value)) => settle_read(step, vcpu, runner, value, signals),
                    _ => settle_access(runner, access, resume, *aborts),
                }
            }
            Step::Store { addr, bytes, aborts } => self.store(runner, *addr, &bytes.0, resume, *aborts),
            Step::Load { addr, bytes } => self.load(runner, *addr, &bytes.0, resume),
            Step::WaitIrq { label, timeout_ms } => self.wait_irq(*label, *timeout_ms, vcpu, runner, signals),
            Step::NoIrq { label, ms } => self.no_irq(*label, *ms, vcpu, runner, signals),
            Step::ExpectBoot { pc, x } => self.check_boot(*pc, x),
            Step::CpuOn(id) => match self.vcpus.get(*id as usize) {
                Some(other) => {
                    other.on.store(true, Ordering::Release);
                    other.wake.signal();
                    Outcome::Next
                }
                None => Outcome::Failed(format!("there is no vCPU {id} to turn on")),
            },
            Step::CpuOff => {
                vcpu.on.store(false, Ordering::Release);
                Outcome::Next
            }
            Step::Sleep(ms) => match Scripted::pause(vcpu, None, Some(runner.left(*ms)), signals) {
                Ok(_) => Outcome::Next,
                Err(stop) => Outcome::Stop(stop),
            },
            Step::Hang => match Scripted::pause(vcpu, None, None, signals) {
                Ok(_) => Outcome::Again,
                Err(stop) => Outcome::Stop(stop),
            },
            Step::PageFault { addr, errno, times } => match Errno::from_name(errno) {
                Some(_) if times.is_some_and(|times| runner.taken >= times) => Outcome::Next,
                Some(errno) => {
                    runner.taken += 1;
                    Outcome::Stop(Stop::PageFault(addr.0, errno))
                }
                None => Outcome::Failed(format!("{errno} is no errno")),
            },
            Step::PowerOff => ended(1),
            Step::Reset => ended(2),
            Step::Reset2 => ended(3),
            Step::Watchdog => ended(4),
            Step::Crash => ended(HYP_ERROR),
            Step::ExternalAbort => ended(6),
            Step::End { status, exit_type } => {
                Outcome::Stop(Stop::Ended(ExitStatus { status: *status, exit_type: *exit_type }))
            }
            Step::Note(text) => {
                trace::event("note", json!({ "vcpu": runner.id, "text": text }));
                Outcome::Next
            }
            // `current` has entered it.
            Step::Repeat { .. } => Outcome::Next,
        }
    }

    fn store(
        &self,
        runner: &mut Runner,
        addr: Number,
        bytes: &[u8],
        resume: Option<Resume>,
        aborts: bool,
    ) -> Outcome {
        if resume.is_none() || resume == Some(Resume::Retry) {
            if self.memory.is_read_only(addr.0) {
                runner.waiting = true;
                return Outcome::Stop(Stop::PageFault(addr.0, Errno::EPERM));
            }
            if self.memory.write(addr.0, bytes).is_some() {
                return Outcome::Next;
            }
        }
        let access = Access { addr: addr.0, len: bytes.len().min(8) as u8, write: Some(0) };
        settle_write(runner, access, resume, None, aborts)
    }

    fn load(&self, runner: &mut Runner, addr: Number, bytes: &[u8], resume: Option<Resume>) -> Outcome {
        match self.memory.read(addr.0, bytes.len()) {
            Some(found) if found == bytes => Outcome::Next,
            Some(found) => {
                Outcome::Failed(format!("memory at {:#x} holds {found:02x?}, not {bytes:02x?}", addr.0))
            }
            None => {
                let access = Access { addr: addr.0, len: bytes.len().min(8) as u8, write: None };
                settle_access(runner, access, resume, false)
            }
        }
    }

    fn bell(&self, label: u32) -> Option<Arc<Event>> {
        lock(&self.bound).get(&label).cloned()
    }

    fn wait_irq(
        &self,
        label: u32,
        timeout_ms: u64,
        vcpu: &Vcpu,
        runner: &mut Runner,
        signals: &mut Blocked,
    ) -> Outcome {
        let bell = self.bell(label);
        if bell.as_ref().is_some_and(|bell| bell.drain() > 0) {
            return Outcome::Next;
        }
        let left = runner.left(timeout_ms);
        match Scripted::pause(vcpu, bell.as_ref().map(|bell| bell.as_fd()), Some(left), signals) {
            Ok(Wake::Timeout) => {
                Outcome::Failed(format!("no interrupt of label {label} within {timeout_ms} ms"))
            }
            Ok(_) => Outcome::Again,
            Err(stop) => Outcome::Stop(stop),
        }
    }

    fn no_irq(
        &self,
        label: u32,
        ms: u64,
        vcpu: &Vcpu,
        runner: &mut Runner,
        signals: &mut Blocked,
    ) -> Outcome {
        let bell = self.bell(label);
        if bell.as_ref().is_some_and(|bell| bell.drain() > 0) {
            return Outcome::Failed(format!("an interrupt of label {label} came"));
        }
        let left = runner.left(ms);
        match Scripted::pause(vcpu, bell.as_ref().map(|bell| bell.as_fd()), Some(left), signals) {
            Ok(Wake::Timeout) => Outcome::Next,
            Ok(_) => Outcome::Again,
            Err(stop) => Outcome::Stop(stop),
        }
    }

    fn check_boot(&self, pc: Option<Number>, x: &BTreeMap<u32, Number>) -> Outcome {
        if let Some(pc) = pc.filter(|pc| pc.0 != self.boot.pc) {
            return Outcome::Failed(format!("the boot vCPU starts at {:#x}, not {:#x}", self.boot.pc, pc.0));
        }
        for (register, wanted) in x {
            let found = self.boot.x.get(register).copied().unwrap_or(0);
            if found != wanted.0 {
                return Outcome::Failed(format!(
                    "x{register} is {found:#x} at the start, not {:#x}",
                    wanted.0
                ));
            }
        }
        Outcome::Next
    }
}

/// Hands an access out, or takes the outcomes that are alike for reads and writes.
fn settle_access(runner: &mut Runner, access: Access, resume: Option<Resume>, aborts: bool) -> Outcome {
    match resume {
        None | Some(Resume::Retry | Resume::Go) => {
            runner.waiting = true;
            Outcome::Stop(Stop::Access(access))
        }
        Some(Resume::Abort) if aborts => Outcome::Next,
        Some(Resume::Abort) => {
            Outcome::Failed(format!("the guest got an external abort at {:#x}", access.addr))
        }
        Some(_) if aborts => Outcome::Failed(format!("no external abort came at {:#x}", access.addr)),
        Some(_) => Outcome::Next,
    }
}

fn settle_write(
    runner: &mut Runner,
    access: Access,
    resume: Option<Resume>,
    exits: Option<bool>,
    aborts: bool,
) -> Outcome {
    match (resume, exits) {
        (Some(Resume::Done(seen)), Some(wanted)) if seen != wanted => {
            let what = if seen { "left RUN" } else { "was taken by an ioeventfd" };
            Outcome::Failed(format!(
                "the write of {:#x} to {:#x} {what}",
                access.write.unwrap_or(0),
                access.addr
            ))
        }
        _ => settle_access(runner, access, resume, aborts),
    }
}

fn settle_read(step: &Step, vcpu: &Vcpu, runner: &mut Runner, value: u64, signals: &mut Blocked) -> Outcome {
    let Step::Read { addr, len, expect, mask, until, timeout_ms, aborts } = step else {
        return Outcome::Next;
    };
    if *aborts {
        return Outcome::Failed(format!("no external abort came at {:#x}", addr.0));
    }
    let width = if *len >= 8 { u64::MAX } else { (1 << (8 * u32::from(*len))) - 1 };
    let mask = mask.map_or(width, |mask| mask.0);
    let Some(wanted) = expect.filter(|wanted| wanted.0 & mask != value & mask) else { return Outcome::Next };
    let left = runner.left(*timeout_ms);
    if !*until || left.is_zero() {
        return Outcome::Failed(format!("reading {:#x} gave {value:#x}, not {:#x}", addr.0, wanted.0));
    }
    runner.waiting = false;
    match Scripted::pause(vcpu, None, Some(READ_AGAIN), signals) {
        Ok(_) => Outcome::Again,
        Err(stop) => Outcome::Stop(stop),
    }
}

impl BackEnd for Scripted {
    fn run(&self, vcpu: u32, resume: Resume, signals: &mut Blocked) -> Stop {
        let Some(vcpu) = self.vcpus.get(vcpu as usize) else { return Stop::Woken };
        let mut runner = lock(&vcpu.runner);
        let mut resume = runner.waiting.then_some(resume);
        loop {
            if !vcpu.on.load(Ordering::Acquire) {
                match Scripted::pause(vcpu, None, None, signals) {
                    Ok(_) => continue,
                    Err(stop) => return stop,
                }
            }
            // A script that is over leaves its vCPU waiting for an interrupt that never comes.
            let step = runner.current().unwrap_or(Step::Hang);
            match self.take(&step, vcpu, &mut runner, resume.take(), signals) {
                Outcome::Next => runner.advance(),
                Outcome::Again => {}
                Outcome::Stop(stop) => return stop,
                Outcome::Failed(why) => {
                    report::problem(format!("vCPU {}: {why} (step {step:?})", runner.id));
                    return Stop::Ended(ExitStatus { status: STATUS_EXITED, exit_type: HYP_ERROR });
                }
            }
        }
    }

    fn bind_irqfd(&self, label: u32, irqfd: &Irqfd) -> Result<(), Errno> {
        if self.bells.contains(&label) {
            lock(&self.bound).insert(label, Arc::clone(&irqfd.event));
        }
        Ok(())
    }

    fn unbind_irqfd(&self, label: u32, _: &Irqfd) {
        lock(&self.bound).remove(&label);
    }

    // Writes that match are answered before a stop reaches the program.
    fn add_ioeventfd(&self, _: &Ioeventfd) {}

    fn remove_ioeventfd(&self, _: &Ioeventfd) {}

    fn wake(&self) {
        for vcpu in &self.vcpus {
            vcpu.wake.signal();
        }
    }
}

#[cfg(test)]
#[path = "scripted_test.rs"]
mod tests;
