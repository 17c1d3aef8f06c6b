//! A function: configuration space, BAR 0 with the device's registers and the MSI-X structures, and its interrupts.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use gvmm_plugin_api::mmio::{AccessError, Width};
use vmm_sys_util::eventfd::EventFd;

use super::config::{ConfigError, ConfigSpace, Identity, SIZE, command};
use super::msix::{self, Gate, Msix};
use super::v2m::V2mFrame;
use super::wire::Wire;
use crate::bus::AccessCount;
use crate::hypervisor::{DoorbellWrite, InterruptLine, Wiring};
use crate::memory::RegisterImage;

/// Each structure in BAR 0 begins at a page of its own.
const PAGE: u64 = 0x1000;
/// In `decoded`: the function does not answer.
const NOWHERE: u64 = u64::MAX;

/// A device behind a function. All methods come from vCPU threads, any number at once, and must not block.
pub trait PciDevice: Send + Sync {
    /// Reads a register; `offset + width` lies within the registers.
    fn read(&self, offset: u64, width: Width) -> Result<u64, AccessError>;

    /// Writes a register; `offset + width` lies within the registers.
    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), AccessError>;

    /// Whether the guest wants messages from now on, or the interrupt line. Called with either at any time.
    fn use_messages(&self, on: bool);

    /// Back to the state after power-on, as far as the guest reached it through the function. No vCPU runs.
    fn reset(&self);
}

/// A capability of a device's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// What it is.
    pub id: u8,
    /// Its bytes behind id and link.
    pub body: Vec<u8>,
    /// The bits of `body` that the guest may change.
    pub writable: Vec<u8>,
}

/// A capability through which the guest reaches BAR 0 by configuration space alone: where its fields are, counted from
/// the capability's first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessWindow {
    /// Which of the capabilities.
    pub capability: usize,
    /// The number of the BAR, one byte.
    pub bar: usize,
    /// The offset in the BAR, four bytes.
    pub offset: usize,
    /// The width in bytes, four bytes.
    pub length: usize,
    /// The data, four bytes.
    pub data: usize,
}

/// What a function is made from.
pub struct FunctionSpec {
    /// Id of the device.
    pub id: String,
    /// What the guest sees it as.
    pub identity: Identity,
    /// The device.
    pub device: Arc<dyn PciDevice>,
    /// Bytes of its registers, which begin at offset 0 of BAR 0.
    pub registers: u64,
    /// Its capabilities, in order.
    pub capabilities: Vec<Capability>,
    /// One of them, if it is such a window.
    pub access_window: Option<AccessWindow>,
    /// The eventfd of each message interrupt.
    pub vectors: Vec<Arc<EventFd>>,
    /// The interrupt line, which the VM connects at its start.
    pub line: InterruptLine,
    /// Register writes that are eventfd signals: offset in BAR 0.
    pub doorbells: Vec<(u64, Arc<EventFd>)>,
}

/// Where everything is in BAR 0.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Layout {
    registers: Range<u64>,
    table: Range<u64>,
    pending: Range<u64>,
    size: u32,
}

impl Layout {
    fn new(registers: u64, table: u64, pending: u64) -> Result<Self, ConfigError> {
        let table_at = registers.next_multiple_of(PAGE);
        let pending_at = (table_at + table).next_multiple_of(PAGE);
        let end = pending_at + pending;
        let size = u32::try_from(end).ok().and_then(u32::checked_next_power_of_two);
        let size = size.ok_or(ConfigError::Bar { index: 0, size: u32::MAX })?;
        let (table, pending) = (table_at..table_at + table, pending_at..end);
        Ok(Self { registers: 0..registers, table, pending, size })
    }
}

/// What the guest changes.
struct State {
    config: ConfigSpace,
    msix: Msix,
    line: Wire,
    wiring: Option<Arc<dyn Wiring>>,
    /// The doorbells that the VM has for the moment.
    doorbells: Vec<DoorbellWrite>,
}

