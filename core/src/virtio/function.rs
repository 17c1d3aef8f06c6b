//! What a virtio device has whatever its transport: status, features, queues and configuration.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gvmm_plugin_api::interrupt::{Event, Interrupt};
use gvmm_plugin_api::memory::MemoryRegion;
use gvmm_plugin_api::virtio::{F_VERSION_1, QueueSetup, QueueState, VirtioDevice, VirtioTraits};
use vmm_sys_util::eventfd::EventFd;

use crate::eventfd;
use crate::memory::SharedMemory;

/// Device status bits (virtio 1.2, 2.1).
pub mod status {
    /// The driver has set up the device and may use it.
    pub const DRIVER_OK: u32 = 4;
    /// The driver has accepted its features.
    pub const FEATURES_OK: u32 = 8;
    /// The device cannot go on without a reset.
    pub const NEEDS_RESET: u32 = 64;
    /// The driver has given up on the device.
    pub const FAILED: u32 = 128;
    /// Everything that a driver may write.
    pub(super) const WRITABLE: u32 = 0xff & !NEEDS_RESET;
}

/// The driver gives the device addresses of memory that the device can reach, and not any address of the guest's
/// (virtio 1.2, 6: VIRTIO_F_ACCESS_PLATFORM).
const F_ACCESS_PLATFORM: u64 = 1 << 33;

/// The driver may reset a single queue (virtio 1.2, 6: VIRTIO_F_RING_RESET). The transport does it: devices start and
/// stop queues one by one.
const F_RING_RESET: u64 = 1 << 40;

/// What to look at when a protected guest's queue does not start.
const WINDOW_HINT: &str = "; the drivers of a protected guest keep to the window that it shares with the host if its kernel \
                           has CONFIG_DMA_RESTRICTED_POOL";

/// Where interrupts of a function go; the transport decides.
pub trait InterruptRoute: Send + Sync {
    /// The event to signal when buffers of a queue have been used; a handle of its own for the device.
    fn queue(&self, index: u16) -> std::io::Result<Event>;

    /// Interrupts the driver for a change of configuration or status; `latest` tells what there is to see.
    fn configuration(&self, latest: &dyn Fn() -> OwnState);
}

/// What a device changes in its registers by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OwnState {
    /// Changes of the configuration space so far.
    pub generation: u32,
    /// The device cannot go on without a reset.
    pub needs_reset: bool,
}

/// A queue as the driver programs it.
#[derive(Debug, Clone, Copy, Default)]
pub struct QueueRegisters {
    /// Number of entries.
    pub size: u16,
    /// Whether the driver has enabled it.
    pub ready: bool,
    /// Guest address of the descriptor table.
    pub descriptor_table: u64,
    /// Guest address of the available ring.
    pub available_ring: u64,
    /// Guest address of the used ring.
    pub used_ring: u64,
}

/// The registers that a driver changes.
#[derive(Debug, Default)]
struct State {
    status: u32,
    driver_features: u64,
    queues: Vec<QueueRegisters>,
    started: Vec<bool>,
    memory: Option<SharedMemory>,
}

impl State {
    fn is_running(&self) -> bool {
        const RUNS: u32 = status::DRIVER_OK | status::FEATURES_OK;
        self.status & RUNS == RUNS
    }

    fn resets_rings(&self) -> bool {
        self.driver_features & F_RING_RESET != 0 && self.status & status::FEATURES_OK != 0
    }
}

/// One virtio device on any transport.
pub struct VirtioFunction {
    id: String,
    device: Arc<dyn VirtioDevice>,
    traits: VirtioTraits,
    /// Features that the transport has beside those of the device.
    transport_features: u64,
    kicks: Vec<Arc<EventFd>>,
    route: Box<dyn InterruptRoute>,
    state: Mutex<State>,
    /// Set by the device's own threads, which must not wait for a vCPU thread that waits for them.
    needs_reset: AtomicBool,
    generation: AtomicU32,
    config_pending: AtomicBool,
    /// Whether the device reaches a part of guest memory alone.
    restricted: AtomicBool,
}

impl VirtioFunction {
    /// A function for a device, with one kick eventfd a queue.
    pub fn new(
        id: &str,
        device: Arc<dyn VirtioDevice>,
        route: Box<dyn InterruptRoute>,
    ) -> std::io::Result<Self> {
        let traits = device.traits();
        let kicks =
            traits.queue_sizes.iter().map(|_| eventfd::new().map(Arc::new)).collect::<Result<_, _>>()?;
        let state = State {
            queues: fresh_queues(&traits),
            started: vec![false; traits.queue_sizes.len()],
            ..State::default()
        };
        Ok(Self {
            id: id.to_owned(),
            device,
            traits,
            transport_features: 0,
            kicks,
            route,
            state: Mutex::new(state),
            needs_reset: AtomicBool::new(false),
            generation: AtomicU32::new(0),
            config_pending: AtomicBool::new(false),
            restricted: AtomicBool::new(false),
        })
    }

