//! PCI devices that are not virtio: an identity, registers in memory BARs, interrupts.
//!
//! The machine has everything else of a function (PCI Local Bus Specification 3.0, 6): configuration space, where the
//! BARs are and move to, the MSI-X table with its masks and pending bits, and the interrupt line of a guest that uses
//! no MSI-X. The device hears of none of it: it answers at offsets in its BARs and raises its interrupts.
//!
//! There is no access to guest memory: a device that moves data by itself is a virtio device.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use abi_stable::std_types::RArc;

use crate::interrupt::Interrupt;
use crate::metrics::Metric;
use crate::mmio::{AccessError, Width};

/// Number of base address registers of a function (PCI 3.0, 6.2.5).
pub const BARS: usize = 6;
/// Bytes of the smallest memory BAR: the low four bits of the register say what it is (PCI 3.0, 6.2.5.1).
pub const LEAST_BAR: u32 = 16;
/// Most vectors of a function (PCI 3.0, 6.8.2.3: the number less one has 11 bits).
pub const MAX_VECTORS: u16 = 2048;
/// Largest class code: class, subclass and programming interface are a byte each (PCI 3.0, 6.2.1).
const MAX_CLASS: u32 = 0xff_ffff;
/// Ids of the capabilities MSI and MSI-X (PCI 3.0, appendix H).
const MESSAGES: [u8; 2] = [0x05, 0x11];
/// Bytes of configuration space behind its header (PCI 3.0, 6.1).
const CAPABILITY_SPACE: usize = 256 - 0x40;
/// Bytes of the capability MSI-X.
const MSIX_SIZE: usize = 12;

/// What drivers know a function by (PCI 3.0, 6.2.1 and 6.2.4).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Identity {
    /// Who makes it.
    pub vendor: u16,
    /// Device of that vendor.
    pub device: u16,
    /// Vendor of the subsystem.
    pub subsystem_vendor: u16,
    /// Subsystem of that vendor.
    pub subsystem: u16,
    /// Class, subclass and programming interface in the low 24 bits.
    pub class: u32,
    /// Revision.
    pub revision: u8,
}

/// A 32-bit memory BAR, not prefetchable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// Which of the [`BARS`] registers.
    pub index: u8,
    /// Bytes, a power of two from [`LEAST_BAR`] on.
    pub size: u32,
}

/// A capability of the device's own (PCI 3.0, 6.7).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capability {
    /// What it is.
    pub id: u8,
    /// Its bytes behind id and link.
    pub body: Vec<u8>,
    /// The bits of `body` that the guest may change; bytes that are missing are read-only. The device is not told of
    /// changes.
    pub writable: Vec<u8>,
}

/// What a PCI device is and needs of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PciLayout {
    /// What drivers know it by.
    pub identity: Identity,
    /// Its BARs, in any order. With vectors one of the six has to be left for the MSI-X structures.
    pub bars: Vec<Bar>,
    /// Its capabilities, in the order in which the guest finds them. The machine adds MSI-X behind them.
    pub capabilities: Vec<Capability>,
    /// Number of MSI-X vectors, at most [`MAX_VECTORS`]; 0 for a function without MSI-X.
    pub vectors: u16,
    /// Whether it has an interrupt line, for guests that use no MSI-X.
    pub line: bool,
}

impl PciLayout {
    /// Checks that a function can be like this.
    ///
    /// # Errors
    ///
    /// What no function can have, in one sentence.
    pub fn check(&self) -> Result<(), String> {
        if self.identity.class > MAX_CLASS {
            return Err(format!("class {:#x} has more than 24 bits", self.identity.class));
        }
        if self.vectors > MAX_VECTORS {
            return Err(format!("{} vectors: MSI-X has at most {MAX_VECTORS}", self.vectors));
        }
        self.check_bars()?;
        self.check_capabilities()
    }

