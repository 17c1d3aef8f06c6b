//! A VM's file: the driver's state, and the machine once it has started.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use crate::abi::args::{IoeventfdArg, IrqfdArg, MapMem, MemRegion, region_flags};
use crate::abi::run_page::ExitStatus;
use crate::abi::{Flavour, Generation};
use crate::back_end::{self, BackEnd};
use crate::config::Config;
use crate::driver::functions::{check_ioeventfd, check_irqfd};
use crate::driver::start::{Failure, Host, Outcome, Plan, StandingFault};
use crate::driver::{Driver, Phase};
use crate::errno::Errno;
use crate::host::event::Event;
use crate::host::guard::Inside;
use crate::host::guest_memory::{self, GuestMemory};
use crate::host::signals::Blocked;
use crate::host::{guest_mem, maps};
use crate::{report, rm, trace};

use super::injector;

/// Exit code of a program under a simulator that cannot do its work.
const BROKEN: i32 = 96;

/// Bytes every VM of the process has pinned (A).
static PINNED: AtomicU64 = AtomicU64::new(0);
static NEXT_ID: AtomicU64 = AtomicU64::new(1);
/// When the last VM was gone.
static LAST_END: Mutex<Option<Instant>> = Mutex::new(None);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A started VM's parts. Dropping it stops the guest and gives the memory back.
pub(crate) struct Machine {
    // Before the memory: nothing runs on memory that goes.
    pub(crate) back_end: Box<dyn BackEnd>,
    #[expect(dead_code, reason = "lent memory comes back when it is dropped")]
    memory: Arc<GuestMemory>,
    pub(crate) fault: Option<StandingFault>,
    pub(crate) vcpus: u32,
    bells: BTreeSet<u32>,
}

/// A VM. Its last reference ends it: those of its descriptor and of each vCPU's descriptor and run-page mapping
/// (rule 4).
pub(crate) struct Vm {
    id: u64,
    config: &'static Config,
    owner: u32,
    generation: Generation,
    driver: Mutex<Driver>,
    machine: OnceLock<Machine>,
    ended: OnceLock<ExitStatus>,
    busy: AtomicU64,
    /// Set when REMOVE_FUNCTION took a vCPU.
    removed: Mutex<BTreeMap<u32, Arc<AtomicBool>>>,
}

impl Vm {
    pub(crate) fn new(config: &'static Config, flavour: Flavour) -> Vm {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        report::vm_created(id);
        Vm {
            id,
            config,
            owner: std::process::id(),
            generation: flavour.generation(),
            driver: Mutex::new(Driver::new(flavour)),
            machine: OnceLock::new(),
            ended: OnceLock::new(),
            busy: AtomicU64::new(injector().busy_at_shutdown()),
            removed: Mutex::default(),
        }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    pub(crate) fn driver(&self) -> MutexGuard<'_, Driver> {
        lock(&self.driver)
    }

    pub(crate) fn machine(&self) -> Option<&Machine> {
        self.machine.get()
    }

    /// Memory and (in C) RUN are for the process that made the VM (rule 1.4).
    pub(crate) fn check_owner(&self) -> Result<(), Errno> {
        if std::process::id() == self.owner { Ok(()) } else { Err(Errno::EPERM) }
    }

