//! MSI-X: the table of messages and the pending bits (PCI 3.0, 6.8.2).

use std::sync::Arc;

use gvmm_plugin_api::mmio::{AccessError, Width};
use vmm_sys_util::eventfd::EventFd;

use super::v2m::V2mFrame;
use super::wire::Wire;

/// Id of the capability.
pub const CAPABILITY: u8 = 0x11;
/// Message control: the function uses MSI-X.
pub const CONTROL_ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
pub const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
/// Most vectors of a function: the number less one has 11 bits.
pub const MAX_VECTORS: usize = 2048;
/// Bytes of a table entry.
pub const ENTRY_SIZE: u64 = 16;

/// Vector control: the vector is masked.
const ENTRY_MASKED: u32 = 1;
/// Pending bits in a word of the pending bit array.
const PENDING_BITS: u64 = 64;

/// A table entry and the interrupt that it leads on.
#[derive(Debug)]
struct Vector {
    address: u64,
    data: u32,
    masked: bool,
    wire: Wire,
}

/// What the function as a whole lets through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gate {
    /// MSI-X is in use.
    pub enabled: bool,
    /// All vectors are masked.
    pub masked: bool,
    /// The function may write messages.
    pub bus_master: bool,
}

/// The vectors of a function.
pub struct Msix {
    frame: Arc<V2mFrame>,
    vectors: Vec<Vector>,
    gate: Gate,
}

impl Msix {
    /// Masked vectors with these eventfds, at most [`MAX_VECTORS`].
    pub fn new(frame: Arc<V2mFrame>, events: &[Arc<EventFd>], device: &str) -> Self {
        let vector = |event: &Arc<EventFd>| Vector {
            address: 0,
            data: 0,
            masked: true,
            wire: Wire::new(event.clone(), device),
        };
        let vectors = events.iter().take(MAX_VECTORS).map(vector).collect();
        Self { frame, vectors, gate: Gate::default() }
    }

    /// Bytes of the table.
    pub fn table_size(&self) -> u64 {
        self.vectors.len() as u64 * ENTRY_SIZE
    }

    /// Bytes of the pending bit array.
    pub fn pending_size(&self) -> u64 {
        (self.vectors.len() as u64).div_ceil(PENDING_BITS) * 8
    }

    /// Opens or closes all vectors.
    pub fn set_gate(&mut self, gate: Gate) {
        if self.gate != gate {
            self.gate = gate;
            for index in 0..self.vectors.len() {
                self.settle(index);
            }
        }
    }

    /// Back to the state after power-on. The VM is gone, and what was connected with it.
    pub fn restart(&mut self) {
        self.gate = Gate::default();
        for vector in &mut self.vectors {
            (vector.address, vector.data, vector.masked) = (0, 0, true);
            vector.wire.restart(None);
        }
    }

    /// Disconnects every vector from a VM that is about to end.
    pub fn disconnect(&mut self) {
        self.set_gate(Gate::default());
    }

    /// Reads the table: 4 or 8 aligned bytes.
    pub fn read_table(&self, offset: u64, width: Width) -> Result<u64, AccessError> {
        check(offset, width)?;
        let low = self.word(offset)?;
        match width {
            Width::Double => Ok(u64::from(low) | u64::from(self.word(offset + 4)?) << 32),
            _ => Ok(low.into()),
        }
    }

    /// Writes the table: 4 or 8 aligned bytes.
    pub fn write_table(&mut self, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        check(offset, width)?;
        // The low half first, as a table in memory would see two writes.
        self.set_word(offset, value as u32)?;
        if width == Width::Double {
            self.set_word(offset + 4, (value >> 32) as u32)?;
        }
        self.settle((offset / ENTRY_SIZE) as usize);
        Ok(())
    }

    /// Reads the pending bit array: 4 or 8 aligned bytes.
    pub fn read_pending(&self, offset: u64, width: Width) -> Result<u64, AccessError> {
        check(offset, width)?;
        let first = offset * 8;
        let bits = width.bytes() as u64 * 8;
        let pending = |bit: &u64| {
            let vector = usize::try_from(first + bit).ok().and_then(|index| self.vectors.get(index));
            vector.is_some_and(|vector| vector.wire.is_pending())
        };
        Ok((0..bits).filter(pending).fold(0, |word, bit| word | 1 << bit))
    }

    fn word(&self, offset: u64) -> Result<u32, AccessError> {
        let vector = self.vectors.get((offset / ENTRY_SIZE) as usize).ok_or(AccessError::NoRegister)?;
        Ok(match offset % ENTRY_SIZE {
            0 => vector.address as u32,
            4 => (vector.address >> 32) as u32,
            8 => vector.data,
            _ => u32::from(vector.masked),
        })
    }

    fn set_word(&mut self, offset: u64, value: u32) -> Result<(), AccessError> {
        let vector = self.vectors.get_mut((offset / ENTRY_SIZE) as usize).ok_or(AccessError::NoRegister)?;
        let wide = u64::from(value);
        match offset % ENTRY_SIZE {
            // Bits 1 and 0 of a message address are always zero.
            0 => vector.address = (vector.address & !0xffff_ffff) | (wide & !3),
            4 => vector.address = (vector.address & 0xffff_ffff) | wide << 32,
            8 => vector.data = value,
            _ => vector.masked = value & ENTRY_MASKED != 0,
        }
        Ok(())
    }

