use proptest::prelude::*;

use super::*;

const FIFOS: u16 = line::FEN;

/// A UART with FIFOs on whose driver listens, and so takes input.
fn open() -> Uart {
    let mut uart = Uart::default();
    uart.write(Register::LineControl, FIFOS).unwrap();
    uart.write(Register::InterruptMask, interrupt::RX | interrupt::RT).unwrap();
    uart
}

fn read(uart: &mut Uart, register: Register) -> u16 {
    uart.read(register).unwrap()
}

fn write(uart: &mut Uart, register: Register, value: u16) -> Written {
    uart.write(register, value).unwrap()
}

fn skim(uart: &mut Uart, register: Register, times: usize) {
    for _ in 0..times {
        read(uart, register);
    }
}

fn print(uart: &mut Uart, count: usize) {
    for _ in 0..count {
        assert_eq!(write(uart, Register::Data, b'x'.into()), Written::Done);
    }
}

#[test]
fn registers_have_their_values_at_reset() {
    let mut uart = Uart::default();
    assert_eq!(read(&mut uart, Register::Control), 0x300);
    assert_eq!(read(&mut uart, Register::FifoLevels), 0x12);
    assert_eq!(read(&mut uart, Register::Flags), flag::TXFE | flag::RXFE | flag::CTS | flag::DSR | flag::DCD);
    assert_eq!(read(&mut uart, Register::RawInterrupts), 0);
}

#[test]
fn reserved_bits_cannot_be_written() {
    let mut uart = Uart::default();
    for (register, stays) in [
        (Register::LowPower, 0xff),
        (Register::IntegerBaud, 0xffff),
        (Register::FractionalBaud, 0x3f),
        (Register::LineControl, 0xff),
        (Register::Control, 0xff87),
        (Register::FifoLevels, 0x3f),
        (Register::InterruptMask, 0x7ff),
        (Register::DmaControl, 7),
    ] {
        write(&mut uart, register, 0xffff);
        assert_eq!(read(&mut uart, register), stays, "{register:?}");
    }
}

#[test]
fn registers_of_one_direction_refuse_the_other() {
    let mut uart = Uart::default();
    assert_eq!(uart.read(Register::InterruptClear), Err(AccessError::Direction));
    for register in [Register::Flags, Register::RawInterrupts, Register::MaskedInterrupts, Register::Id(0x11)]
    {
        assert_eq!(uart.write(register, 0), Err(AccessError::Direction), "{register:?}");
    }
}

#[test]
fn the_transmitter_is_busy_until_the_host_has_taken_all() {
    let mut uart = open();
    print(&mut uart, 2);
    assert_eq!(read(&mut uart, Register::Flags) & (flag::BUSY | flag::TXFE | flag::TXFF), flag::BUSY);
    uart.sent(1);
    assert_eq!(read(&mut uart, Register::Flags) & (flag::BUSY | flag::TXFE), flag::BUSY);
    uart.sent(1);
    assert_eq!(read(&mut uart, Register::Flags) & (flag::BUSY | flag::TXFE), flag::TXFE);
}

#[test]
fn a_full_transmit_fifo_says_so_and_takes_no_more() {
    for (line_control, depth) in [(FIFOS, 32), (0, 1)] {
        let mut uart = Uart::default();
        write(&mut uart, Register::LineControl, line_control);
        print(&mut uart, depth - 1);
        assert_eq!(read(&mut uart, Register::Flags) & flag::TXFF, 0);
        print(&mut uart, 1);
        assert_eq!(read(&mut uart, Register::Flags) & flag::TXFF, flag::TXFF);
        assert_eq!(write(&mut uart, Register::Data, 0), Written::Lost);
        assert_eq!(uart.unsent().len(), depth);
    }
}

