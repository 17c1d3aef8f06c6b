//! A function: configuration space, BARs with the device's registers and the MSI-X structures, and its interrupts.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use gvmm_plugin_api::mmio::{AccessError, Width};
pub use gvmm_plugin_api::pci::Capability;
use vmm_sys_util::eventfd::EventFd;

use super::assembly::{configuration, place};
use super::bars::{BarLayout, Place, RegisterBar, layouts};
use super::config::{ConfigSpace, Identity, SIZE, command};
use super::msix::{self, Gate, Msix};
use super::shown::ShownPart;
use super::v2m::V2mFrame;
use super::wire::Wire;
use crate::bus::AccessCount;
use crate::hypervisor::{DoorbellWrite, InterruptLine, Wiring};
use crate::memory::RegisterImage;

/// In `decoded`: the function does not answer.
const NOWHERE: u64 = u64::MAX;

/// A device behind a function. All methods come from vCPU threads, any number at once, and must not block.
pub trait FunctionDevice: Send + Sync {
    /// Reads a register; `offset + width` lies within the registers of the BAR.
    fn read(&self, bar: usize, offset: u64, width: Width) -> Result<u64, AccessError>;

    /// Writes a register; `offset + width` lies within the registers of the BAR.
    fn write(&self, bar: usize, offset: u64, width: Width, value: u64) -> Result<(), AccessError>;

    /// Whether the guest wants messages from now on, or the interrupt line. Called with either at any time.
    fn use_messages(&self, on: bool);

    /// Back to the state after power-on, as far as the guest reached it through the function. No vCPU runs.
    fn reset(&self);

    /// The first pages of BAR 0 as the guest may read them, if reading has no effect there. The device keeps them right
    /// from now on, a change being shown before the guest can know of it.
    fn image(&self) -> Option<Arc<RegisterImage>> {
        None
    }
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
    pub device: Arc<dyn FunctionDevice>,
    /// Its registers, no BAR twice.
    pub bars: Vec<RegisterBar>,
    /// The BAR whose registers the MSI-X structures are behind; without it they have a BAR of their own.
    pub shared_bar: Option<usize>,
    /// Its capabilities, in order.
    pub capabilities: Vec<Capability>,
    /// One of them, if it is such a window.
    pub access_window: Option<AccessWindow>,
    /// The eventfd of each message interrupt; without any there is no MSI-X.
    pub vectors: Vec<Arc<EventFd>>,
    /// The interrupt line, which the VM connects at its start.
    pub line: Option<InterruptLine>,
    /// Register writes that are eventfd signals: offset in BAR 0.
    pub doorbells: Vec<(u64, Arc<EventFd>)>,
}

/// A BAR in use.
struct Bar {
    layout: BarLayout,
    /// The address at which it answers, or [`NOWHERE`].
    decoded: AtomicU64,
}

/// An access to a BAR that has been decoded.
#[derive(Debug, Clone, Copy)]
pub struct BarAccess<'a> {
    bar: &'a BarLayout,
    offset: u64,
    width: Width,
}

/// What the guest changes.
struct State {
    config: ConfigSpace,
    msix: Msix,
    line: Option<Wire>,
    wiring: Option<Arc<dyn Wiring>>,
    /// The doorbells that the VM has for the moment.
    doorbells: Vec<DoorbellWrite>,
    /// What the guest reads as memory, while a VM can do that.
    parts: Vec<ShownPart>,
    /// The MSI-X table among them.
    table: Option<Arc<RegisterImage>>,
}

impl State {
    /// Shows a range of the MSI-X table to a guest that reads it as memory.
    fn show_table(&self, range: Range<u64>) {
        let Some(image) = &self.table else { return };
        for at in (range.start & !3..range.end.min(self.msix.table_size())).step_by(4) {
            if let Ok(word) = self.msix.read_table(at, Width::Word) {
                // The table has at most 32 KiB, and a word is read as one.
                image.show(at as usize, word as u32);
            }
        }
    }
}

/// Where configuration space is shown.
struct ConfigImage {
    image: Arc<RegisterImage>,
    /// The function's place in it.
    place: usize,
    /// Where the guest has the image.
    base: u64,
}

/// A function in the machine.
pub struct PciFunction {
    id: String,
    device: Arc<dyn FunctionDevice>,
    bars: Vec<Bar>,
    /// Addresses that the host leads to BARs.
    window: Range<u64>,
    /// Configuration space after power-on.
    pristine: ConfigSpace,
    /// The capability MSI-X.
    msix_at: Option<usize>,
    access_window: Option<AccessWindow>,
    spi: Option<u32>,
    doorbells: Vec<(u64, Arc<EventFd>)>,
    shown: OnceLock<ConfigImage>,
    state: Mutex<State>,
    reads: AtomicU64,
    writes: AtomicU64,
}