    /// Has the wire of a vector lead where its message goes, if it is let through.
    fn settle(&mut self, index: usize) {
        let Some(vector) = self.vectors.get_mut(index) else { return };
        let open = self.gate.enabled && !self.gate.masked && self.gate.bus_master && !vector.masked;
        let spi = if open { self.frame.spi(vector.address, vector.data) } else { None };
        let led = vector.wire.lead_to(spi, |l| self.frame.connect(l), |l| self.frame.disconnect(l));
        if let Err(error) = led {
            tracing::warn!("MSI-X vector {index}: {error}; its interrupts stay pending");
        }
    }
}

fn check(offset: u64, width: Width) -> Result<(), AccessError> {
    let good = matches!(width, Width::Word | Width::Double) && offset.is_multiple_of(width.bytes() as u64);
    if good { Ok(()) } else { Err(AccessError::Width) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eventfd;
    use crate::pci::fixture::{Board, FRAME, SETSPI};

    const OPEN: Gate = Gate { enabled: true, masked: false, bus_master: true };

    struct Bench {
        board: Arc<Board>,
        events: Vec<Arc<EventFd>>,
        msix: Msix,
    }

    fn bench(vectors: usize) -> Bench {
        let board = Arc::new(Board::default());
        let frame = Arc::new(V2mFrame::new(FRAME, 10..20));
        frame.attach(Some(board.clone()));
        let events: Vec<_> = (0..vectors).map(|_| Arc::new(eventfd::new().unwrap())).collect();
        let msix = Msix::new(frame, &events, "disk");
        Bench { board, events, msix }
    }

    impl Bench {
        /// Programs a vector as drivers do: message first, then the mask.
        fn program(&mut self, vector: u64, intid: u32, masked: bool) {
            let at = vector * ENTRY_SIZE;
            self.msix.write_table(at, Width::Double, SETSPI).unwrap();
            self.msix.write_table(at + 8, Width::Word, intid.into()).unwrap();
            self.msix.write_table(at + 12, Width::Word, masked.into()).unwrap();
        }

        fn pending(&self) -> u64 {
            self.msix.read_pending(0, Width::Double).unwrap()
        }
    }

    #[test]
    fn vectors_are_masked_until_the_guest_programs_them() {
        let mut bench = bench(2);
        bench.msix.set_gate(OPEN);
        assert_eq!(bench.msix.read_table(12, Width::Word), Ok(1));
        assert!(bench.board.lines().is_empty());
        bench.program(1, 32 + 12, false);
        assert_eq!(bench.board.lines(), [12]);
        assert_eq!(bench.msix.read_table(16, Width::Double), Ok(SETSPI));
        assert_eq!(bench.msix.read_table(24, Width::Double), Ok(44));
    }

    #[test]
    fn a_masked_vector_holds_its_interrupt_as_pending() {
        let mut bench = bench(2);
        bench.msix.set_gate(OPEN);
        bench.program(0, 42, false);
        bench.program(1, 43, true);
        eventfd::signal(&bench.events[1]);
        assert_eq!(bench.pending(), 2);
        assert_eq!(bench.board.taken(11), 0);
        bench.program(1, 43, false);
        assert_eq!(bench.pending(), 0);
        assert!(bench.board.taken(11) > 0, "it is delivered when the mask goes");
        bench.program(1, 43, true);
        assert_eq!(bench.board.lines(), [10]);
    }

    #[test]
    fn the_function_mask_and_the_bus_master_bit_hold_all_vectors() {
        let mut bench = bench(1);
        bench.program(0, 42, false);
        for gate in [
            Gate { enabled: false, ..OPEN },
            Gate { masked: true, ..OPEN },
            Gate { bus_master: false, ..OPEN },
        ] {
            bench.msix.set_gate(OPEN);
            assert_eq!(bench.board.lines(), [10]);
            bench.msix.set_gate(gate);
            assert!(bench.board.lines().is_empty());
        }
    }

    #[test]
    fn a_message_that_changes_takes_its_interrupt_along() {
        let mut bench = bench(1);
        bench.msix.set_gate(OPEN);
        bench.program(0, 42, false);
        bench.msix.write_table(8, Width::Word, 45).unwrap();
        assert_eq!(bench.board.lines(), [13]);
        for (offset, value) in [(8, 1000), (0, 0x1234), (4, 1)] {
            bench.msix.write_table(offset, Width::Word, value).unwrap();
            assert!(bench.board.lines().is_empty(), "a message to nowhere raises nothing");
        }
    }

    #[test]
    fn two_vectors_with_one_message_do_not_take_it_from_each_other() {
        let mut bench = bench(2);
        bench.msix.set_gate(OPEN);
        bench.program(0, 42, false);
        bench.program(1, 42, false);
        eventfd::signal(&bench.events[1]);
        assert_eq!((bench.board.lines(), bench.pending()), (vec![10], 2));
    }

    #[test]
    fn odd_accesses_are_refused() {
        let mut bench = bench(2);
        for (offset, width) in [(0, Width::Byte), (2, Width::Word), (4, Width::Double), (1, Width::Half)] {
            assert_eq!(bench.msix.read_table(offset, width), Err(AccessError::Width));
            assert_eq!(bench.msix.write_table(offset, width, 0), Err(AccessError::Width));
            assert_eq!(bench.msix.read_pending(offset, width), Err(AccessError::Width));
        }
        assert_eq!(bench.msix.read_table(32, Width::Word), Err(AccessError::NoRegister));
        assert_eq!(bench.msix.write_table(32, Width::Double, 0), Err(AccessError::NoRegister));
        assert_eq!((bench.msix.table_size(), bench.msix.pending_size()), (32, 8));
    }
}
