//! A GICv2m frame: messages written to it raise SPIs (Arm Server Base System Architecture, "GICv2m architecture").
//!
//! Neither Gunyah nor the machine has an ITS. The frame is emulated, but no message passes through it while the guest
//! runs: a message is an address and a value that the guest gave to a device, from which the frame tells the SPI, and
//! the device's eventfd is connected to that SPI.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gvmm_plugin_api::mmio::{AccessError, Width};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::Registers;
use crate::eventfd;
use crate::hypervisor::{Error, InterruptLine, Wiring};

/// Bytes of the frame's registers.
pub const FRAME_SIZE: u64 = 0x1000;
/// INTID of SPI 0.
pub const FIRST_INTID: u32 = 32;

/// Register offsets.
mod reg {
    /// First INTID in bits 25 to 16, their number in bits 9 to 0.
    pub(super) const MSI_TYPER: u64 = 0x008;
    /// A write of an INTID raises it.
    pub(super) const MSI_SETSPI_NS: u64 = 0x040;
    /// Who made the frame.
    pub(super) const MSI_IIDR: u64 = 0xfcc;
    /// Identification registers, of which only the one with the architecture's version is not zero.
    pub(super) const FIRST_ID: u64 = 0xfd0;
    pub(super) const LAST_ID: u64 = 0xffc;
}

/// Product 'G', architecture and revision 0, no JEP106 code of an implementer.
const IIDR: u64 = 0x47 << 20;

/// What is behind the frame in a running VM.
#[derive(Default)]
struct Connected {
    wiring: Option<Arc<dyn Wiring>>,
    /// The eventfd of each SPI that has one.
    events: BTreeMap<u32, Arc<EventFd>>,
}

/// The frame.
pub struct V2mFrame {
    base: u64,
    spis: Range<u32>,
    connected: Mutex<Connected>,
}

impl V2mFrame {
    /// A frame at an address for these SPIs.
    pub fn new(base: u64, spis: Range<u32>) -> Self {
        Self { base, spis, connected: Mutex::default() }
    }

    /// Address of its registers.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Its SPIs.
    pub fn spis(&self) -> Range<u32> {
        self.spis.clone()
    }

    /// Gives it the wiring of a VM that has started; `None` takes it away at the end.
    pub fn attach(&self, wiring: Option<Arc<dyn Wiring>>) {
        *self.lock() = Connected { wiring, events: BTreeMap::new() };
    }

    /// The SPI that a message raises, if it goes to this frame.
    pub fn spi(&self, address: u64, data: u32) -> Option<u32> {
        let spi = data.checked_sub(FIRST_INTID)?;
        (address == self.base + reg::MSI_SETSPI_NS && self.spis.contains(&spi)).then_some(spi)
    }

    /// Has a line's eventfd raise its SPI. An SPI takes one: under Gunyah a doorbell has a single irqfd.
    pub fn connect(&self, line: &InterruptLine) -> Result<(), Error> {
        let mut connected = self.lock();
        if connected.events.contains_key(&line.spi) {
            let (spi, device) = (line.spi, &line.device);
            return Err(Error::Call(format!("SPI {spi} of {device} is already that of another message")));
        }
        connected.wiring()?.connect(line)?;
        connected.events.insert(line.spi, line.eventfd.clone());
        Ok(())
    }

    /// Undoes [`Self::connect`].
    pub fn disconnect(&self, line: &InterruptLine) -> Result<(), Error> {
        let mut connected = self.lock();
        connected.events.remove(&line.spi);
        connected.wiring()?.disconnect(line)
    }

    /// The guest itself writes a message.
    fn raise(&self, spi: u32) -> Result<(), Error> {
        let connected = self.lock();
        if let Some(event) = connected.events.get(&spi) {
            eventfd::signal(event);
            return Ok(());
        }
        let event = eventfd::new().map_err(|e| Error::Call(format!("cannot make an eventfd: {e}")))?;
        let line = InterruptLine { spi, eventfd: Arc::new(event), device: "v2m".to_owned() };
        let wiring = connected.wiring()?;
        wiring.connect(&line)?;
        eventfd::signal(&line.eventfd);
        wiring.disconnect(&line)
    }

    fn lock(&self) -> MutexGuard<'_, Connected> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connected {
    fn wiring(&self) -> Result<&Arc<dyn Wiring>, Error> {
        self.wiring.as_ref().ok_or_else(|| Error::Call("no VM runs".to_owned()))
    }
}

