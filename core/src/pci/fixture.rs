//! A VM's wiring, and a function on it, to try things on.

use std::sync::{Arc, Mutex};

use gvmm_plugin_api::mmio::{AccessError, Width};
use vmm_sys_util::eventfd::EventFd;

use super::bars::RegisterBar;
use super::config::Identity;
use super::function::{AccessWindow, Capability, FunctionDevice, FunctionSpec};
use super::host::{Ecam, PciHost, Window};
use super::v2m::V2mFrame;
use crate::bus::Registers;
use crate::eventfd;
use crate::hypervisor::{DoorbellWrite, Error, InterruptLine, ReadableRegisters, Wiring};

/// Address of the GICv2m frame.
pub(crate) const FRAME: u64 = 0x802_0000;
/// Where its messages go.
pub(crate) const SETSPI: u64 = FRAME + 0x40;

/// What is connected, as Gunyah would have it: one eventfd an SPI, one doorbell an address.
#[derive(Default)]
pub(crate) struct Board {
    lines: Mutex<Vec<InterruptLine>>,
    raised: Mutex<Vec<(u32, u64)>>,
    doorbells: Mutex<Vec<u64>>,
    shown: Mutex<Vec<ReadableRegisters>>,
}

impl Board {
    /// The SPIs that have an eventfd, ascending.
    pub(crate) fn lines(&self) -> Vec<u32> {
        let mut spis: Vec<u32> = self.lines.lock().unwrap().iter().map(|line| line.spi).collect();
        spis.sort_unstable();
        spis
    }

    /// The addresses that have a doorbell, ascending.
    pub(crate) fn doorbells(&self) -> Vec<u64> {
        let mut addresses = self.doorbells.lock().unwrap().clone();
        addresses.sort_unstable();
        addresses
    }

    /// Signals that an SPI got.
    pub(crate) fn taken(&self, spi: u32) -> u64 {
        self.lines.lock().unwrap().iter().for_each(|line| self.take(line));
        self.raised.lock().unwrap().iter().filter(|(raised, _)| *raised == spi).map(|(_, count)| count).sum()
    }

    /// The addresses from which on the guest reads registers as memory, ascending.
    pub(crate) fn shown(&self) -> Vec<u64> {
        let mut bases: Vec<u64> = self.shown.lock().unwrap().iter().map(|registers| registers.base).collect();
        bases.sort_unstable();
        bases
    }

    /// What the guest reads as memory at a multiple of four, if it does.
    pub(crate) fn shown_at(&self, address: u64) -> Option<u32> {
        let shown = self.shown.lock().unwrap();
        let inside = |of: &&ReadableRegisters| (of.base..of.base + of.image.size()).contains(&address);
        shown.iter().find(inside).map(|registers| registers.image.shown((address - registers.base) as usize))
    }

    fn take(&self, line: &InterruptLine) {
        if let Ok(count) = line.eventfd.read() {
            self.raised.lock().unwrap().push((line.spi, count));
        }
    }
}

impl Wiring for Board {
    fn connect(&self, line: &InterruptLine) -> Result<(), Error> {
        let mut lines = self.lines.lock().unwrap();
        if lines.iter().any(|other| other.spi == line.spi) {
            return Err(Error::Call(format!("SPI {} is taken", line.spi)));
        }
        lines.push(line.clone());
        Ok(())
    }

    fn disconnect(&self, line: &InterruptLine) -> Result<(), Error> {
        let mut lines = self.lines.lock().unwrap();
        let at = lines.iter().position(|other| other.spi == line.spi);
        let at = at.ok_or_else(|| Error::Call(format!("SPI {} is free", line.spi)))?;
        self.take(&lines.remove(at));
        Ok(())
    }

    fn add_doorbell(&self, doorbell: &DoorbellWrite) -> Result<(), Error> {
        let mut doorbells = self.doorbells.lock().unwrap();
        if doorbells.contains(&doorbell.address) {
            return Err(Error::Call(format!("{:#x} is taken", doorbell.address)));
        }
        doorbells.push(doorbell.address);
        Ok(())
    }

    fn remove_doorbell(&self, doorbell: &DoorbellWrite) -> Result<(), Error> {
        let mut doorbells = self.doorbells.lock().unwrap();
        let at = doorbells.iter().position(|address| *address == doorbell.address);
        doorbells.remove(at.ok_or_else(|| Error::Call(format!("{:#x} is free", doorbell.address)))?);
        Ok(())
    }

    fn shows_registers(&self) -> bool {
        true
    }

    fn show_registers(&self, registers: &ReadableRegisters) -> Result<(), Error> {
        let mut shown = self.shown.lock().unwrap();
        let range = |of: &ReadableRegisters| of.base..of.base + of.image.size();
        let new = range(registers);
        if shown.iter().map(range).any(|old| old.start < new.end && new.start < old.end) {
            return Err(Error::Call(format!("something is shown at {:#x}", registers.base)));
        }
        shown.push(registers.clone());
        Ok(())
    }

    fn hide_registers(&self, base: u64) -> Result<(), Error> {
        self.shown.lock().unwrap().retain(|registers| registers.base != base);
        Ok(())
    }
}

pub(crate) fn line(spi: u32, device: &str) -> InterruptLine {
    InterruptLine { spi, eventfd: Arc::new(eventfd::new().unwrap()), device: device.to_owned() }
}

/// Address of configuration space.
pub(crate) const ECAM: u64 = 0x3000_0000;
/// Addresses of BARs.
pub(crate) const WINDOW: std::ops::Range<u64> = 0x1000_0000..0x1010_0000;
/// Bytes of registers of a [`Recorder`].
pub(crate) const REGISTERS: u64 = 0x100;