#[test]
fn the_transmit_interrupt_comes_with_the_fall_to_the_trigger_level() {
    for (field, level) in [(0, 4), (1, 8), (2, 16), (3, 24), (4, 28), (7, 28)] {
        let mut uart = open();
        write(&mut uart, Register::FifoLevels, field);
        write(&mut uart, Register::InterruptMask, interrupt::TX);
        print(&mut uart, level);
        uart.sent(level);
        assert!(!uart.take_edge(), "field {field}: the level was never exceeded");
        print(&mut uart, level + 2);
        uart.sent(1);
        assert!(!uart.take_edge(), "field {field}: still above");
        uart.sent(1);
        assert!(uart.take_edge(), "field {field}");
        assert_eq!(read(&mut uart, Register::MaskedInterrupts), interrupt::TX);
        print(&mut uart, 1);
        assert_eq!(read(&mut uart, Register::RawInterrupts) & interrupt::TX, 0, "field {field}: above again");
    }
}

#[test]
fn a_cause_that_goes_and_comes_back_is_a_new_edge() {
    let mut uart = open();
    write(&mut uart, Register::InterruptMask, interrupt::TX);
    for _ in 0..3 {
        print(&mut uart, 17);
        uart.sent(17);
        assert!(uart.take_edge());
        assert!(!uart.take_edge());
    }
}

#[test]
fn unmasking_a_cause_that_is_set_is_an_edge() {
    let mut uart = open();
    write(&mut uart, Register::InterruptMask, 0);
    print(&mut uart, 17);
    uart.sent(17);
    assert!(!uart.take_edge());
    write(&mut uart, Register::InterruptMask, interrupt::TX);
    assert!(uart.take_edge());
    write(&mut uart, Register::InterruptClear, interrupt::TX);
    assert_eq!(read(&mut uart, Register::RawInterrupts), 0);
}

#[test]
fn a_waiting_guest_makes_the_transmitter_send() {
    let mut uart = open();
    print(&mut uart, 17);
    assert!(!uart.must_send(), "no one waits");
    write(&mut uart, Register::InterruptMask, interrupt::TX);
    assert!(uart.must_send(), "for the interrupt");
    write(&mut uart, Register::InterruptMask, 0);
    read(&mut uart, Register::Flags);
    assert!(uart.polls_transmitter(), "for the flags to change");
    print(&mut uart, 1);
    assert!(!uart.polls_transmitter(), "it had looked for room and found it");

    let mut uart = Uart::default();
    print(&mut uart, 1);
    assert!(uart.must_send(), "without FIFOs at every byte");
}

#[test]
fn the_receive_interrupt_comes_at_the_trigger_level_and_goes_below_it() {
    for (field, level) in [(0, 4), (1, 8), (2, 16), (3, 24), (4, 28), (7, 28)] {
        let mut uart = open();
        write(&mut uart, Register::FifoLevels, field << 3);
        assert_eq!(uart.receive(&vec![b'i'; level - 1]), level - 1);
        assert_eq!(read(&mut uart, Register::RawInterrupts), interrupt::RT);
        assert_eq!(uart.receive(b"i"), 1);
        assert_eq!(read(&mut uart, Register::RawInterrupts), interrupt::RT | interrupt::RX);
        read(&mut uart, Register::Data);
        assert_eq!(read(&mut uart, Register::RawInterrupts), interrupt::RT, "field {field}");
    }
}

#[test]
fn the_timeout_interrupt_lasts_until_the_fifo_is_empty() {
    let mut uart = open();
    assert_eq!(uart.receive(b"ab"), 2);
    assert!(uart.take_edge());
    assert_eq!(read(&mut uart, Register::Data), u16::from(b'a'));
    assert_eq!(read(&mut uart, Register::MaskedInterrupts), interrupt::RT);
    assert_eq!(read(&mut uart, Register::Data), u16::from(b'b'));
    assert_eq!(read(&mut uart, Register::MaskedInterrupts), 0);
    assert_eq!(read(&mut uart, Register::Flags) & flag::RXFE, flag::RXFE);
    assert_eq!(read(&mut uart, Register::Data), 0);
}

#[test]
fn input_interrupts_again_when_a_cause_was_left_set() {
    let mut uart = open();
    uart.receive(b"a");
    assert!(uart.take_edge());
    uart.receive(b"b");
    assert_eq!(read(&mut uart, Register::RawInterrupts), interrupt::RT);
    assert!(uart.take_edge());
}

