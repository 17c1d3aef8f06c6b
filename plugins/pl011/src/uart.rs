//! The registers and FIFOs of the UART, and nothing of the host: bytes are put in and taken out by the [`port`].
//!
//! Two things differ from the silicon, since there is no line with a speed. A byte is on its way for as long as the
//! host has not taken it. And the UART works as though firmware had set it up: UARTEN and TXE are not needed to
//! transmit (the kernel's earlycon counts on it) and UARTEN not to receive.
//!
//! [`port`]: crate::port
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use gvmm_plugin_api::mmio::AccessError;

use crate::registers::{Register, control, error, flag, interrupt, line, mask};

/// Entries of a FIFO in revision r1p5; before it was 16. Drivers take it from the revision in UARTPeriphID2.
pub(crate) const FIFO_DEPTH: usize = 32;

/// So many reads of UARTFR in a row with nothing to wait for but input are a guest that polls for input. (A wait for
/// the transmitter ends with the first read that shows it idle, and the next wait starts with one.)
const INPUT_POLLS: u8 = 3;

/// Registers, FIFOs and interrupt causes.
#[derive(Debug)]
pub(crate) struct Uart {
    low_power: u16,
    integer_baud: u16,
    fractional_baud: u16,
    line_control: u16,
    control: u16,
    levels: u16,
    interrupt_mask: u16,
    dma_control: u16,
    /// UARTRIS.
    causes: u16,
    /// UARTRSR.
    receive_status: u16,
    /// A byte was lost and none has come since: the overrun bit of UARTDR.
    overrun: bool,
    received: VecDeque<u8>,
    /// The transmit FIFO, behind what was in it at the last reset.
    unsent: VecDeque<u8>,
    /// So many of the unsent bytes are from before the last reset; the guest no longer sees them.
    stale: usize,
    /// A cause that is not masked has come up since [`Uart::take_edge`].
    edge: bool,
    /// The last access was a read of UARTFR that showed a busy transmitter.
    saw_busy: bool,
    /// Reads of UARTFR in a row that are polls for input, up to [`INPUT_POLLS`].
    input_polls: u8,
}

impl Default for Uart {
    fn default() -> Self {
        Self {
            low_power: 0,
            integer_baud: 0,
            fractional_baud: 0,
            line_control: 0,
            control: control::TXE | control::RXE,
            levels: 0x12,
            interrupt_mask: 0,
            dma_control: 0,
            causes: 0,
            receive_status: 0,
            overrun: false,
            received: VecDeque::with_capacity(FIFO_DEPTH),
            unsent: VecDeque::with_capacity(FIFO_DEPTH),
            stale: 0,
            edge: false,
            saw_busy: false,
            input_polls: 0,
        }
    }
}

/// What a write did to the bytes on the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// Nothing, or it put a byte into the transmit FIFO.
    Done,
    /// The transmit FIFO was full and the byte is lost.
    Lost,
    /// The byte came back by loopback to a full receive FIFO and is lost.
    Overrun,
}

impl Uart {
    /// Back to the state after power-on. What the guest has sent before stays on its way to the host, a FIFO of it:
    /// how many bytes more there were and are lost.
    pub(crate) fn reset(&mut self) -> usize {
        let mut unsent = std::mem::take(&mut self.unsent);
        let lost = unsent.len().saturating_sub(FIFO_DEPTH);
        unsent.drain(..lost);
        *self = Self { stale: unsent.len(), unsent, ..Self::default() };
        lost
    }

    /// Reads a register.
    pub(crate) fn read(&mut self, register: Register) -> Result<u16, AccessError> {
        let value = match register {
            Register::Data => self.take_received(),
            Register::Flags => self.flags(),
            Register::ReceiveStatus => self.receive_status,
            Register::LowPower => self.low_power,
            Register::IntegerBaud => self.integer_baud,
            Register::FractionalBaud => self.fractional_baud,
            Register::LineControl => self.line_control,
            Register::Control => self.control,
            Register::FifoLevels => self.levels,
            Register::InterruptMask => self.interrupt_mask,
            Register::RawInterrupts => self.causes,
            Register::MaskedInterrupts => self.pending(),
            Register::DmaControl => self.dma_control,
            Register::Id(byte) => byte.into(),
            Register::InterruptClear => return Err(AccessError::Direction),
        };
        self.note_polls(register, value);
        Ok(value)
    }