    fn memlock(&self) -> Option<u64> {
        let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK);
        let limit = limit.map_or(u64::MAX, |(soft, _)| soft);
        Some(limit).filter(|limit| self.config.memlock && *limit != libc::RLIM_INFINITY)
    }

    pub(crate) fn add_memory(&self, region: &MemRegion, lend: bool) -> Result<(), Errno> {
        let left = self.memlock().map(|limit| limit.saturating_sub(PINNED.load(Ordering::Relaxed)));
        let kind = maps::kind(region.host, region.size, region.flags & region_flags::WRITE != 0);
        self.driver().memory.add_user(region, lend, kind, left)?;
        if self.generation == Generation::A {
            PINNED.fetch_add(region.size, Ordering::Relaxed);
        }
        Ok(())
    }

    pub(crate) fn map_memory(&self, map: &MapMem) -> Result<(), Errno> {
        let object = guest_mem::lookup(map.fd)?;
        self.driver().memory.map_guest_mem(map, &object)
    }

    /// Makes room for a vCPU; the flag tells when it has been removed.
    pub(crate) fn add_vcpu(&self, id: u32) -> Result<Arc<AtomicBool>, Errno> {
        self.driver().functions.add_vcpu(id)?;
        let removed = Arc::new(AtomicBool::new(false));
        lock(&self.removed).insert(id, Arc::clone(&removed));
        Ok(removed)
    }

    pub(crate) fn remove_vcpu(&self, id: u32) -> Result<(), Errno> {
        self.driver().functions.remove_vcpu(id)?;
        if let Some(flag) = lock(&self.removed).remove(&id) {
            flag.store(true, Ordering::Release);
        }
        if let Some(machine) = self.machine() {
            machine.back_end.wake();
        }
        Ok(())
    }

    pub(crate) fn add_irqfd(&self, arg: &IrqfdArg) -> Result<(), Errno> {
        check_irqfd(arg)?;
        let event = Arc::new(Event::of_program(arg.fd)?);
        let irqfd = self.driver().functions.add_irqfd(arg, event)?;
        let Some(machine) = self.machine() else { return Ok(()) };
        if !machine.bells.contains(&arg.label) {
            report::problem(format!("irqfd label {} has no doorbell: it will never ring", arg.label));
        }
        machine.back_end.bind_irqfd(arg.label, &irqfd)
    }

    pub(crate) fn remove_irqfd(&self, label: u32) -> Result<(), Errno> {
        let irqfd = self.driver().functions.remove_irqfd(label)?;
        if let Some(machine) = self.machine() {
            machine.back_end.unbind_irqfd(label, &irqfd);
        }
        Ok(())
    }

    pub(crate) fn add_ioeventfd(&self, arg: &IoeventfdArg) -> Result<(), Errno> {
        check_ioeventfd(arg)?;
        let event = Arc::new(Event::of_program(arg.fd)?);
        let ioeventfd = self.driver().functions.add_ioeventfd(arg, event)?;
        if let Some(machine) = self.machine() {
            machine.back_end.add_ioeventfd(&ioeventfd);
        }
        Ok(())
    }

    pub(crate) fn remove_ioeventfd(&self, arg: &IoeventfdArg) -> Result<(), Errno> {
        let removed = self.driver().functions.remove_ioeventfd(arg)?;
        if let Some(machine) = self.machine() {
            removed.iter().for_each(|ioeventfd| machine.back_end.remove_ioeventfd(ioeventfd));
        }
        Ok(())
    }

    /// `VM_START`.
    pub(crate) fn start(&self) -> Result<(), Errno> {
        let mut driver = self.driver();
        if !driver.is_fresh()? {
            return Ok(());
        }
        let started = self.try_start(&driver);
        driver.phase = if started.is_ok() { Phase::Running } else { Phase::Failed };
        started.map_err(|failure| {
            log_failure(&failure);
            failure.errno
        })
    }

    fn try_start(&self, driver: &Driver) -> Result<(), Failure> {
        self.check_grace()?;
        self.check_messages()?;
        let host = Host {
            build: self.config.build,
            cores: self.config.cores,
            seed: random(),
            memlock: self.memlock(),
        };
        let plan = match driver.plan_start(host, &guest_memory::read_region) {
            Outcome::Ready(plan) => plan,
            Outcome::Refused(failure) => return Err(failure),
            Outcome::HostOops(why) => {
                eprintln!("gunyah-sim: {why}: a real host kernel oopses here");
                std::process::abort();
            }
        };
        for warning in &plan.warnings {
            trace::kernel_log(warning);
            report::problem(warning.clone());
        }
        let memory = Arc::new(take_memory(driver, &plan)?);
        let back_end = back_end::start(self.config, &plan, &memory).unwrap_or_else(|error| {
            eprintln!("gunyah-sim: {error}");
            std::process::exit(BROKEN);
        });
        connect(driver, back_end.as_ref())?;
        let vcpus = plan.description.vcpus;
        let bells = plan.description.doorbells.iter().map(|bell| bell.label).collect();
        let _ = self.machine.set(Machine { back_end, memory, fault: plan.fault, vcpus, bells });
        Ok(())
    }

    /// Refusals that are not the program's fault (rule 1.8).
    fn check_grace(&self) -> Result<(), Failure> {
        let early = lock(&LAST_END).is_some_and(|end| end.elapsed() < self.config.grace);
        if !injector().refuses_start() && !early {
            return Ok(());
        }
        Err(Failure {
            errno: Errno::ENODEV,
            answer: Some((rm::Message::Init, rm::Code::NoResource)),
            why: "the hypervisor has not got back what the last VM had".to_owned(),
        })
    }

    /// The open build is older than the messages that the later drivers send (rule 9).
    fn check_messages(&self) -> Result<(), Failure> {
        if self.config.build == rm::Build::Production || self.generation == Generation::A {
            return Ok(());
        }
        Err(Failure {
            errno: Errno::EOPNOTSUPP,
            answer: Some((rm::Message::SetBootContext, rm::Code::Unimplemented)),
            why: "the open build does not know this message".to_owned(),
        })
    }

    /// How the VM ended, if it has.
    pub(crate) fn ended(&self) -> Option<ExitStatus> {
        self.ended.get().copied()
    }

    /// The guest is over: every RUN will say so.
    pub(crate) fn end(&self, exit: ExitStatus) {
        if self.ended.set(exit).is_ok() {
            self.driver().phase = Phase::Ended(exit);
            trace::event(
                "ended",
                serde_json::json!({ "vm": self.id, "status": exit.status, "type": exit.exit_type }),
            );
            if let Some(machine) = self.machine() {
                machine.back_end.wake();
            }
        }
    }

    /// Whether this RUN meets the shutdown half done (rule 9).
    pub(crate) fn is_busy(&self) -> bool {
        self.busy.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

fn log_failure(failure: &Failure) {
    let line = match failure.answer {
        Some((message, code)) => {
            format!("RM rejected message {:08x}. Error: {}: {}", message as u32, code as u32, failure.why)
        }
        None => failure.why.clone(),
    };
    trace::kernel_log(&line);
}

fn random() -> u64 {
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer is valid for its length. A short answer leaves zeroes, which do for a seed.
    unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    u64::from_ne_bytes(bytes)
}

fn host_failure(errno: Errno) -> Failure {
    Failure { errno, answer: None, why: "the VM's memory cannot be taken".to_owned() }
}

/// Writes the patched tree and takes the memory over. Lent memory is out of the program's reach behind this.
fn take_memory(driver: &Driver, plan: &Plan) -> Result<GuestMemory, Failure> {
    let entries = &driver.memory.entries;
    if let Some(entry) = entries.get(plan.image) {
        let offset = plan.tree.guest - entry.region.guest;
        guest_memory::write_region(entry, offset, &plan.description.patched_tree).map_err(host_failure)?;
    }
    // Memory of an authenticated VM is cleaned on return (rule 2.5).
    let sanitise = plan.description.firmware_address.is_some();
    let mut memory = GuestMemory::default();
    for (entry, guest) in entries.iter().zip(&plan.description.placed) {
        memory.place(entry, *guest, sanitise).map_err(host_failure)?;
    }
    Ok(memory)
}

/// Binds bells to their irqfds. What was raised before is lost (rule 5.1).
fn connect(driver: &Driver, back_end: &dyn BackEnd) -> Result<(), Failure> {
    for (label, irqfd) in &driver.functions.irqfds {
        if irqfd.event.drain() > 0 {
            trace::kernel_log(&format!("Premature injection of interrupt (label {label})"));
        }
        back_end.bind_irqfd(*label, irqfd).map_err(host_failure)?;
    }
    driver.functions.ioeventfds.iter().for_each(|ioeventfd| back_end.add_ioeventfd(ioeventfd));
    Ok(())
}

impl Drop for Vm {
    /// Teardown: in A it is deferred work that outlives close(), elsewhere the last close waits for it
    /// (rule 4).
    fn drop(&mut self) {
        let (id, machine) = (self.id, self.machine.take());
        let pinned = match self.generation {
            Generation::A => self.driver().memory.total(),
            _ => 0,
        };
        let started = machine.is_some();
        let tear_down = move || {
            let _inside = Inside::enter();
            drop(machine);
            PINNED.fetch_sub(pinned, Ordering::Relaxed);
            if started {
                *lock(&LAST_END) = Some(Instant::now());
            }
            report::vm_destroyed(id);
        };
        if self.generation != Generation::A || !started {
            tear_down();
            return;
        }
        let delay = self.config.teardown;
        // The thread inherits this mask: the program's signals are not for it.
        let _blocked = Blocked::new();
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            tear_down();
        });
    }
}