#[test]
fn input_beyond_the_fifo_is_left_to_the_host() {
    let mut uart = open();
    assert_eq!(uart.receive(&[b'i'; 40]), 32);
    assert_eq!(read(&mut uart, Register::Flags) & flag::RXFF, flag::RXFF);
    assert_eq!(uart.receive(b"j"), 0);
    assert!(!uart.wants_input());
    read(&mut uart, Register::Data);
    assert_eq!((uart.input_room(), uart.wants_input()), (1, false));
    skim(&mut uart, Register::Data, 31);
    assert!(uart.wants_input());
}

#[test]
fn input_waits_until_someone_in_the_guest_reads_it() {
    let mut uart = Uart::default();
    assert_eq!(uart.receive(b"typed ahead"), 0);

    write(&mut uart, Register::InterruptMask, interrupt::RT);
    assert_eq!(uart.input_room(), 1, "a driver with interrupts, FIFOs off");
    write(&mut uart, Register::Control, control::TXE);
    assert_eq!(uart.input_room(), 0, "receiver off");
}

#[test]
fn a_guest_that_polls_for_input_gets_it() {
    let mut uart = Uart::default();
    write(&mut uart, Register::LineControl, FIFOS);
    skim(&mut uart, Register::Flags, 3);
    assert_eq!(uart.receive(b"in"), 2);
    assert_eq!(read(&mut uart, Register::Flags) & flag::RXFE, 0);
    assert_eq!(read(&mut uart, Register::Data), u16::from(b'i'));
    assert_eq!(uart.receive(b"p"), 1);
}

#[test]
fn a_guest_that_polls_for_the_transmitter_gets_no_input() {
    let mut uart = Uart::default();
    write(&mut uart, Register::LineControl, FIFOS);
    for _ in 0..4 {
        read(&mut uart, Register::Flags);
        print(&mut uart, 1);
        skim(&mut uart, Register::Flags, 100);
        uart.sent(1);
        read(&mut uart, Register::Flags);
        assert_eq!(uart.input_room(), 0);
    }
}

#[test]
fn loopback_returns_bytes_and_modem_lines() {
    let mut uart = open();
    let loopback = control::LBE | control::TXE | control::RXE;
    write(&mut uart, Register::Control, loopback);
    assert_eq!(read(&mut uart, Register::Flags) & 0x107, 0);
    assert_eq!(
        read(&mut uart, Register::RawInterrupts),
        interrupt::CTS | interrupt::DSR | interrupt::DCD,
        "the peer's lines are gone"
    );
    write(&mut uart, Register::InterruptClear, 0x7ff);
    write(&mut uart, Register::Control, loopback | control::RTS | control::OUT2);
    assert_eq!(read(&mut uart, Register::Flags) & 0x107, flag::CTS | flag::RI);
    assert_eq!(read(&mut uart, Register::RawInterrupts), interrupt::CTS | interrupt::RI);

    write(&mut uart, Register::Data, b'l'.into());
    assert!(uart.unsent().is_empty());
    assert_eq!(uart.receive(b"from outside"), 0);
    assert_eq!(read(&mut uart, Register::Data), u16::from(b'l'));
}

#[test]
fn loopback_to_a_full_fifo_is_an_overrun() {
    let mut uart = open();
    write(&mut uart, Register::Control, control::LBE | control::TXE | control::RXE);
    print(&mut uart, 32);
    assert_eq!(write(&mut uart, Register::Data, 0), Written::Overrun);
    assert_eq!(read(&mut uart, Register::RawInterrupts) & interrupt::OE, interrupt::OE);
    assert_eq!(read(&mut uart, Register::ReceiveStatus), error::OVERRUN);
    assert_eq!(read(&mut uart, Register::Data), u16::from(b'x') | error::DATA_OVERRUN);
    print(&mut uart, 1);
    assert_eq!(read(&mut uart, Register::Data), u16::from(b'x'), "cleared by the next byte");
    write(&mut uart, Register::ReceiveStatus, 0);
    assert_eq!(read(&mut uart, Register::ReceiveStatus), 0);
}

