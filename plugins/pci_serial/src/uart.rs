//! The UART: `vm-superio`'s 16550A, and a transmitter that can be full.
//!
//! The chip of `vm-superio` takes any number of bytes at once. Here the transmitter has a FIFO that the host empties, so
//! that a guest waits for a slow host as it would for a slow line, and loses nothing.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

/// Number of registers, a byte each (TI PC16550D, table II).
pub(crate) const REGISTERS: u8 = 8;
/// Bytes that wait for the host before the guest waits.
pub(crate) const TRANSMIT_FIFO: usize = 512;
/// Bytes that a driver may write once it has seen an empty transmitter. A 16550A has FIFOs of 16, but the receive FIFO of
/// `vm-superio` has 64, and Linux measures that one by a loopback and takes both to be alike.
const BURST: usize = 64;

/// Registers, by their offsets (TI PC16550D, table II).
mod reg {
    pub(super) const DATA: u8 = 0;
    pub(super) const INTERRUPT_ENABLE: u8 = 1;
    pub(super) const INTERRUPT_ID: u8 = 2;
    pub(super) const LINE_CONTROL: u8 = 3;
    pub(super) const MODEM_CONTROL: u8 = 4;
    pub(super) const LINE_STATUS: u8 = 5;
}

/// Bits of registers (TI PC16550D, table II).
mod bit {
    /// Interrupt enable: received data.
    pub(super) const RECEIVED: u8 = 1;
    /// Interrupt identification: the transmitter is empty; data was received. Both together mean something else.
    pub(super) const ID_EMPTY: u8 = 2;
    pub(super) const ID_RECEIVED: u8 = 4;
    /// Line control: the first two registers are the baud rate's divisor.
    pub(super) const DIVISOR: u8 = 1 << 7;
    /// Modem control: what is sent comes back.
    pub(super) const LOOP: u8 = 1 << 4;
    /// Line status: the transmitter takes a burst; it has sent all.
    pub(super) const TAKES_MORE: u8 = 1 << 5;
    pub(super) const ALL_SENT: u8 = 1 << 6;
}

/// The interrupt output of the chip.
#[derive(Debug, Default)]
struct Pin(AtomicBool);

impl Trigger for Pin {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// What the guest has sent and the host has not taken.
#[derive(Debug, Default)]
struct Transmitter {
    /// Oldest first: first what was sent before the last reset, of which the guest sees nothing any more.
    fifo: VecDeque<u8>,
    before_reset: usize,
    lost: u64,
}

impl Transmitter {
    /// What the guest knows of.
    fn len(&self) -> usize {
        self.fifo.len() - self.before_reset
    }

    fn reset(&mut self) {
        let kept = self.fifo.len().min(TRANSMIT_FIFO);
        self.lost += (self.fifo.len() - kept) as u64;
        self.fifo.truncate(kept);
        self.before_reset = kept;
    }
}

impl io::Write for Transmitter {
    /// Takes all bytes, the last of which are lost if a driver writes without asking for room.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = TRANSMIT_FIFO - self.len();
        let taken = &bytes[..bytes.len().min(room)];
        self.fifo.extend(taken);
        self.lost += (bytes.len() - taken.len()) as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The UART, one access at a time.
#[derive(Debug)]
pub(crate) struct Uart {
    chip: Serial<Pin, NoEvents, Transmitter>,
    /// As last written.
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
    /// The guest saw a transmitter without room, or has not been told that it is empty: it waits for an interrupt.
    owes_empty: bool,
}

impl Default for Uart {
    fn default() -> Self {
        Self {
            chip: Serial::new(Pin::default(), Transmitter::default()),
            interrupt_enable: 0,
            line_control: 0,
            modem_control: 0,
            owes_empty: false,
        }
    }
}

impl Uart {
    /// Back to the state after power-on. What the guest has sent before still goes to the host.
    pub(crate) fn reset(&mut self) {
        let mut transmitter = std::mem::take(self.chip.writer_mut());
        transmitter.reset();
        *self = Self::default();
        *self.chip.writer_mut() = transmitter;
    }

    /// Reads a register below [`REGISTERS`].
    pub(crate) fn read(&mut self, register: u8) -> u8 {
        let value = self.chip.read(register);
        match register {
            reg::INTERRUPT_ID if value & bit::ID_EMPTY != 0 && value & bit::ID_RECEIVED != 0 => {
                self.owes_empty = true;
                value & !bit::ID_EMPTY
            }
            reg::LINE_STATUS => {
                let takes_more = self.takes_burst();
                self.owes_empty |= !takes_more;
                let keep = |value: u8, bit: u8, on: bool| if on { value } else { value & !bit };
                let value = keep(value, bit::TAKES_MORE, takes_more);
                keep(value, bit::ALL_SENT, self.chip.writer().len() == 0)
            }
            _ => value,
        }
    }

    /// Writes a register below [`REGISTERS`].
    pub(crate) fn write(&mut self, register: u8, value: u8) {
        let divisor = self.line_control & bit::DIVISOR != 0;
        match register {
            reg::INTERRUPT_ENABLE if !divisor => self.interrupt_enable = value,
            reg::LINE_CONTROL => self.line_control = value,
            reg::MODEM_CONTROL => self.modem_control = value,
            reg::DATA if !divisor && !self.takes_burst() => self.owes_empty = true,
            _ => {}
        }
        self.poke(register, value);
    }

    fn poke(&mut self, register: u8, value: u8) {
        // Neither pin nor transmitter refuses anything.
        let _ = self.chip.write(register, value);
    }

    /// Whether the chip has raised its interrupt since the last call.
    pub(crate) fn take_interrupt(&mut self) -> bool {
        if self.owes_empty && self.takes_burst() && self.line_control & bit::DIVISOR == 0 {
            self.owes_empty = false;
            // Enabled again, the chip raises what holds.
            self.poke(reg::INTERRUPT_ENABLE, self.interrupt_enable);
        }
        self.chip.interrupt_evt().0.swap(false, Ordering::Relaxed)
    }

    fn takes_burst(&self) -> bool {
        self.chip.writer().len() + BURST <= TRANSMIT_FIFO
    }

    /// What waits for the host, oldest first.
    pub(crate) fn unsent(&self) -> &VecDeque<u8> {
        &self.chip.writer().fifo
    }

    /// So many of the oldest bytes are off the line.
    pub(crate) fn sent(&mut self, count: usize) {
        let transmitter = self.chip.writer_mut();
        transmitter.fifo.drain(..count);
        transmitter.before_reset = transmitter.before_reset.saturating_sub(count);
    }

    /// Bytes that were lost since the last call, because the guest sent them to a full transmitter.
    pub(crate) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.chip.writer_mut().lost)
    }

    /// How much input the chip takes: none until a driver listens, or else it would be lost when one begins to.
    pub(crate) fn input_room(&self) -> usize {
        let listens = self.interrupt_enable & bit::RECEIVED != 0 && self.modem_control & bit::LOOP == 0;
        if listens { self.chip.fifo_capacity() } else { 0 }
    }

    /// Receives from the host; how many bytes were taken.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> usize {
        let bytes = &bytes[..bytes.len().min(self.input_room())];
        self.chip.enqueue_raw_bytes(bytes).unwrap_or(0)
    }
}

#[cfg(test)]
#[path = "uart_test.rs"]
mod tests;