    fn check_bars(&self) -> Result<(), String> {
        let mut used = BTreeSet::new();
        for Bar { index, size } in self.bars.iter().copied() {
            if usize::from(index) >= BARS {
                return Err(format!("BAR {index}: a function has BARs 0 to {}", BARS - 1));
            }
            if size < LEAST_BAR || !size.is_power_of_two() {
                return Err(format!(
                    "BAR {index} of {size:#x} bytes: sizes are powers of two from {LEAST_BAR} on"
                ));
            }
            if !used.insert(index) {
                return Err(format!("BAR {index} is there twice"));
            }
        }
        match used.len() {
            0 => Err("a function without a BAR has no registers".to_owned()),
            BARS if self.vectors > 0 => Err(format!("all {BARS} BARs are in use, and MSI-X needs one")),
            _ => Ok(()),
        }
    }

    fn check_capabilities(&self) -> Result<(), String> {
        let mut space = CAPABILITY_SPACE - if self.vectors > 0 { MSIX_SIZE } else { 0 };
        for Capability { id, body, writable } in &self.capabilities {
            if MESSAGES.contains(id) {
                return Err(format!(
                    "capability {id:#x}: message interrupts are the machine's, ask for vectors"
                ));
            }
            if writable.len() > body.len() {
                let (mask, bytes) = (writable.len(), body.len());
                return Err(format!("capability {id:#x}: its mask has {mask} bytes, its body {bytes}"));
            }
            let left = space.checked_sub((2 + body.len()).next_multiple_of(4));
            space = left.ok_or_else(|| {
                format!("capability {id:#x} of {} bytes does not fit: {space} bytes are left", 2 + body.len())
            })?;
        }
        Ok(())
    }
}

/// The interrupts of a device. Whether one goes as a message or by the line is settled by the guest, and none of the
/// device's concern.
///
/// Every interrupt is an edge: raise it for each new cause, not for as long as the cause lasts.
#[derive(Debug)]
pub struct Interrupts {
    pub(crate) line: Option<Interrupt>,
    pub(crate) vectors: Vec<Interrupt>,
    pub(crate) messages: RArc<AtomicBool>,
}

impl Interrupts {
    /// The interrupts of a device whose guest uses no messages yet, and the switch for that.
    pub fn new(line: Option<Interrupt>, vectors: Vec<Interrupt>) -> (Self, MessageSwitch) {
        let messages = RArc::new(AtomicBool::new(false));
        (Self { line, vectors, messages: messages.clone() }, MessageSwitch(messages))
    }

    /// Interrupts the guest once: by the message of this vector, or by the line while the guest uses no messages. A
    /// vector that the device did not ask for, and a line that it does not have, interrupt nobody.
    pub fn raise(&self, vector: u16) {
        let interrupt = match self.messages.load(Ordering::Acquire) {
            true => self.vectors.get(usize::from(vector)),
            false => self.line.as_ref(),
        };
        if let Some(interrupt) = interrupt {
            interrupt.raise();
        }
    }
}

/// The machine's side of [`Interrupts`].
#[derive(Debug, Clone)]
pub struct MessageSwitch(RArc<AtomicBool>);

impl MessageSwitch {
    /// Whether the guest uses messages from now on.
    pub fn set(&self, on: bool) {
        self.0.store(on, Ordering::Release);
    }
}

/// A PCI device.
///
/// Thread contract: `layout` and `start` are called once each, in this order, by the thread that assembles the machine.
/// `read` and `write` come from the vCPU threads, any number at once; they must not block. `reset` comes while no vCPU
/// runs. `metrics` may come at any time. [`Interrupts::raise`] may be called on any thread.
pub trait PciDevice: Send + Sync {
    /// What the device is.
    fn layout(&self) -> PciLayout;

    /// Hands over the interrupts, as many as the layout asked for. Called once, before the guest starts.
    fn start(&self, interrupts: Interrupts) -> Result<(), String>;

    /// Reads a register of one of the device's BARs; `offset + width` lies within it.
    fn read(&self, bar: u8, offset: u64, width: Width) -> Result<u64, AccessError>;