#[test]
fn switching_the_fifos_off_loses_nothing() {
    let mut uart = open();
    print(&mut uart, 20);
    uart.receive(&[b'i'; 20]);
    write(&mut uart, Register::LineControl, 0);
    assert_eq!(uart.unsent().len(), 20);
    assert_eq!(read(&mut uart, Register::Flags) & (flag::TXFF | flag::RXFF), flag::TXFF | flag::RXFF);
    assert_eq!(uart.input_room(), 0);
    assert_eq!(write(&mut uart, Register::Data, 0), Written::Lost);
    (0..20).for_each(|_| assert_eq!(uart.read(Register::Data), Ok(u16::from(b'i'))));
}

#[test]
fn reset_leaves_nothing_to_the_guest_and_all_to_the_host() {
    let mut uart = open();
    uart.receive(b"in");
    print(&mut uart, 20);
    for _ in 0..2 {
        assert_eq!(uart.reset(), 0);
        assert_eq!(uart.unsent().len(), 20);
        assert_eq!(read(&mut uart, Register::InterruptMask), 0);
        assert_eq!(uart.flags(), Uart::default().flags());
    }
    write(&mut uart, Register::LineControl, FIFOS);
    write(&mut uart, Register::InterruptMask, interrupt::TX);
    uart.sent(20);
    assert!(!uart.take_edge(), "the bytes were not this guest's");
    assert_eq!(read(&mut uart, Register::RawInterrupts), 0);
}

#[test]
fn resets_do_not_pile_up_output() {
    let mut uart = open();
    print(&mut uart, 32);
    assert_eq!(uart.reset(), 0);
    write(&mut uart, Register::LineControl, FIFOS);
    print(&mut uart, 5);
    assert_eq!(uart.reset(), 5);
    assert_eq!(uart.unsent().len(), 32);
}

#[derive(Debug, Clone)]
enum Step {
    Read(u64),
    Write(u64, u16),
    Receive(Vec<u8>),
    Send(usize),
    Reset,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let offset = prop_oneof![0..0x50_u64, 0xfe0..0x1000_u64].prop_map(|offset| offset & !3);
    let step = prop_oneof![
        8 => offset.clone().prop_map(Step::Read),
        8 => (offset, any::<u16>()).prop_map(|(offset, value)| Step::Write(offset, value)),
        4 => any::<u16>().prop_map(|value| Step::Write(0, value)),
        2 => prop::collection::vec(any::<u8>(), 0..50).prop_map(Step::Receive),
        2 => (0..50_usize).prop_map(Step::Send),
        1 => Just(Step::Reset),
    ];
    prop::collection::vec(step, 0..300)
}

proptest! {
    #[test]
    fn whatever_the_guest_does_flags_and_causes_agree_with_the_fifos(steps in steps()) {
        let mut uart = Uart::default();
        for step in steps {
            match step {
                Step::Read(offset) => {
                    Register::at(offset).map(|register| uart.read(register));
                }
                Step::Write(offset, value) => {
                    Register::at(offset).map(|register| uart.write(register, value));
                }
                Step::Receive(input) => prop_assert!(uart.receive(&input) <= input.len()),
                Step::Send(count) => uart.sent(count),
                Step::Reset => {
                    uart.reset();
                }
            }
            prop_assert!(uart.stale <= FIFO_DEPTH && uart.transmit_level() <= FIFO_DEPTH);
            prop_assert!(uart.received.len() <= FIFO_DEPTH);
            let flags = uart.flags();
            prop_assert_eq!(flags & flag::TXFE != 0, uart.transmit_level() == 0);
            prop_assert_eq!(flags & flag::BUSY != 0, uart.transmit_level() != 0);
            prop_assert_eq!(flags & flag::RXFE != 0, uart.received.is_empty());
            prop_assert!(uart.causes & interrupt::RT == 0 || !uart.received.is_empty());
            prop_assert!(uart.pending() & !uart.causes == 0);
        }
    }
}