    /// The same function on a transport that can reset a single queue.
    #[must_use]
    pub fn with_ring_reset(mut self) -> Self {
        self.transport_features |= F_RING_RESET;
        self
    }

    /// Id of the device.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What the device is.
    pub fn traits(&self) -> &VirtioTraits {
        &self.traits
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn VirtioDevice> {
        &self.device
    }

    /// The kick eventfds, one a queue.
    pub fn kicks(&self) -> &[Arc<EventFd>] {
        &self.kicks
    }

    /// Gives the function the memory of a VM that is about to start.
    pub fn attach_memory(&self, memory: SharedMemory) {
        self.restricted.store(memory.is_restricted(), Ordering::Relaxed);
        self.lock().memory = Some(memory);
    }

    /// Stops all queues, resets the device and lets go of guest memory: the VM has ended.
    pub fn detach(&self) {
        let mut state = self.lock();
        self.reset_locked(&mut state);
        state.memory = None;
    }

    /// Features offered to the driver.
    pub fn offered_features(&self) -> u64 {
        self.traits.features | self.transport_features | self.required_features()
    }

    /// Features without which a driver cannot use the device.
    fn required_features(&self) -> u64 {
        let restricted = self.restricted.load(Ordering::Relaxed);
        F_VERSION_1 | if restricted { F_ACCESS_PLATFORM } else { 0 }
    }

    /// Features the driver accepted so far.
    pub fn driver_features(&self) -> u64 {
        self.lock().driver_features
    }

    /// Takes 32 bits of the driver's features; without effect once they are agreed.
    pub fn set_driver_features(&self, high: bool, bits: u32) {
        let mut state = self.lock();
        if state.status & status::FEATURES_OK != 0 {
            return;
        }
        let (shift, keep) = if high { (32, 0xffff_ffff) } else { (0, 0xffff_ffff << 32) };
        state.driver_features = (state.driver_features & keep) | (u64::from(bits) << shift);
    }

    /// The status register.
    pub fn status(&self) -> u32 {
        let needs_reset = if self.needs_reset.load(Ordering::Relaxed) { status::NEEDS_RESET } else { 0 };
        self.lock().status | needs_reset
    }

    /// A write of the status register; zero resets the device.
    pub fn set_status(&self, value: u32) {
        let mut state = self.lock();
        if value == 0 {
            return self.reset_locked(&mut state);
        }
        let mut value = value & status::WRITABLE;
        let features = state.driver_features;
        let required = self.required_features();
        let acceptable = features & !self.offered_features() == 0 && features & required == required;
        if value & status::FEATURES_OK != 0 && !acceptable {
            tracing::warn!("device {}: driver features {features:#x} refused", self.id);
            value &= !status::FEATURES_OK;
        }
        let ran = state.is_running();
        state.status |= value;
        if !ran && state.is_running() {
            self.start_queues(&mut state);
        }
    }

    /// The registers of a queue; `None` for one that the device does not have.
    pub fn queue(&self, index: u16) -> Option<QueueRegisters> {
        self.lock().queues.get(usize::from(index)).copied()
    }

    /// Largest size of a queue; 0 for one that the device does not have.
    pub fn queue_max_size(&self, index: u16) -> u16 {
        self.traits.queue_sizes.get(usize::from(index)).copied().unwrap_or(0)
    }

    /// Changes the registers of a queue that is not ready.
    pub fn change_queue(&self, index: u16, change: impl FnOnce(&mut QueueRegisters)) {
        let mut state = self.lock();
        let fixed = state.is_running() && !state.resets_rings();
        if let Some(queue) = state.queues.get_mut(usize::from(index)).filter(|queue| !queue.ready && !fixed) {
            change(queue);
        }
    }

    /// Puts a queue into use: when the device starts, or at once after the queue was reset under a running device.
    pub fn ready_queue(&self, index: u16) {
        self.change_queue(index, |queue| queue.ready = true);
        let mut state = self.lock();
        if state.is_running() {
            self.start_queues(&mut state);
        }
    }

    /// Takes a queue out of use again before the device runs.
    pub fn unready_queue(&self, index: u16) {
        let mut state = self.lock();
        let running = state.is_running();
        if let Some(queue) = state.queues.get_mut(usize::from(index)).filter(|_| !running) {
            queue.ready = false;
        }
    }

    /// Resets a single queue, if that was agreed; the device goes on with the others.
    pub fn reset_queue(&self, index: u16) {
        let mut state = self.lock();
        let known = usize::from(index) < state.queues.len();
        if !known || !state.resets_rings() {
            return;
        }
        let at = usize::from(index);
        if std::mem::take(&mut state.started[at]) {
            self.device.stop_queue(index);
        }
        state.queues[at] = QueueRegisters { size: self.queue_max_size(index), ..QueueRegisters::default() };
        // A kick of the past is not for the queue of the future.
        let _ = self.kicks[at].read();
    }

    /// A kick that came as an exit: the accelerator has no doorbell for the queue.
    pub fn kick(&self, index: u16) {
        if let Some(kick) = self.kicks.get(usize::from(index)) {
            eventfd::signal(kick);
        }
    }

    /// Counts changes of the configuration space.
    pub fn config_generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// What the device changes by itself, as it is now. Any thread.
    pub fn own_state(&self) -> OwnState {
        let needs_reset = self.needs_reset.load(Ordering::Acquire);
        OwnState { generation: self.config_generation(), needs_reset }
    }

    /// Whether a configuration change waits for the driver, taking the note when asked to.
    pub fn config_pending(&self, take: bool) -> bool {
        if take {
            self.config_pending.swap(false, Ordering::AcqRel)
        } else {
            self.config_pending.load(Ordering::Acquire)
        }
    }

    /// Whether the driver uses the device.
    pub fn running(&self) -> bool {
        self.lock().is_running()
    }

    /// Reads configuration space; beyond its end nothing is read.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) -> bool {
        match self.config_range(offset, data.len()) {
            Some(offset) => {
                self.device.read_config(offset, data);
                true
            }
            None => false,
        }
    }