/// A function in the machine.
pub struct PciFunction {
    id: String,
    device: Arc<dyn PciDevice>,
    layout: Layout,
    /// Addresses that the host leads to BARs.
    window: Range<u64>,
    /// Configuration space after power-on.
    pristine: ConfigSpace,
    msix_at: usize,
    access_window: Option<AccessWindow>,
    spi: u32,
    doorbells: Vec<(u64, Arc<EventFd>)>,
    /// The address at which BAR 0 answers, or [`NOWHERE`].
    decoded: AtomicU64,
    /// Where configuration space is shown to the guest.
    shown: OnceLock<(Arc<RegisterImage>, usize)>,
    state: Mutex<State>,
    reads: AtomicU64,
    writes: AtomicU64,
}

impl PciFunction {
    /// A function whose BAR 0 is the next free place from `free` on; moves `free` behind it.
    pub fn new(
        spec: FunctionSpec,
        frame: Arc<V2mFrame>,
        window: Range<u64>,
        free: &mut u64,
    ) -> Result<Self, String> {
        let msix = Msix::new(frame, &spec.vectors, &spec.id);
        let layout = Layout::new(spec.registers, msix.table_size(), msix.pending_size());
        let layout = layout.map_err(|e| e.to_string())?;
        let base = free.next_multiple_of(layout.size.into());
        let end = base.saturating_add(layout.size.into());
        let address = u32::try_from(base).ok().filter(|_| end <= window.end);
        let address =
            address.ok_or_else(|| format!("its {:#x} bytes of registers do not fit", layout.size))?;
        *free = end;
        let built = configuration(&spec, &layout, address).map_err(|e| e.to_string())?;
        let (pristine, msix_at, access_window) = built;
        let line = Wire::new(spec.line.eventfd.clone(), &spec.id);
        let state = State { config: pristine.clone(), msix, line, wiring: None, doorbells: Vec::new() };
        Ok(Self {
            id: spec.id,
            device: spec.device,
            layout,
            window,
            pristine,
            msix_at,
            access_window,
            spi: spec.line.spi,
            doorbells: spec.doorbells,
            decoded: AtomicU64::new(NOWHERE),
            shown: OnceLock::new(),
            state: Mutex::new(state),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
        })
    }

    /// Shows configuration space at an offset of an image from now on. The first one stays.
    pub fn show_in(&self, image: Arc<RegisterImage>, offset: usize) {
        let state = self.lock();
        self.shown.get_or_init(|| (image, offset));
        self.show(&state.config, 0..SIZE);
    }

    /// SPI of the interrupt line.
    pub fn spi(&self) -> u32 {
        self.spi
    }

    /// Gives it the wiring of a VM that has started, with the interrupt line connected. No vCPU runs.
    pub fn attach(&self, wiring: Arc<dyn Wiring>) {
        let mut state = self.lock();
        state.line.restart(Some(self.spi));
        state.wiring = Some(wiring);
    }

    /// Back to the state after power-on; takes everything from the VM that it connected to it. No vCPU runs.
    pub fn detach(&self) {
        let mut state = self.lock();
        state.config = self.pristine.clone();
        self.show(&state.config, 0..SIZE);
        state.msix.disconnect();
        self.settle(&mut state);
        state.msix.restart();
        state.line.restart(None);
        state.wiring = None;
        self.device.reset();
    }

    /// Accesses that reached user space.
    pub fn count(&self) -> AccessCount {
        AccessCount {
            device: self.id.clone(),
            reads: self.reads.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
        }
    }

    /// The offset in BAR 0 of an access to an address, if the function answers there.
    pub fn decode(&self, address: u64, width: Width) -> Option<u64> {
        let base = self.decoded.load(Ordering::Acquire);
        let offset = address.checked_sub(base).filter(|_| base != NOWHERE)?;
        (offset + width.bytes() as u64 <= u64::from(self.layout.size)).then_some(offset)
    }