impl PciFunction {
    /// A function whose BARs are the next free places from `free` on; moves `free` behind them.
    pub fn new(
        spec: FunctionSpec,
        frame: Arc<V2mFrame>,
        window: Range<u64>,
        free: &mut u64,
    ) -> Result<Self, String> {
        let msix = Msix::new(frame, &spec.vectors, &spec.id);
        let layouts = layouts(&spec.bars, spec.shared_bar, msix.table_size(), msix.pending_size());
        let layouts = layouts.map_err(|e| e.to_string())?;
        let places =
            layouts.iter().map(|bar| place(bar.size, &window, free)).collect::<Result<Vec<_>, _>>()?;
        let built = configuration(&spec, &layouts, &places).map_err(|e| e.to_string())?;
        let (pristine, msix_at, access_window) = built;
        let line = spec.line.as_ref().map(|line| Wire::new(line.eventfd.clone(), &spec.id));
        let state = State {
            config: pristine.clone(),
            msix,
            line,
            wiring: None,
            doorbells: Vec::new(),
            parts: Vec::new(),
            table: None,
        };
        let bar = |layout| Bar { layout, decoded: AtomicU64::new(NOWHERE) };
        Ok(Self {
            id: spec.id,
            device: spec.device,
            bars: layouts.into_iter().map(bar).collect(),
            window,
            pristine,
            msix_at,
            access_window,
            spi: spec.line.map(|line| line.spi),
            doorbells: spec.doorbells,
            shown: OnceLock::new(),
            state: Mutex::new(state),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
        })
    }

    /// Shows configuration space at a place in an image from now on, which the guest has at an address. The first one
    /// stays.
    pub(super) fn show_in(&self, image: Arc<RegisterImage>, place: usize, base: u64) {
        let state = self.lock();
        self.shown.get_or_init(|| ConfigImage { image, place, base });
        self.show(&state.config, 0..SIZE);
    }

    /// SPI of the interrupt line, if there is one.
    pub fn spi(&self) -> Option<u32> {
        self.spi
    }

    /// Gives it the wiring of a VM that has started, with the interrupt line connected. No vCPU runs.
    pub fn attach(&self, wiring: Arc<dyn Wiring>) {
        let mut state = self.lock();
        if let Some(line) = &mut state.line {
            line.restart(self.spi);
        }
        if wiring.shows_registers() {
            self.make_parts(&mut state);
        }
        state.wiring = Some(wiring);
    }

    /// What of the BARs the guest may read as memory: what the device says, and the MSI-X table.
    fn make_parts(&self, state: &mut State) {
        state.parts.extend(self.device.image().map(|image| ShownPart::new(0, 0, image)));
        let Some(bar) = self.bars.iter().find(|bar| !bar.layout.table.is_empty()) else { return };
        let BarLayout { index, table, .. } = &bar.layout;
        // A table has at most 32 KiB. Machines that can map none have its reads as exits.
        let Ok(image) = RegisterImage::blank((table.end - table.start) as usize) else { return };
        let image = Arc::new(image);
        state.parts.push(ShownPart::new(*index, table.start, image.clone()));
        state.table = Some(image);
        state.show_table(0..state.msix.table_size());
    }

    /// Back to the state after power-on; takes everything from the VM that it connected to it. No vCPU runs.
    pub fn detach(&self) {
        let mut state = self.lock();
        state.config = self.pristine.clone();
        self.show(&state.config, 0..SIZE);
        state.msix.disconnect();
        self.settle(&mut state);
        state.msix.restart();
        if let Some(line) = &mut state.line {
            line.restart(None);
        }
        state.parts.clear();
        state.table = None;
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

    /// The access to one of its BARs that an access to an address is, if it answers there.
    pub fn decode(&self, address: u64, width: Width) -> Option<BarAccess<'_>> {
        self.bars.iter().find_map(|Bar { layout: bar, decoded }| {
            let base = decoded.load(Ordering::Acquire);
            let offset = address.checked_sub(base).filter(|_| base != NOWHERE)?;
            let inside = offset + width.bytes() as u64 <= u64::from(bar.size);
            inside.then_some(BarAccess { bar, offset, width })
        })
    }

    /// Reads a BAR.
    pub fn read(&self, access: BarAccess<'_>) -> Result<u64, AccessError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let BarAccess { bar, offset, width } = access;
        match bar.place(offset, width) {
            Place::Registers(offset) => self.device.read(bar.index, offset, width),
            Place::Table(offset) => self.lock().msix.read_table(offset, width),
            Place::Pending(offset) => self.lock().msix.read_pending(offset, width),
            Place::Nothing => Err(AccessError::NoRegister),
        }
    }

