//! The card between a driver and a console.

use gvmm_plugin_api::interrupt::{Event, Interrupt};
use gvmm_plugin_api::pci::MessageSwitch;
use gvmm_plugin_api::testing::{FakeConsole, FakeHost, wait_until};

use super::*;
use crate::uart::TRANSMIT_FIFO;

const DATA: u64 = 0;
const INTERRUPT_ENABLE: u64 = 1;
const INTERRUPT_ID: u64 = 2;
const LINE_STATUS: u64 = 5;
const TAKES_MORE: u64 = 0x20;

struct Bench {
    card: SerialCard,
    console: FakeConsole,
    host: Arc<FakeHost>,
    line: Event,
    message: Event,
    messages: MessageSwitch,
}

fn bench() -> Bench {
    let host = Arc::new(FakeHost::default());
    let console = host.plug_console();
    let card = SerialCard::new(host.services().open_console("stdio").unwrap(), host.services());
    let (line, message) = (Event::new().unwrap(), Event::new().unwrap());
    let interrupt = |event: &Event| Interrupt::new(event.try_clone().unwrap());
    let (interrupts, messages) = Interrupts::new(Some(interrupt(&line)), vec![interrupt(&message)]);
    card.start(interrupts).unwrap();
    Bench { card, console, host, line, message, messages }
}

impl Bench {
    fn read(&self, register: u64) -> u64 {
        self.card.read(BAR, register, Width::Byte).unwrap()
    }

    fn write(&self, register: u64, value: u64) {
        self.card.write(BAR, register, Width::Byte, value).unwrap();
    }

    fn metric(&self, name: &str) -> u64 {
        self.card.metrics().iter().find(|metric| metric.name == name).unwrap().value
    }

    /// Sends as a driver does that polls: a burst whenever the transmitter takes one.
    fn send(&self, bytes: &[u8]) {
        for burst in bytes.chunks(16) {
            wait_until("the transmitter takes more", || self.read(LINE_STATUS) & TAKES_MORE != 0);
            burst.iter().for_each(|byte| self.write(DATA, (*byte).into()));
        }
    }
}

#[test]
fn a_machine_can_have_it() {
    assert_eq!(bench().card.layout().check(), Ok(()));
}

#[test]
fn what_the_guest_sends_is_shown_and_what_is_typed_arrives() {
    let mut bench = bench();
    bench.send(b"hello");
    assert_eq!(bench.console.shown(5), b"hello");
    bench.console.type_in(b"hi");
    bench.write(INTERRUPT_ENABLE, 1);
    let mut typed = Vec::new();
    while typed.len() < 2 {
        wait_until("input", || bench.read(LINE_STATUS) & 1 != 0);
        typed.push(bench.read(DATA) as u8);
    }
    assert_eq!(typed, b"hi");
    wait_until("the counts", || bench.metric("rx_bytes") == 2 && bench.metric("tx_bytes") == 5);
}

#[test]
fn input_interrupts_by_the_line_or_by_the_message() {
    let mut bench = bench();
    bench.write(INTERRUPT_ENABLE, 1);
    bench.console.type_in(b"a");
    wait_until("the line", || bench.line.take());
    assert_eq!((bench.read(INTERRUPT_ID) & 0xf, bench.read(DATA)), (4, b'a'.into()));
    bench.messages.set(true);
    bench.console.type_in(b"b");
    wait_until("the message", || bench.message.take());
    assert_eq!((bench.read(INTERRUPT_ID) & 0xf, bench.read(DATA)), (4, b'b'.into()));
    assert!(!bench.line.take());
}

#[test]
fn a_slow_host_loses_nothing_and_blocks_nobody() {
    let mut bench = bench();
    let text: Vec<u8> = (0..400_000_u32).map(|at| (at / 7) as u8).collect();
    let mut shown = Vec::new();
    std::thread::scope(|scope| {
        let bench_console = &mut bench.console;
        let reader = scope.spawn(|| bench_console.shown(text.len()));
        let card = &bench.card;
        for burst in text.chunks(16) {
            let room = || card.read(BAR, LINE_STATUS, Width::Byte).unwrap() & TAKES_MORE != 0;
            wait_until("the transmitter takes more", room);
            burst.iter().for_each(|byte| card.write(BAR, DATA, Width::Byte, (*byte).into()).unwrap());
        }
        shown = reader.join().unwrap();
    });
    assert!(shown == text);
    assert_eq!(bench.metric("tx_lost_bytes"), 0);
}

#[test]
fn a_console_that_is_gone_loses_output_and_not_the_guest() {
    let Bench { card, console, host, .. } = bench();
    drop(console);
    for _ in 0..2 * TRANSMIT_FIFO / 16 {
        wait_until("the transmitter takes more", || {
            card.read(BAR, LINE_STATUS, Width::Byte).unwrap() & TAKES_MORE != 0
        });
        (0..16).for_each(|_| card.write(BAR, DATA, Width::Byte, 0x78).unwrap());
    }
    wait_until("the count", || card.metrics()[2].value == 2 * TRANSMIT_FIFO as u64);
    assert_eq!(host.failures(), [""; 0]);
}

#[test]
fn accesses_that_the_card_does_not_have_are_refused() {
    let bench = bench();
    for width in [Width::Half, Width::Word, Width::Double] {
        assert_eq!(bench.card.read(BAR, 0, width), Err(AccessError::Width));
        assert_eq!(bench.card.write(BAR, 0, width, 0), Err(AccessError::Width));
    }
    for (bar, offset) in [(BAR, 8), (BAR, 15), (0, 0)] {
        assert_eq!(bench.card.read(bar, offset, Width::Byte), Err(AccessError::NoRegister));
        assert_eq!(bench.card.write(bar, offset, Width::Byte, 0), Err(AccessError::NoRegister));
    }
}

#[test]
fn the_last_words_are_shown() {
    let Bench { card, mut console, .. } = bench();
    b"bye".iter().for_each(|byte| card.write(BAR, DATA, Width::Byte, (*byte).into()).unwrap());
    card.reset();
    drop(card);
    assert_eq!(console.shown(3), b"bye");
}