    /// Reads BAR 0 at an offset that [`Self::decode`] gave.
    pub fn read(&self, offset: u64, width: Width) -> Result<u64, AccessError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if let Some(offset) = within(&self.layout.table, offset, width) {
            return self.lock().msix.read_table(offset, width);
        }
        if let Some(offset) = within(&self.layout.pending, offset, width) {
            return self.lock().msix.read_pending(offset, width);
        }
        self.read_register(offset, width)
    }

    /// Writes BAR 0 at an offset that [`Self::decode`] gave.
    pub fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        if let Some(offset) = within(&self.layout.table, offset, width) {
            return self.lock().msix.write_table(offset, width, value);
        }
        if within(&self.layout.pending, offset, width).is_some() {
            return Err(AccessError::Direction);
        }
        self.write_register(offset, width, value)
    }

    /// Reads configuration space.
    pub fn read_config(&self, offset: usize, width: Width) -> u64 {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let state = self.lock();
        let Some((at, length)) = self.windowed(&state.config, offset, width) else {
            return state.config.read(offset, width);
        };
        drop(state);
        // What the device refuses reads as zero, as it does in BAR 0.
        self.read_register(at, length).unwrap_or(0)
    }

    /// Writes configuration space.
    pub fn write_config(&self, offset: usize, width: Width, value: u64) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock();
        if let Some((at, length)) = self.windowed(&state.config, offset, width) {
            drop(state);
            // What the device refuses has no effect, as in BAR 0.
            let _ = self.write_register(at, length, value);
            return;
        }
        state.config.write(offset, width, value);
        self.show(&state.config, offset..offset.saturating_add(width.bytes()));
        self.settle(&mut state);
        if self.opened(&state.config).is_some() {
            self.trap_reads(&state);
        }
    }

    /// Shows a range of configuration space to a guest that reads it as memory.
    fn show(&self, config: &ConfigSpace, range: Range<usize>) {
        let Some((image, place)) = self.shown.get() else { return };
        for at in (range.start & !3..range.end.min(SIZE)).step_by(4) {
            image.show(place + at, config.word(at));
        }
    }

    /// From here on a read of the access window is one of a register, which memory cannot show.
    fn trap_reads(&self, state: &State) {
        let Some(wiring) = &state.wiring else { return };
        if let Err(error) = wiring.trap_reads() {
            tracing::warn!("device {}: its access window reads as it was: {error}", self.id);
        }
    }

    fn read_register(&self, offset: u64, width: Width) -> Result<u64, AccessError> {
        let offset = within(&self.layout.registers, offset, width).ok_or(AccessError::NoRegister)?;
        self.device.read(offset, width)
    }

    fn write_register(&self, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        let offset = within(&self.layout.registers, offset, width).ok_or(AccessError::NoRegister)?;
        self.device.write(offset, width, value)
    }

    /// The access to BAR 0 that an access to the data of the access window stands for.
    fn windowed(&self, config: &ConfigSpace, offset: usize, width: Width) -> Option<(u64, Width)> {
        let window = self.access_window?;
        if offset != window.data || width == Width::Double {
            return None;
        }
        self.opened(config)
    }

    /// The part of BAR 0 that the guest has set the access window to.
    fn opened(&self, config: &ConfigSpace) -> Option<(u64, Width)> {
        let window = self.access_window?;
        if config.read(window.bar, Width::Byte) != 0 {
            return None;
        }
        let length = usize::try_from(config.word(window.length)).ok().and_then(Width::from_bytes)?;
        (length <= Width::Word).then(|| (config.word(window.offset).into(), length))
    }

    /// Does what configuration space says.
    fn settle(&self, state: &mut State) {
        let (control, command) = (state.config.half(self.msix_at + 2), state.config.command());
        let enabled = control & msix::CONTROL_ENABLE != 0;
        let masked = control & msix::CONTROL_FUNCTION_MASK != 0;
        self.device.use_messages(enabled);
        state.msix.set_gate(Gate { enabled, masked, bus_master: command & command::BUS_MASTER != 0 });
        self.settle_line(state, enabled || command & command::INTERRUPT_DISABLE == 0);
        self.settle_bar(state, command & command::MEMORY != 0);
    }

    /// A function that uses messages leaves its line alone, which needs no disconnection.
    fn settle_line(&self, state: &mut State, open: bool) {
        let Some(wiring) = &state.wiring else { return };
        let spi = open.then_some(self.spi);
        let led = state.line.lead_to(spi, |line| wiring.connect(line), |line| wiring.disconnect(line));
        if let Err(error) = led {
            tracing::warn!("device {}: interrupt line: {error}", self.id);
        }
    }

    /// Answers at the address in BAR 0 if that is one which the host leads there. The doorbells go along.
    fn settle_bar(&self, state: &mut State, memory: bool) {
        let base = state.config.bar(0);
        let end = base + u64::from(self.layout.size);
        let here = memory && base >= self.window.start && end <= self.window.end;
        let new = if here { base } else { NOWHERE };
        if self.decoded.swap(new, Ordering::AcqRel) == new {
            return;
        }
        let Some(wiring) = &state.wiring else { return };
        for doorbell in state.doorbells.drain(..) {
            if let Err(error) = wiring.remove_doorbell(&doorbell) {
                tracing::warn!("device {}: a doorbell stays where it was: {error}", self.id);
            }
        }
        if !here {
            return;
        }
        for (offset, event) in &self.doorbells {
            let (address, eventfd, device) = (base + offset, event.clone(), self.id.clone());
            let doorbell = DoorbellWrite { address, datamatch: None, eventfd, device };
            match wiring.add_doorbell(&doorbell) {
                Ok(()) => state.doorbells.push(doorbell),
                // The guest's writes are exits then, and work.
                Err(error) => tracing::warn!("device {}: kicks are slow: {error}", self.id),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The offset of an access from the start of a range that holds all of it.
fn within(range: &Range<u64>, offset: u64, width: Width) -> Option<u64> {
    let end = offset.checked_add(width.bytes() as u64)?;
    (offset >= range.start && end <= range.end).then(|| offset - range.start)
}

/// Configuration space, the place of the MSI-X capability, and the access window with its offsets in the space.
fn configuration(
    spec: &FunctionSpec,
    layout: &Layout,
    address: u32,
) -> Result<(ConfigSpace, usize, Option<AccessWindow>), ConfigError> {
    let mut config = ConfigSpace::new(&spec.identity);
    config.add_bar(0, layout.size, address)?;
    let mut places = Vec::new();
    for capability in &spec.capabilities {
        places.push(config.add_capability(capability.id, &capability.body, &capability.writable)?);
    }
    let mut body = Vec::new();
    // The number of vectors less one; a function has at least one.
    let last_vector = (spec.vectors.len().min(msix::MAX_VECTORS) as u16).saturating_sub(1);
    body.extend_from_slice(&last_vector.to_le_bytes());
    // Offsets in a BAR that fits 32 bits; the low three bits are the BAR's number, 0.
    body.extend_from_slice(&(layout.table.start as u32).to_le_bytes());
    body.extend_from_slice(&(layout.pending.start as u32).to_le_bytes());
    let control = (msix::CONTROL_ENABLE | msix::CONTROL_FUNCTION_MASK).to_le_bytes();
    let msix_at = config.add_capability(msix::CAPABILITY, &body, &control)?;
    let placed = |window: AccessWindow| {
        let at = *places.get(window.capability)?;
        let inside = |offset| Some(at + offset).filter(|offset| offset + 4 <= SIZE);
        Some(AccessWindow {
            capability: at,
            bar: inside(window.bar)?,
            offset: inside(window.offset)?,
            length: inside(window.length)?,
            data: inside(window.data)?,
        })
    };
    Ok((config, msix_at, spec.access_window.and_then(placed)))
}
