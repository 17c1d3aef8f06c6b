//! A VM's wiring, and a function on it, to try things on.

use std::sync::atomic::{AtomicBool, Ordering};
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
use crate::hypervisor::{DoorbellWrite, Error, InterruptLine, Wiring};

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
    pub(crate) reads_trapped: AtomicBool,
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

    fn trap_reads(&self) -> Result<(), Error> {
        self.reads_trapped.store(true, Ordering::Relaxed);
        Ok(())
    }
}

pub(crate) fn line(spi: u32, device: &str) -> InterruptLine {
    InterruptLine { spi, eventfd: Arc::new(eventfd::new().unwrap()), device: device.to_owned() }
}

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
        let host = Arc::new(PciHost::new(specs, frame, WINDOW).unwrap());
        for line in &lines {
            board.connect(line).unwrap();
        }
        let wiring: Arc<dyn Wiring> = board.clone();
        host.attach(&wiring);
        // Here already, so that it has to follow what tests do.
        host.image();
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

    /// Whether the guest sees in memory what a read of configuration space gives, as long as it may read the memory.
    pub(crate) fn is_shown(&self, device: u64, offset: u64) -> bool {
        let place = device << 15 | offset & !3;
        let read = || self.ecam.read(place, Width::Word).unwrap() as u32;
        let trapped = self.board.reads_trapped.load(Ordering::Relaxed);
        // Machines whose pages are not of 4 KiB have no image.
        trapped || self.host.image().is_none_or(|image| image.shown(place as usize) == read())
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