impl Registers for V2mFrame {
    fn read(&self, offset: u64, width: Width) -> Result<u64, AccessError> {
        if width != Width::Word || !offset.is_multiple_of(4) {
            return Err(AccessError::Width);
        }
        match offset {
            reg::MSI_TYPER => {
                let count = self.spis.end - self.spis.start;
                Ok(u64::from((self.spis.start + FIRST_INTID) << 16 | count))
            }
            reg::MSI_IIDR => Ok(IIDR),
            reg::FIRST_ID..=reg::LAST_ID => Ok(0),
            reg::MSI_SETSPI_NS => Err(AccessError::Direction),
            _ => Err(AccessError::NoRegister),
        }
    }

    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        // A message is a write of 32 bits, or of 16.
        if !matches!(width, Width::Word | Width::Half) || !offset.is_multiple_of(4) {
            return Err(AccessError::Width);
        }
        match offset {
            reg::MSI_SETSPI_NS => {
                // The width is at most 32 bits.
                let spi = self.spi(self.base + offset, value as u32).ok_or(AccessError::NoRegister)?;
                if let Err(error) = self.raise(spi) {
                    tracing::warn!("message of the guest's own: {error}");
                }
                Ok(())
            }
            reg::MSI_TYPER | reg::MSI_IIDR | reg::FIRST_ID..=reg::LAST_ID => Err(AccessError::Direction),
            _ => Err(AccessError::NoRegister),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::fixture::{Board, line};

    const BASE: u64 = 0x802_0000;

    #[test]
    fn says_which_interrupts_it_has() {
        let frame = V2mFrame::new(BASE, 5..12);
        assert_eq!(frame.read(reg::MSI_TYPER, Width::Word), Ok(37 << 16 | 7));
        assert_eq!(frame.read(reg::MSI_IIDR, Width::Word), Ok(IIDR));
        assert_eq!(frame.read(0xfe8, Width::Word), Ok(0));
        assert_eq!(frame.read(reg::MSI_SETSPI_NS, Width::Word), Err(AccessError::Direction));
        assert_eq!(frame.read(reg::MSI_TYPER, Width::Half), Err(AccessError::Width));
        assert_eq!(frame.write(reg::MSI_TYPER, Width::Word, 0), Err(AccessError::Direction));
    }

    #[test]
    fn a_message_to_another_address_or_interrupt_is_none() {
        let frame = V2mFrame::new(BASE, 5..12);
        assert_eq!(frame.spi(BASE + 0x40, 37), Some(5));
        assert_eq!(frame.spi(BASE + 0x40, 43), Some(11));
        for (address, data) in
            [(BASE + 0x40, 44), (BASE + 0x40, 36), (BASE + 0x40, 5), (BASE + 0x44, 37), (BASE, 37), (0, 37)]
        {
            assert_eq!(frame.spi(address, data), None);
        }
    }

    #[test]
    fn a_message_of_the_guests_own_raises_its_interrupt() {
        let (board, frame) = (Arc::new(Board::default()), V2mFrame::new(BASE, 5..12));
        frame.attach(Some(board.clone()));
        frame.write(reg::MSI_SETSPI_NS, Width::Word, 38).unwrap();
        assert_eq!(board.taken(6), 1);
        let disk = line(6, "disk");
        frame.connect(&disk).unwrap();
        frame.write(reg::MSI_SETSPI_NS, Width::Half, 38).unwrap();
        assert_eq!(disk.eventfd.read().unwrap(), 1);
        assert_eq!(frame.write(reg::MSI_SETSPI_NS, Width::Word, 99), Err(AccessError::NoRegister));
    }

    #[test]
    fn an_interrupt_belongs_to_one_message() {
        let (board, frame) = (Arc::new(Board::default()), V2mFrame::new(BASE, 5..12));
        frame.attach(Some(board.clone()));
        frame.connect(&line(6, "disk")).unwrap();
        let error = frame.connect(&line(6, "net")).unwrap_err().to_string();
        assert_eq!(error, "SPI 6 of net is already that of another message");
        frame.disconnect(&line(6, "disk")).unwrap();
        frame.connect(&line(6, "net")).unwrap();
        frame.attach(None);
        assert!(frame.connect(&line(7, "net")).is_err());
    }
}