    /// Writes a register.
    pub(crate) fn write(&mut self, register: Register, value: u16) -> Result<Written, AccessError> {
        self.saw_busy = false;
        self.input_polls = 0;
        match register {
            // Eight data bits; those above are status bits of a read.
            Register::Data => return Ok(self.transmit(value as u8)),
            Register::ReceiveStatus => self.receive_status = 0,
            Register::LowPower => self.low_power = value & mask::LOW_POWER,
            Register::IntegerBaud => self.integer_baud = value,
            Register::FractionalBaud => self.fractional_baud = value & mask::FRACTIONAL_BAUD,
            Register::LineControl => self.line_control = value & mask::LINE_CONTROL,
            Register::Control => self.set_control(value & mask::CONTROL),
            Register::FifoLevels => self.levels = value & mask::FIFO_LEVELS,
            Register::InterruptMask => self.set_interrupt_mask(value & mask::INTERRUPTS),
            Register::InterruptClear => self.causes &= !value,
            Register::DmaControl => self.dma_control = value & mask::DMA_CONTROL,
            Register::Flags | Register::RawInterrupts | Register::MaskedInterrupts | Register::Id(_) => {
                return Err(AccessError::Direction);
            }
        }
        Ok(Written::Done)
    }

    /// Takes input from the host; how much of it fitted.
    pub(crate) fn receive(&mut self, input: &[u8]) -> usize {
        let count = input.len().min(self.input_room());
        if count > 0 {
            self.append_received(&input[..count]);
            // An edge for causes that were set before, too: a guest that left its handler with one still set, and so
            // gets no edge for it, is not stuck.
            self.edge |= self.pending() != 0;
        }
        count
    }

    /// How many bytes of input the guest can take now.
    ///
    /// None as long as nobody in the guest would read them, so that what is typed ahead waits on the host's side: a
    /// driver empties the FIFO when it opens the port.
    pub(crate) fn input_room(&self) -> usize {
        let listening =
            self.interrupt_mask & (interrupt::RX | interrupt::RT) != 0 || self.input_polls >= INPUT_POLLS;
        if self.control & control::RXE == 0 || self.control & control::LBE != 0 || !listening {
            return 0;
        }
        self.depth().saturating_sub(self.received.len())
    }

    /// Whether the guest has read all of the input so far and can take more.
    pub(crate) fn wants_input(&self) -> bool {
        self.received.is_empty() && self.input_room() > 0
    }

    /// Bytes on their way to the host, oldest first.
    pub(crate) fn unsent(&self) -> &VecDeque<u8> {
        &self.unsent
    }

    /// The host has taken the oldest bytes.
    pub(crate) fn sent(&mut self, count: usize) {
        let before = self.transmit_level();
        let count = count.min(self.unsent.len());
        self.unsent.drain(..count);
        self.stale = self.stale.saturating_sub(count);
        self.transmit_level_fell_from(before);
    }

    /// Whether the next write of UARTDR would find no room.
    pub(crate) fn transmit_full(&self) -> bool {
        self.transmit_level() >= self.depth()
    }

    /// Whether the guest waits until the host takes bytes: for the interrupt that follows, or, without FIFOs, at every
    /// byte.
    pub(crate) fn must_send(&self) -> bool {
        self.transmit_level() > self.transmit_trigger()
            && (self.interrupt_mask & interrupt::TX != 0 || !self.fifos_enabled())
    }

    /// Whether the guest is polling UARTFR until the transmitter is idle or has room.
    pub(crate) fn polls_transmitter(&self) -> bool {
        self.saw_busy && self.transmit_level() > 0
    }

    /// UARTMIS.
    pub(crate) fn pending(&self) -> u16 {
        self.causes & self.interrupt_mask
    }

    /// Whether the interrupt line is to be raised for causes that have come up since the last call.
    pub(crate) fn take_edge(&mut self) -> bool {
        std::mem::take(&mut self.edge)
    }

    fn fifos_enabled(&self) -> bool {
        self.line_control & line::FEN != 0
    }

    /// Bytes that each FIFO holds. Switching the FIFOs off loses none that are in them.
    fn depth(&self) -> usize {
        if self.fifos_enabled() { FIFO_DEPTH } else { 1 }
    }

    fn receive_trigger(&self) -> usize {
        if self.fifos_enabled() { trigger(self.levels >> 3) } else { 1 }
    }

    fn transmit_trigger(&self) -> usize {
        if self.fifos_enabled() { trigger(self.levels) } else { 0 }
    }

    /// Bytes in the transmit FIFO.
    fn transmit_level(&self) -> usize {
        self.unsent.len() - self.stale
    }

    fn flags(&self) -> u16 {
        let mut flags = self.modem_status();
        flags |= if self.transmit_level() == 0 { flag::TXFE } else { flag::BUSY };
        if self.transmit_full() {
            flags |= flag::TXFF;
        }
        if self.received.is_empty() {
            flags |= flag::RXFE;
        } else if self.received.len() >= self.depth() {
            flags |= flag::RXFF;
        }
        flags
    }