    /// Writes a BAR.
    pub fn write(&self, access: BarAccess<'_>, value: u64) -> Result<(), AccessError> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        let BarAccess { bar, offset, width } = access;
        match bar.place(offset, width) {
            Place::Registers(offset) => self.device.write(bar.index, offset, width, value),
            Place::Table(offset) => {
                let mut state = self.lock();
                state.msix.write_table(offset, width, value)?;
                state.show_table(offset..offset + width.bytes() as u64);
                Ok(())
            }
            Place::Pending(_) => Err(AccessError::Direction),
            Place::Nothing => Err(AccessError::NoRegister),
        }
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
        self.register(at, length).and_then(|at| self.device.read(0, at, length).ok()).unwrap_or(0)
    }

    /// Writes configuration space.
    pub fn write_config(&self, offset: usize, width: Width, value: u64) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock();
        if let Some((at, length)) = self.windowed(&state.config, offset, width) {
            drop(state);
            if let Some(at) = self.register(at, length) {
                // What the device refuses has no effect, as in BAR 0.
                let _ = self.device.write(0, at, length, value);
            }
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
        let Some(ConfigImage { image, place, .. }) = self.shown.get() else { return };
        for at in (range.start & !3..range.end.min(SIZE)).step_by(4) {
            image.show(place + at, config.word(at));
        }
    }

    /// From here on a read of the access window is one of a register, which memory cannot show.
    fn trap_reads(&self, state: &State) {
        let (Some(wiring), Some(config)) = (&state.wiring, self.shown.get()) else { return };
        if let Err(error) = wiring.hide_registers(config.base) {
            tracing::warn!("device {}: its access window reads as it was: {error}", self.id);
        }
    }

    /// Where in the registers of BAR 0 the access window leads.
    fn register(&self, offset: u64, width: Width) -> Option<u64> {
        let bar = self.bars.iter().find(|bar| bar.layout.index == 0)?;
        match bar.layout.place(offset, width) {
            Place::Registers(offset) => Some(offset),
            _ => None,
        }
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
        let control = self.msix_at.map_or(0, |at| state.config.half(at + 2));
        let command = state.config.command();
        let enabled = control & msix::CONTROL_ENABLE != 0;
        let masked = control & msix::CONTROL_FUNCTION_MASK != 0;
        self.device.use_messages(enabled);
        state.msix.set_gate(Gate { enabled, masked, bus_master: command & command::BUS_MASTER != 0 });
        self.settle_line(state, enabled || command & command::INTERRUPT_DISABLE == 0);
        for bar in &self.bars {
            self.settle_bar(state, bar, command & command::MEMORY != 0);
        }
    }

    /// A function that uses messages leaves its line alone, which needs no disconnection.
    fn settle_line(&self, state: &mut State, open: bool) {
        let (Some(wiring), Some(wire)) = (&state.wiring, &mut state.line) else { return };
        let spi = self.spi.filter(|_| open);
        let led = wire.lead_to(spi, |line| wiring.connect(line), |line| wiring.disconnect(line));
        if let Err(error) = led {
            tracing::warn!("device {}: interrupt line: {error}", self.id);
        }
    }

    /// A BAR answers at the address in its register if that is one which the host leads there. What the guest reads of
    /// it as memory goes along, and the doorbells in BAR 0.
    fn settle_bar(&self, state: &mut State, bar: &Bar, memory: bool) {
        let base = state.config.bar(bar.layout.index);
        let end = base + u64::from(bar.layout.size);
        let here = memory && base >= self.window.start && end <= self.window.end;
        let new = if here { base } else { NOWHERE };
        if bar.decoded.swap(new, Ordering::AcqRel) == new {
            return;
        }
        self.move_parts(state, bar.layout.index, here.then_some(base));
        if bar.layout.index == 0 {
            self.move_doorbells(state, here.then_some(base));
        }
    }

    fn move_parts(&self, state: &mut State, bar: usize, base: Option<u64>) {
        let Some(wiring) = &state.wiring else { return };
        for part in state.parts.iter_mut().filter(|part| part.bar() == bar) {
            part.follow(base, &**wiring, &self.id);
        }
    }

    /// Puts the doorbells where BAR 0 is.
    fn move_doorbells(&self, state: &mut State, base: Option<u64>) {
        let Some(wiring) = &state.wiring else { return };
        for doorbell in state.doorbells.drain(..) {
            if let Err(error) = wiring.remove_doorbell(&doorbell) {
                tracing::warn!("device {}: a doorbell stays where it was: {error}", self.id);
            }
        }
        let Some(base) = base else { return };
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
