//! A plugin's device on the bus: several BARs, vectors and a line.

use std::sync::{Arc, Mutex, OnceLock};

use gvmm_plugin_api::mmio::{AccessError, Width};
use gvmm_plugin_api::pci::{Bar, Capability, Identity, Interrupts, PciDevice, PciLayout};
use proptest::prelude::*;

use super::config::{command, reg};
use super::fixture::{Board, ECAM, FRAME, SETSPI, WINDOW, line};
use super::host::{Ecam, PciHost, Window};
use super::plugged;
use super::v2m::V2mFrame;
use crate::bus::Registers;
use crate::hypervisor::Wiring;

/// Sizes of the device's BARs 1 and 3, and where gvmm puts them: each is aligned to its size.
const SMALL: (u64, u32) = (WINDOW.start, 0x10);
const LARGE: (u64, u32) = (WINDOW.start + 0x8000, 0x8000);
/// The BAR with the MSI-X structures, the last that is free.
const MESSAGES: u64 = WINDOW.start + 0x1_0000;
const MESSAGES_BAR: u64 = 5;
/// Where the pending bits are in it.
const PENDING: u64 = 0x1000;
const VECTORS: u16 = 3;
/// The SPI of the line, and the first of the frame.
const LINE: u32 = 1;
const FIRST_MESSAGE: u32 = 10;
/// Where the capabilities are: the device's of 8 bytes, then MSI-X.
const OWN_AT: u64 = 0x40;
const MSIX_AT: u64 = 0x48;
const ENABLE: u64 = 0x8000;
const FUNCTION_MASK: u64 = 0x4000;

#[derive(Default)]
struct Card {
    interrupts: OnceLock<Interrupts>,
    calls: Mutex<Vec<String>>,
}

impl Card {
    fn note(&self, bar: u8, offset: u64, width: Width, call: String) {
        let size = match bar {
            1 => SMALL.1,
            3 => LARGE.1,
            _ => panic!("the device has no BAR {bar}"),
        };
        assert!(offset + width.bytes() as u64 <= size.into(), "an access outside of BAR {bar}");
        self.calls.lock().unwrap().push(call);
    }