    /// Writes configuration space; beyond its end nothing is written.
    pub fn write_config(&self, offset: u64, data: &[u8]) -> bool {
        match self.config_range(offset, data.len()) {
            Some(offset) => {
                self.device.write_config(offset, data);
                true
            }
            None => false,
        }
    }

    /// The device has changed its configuration space. Any thread.
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.config_pending.store(true, Ordering::Release);
        self.route.configuration(&|| self.own_state());
    }

    /// The device cannot go on: the driver sees it at its next look at the status. Any thread.
    pub fn device_failed(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.config_changed();
    }

    fn config_range(&self, offset: u64, len: usize) -> Option<u32> {
        let end = offset.checked_add(len as u64)?;
        (end <= u64::from(self.traits.config_size)).then(|| u32::try_from(offset).ok())?
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_queues(&self, state: &mut State) {
        let Some(memory) = state.memory.clone() else { return };
        for index in 0..state.queues.len() {
            let registers = state.queues[index];
            if !registers.ready || state.started[index] {
                continue;
            }
            // Queue counts come from a Vec<u16> whose length the device chose; an index beyond 16 bits has no queue.
            let Ok(number) = u16::try_from(index) else { break };
            match self.start_queue(number, registers, state.driver_features, &memory) {
                Ok(()) => state.started[index] = true,
                Err(error) => {
                    let hint = if memory.is_restricted() { WINDOW_HINT } else { "" };
                    tracing::warn!("device {}: queue {index} does not start: {error}{hint}", self.id);
                    self.device_failed();
                }
            }
        }
    }

    fn start_queue(
        &self,
        index: u16,
        registers: QueueRegisters,
        features: u64,
        memory: &SharedMemory,
    ) -> Result<(), String> {
        let call = self.route.queue(index).map_err(|e| format!("cannot copy its interrupt eventfd: {e}"))?;
        let kick = eventfd::share(&self.kicks[usize::from(index)]);
        let setup = QueueSetup {
            size: registers.size,
            descriptor_table: registers.descriptor_table,
            available_ring: registers.available_ring,
            used_ring: registers.used_ring,
            state: QueueState::default(),
            kick: kick.map_err(|e| format!("cannot copy its kick eventfd: {e}"))?,
            call: Interrupt::new(call),
            memory: device_regions(memory),
            features: features & !self.transport_features,
            inflight: None,
        };
        self.device.start_queue(index, setup)
    }

    fn reset_locked(&self, state: &mut State) {
        for (index, started) in (0..).zip(&mut state.started) {
            if std::mem::take(started) {
                self.device.stop_queue(index);
            }
        }
        self.device.reset();
        for kick in &self.kicks {
            // Kicks of the past are not for the queues of the future; without one there is nothing to read.
            let _ = kick.read();
        }
        state.status = 0;
        state.driver_features = 0;
        state.queues = fresh_queues(&self.traits);
        self.needs_reset.store(false, Ordering::Release);
        self.config_pending.store(false, Ordering::Release);
    }
}

fn fresh_queues(traits: &VirtioTraits) -> Vec<QueueRegisters> {
    traits.queue_sizes.iter().map(|&size| QueueRegisters { size, ..QueueRegisters::default() }).collect()
}

/// The regions that a device gets of a VM's memory.
fn device_regions(memory: &SharedMemory) -> Vec<MemoryRegion> {
    let region = |region: &crate::memory::SharedRegion| {
        let file = region.memfd.as_ref().map(|memfd| (memfd.as_fd().as_raw_fd(), 0));
        // The address was given by mmap in this process and so fits a usize.
        let host_address = region.host_address as usize;
        // SAFETY: shared regions are mapped readable and writable while the function holds `memory`, which it lets go
        // of in `detach`, after every queue has been stopped.
        unsafe { MemoryRegion::new(region.guest_base, region.size, host_address, file) }
    };
    memory.regions().iter().map(region).collect()
}
