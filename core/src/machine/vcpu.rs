//! The vCPU threads: run the guest, serve its exits, end together.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::devices::Devices;
use crate::eventfd;
use crate::hypervisor::{End, Exit, Kicker, Vcpu};

/// How long vCPU threads may take to end after they were kicked.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause between kicks.
const KICK_PAUSE: Duration = Duration::from_millis(5);

/// Exits of a vCPU, or of all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExitCounts {
    /// Register reads.
    pub mmio_reads: u64,
    /// Register writes.
    pub mmio_writes: u64,
    /// Kicks and signals.
    pub interrupted: u64,
    /// What the accelerator handled by itself, by name.
    pub handled: BTreeMap<&'static str, u64>,
}

impl ExitCounts {
    /// Adds the counts of another vCPU.
    pub fn add(&mut self, other: &Self) {
        self.mmio_reads += other.mmio_reads;
        self.mmio_writes += other.mmio_writes;
        self.interrupted += other.interrupted;
        for (name, count) in &other.handled {
            *self.handled.entry(name).or_default() += count;
        }
    }

    /// All exits.
    pub fn total(&self) -> u64 {
        self.mmio_reads + self.mmio_writes + self.interrupted + self.handled.values().sum::<u64>()
    }
}

/// What the vCPU threads and the thread that waits for them share.
struct Shared {
    devices: Arc<Devices>,
    stop: AtomicBool,
    end: Mutex<Option<End>>,
    /// Signalled when `end` is set.
    ended: Arc<EventFd>,
}

impl Shared {
    /// Notes how the VM ended; the first to say it wins.
    fn set_end(&self, end: End) {
        let mut slot = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(end);
        eventfd::signal(&self.ended);
    }
}

/// The running vCPUs of a VM.
pub struct VcpuThreads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<ExitCounts>>,
    kickers: Vec<Kicker>,
}

impl VcpuThreads {
    /// Starts a thread a vCPU. `ended` is signalled when the VM has ended by itself.
    pub fn start(
        vcpus: Vec<Box<dyn Vcpu>>,
        devices: &Arc<Devices>,
        ended: Arc<EventFd>,
    ) -> Result<Self, String> {
        let shared = Arc::new(Shared {
            devices: devices.clone(),
            stop: AtomicBool::new(false),
            end: Mutex::new(None),
            ended,
        });
        let (sender, receiver) = mpsc::channel();
        let mut this = Self { shared, threads: Vec::new(), kickers: Vec::new() };
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let (shared, ready) = (this.shared.clone(), sender.clone());
            let body = move || run(vcpu, &shared, move |kicker| drop(ready.send(kicker)));
            let thread = crate::thread::spawn(format!("vcpu{index}"), body);
            match thread {
                Ok(thread) => this.threads.push(thread),
                Err(error) => {
                    drop(sender);
                    this.kickers = receiver.iter().flatten().collect();
                    let stuck = this.finish().err().map(|stuck| format!("; {stuck}")).unwrap_or_default();
                    return Err(format!("cannot start a thread for vCPU {index}: {error}{stuck}"));
                }
            }
        }
        drop(sender);
        // Each thread sends once and drops its sender: the loop ends when all have.
        this.kickers = receiver.iter().flatten().collect();
        Ok(this)
    }

    /// Ends the threads; how the VM ended, if it had, and the exits so far. The error says that a thread does not end.
    pub fn finish(mut self) -> Result<(Option<End>, ExitCounts), String> {
        self.shared.stop.store(true, Ordering::SeqCst);
        let start = Instant::now();
        while self.threads.iter().any(|thread| !thread.is_finished()) {
            if start.elapsed() > PATIENCE {
                let stuck: Vec<&str> = self
                    .threads
                    .iter()
                    .filter(|t| !t.is_finished())
                    .filter_map(|t| t.thread().name())
                    .collect();
                return Err(format!("{} did not leave the guest within {PATIENCE:?}", stuck.join(", ")));
            }
            self.kickers.iter().for_each(Kicker::kick);
            thread::sleep(KICK_PAUSE);
        }
        let mut counts = ExitCounts::default();
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(count) => counts.add(&count),
                Err(_) => self.shared.set_end(End::Crash("a vCPU thread of gvmm panicked".to_owned())),
            }
        }
        let end = self.shared.end.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok((end, counts))
    }
}

/// The life of a vCPU thread.
fn run(mut vcpu: Box<dyn Vcpu>, shared: &Shared, ready: impl FnOnce(Option<Kicker>)) -> ExitCounts {
    let mut counts = ExitCounts::default();
    let kicker = vcpu.kicker();
    if let Err(error) = &kicker {
        shared.set_end(End::Crash(format!("a vCPU cannot be interrupted: {error}")));
    }
    ready(kicker.ok());
    let bus = &shared.devices.bus;
    while !shared.stop.load(Ordering::SeqCst) {
        match vcpu.run() {
            Ok(Exit::MmioRead { address, data }) => {
                counts.mmio_reads += 1;
                bus.read(address, data);
            }
            Ok(Exit::MmioWrite { address, data }) => {
                counts.mmio_writes += 1;
                bus.write(address, data);
            }
            Ok(Exit::Interrupted) => counts.interrupted += 1,
            Ok(Exit::Handled(name)) => *counts.handled.entry(name).or_default() += 1,
            Ok(Exit::Ended(end)) => {
                shared.set_end(end);
                break;
            }
            Err(error) => {
                shared.set_end(End::Crash(error.to_string()));
                break;
            }
        }
    }
    counts
}