    /// Writes a register of one of the device's BARs; `offset + width` lies within it.
    fn write(&self, bar: u8, offset: u64, width: Width, value: u64) -> Result<(), AccessError>;

    /// Back to the state after power-on. Calling it twice is the same as once.
    fn reset(&self);

    /// Counters for statistics.
    fn metrics(&self) -> Vec<Metric> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::Event;

    fn layout() -> PciLayout {
        PciLayout { bars: vec![Bar { index: 1, size: 16 }], vectors: 1, line: true, ..PciLayout::default() }
    }

    fn refusal(change: impl FnOnce(&mut PciLayout)) -> String {
        let mut layout = layout();
        change(&mut layout);
        layout.check().unwrap_err()
    }

    #[test]
    fn what_a_function_can_be_is_taken() {
        assert_eq!(layout().check(), Ok(()));
        let bars = (0..6).map(|index| Bar { index, size: 1 << 20 }).collect();
        let capabilities = vec![Capability { id: 9, body: vec![0; 190], writable: vec![0xff; 190] }];
        let full = PciLayout { bars, capabilities, vectors: 0, line: false, ..layout() };
        assert_eq!(full.check(), Ok(()));
    }

    #[test]
    fn bars_that_no_function_has_are_refused() {
        let with = |bars: &[(u8, u32)]| {
            refusal(|layout| layout.bars = bars.iter().map(|&(index, size)| Bar { index, size }).collect())
        };
        assert_eq!(with(&[(6, 16)]), "BAR 6: a function has BARs 0 to 5");
        assert_eq!(with(&[(1, 8)]), "BAR 1 of 0x8 bytes: sizes are powers of two from 16 on");
        assert_eq!(with(&[(1, 24)]), "BAR 1 of 0x18 bytes: sizes are powers of two from 16 on");
        assert_eq!(with(&[(1, 16), (1, 32)]), "BAR 1 is there twice");
        assert_eq!(with(&[]), "a function without a BAR has no registers");
        let all = [0, 1, 2, 3, 4, 5].map(|index| (index, 16));
        assert_eq!(with(&all), "all 6 BARs are in use, and MSI-X needs one");
    }

    #[test]
    fn capabilities_that_do_not_fit_are_refused() {
        let with = |capabilities: &[(u8, usize, usize)]| {
            let capability = |&(id, body, mask): &(u8, usize, usize)| Capability {
                id,
                body: vec![0; body],
                writable: vec![0; mask],
            };
            refusal(|layout| layout.capabilities = capabilities.iter().map(capability).collect())
        };
        assert_eq!(
            with(&[(9, 100, 0), (10, 77, 0)]),
            "capability 0xa of 79 bytes does not fit: 76 bytes are left"
        );
        assert_eq!(with(&[(9, 2, 3)]), "capability 0x9: its mask has 3 bytes, its body 2");
        for id in [5, 17] {
            assert!(with(&[(id, 2, 0)]).ends_with("message interrupts are the machine's, ask for vectors"));
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert_eq!(refusal(|l| l.identity.class = 0x100_0000), "class 0x1000000 has more than 24 bits");
        assert_eq!(refusal(|l| l.vectors = 2049), "2049 vectors: MSI-X has at most 2048");
    }

    #[test]
    fn interrupts_go_by_the_line_until_the_guest_uses_messages() {
        let events: Vec<Event> = (0..3).map(|_| Event::new().unwrap()).collect();
        let interrupt = |at: usize| Interrupt::new(events[at].try_clone().unwrap());
        let (interrupts, switch) = Interrupts::new(Some(interrupt(0)), vec![interrupt(1), interrupt(2)]);
        let raised = |vector| {
            interrupts.raise(vector);
            [0, 1, 2].map(|at| events[at].take())
        };
        assert_eq!(raised(1), [true, false, false]);
        switch.set(true);
        assert_eq!(raised(1), [false, false, true]);
        assert_eq!(raised(2), [false; 3], "there is no vector 2");
        switch.set(false);
        assert_eq!(raised(0), [true, false, false]);
    }
}