    /// The modem inputs: a connected peer that is always ready, or in loopback the own outputs (3.3.8, LBE).
    fn modem_status(&self) -> u16 {
        if self.control & control::LBE == 0 {
            return flag::CTS | flag::DSR | flag::DCD;
        }
        let wires = [
            (control::RTS, flag::CTS),
            (control::DTR, flag::DSR),
            (control::OUT1, flag::DCD),
            (control::OUT2, flag::RI),
        ];
        wires.iter().filter(|(output, _)| self.control & output != 0).map(|(_, input)| input).sum()
    }

    fn set_control(&mut self, value: u16) {
        let before = self.modem_status();
        self.control = value;
        let changed = before ^ self.modem_status();
        let causes = [
            (flag::CTS, interrupt::CTS),
            (flag::DSR, interrupt::DSR),
            (flag::DCD, interrupt::DCD),
            (flag::RI, interrupt::RI),
        ];
        self.assert(causes.iter().filter(|(flag, _)| changed & flag != 0).map(|(_, cause)| cause).sum());
    }

    fn set_interrupt_mask(&mut self, value: u16) {
        let unmasked = value & !self.interrupt_mask;
        self.interrupt_mask = value;
        self.edge |= self.causes & unmasked != 0;
    }

    fn assert(&mut self, causes: u16) {
        let new = causes & !self.causes;
        self.causes |= causes;
        self.edge |= new & self.interrupt_mask != 0;
    }

    fn take_received(&mut self) -> u16 {
        let byte = self.received.pop_front().unwrap_or(0);
        if self.received.len() < self.receive_trigger() {
            self.causes &= !interrupt::RX;
        }
        if self.received.is_empty() {
            self.causes &= !interrupt::RT;
        }
        u16::from(byte) | if self.overrun { error::DATA_OVERRUN } else { 0 }
    }

    fn append_received(&mut self, bytes: &[u8]) {
        let before = self.received.len();
        self.received.extend(bytes);
        self.overrun = false;
        if (before..self.received.len()).contains(&(self.receive_trigger() - 1)) {
            self.assert(interrupt::RX);
        }
        if self.fifos_enabled() {
            // The line falls silent after each piece of input.
            self.assert(interrupt::RT);
        }
    }

    fn transmit(&mut self, byte: u8) -> Written {
        if self.transmit_full() {
            return Written::Lost;
        }
        self.unsent.push_back(byte);
        if self.transmit_level() > self.transmit_trigger() {
            self.causes &= !interrupt::TX;
        }
        if self.control & control::LBE == 0 {
            return Written::Done;
        }
        let before = self.transmit_level();
        self.unsent.pop_back();
        self.transmit_level_fell_from(before);
        self.loop_back(byte)
    }

    fn loop_back(&mut self, byte: u8) -> Written {
        if self.control & control::RXE == 0 {
            return Written::Done;
        }
        if self.received.len() >= self.depth() {
            self.overrun = true;
            self.receive_status |= error::OVERRUN;
            self.assert(interrupt::OE);
            return Written::Overrun;
        }
        self.append_received(&[byte]);
        Written::Done
    }

    /// The transmit interrupt stands for a transition through the trigger level, not for the level (UARTTXINTR in
    /// chapter 2): none comes before the first byte.
    fn transmit_level_fell_from(&mut self, before: usize) {
        let trigger = self.transmit_trigger();
        if before > trigger && self.transmit_level() <= trigger {
            self.assert(interrupt::TX);
        }
    }

    fn note_polls(&mut self, register: Register, value: u16) {
        match register {
            Register::Flags => {
                self.saw_busy = value & flag::BUSY != 0;
                if !self.saw_busy && value & flag::RXFE != 0 {
                    self.input_polls = (self.input_polls + 1).min(INPUT_POLLS);
                }
            }
            // Reading what came is part of polling for input.
            Register::Data => {}
            _ => {
                self.saw_busy = false;
                self.input_polls = 0;
            }
        }
    }
}

/// FIFO level at which an interrupt comes, from a field of UARTIFLS (3.3.9). The reserved values mean the highest.
fn trigger(field: u16) -> usize {
    match field & 7 {
        0 => FIFO_DEPTH / 8,
        1 => FIFO_DEPTH / 4,
        2 => FIFO_DEPTH / 2,
        3 => FIFO_DEPTH * 3 / 4,
        _ => FIFO_DEPTH * 7 / 8,
    }
}

#[cfg(test)]
#[path = "uart_test.rs"]
mod tests;