/// A device that notes what reaches it.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) calls: Mutex<Vec<String>>,
}

impl Recorder {
    fn note(&self, offset: u64, width: Width, call: String) {
        assert!(offset + width.bytes() as u64 <= REGISTERS, "an access outside of the device");
        self.calls.lock().unwrap().push(call);
    }

    pub(crate) fn taken(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

impl FunctionDevice for Recorder {
    fn read(&self, _: usize, offset: u64, width: Width) -> Result<u64, AccessError> {
        self.note(offset, width, format!("read {offset:#x}"));
        Ok(0x1234_5678)
    }

    fn write(&self, _: usize, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        self.note(offset, width, format!("write {offset:#x} {value:#x}"));
        Ok(())
    }

    fn use_messages(&self, _: bool) {}

    fn reset(&self) {
        self.calls.lock().unwrap().push("reset".to_owned());
    }
}

/// A bus with recorders on it, each with two vectors, a line (SPI 1, 2 and so on) and a doorbell at offset 0x40.
pub(crate) struct Bench {
    pub(crate) board: Arc<Board>,
    pub(crate) host: Arc<PciHost>,
    pub(crate) ecam: Ecam,
    pub(crate) window: Window,
    pub(crate) devices: Vec<Arc<Recorder>>,
    pub(crate) vectors: Vec<[Arc<EventFd>; 2]>,
    pub(crate) lines: Vec<InterruptLine>,
}

/// Offset of the access window in configuration space of each recorder.
pub(crate) const ACCESS_AT: u64 = 0x40;
/// Offset of its MSI-X capability.
pub(crate) const MSIX_AT: u64 = 0x54;

impl Bench {
    pub(crate) fn new(functions: usize) -> Self {
        let board = Arc::new(Board::default());
        let frame = Arc::new(V2mFrame::new(FRAME, 10..10 + 2 * functions as u32));
        let devices: Vec<_> = (0..functions).map(|_| Arc::new(Recorder::default())).collect();
        let event = || Arc::new(eventfd::new().unwrap());
        let vectors: Vec<_> = devices.iter().map(|_| [event(), event()]).collect();
        let lines: Vec<_> = (1..).zip(&devices).map(|(spi, _)| line(spi, "dev")).collect();
        let parts = devices.iter().zip(&vectors).zip(&lines);
        let specs = parts.map(|((device, vectors), line)| spec(device, vectors, line)).collect();
        let host = Arc::new(PciHost::new(specs, frame, ECAM, WINDOW).unwrap());
        for line in &lines {
            board.connect(line).unwrap();
        }
        let wiring: Arc<dyn Wiring> = board.clone();
        host.attach(&wiring);
        let (ecam, window) = (Ecam(host.clone()), Window(host.clone()));
        Self { board, host, ecam, window, devices, vectors, lines }
    }

    /// Reads configuration space of a device.
    pub(crate) fn config(&self, device: u64, offset: u64, width: Width) -> u64 {
        self.ecam.read(device << 15 | offset, width).unwrap()
    }

    pub(crate) fn set_config(&self, device: u64, offset: u64, width: Width, value: u64) {
        self.ecam.write(device << 15 | offset, width, value).unwrap();
    }

    /// Whether the guest sees in memory what a read of configuration space gives, where it sees any. Machines whose pages
    /// are not of 4 KiB show none.
    pub(crate) fn is_shown(&self, device: u64, offset: u64) -> bool {
        let place = device << 15 | offset & !3;
        let read = || self.ecam.read(place, Width::Word).unwrap() as u32;
        self.board.shown_at(ECAM + place).is_none_or(|shown| shown == read())
    }

    /// Whether the guest sees in memory what a read of the window gives, where it sees any. Where two BARs answer it may be
    /// either's.
    pub(crate) fn window_is_shown(&self, address: u64) -> bool {
        let Some(shown) = self.board.shown_at(address) else { return true };
        let functions = self.host.functions().iter();
        // What is no register reads as zero.
        let answers = functions.filter(|function| function.decode(address, Width::Word).is_some()).count();
        answers > 1 || self.read(address).unwrap_or(0) as u32 == shown
    }

    /// Reads an address of the window.
    pub(crate) fn read(&self, address: u64) -> Result<u64, AccessError> {
        self.window.read(address - WINDOW.start, Width::Word)
    }

    pub(crate) fn write(&self, address: u64, value: u64) -> Result<(), AccessError> {
        self.window.write(address - WINDOW.start, Width::Word, value)
    }
}

fn spec(device: &Arc<Recorder>, vectors: &[Arc<EventFd>; 2], line: &InterruptLine) -> FunctionSpec {
    let identity = Identity {
        vendor: 0x1234,
        device: 0x5678,
        subsystem_vendor: 0,
        subsystem: 0,
        class: 0xff_0000,
        revision: 0,
    };
    let access = Capability { id: 9, body: vec![0; 18], writable: vec![0xff; 18] };
    FunctionSpec {
        id: "dev".to_owned(),
        identity,
        device: device.clone(),
        bars: vec![RegisterBar { index: 0, registers: REGISTERS }],
        shared_bar: Some(0),
        capabilities: vec![access],
        access_window: Some(AccessWindow { capability: 0, bar: 4, offset: 8, length: 12, data: 16 }),
        vectors: vectors.to_vec(),
        line: Some(line.clone()),
        doorbells: vec![(0x40, Arc::new(eventfd::new().unwrap()))],
    }
}