    fn taken(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

impl PciDevice for Card {
    fn layout(&self) -> PciLayout {
        PciLayout {
            identity: Identity {
                vendor: 0x1234,
                device: 0x5678,
                subsystem_vendor: 0x9abc,
                subsystem: 0xdef0,
                class: 0x07_0002,
                revision: 7,
            },
            bars: vec![Bar { index: 1, size: SMALL.1 }, Bar { index: 3, size: LARGE.1 }],
            capabilities: vec![Capability {
                id: 9,
                body: vec![8, 1, 2, 3, 4, 5],
                writable: vec![0, 0, 0xf0],
            }],
            vectors: VECTORS,
            line: true,
        }
    }

    fn start(&self, interrupts: Interrupts) -> Result<(), String> {
        self.interrupts.set(interrupts).map_err(|_| "started twice".to_owned())
    }

    fn read(&self, bar: u8, offset: u64, width: Width) -> Result<u64, AccessError> {
        self.note(bar, offset, width, format!("read {bar} {offset:#x}"));
        Ok(0x1234_5678)
    }

    fn write(&self, bar: u8, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        self.note(bar, offset, width, format!("write {bar} {offset:#x} {value:#x}"));
        Ok(())
    }

    fn reset(&self) {
        self.calls.lock().unwrap().push("reset".to_owned());
    }
}

struct Bench {
    card: Arc<Card>,
    board: Arc<Board>,
    host: Arc<PciHost>,
    ecam: Ecam,
    window: Window,
}

impl Bench {
    fn new() -> Self {
        let (card, board) = (Arc::new(Card::default()), Arc::new(Board::default()));
        let frame = Arc::new(V2mFrame::new(FRAME, FIRST_MESSAGE..FIRST_MESSAGE + u32::from(VECTORS)));
        let line = line(LINE, "card");
        card.layout().check().unwrap();
        let spec = plugged::spec("card", card.clone(), Some(line.clone())).unwrap();
        let host = Arc::new(PciHost::new(vec![spec], frame, ECAM, WINDOW).unwrap());
        board.connect(&line).unwrap();
        let wiring: Arc<dyn Wiring> = board.clone();
        host.attach(&wiring);
        let (ecam, window) = (Ecam(host.clone()), Window(host.clone()));
        Self { card, board, host, ecam, window }
    }

    fn config(&self, offset: u64, width: Width) -> u64 {
        self.ecam.read(offset, width).unwrap()
    }

    fn set_config(&self, offset: u64, width: Width, value: u64) {
        self.ecam.write(offset, width, value).unwrap();
    }

    fn set_command(&self, bits: u16) {
        self.set_config(reg::COMMAND as u64, Width::Half, bits.into());
    }

    fn set_messages(&self, control: u64) {
        self.set_config(MSIX_AT + 2, Width::Half, control);
    }

    fn read(&self, address: u64) -> Result<u64, AccessError> {
        self.window.read(address - WINDOW.start, Width::Word)
    }

    fn write(&self, address: u64, value: u64) -> Result<(), AccessError> {
        self.window.write(address - WINDOW.start, Width::Word, value)
    }

    /// Gives a vector the message of the frame's SPI of the same number.
    fn program(&self, vector: u64, masked: bool) {
        let entry = MESSAGES + 16 * vector;
        let intid = u64::from(FIRST_MESSAGE) + 32 + vector;
        for (offset, value) in [(0, SETSPI), (4, 0), (8, intid), (12, masked.into())] {
            self.write(entry + offset, value).unwrap();
        }
    }

    fn raise(&self, vector: u16) {
        self.card.interrupts.get().unwrap().raise(vector);
    }

    fn pending(&self) -> u64 {
        self.read(MESSAGES + PENDING).unwrap()
    }
}

#[test]
fn the_guest_sees_the_function_as_the_device_says_it_is() {
    let bench = Bench::new();
    let words = [0x00, 0x08, 0x2c].map(|offset| bench.config(offset, Width::Word));
    assert_eq!(words, [0x5678_1234, 0x0700_0207, 0xdef0_9abc]);
    assert_eq!(bench.config(0x3d, Width::Byte), 1);
    for (index, size) in [(0, 0), (1, SMALL.1), (2, 0), (3, LARGE.1), (4, 0), (MESSAGES_BAR, 0x2000)] {
        let bar = 0x10 + 4 * index;
        let base = bench.config(bar, Width::Word);
        bench.set_config(bar, Width::Word, 0xffff_ffff);
        assert_eq!(bench.config(bar, Width::Word) as u32, (!size).wrapping_add(1), "BAR {index}");
        bench.set_config(bar, Width::Word, base);
    }
    bench.set_config(OWN_AT + 4, Width::Word, 0xffff_ffff);
    let own = [OWN_AT, OWN_AT + 4].map(|offset| bench.config(offset, Width::Word));
    assert_eq!(own, [0x0108_4809, 0x0504_03f2], "the bits of the mask alone change");
    let msix = [0, 4, 8].map(|offset| bench.config(MSIX_AT + offset, Width::Word));
    assert_eq!(msix, [0x0002_0011, MESSAGES_BAR, PENDING | MESSAGES_BAR]);
}

#[test]
fn an_access_reaches_the_device_with_its_bar() {
    let bench = Bench::new();
    assert_eq!(bench.read(SMALL.0), Ok(u64::MAX), "memory is off");
    bench.set_command(command::MEMORY);
    assert_eq!(bench.read(SMALL.0 + 4), Ok(0x1234_5678));
    bench.write(LARGE.0 + 0x7ffc, 9).unwrap();
    assert_eq!(bench.card.taken(), ["read 1 0x4", "write 3 0x7ffc 0x9"]);
    assert_eq!(bench.read(SMALL.0 + 0x10), Ok(u64::MAX), "nothing is between the BARs");
    bench.set_config(0x14, Width::Word, WINDOW.start + 0x8_0000);
    assert_eq!(bench.read(SMALL.0), Ok(u64::MAX));
    bench.read(WINDOW.start + 0x8_0008).unwrap();
    bench.read(LARGE.0).unwrap();
    assert_eq!(bench.card.taken(), ["read 1 0x8", "read 3 0x0"], "each BAR moves alone");
}

#[test]
fn a_bar_outside_of_the_window_answers_nowhere_and_the_others_do() {
    let bench = Bench::new();
    bench.set_command(command::MEMORY);
    for address in [0, FRAME, 0x3fff_0000, 0x8000_0000, WINDOW.end - 0x4000, WINDOW.end] {
        bench.set_config(0x1c, Width::Word, address);
        assert_eq!(bench.read(LARGE.0), Ok(u64::MAX), "{address:#x}");
        bench.read(SMALL.0).unwrap();
        assert_eq!(bench.card.taken(), ["read 1 0x0"]);
    }
}

#[test]
fn interrupts_go_by_the_line_until_the_guest_uses_messages() {
    let bench = Bench::new();
    bench.raise(2);
    assert_eq!(bench.board.taken(LINE), 1);
    bench.set_command(command::MEMORY | command::BUS_MASTER);
    bench.set_messages(ENABLE);
    bench.program(2, false);
    bench.raise(2);
    assert_eq!([LINE, FIRST_MESSAGE + 2].map(|spi| bench.board.taken(spi)), [1, 1]);
    bench.set_messages(0);
    bench.raise(2);
    assert_eq!([LINE, FIRST_MESSAGE + 2].map(|spi| bench.board.taken(spi)), [2, 1]);
}

#[test]
fn a_disabled_line_holds_its_interrupt() {
    let bench = Bench::new();
    bench.set_command(command::INTERRUPT_DISABLE);
    bench.raise(0);
    assert_eq!(bench.board.taken(LINE), 0);
    bench.set_command(0);
    assert!(bench.board.taken(LINE) > 0);
}

#[test]
fn masked_messages_are_pending_and_come_later() {
    let bench = Bench::new();
    bench.set_command(command::MEMORY | command::BUS_MASTER);
    bench.set_messages(ENABLE);
    bench.program(0, false);
    bench.program(1, true);
    bench.raise(1);
    bench.raise(0);
    assert_eq!((bench.pending(), bench.board.taken(FIRST_MESSAGE)), (0b10, 1));
    bench.program(1, false);
    assert_eq!(bench.pending(), 0);
    assert!(bench.board.taken(FIRST_MESSAGE + 1) > 0);
    bench.set_messages(ENABLE | FUNCTION_MASK);
    bench.raise(0);
    assert_eq!((bench.pending(), bench.board.taken(FIRST_MESSAGE)), (0b1, 1));
    bench.set_messages(ENABLE);
    assert!(bench.board.taken(FIRST_MESSAGE) > 1);
    assert_eq!(bench.write(MESSAGES + PENDING, 1), Err(AccessError::Direction));
    assert_eq!(bench.card.taken(), [""; 0], "the device hears nothing of all this");
}

#[test]
fn the_table_moves_with_its_bar_and_keeps_what_it_has() {
    let bench = Bench::new();
    bench.set_command(command::MEMORY | command::BUS_MASTER);
    bench.set_messages(ENABLE);
    bench.program(0, false);
    bench.set_config(0x10 + 4 * MESSAGES_BAR, Width::Word, WINDOW.start + 0x4_0000);
    assert_eq!(bench.read(MESSAGES), Ok(u64::MAX));
    assert_eq!(bench.read(WINDOW.start + 0x4_0000), Ok(SETSPI));
    bench.raise(0);
    assert_eq!(bench.board.taken(FIRST_MESSAGE), 1);
}

#[test]
fn the_next_vm_finds_everything_as_after_power_on() {
    let bench = Bench::new();
    bench.set_command(command::MEMORY | command::BUS_MASTER);
    bench.set_messages(ENABLE);
    bench.program(0, false);
    bench.set_config(0x1c, Width::Word, WINDOW.start + 0x8_0000);
    bench.host.detach();
    assert_eq!(bench.card.taken(), ["reset"]);
    assert_eq!(bench.board.lines(), [LINE]);
    assert_eq!(bench.config(0x1c, Width::Word), LARGE.0);
    let wiring: Arc<dyn Wiring> = bench.board.clone();
    bench.host.attach(&wiring);
    bench.raise(0);
    assert_eq!(bench.board.taken(LINE), 1, "interrupts go by the line again");
}

#[test]
fn a_function_without_interrupts_has_neither_a_pin_nor_msi_x() {
    struct Quiet;
    impl PciDevice for Quiet {
        fn layout(&self) -> PciLayout {
            PciLayout { bars: vec![Bar { index: 0, size: 16 }], ..PciLayout::default() }
        }
        fn start(&self, interrupts: Interrupts) -> Result<(), String> {
            interrupts.raise(0);
            Ok(())
        }
        fn read(&self, _: u8, _: u64, _: Width) -> Result<u64, AccessError> {
            Ok(5)
        }
        fn write(&self, _: u8, _: u64, _: Width, _: u64) -> Result<(), AccessError> {
            Ok(())
        }
        fn reset(&self) {}
    }
    let frame = Arc::new(V2mFrame::new(FRAME, FIRST_MESSAGE..FIRST_MESSAGE));
    let spec = plugged::spec("quiet", Arc::new(Quiet), None).unwrap();
    let host = Arc::new(PciHost::new(vec![spec], frame, ECAM, WINDOW).unwrap());
    let ecam = Ecam(host.clone());
    assert_eq!((ecam.read(0x3d, Width::Byte), ecam.read(0x34, Width::Byte)), (Ok(0), Ok(0)));
    assert_eq!(ecam.read(0x06, Width::Half), Ok(0), "there is no list of capabilities");
    ecam.write(reg::COMMAND as u64, Width::Half, command::MEMORY.into()).unwrap();
    assert_eq!(Window(host.clone()).read(0, Width::Byte), Ok(5));
    assert_eq!(host.functions()[0].spi(), None);
    host.detach();
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        prop::sample::select(vec![
            SETSPI,
            FRAME,
            0x8000_0000,
            SMALL.0,
            LARGE.0,
            MESSAGES,
            WINDOW.end - 0x10,
            0
        ]),
        40u64..48,
        prop::sample::select(vec![0, 1, 2, 4, 6, 0x406, ENABLE, ENABLE | FUNCTION_MASK, 0xffff_ffff]),
    ]
}

proptest! {
    #[test]
    fn nothing_that_a_guest_writes_leads_out_of_the_device(
        accesses in prop::collection::vec(
            (
                any::<bool>(),
                prop_oneof![
                    (Just(true), 0u64..0x60),
                    (Just(false), 0u64..0x20),
                    (Just(false), LARGE.0 - WINDOW.start - 8..LARGE.0 - WINDOW.start + 0x20),
                    (Just(false), MESSAGES - WINDOW.start - 8..MESSAGES - WINDOW.start + 0x40),
                    (Just(false), 0..WINDOW.end - WINDOW.start - 8),
                ],
                0usize..4,
                value(),
            ),
            1..300,
        )
    ) {
        let bench = Bench::new();
        bench.set_command(command::MEMORY | command::BUS_MASTER);
        for (write, (config, offset), width, value) in accesses {
            let registers: &dyn Registers = if config { &bench.ecam } else { &bench.window };
            // The device checks the offsets itself; whether an access is refused is the business of other tests.
            let _ = match write {
                true => registers.write(offset, Width::ALL[width], value),
                false => registers.read(offset, Width::ALL[width]).map(drop),
            };
            (0..VECTORS).for_each(|vector| bench.raise(vector));
        }
        let lines = bench.board.lines();
        let ours = |spi: &u32| *spi == LINE || (FIRST_MESSAGE..FIRST_MESSAGE + u32::from(VECTORS)).contains(spi);
        prop_assert!(lines.iter().all(ours), "{lines:?}");
        bench.host.detach();
        prop_assert!(bench.board.lines().iter().all(|spi| *spi == LINE));
    }
}
