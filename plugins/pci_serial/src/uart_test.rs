//! The UART as drivers see it.

use proptest::prelude::*;

use super::*;

/// Interrupt enable: received data, empty transmitter.
const BOTH: u8 = 3;
/// Interrupt identification with FIFOs: nothing, empty transmitter, received data.
const NOTHING: u8 = 0xc1;
const EMPTY: u8 = 0xc2;
const RECEIVED: u8 = 0xc4;

/// A UART whose driver has enabled these interrupts and has taken what that raised.
fn enabled(interrupts: u8) -> Uart {
    let mut uart = Uart::default();
    uart.write(reg::INTERRUPT_ENABLE, interrupts);
    uart.take_interrupt();
    uart.read(reg::INTERRUPT_ID);
    uart
}

fn fill(uart: &mut Uart) -> usize {
    let mut written = 0;
    while uart.read(reg::LINE_STATUS) & bit::TAKES_MORE != 0 {
        (0..BURST).for_each(|_| uart.write(reg::DATA, b'x'));
        written += BURST;
    }
    written
}

#[test]
fn a_driver_takes_it_for_a_16550a() {
    let mut uart = Uart::default();
    assert_eq!(uart.read(reg::INTERRUPT_ID), NOTHING);
    assert_eq!(uart.read(reg::LINE_STATUS), 0x60);
    // Linux's test of the loopback: RTS and OUT2 come back as CTS and DCD.
    uart.write(reg::MODEM_CONTROL, bit::LOOP | 0x0a);
    assert_eq!(uart.read(6) & 0xf0, 0x90);
    uart.write(reg::DATA, b'x');
    assert_eq!((uart.read(reg::LINE_STATUS) & 1, uart.read(reg::DATA)), (1, b'x'));
    assert!(uart.unsent().is_empty());
}

#[test]
fn a_full_transmitter_has_the_driver_wait_for_an_interrupt() {
    let mut uart = enabled(2);
    assert_eq!(fill(&mut uart), TRANSMIT_FIFO);
    uart.take_interrupt();
    uart.read(reg::INTERRUPT_ID);
    assert!(!uart.take_interrupt(), "there is no room yet");
    uart.sent(BURST - 1);
    assert!(!uart.take_interrupt(), "a driver writes a burst at once");
    uart.sent(1);
    assert!(uart.take_interrupt());
    assert_eq!(uart.read(reg::INTERRUPT_ID), EMPTY);
    assert_eq!(uart.read(reg::LINE_STATUS), bit::TAKES_MORE, "not all is sent");
    uart.sent(TRANSMIT_FIFO - BURST);
    assert_eq!(uart.read(reg::LINE_STATUS), bit::TAKES_MORE | bit::ALL_SENT);
    assert!(!uart.take_interrupt(), "once is enough");
}

#[test]
fn bytes_for_a_full_transmitter_are_lost_and_counted() {
    let mut uart = Uart::default();
    (0..TRANSMIT_FIFO + 3).for_each(|at| uart.write(reg::DATA, at as u8));
    assert_eq!((uart.unsent().len(), uart.take_lost(), uart.take_lost()), (TRANSMIT_FIFO, 3, 0));
    assert_eq!(uart.unsent()[1], 1);
}

#[test]
fn an_interrupt_that_is_owed_leaves_the_divisor_alone() {
    let mut uart = enabled(2);
    fill(&mut uart);
    uart.take_interrupt();
    uart.read(reg::INTERRUPT_ID);
    uart.write(reg::LINE_CONTROL, bit::DIVISOR);
    uart.write(reg::INTERRUPT_ENABLE, 0x55);
    uart.sent(TRANSMIT_FIFO);
    assert!(!uart.take_interrupt());
    assert_eq!(uart.read(reg::INTERRUPT_ENABLE), 0x55);
    uart.write(reg::LINE_CONTROL, 3);
    assert!(uart.take_interrupt());
    assert_eq!(uart.read(reg::INTERRUPT_ENABLE), 2);
}

#[test]
fn two_causes_are_told_one_after_the_other() {
    let mut uart = enabled(BOTH);
    uart.write(reg::DATA, b'x');
    assert_eq!(uart.receive(b"y"), 1);
    assert!(uart.take_interrupt());
    assert_eq!(uart.read(reg::INTERRUPT_ID), RECEIVED);
    assert!(uart.take_interrupt(), "the other one");
    assert_eq!(uart.read(reg::DATA), b'y');
    assert_eq!([0; 2].map(|_| uart.read(reg::INTERRUPT_ID)), [EMPTY, NOTHING]);
}

#[test]
fn input_waits_for_a_driver_that_listens() {
    let mut uart = Uart::default();
    assert_eq!((uart.input_room(), uart.receive(b"x")), (0, 0));
    uart.write(reg::INTERRUPT_ENABLE, bit::RECEIVED);
    assert_eq!((uart.input_room(), uart.receive(&[b'x'; 100])), (64, 64));
    assert!(uart.take_interrupt());
    assert_eq!((uart.input_room(), uart.receive(b"x")), (0, 0));
    uart.read(reg::DATA);
    assert_eq!(uart.input_room(), 1);
    uart.write(reg::MODEM_CONTROL, bit::LOOP);
    assert_eq!(uart.input_room(), 0);
}

#[test]
fn a_reset_keeps_what_was_sent_and_nothing_else() {
    let mut uart = enabled(BOTH);
    (0..REGISTERS).for_each(|register| uart.write(register, 0x1b));
    uart.receive(b"z");
    let unsent = uart.unsent().clone();
    assert_eq!(unsent, [0x1b]);
    uart.reset();
    assert_eq!(*uart.unsent(), unsent);
    let mut fresh = Uart::default();
    assert!((0..REGISTERS).all(|register| uart.read(register) == fresh.read(register)));
    assert!(!uart.take_interrupt());
    for sent in [1, 0] {
        (0..TRANSMIT_FIFO).for_each(|_| uart.write(reg::DATA, b'x'));
        assert_eq!(uart.unsent().len(), TRANSMIT_FIFO + sent);
        uart.sent(1);
        assert_eq!((uart.take_lost(), uart.read(reg::LINE_STATUS) & bit::ALL_SENT), (0, 0));
        uart.sent(uart.unsent().len());
        assert_eq!(uart.read(reg::LINE_STATUS), bit::TAKES_MORE | bit::ALL_SENT);
    }
}

#[test]
fn resets_without_end_fill_no_memory() {
    let mut uart = Uart::default();
    for round in 0..4 {
        (0..TRANSMIT_FIFO).for_each(|_| uart.write(reg::DATA, round));
        uart.reset();
    }
    assert_eq!(*uart.unsent(), [0; TRANSMIT_FIFO], "the oldest are kept");
    assert_eq!(uart.take_lost(), 3 * TRANSMIT_FIFO as u64);
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_panics_or_fills_memory(
        accesses in prop::collection::vec((0u8..5, 0..REGISTERS, any::<u8>()), 1..2000)
    ) {
        let mut uart = Uart::default();
        for (what, register, value) in accesses {
            match what {
                0 => drop(uart.read(register)),
                1 => uart.write(register, value),
                2 => drop(uart.receive(&vec![value; value.into()])),
                3 => uart.reset(),
                _ => uart.sent(uart.unsent().len().min(value.into())),
            }
            uart.take_interrupt();
            prop_assert!(uart.unsent().len() <= 2 * TRANSMIT_FIFO);
        }
    }
}
