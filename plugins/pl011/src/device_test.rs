use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use gvmm_plugin_api::interrupt::Event;
use gvmm_plugin_api::services::ConsoleSize;
use gvmm_plugin_api::testing::{FakeConsole, FakeHost, wait_readable, wait_until};
use proptest::prelude::*;

use super::*;
use crate::registers::{control, flag, interrupt, line};
use crate::uart::FIFO_DEPTH;

const DR: u64 = 0x00;
const FR: u64 = 0x18;
const LCR_H: u64 = 0x2c;
const CR: u64 = 0x30;
const IMSC: u64 = 0x38;
const RIS: u64 = 0x3c;
const MIS: u64 = 0x40;

/// A started device, with its interrupt line in the test's hand.
struct Machine {
    uart: Arc<Pl011>,
    line: Event,
    host: Arc<FakeHost>,
}

impl Machine {
    fn new() -> (Self, FakeConsole) {
        let host = Arc::new(FakeHost::default());
        let fake = host.plug_console();
        let services = host.services();
        let console = services.open_console("stdio").unwrap();
        (Self::start(console, host), fake)
    }

    /// A console whose two ends are these.
    fn on(input: impl Into<OwnedFd>, output: impl Into<OwnedFd>) -> Self {
        let (input, output) = (input.into(), output.into());
        let console = Console { input, output, resized: None, size: ConsoleSize::new(|| (0, 0)) };
        Self::start(console, Arc::default())
    }

    fn start(console: Console, host: Arc<FakeHost>) -> Self {
        let uart = Pl011::new(console, host.services());
        let line = Event::new().unwrap();
        uart.start(vec![Interrupt::new(line.try_clone().unwrap())]).unwrap();
        Self { uart: Arc::new(uart), line, host }
    }

    fn read(&self, offset: u64) -> u16 {
        u16::try_from(self.uart.read(0, offset, Width::Half).unwrap()).unwrap()
    }

    fn write(&self, offset: u64, value: u16) {
        self.uart.write(0, offset, Width::Half, value.into()).unwrap();
    }

    fn metric(&self, name: &str) -> u64 {
        self.uart.metrics().into_iter().find(|metric| metric.name == name).unwrap().value
    }

    /// What a driver does to open the port.
    fn open(&self) {
        self.write(LCR_H, line::FEN);
        self.write(CR, control::TXE | control::RXE | 1);
        self.write(IMSC, interrupt::RX | interrupt::RT);
    }

    /// Prints as a driver does that polls.
    fn print_polled(&self, text: &[u8]) {
        for &byte in text {
            while self.read(FR) & flag::TXFF != 0 {
                thread::yield_now();
            }
            self.write(DR, byte.into());
        }
    }

    /// Prints as Linux does: by polling until the FIFO is full, then half a FIFO for each transmit interrupt.
    fn print_by_interrupts(&self, text: &[u8]) {
        let mut rest = text.iter();
        while self.read(FR) & flag::TXFF == 0 {
            let Some(&byte) = rest.next() else { return };
            self.write(DR, byte.into());
        }
        let mask = self.read(IMSC);
        self.write(IMSC, mask | interrupt::TX);
        while !rest.as_slice().is_empty() {
            wait_readable("a transmit interrupt", std::os::fd::AsFd::as_fd(&self.line));
            self.line.take();
            while self.read(RIS) & interrupt::TX != 0 && !rest.as_slice().is_empty() {
                rest.by_ref().take(FIFO_DEPTH / 2).for_each(|&byte| self.write(DR, byte.into()));
            }
        }
        self.write(IMSC, mask);
    }

    /// Reads input as an interrupt handler does, until so much has come.
    fn take_input(&self, len: usize) -> Vec<u8> {
        let mut input = Vec::new();
        while input.len() < len {
            wait_readable("a receive interrupt", std::os::fd::AsFd::as_fd(&self.line));
            self.line.take();
            while self.read(MIS) & (interrupt::RX | interrupt::RT) != 0 {
                while self.read(FR) & flag::RXFE == 0 {
                    input.push(self.read(DR) as u8);
                }
            }
        }
        input
    }
}

/// A text in which each place can be told.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

#[test]
fn what_the_guest_prints_is_shown() {
    let (machine, mut console) = Machine::new();
    machine.open();
    machine.print_polled(b"login: ");
    assert_eq!(console.shown(7), b"login: ");
    wait_until("the transmitter is idle", || machine.read(FR) & flag::BUSY == 0);
    assert_eq!(machine.metric("tx_bytes"), 7);
}

#[test]
fn before_the_driver_comes_each_byte_is_shown_at_once() {
    let (machine, mut console) = Machine::new();
    for &byte in b"early" {
        assert_eq!(machine.read(FR) & flag::TXFF, 0);
        machine.uart.write(0, DR, Width::Byte, byte.into()).unwrap();
        assert_eq!(machine.read(FR) & flag::BUSY, 0);
    }
    assert_eq!(console.shown(5), b"early");
}

#[test]
fn a_guest_that_waits_for_the_transmitter_sees_it_idle_at_the_second_look() {
    let (machine, mut console) = Machine::new();
    machine.open();
    machine.print_polled(b"panic");
    assert_eq!(machine.read(FR) & flag::BUSY, flag::BUSY);
    assert_eq!(machine.read(FR) & flag::BUSY, 0);
    assert_eq!(console.shown(5), b"panic");
}

#[test]
fn what_is_typed_interrupts_the_guest() {
    let (machine, mut console) = Machine::new();
    machine.open();
    console.type_in(b"ls\n");
    assert_eq!(machine.take_input(3), b"ls\n");
    assert_eq!(machine.metric("rx_bytes"), 3);
}

#[test]
fn what_is_typed_before_the_driver_opens_the_port_is_not_lost() {
    let (machine, mut console) = Machine::new();
    console.type_in(b"typed ahead");
    machine.print_polled(b"booting");
    console.shown(7);
    machine.open();
    assert_eq!(machine.take_input(11), b"typed ahead");
}

#[test]
fn a_paste_of_a_megabyte_arrives_whole() {
    let (machine, console) = Machine::new();
    machine.open();
    let text = pattern(1 << 20);
    let (mut keyboard, typed) = (console.keyboard(), text.clone());
    let typist = thread::spawn(move || keyboard.write_all(&typed).unwrap());
    assert!(machine.take_input(text.len()) == text);
    typist.join().unwrap();
    assert_eq!(machine.metric("overruns"), 0);
}

#[test]
fn a_megabyte_of_output_reaches_a_slow_reader_whole() {
    let (mut screen, output) = UnixStream::pair().unwrap();
    let machine = Machine::on(UnixStream::pair().unwrap().0, output);
    machine.open();
    let text = pattern(1 << 20);
    let expected = text.clone();
    let reader = thread::spawn(move || {
        let mut shown = vec![0; expected.len()];
        for (i, piece) in shown.chunks_mut(8 << 10).enumerate() {
            if i % 16 == 0 {
                thread::sleep(std::time::Duration::from_millis(5));
            }
            screen.read_exact(piece).unwrap();
        }
        assert!(shown == expected);
    });
    let (polled, by_interrupts) = text.split_at(text.len() / 2);
    machine.print_polled(polled);
    by_interrupts.chunks(4096).for_each(|piece| machine.print_by_interrupts(piece));
    reader.join().unwrap();
    wait_until("the transmitter is idle", || machine.read(FR) & flag::BUSY == 0);
    assert_eq!(machine.metric("tx_bytes"), text.len() as u64);
    assert_eq!(machine.metric("tx_lost_bytes"), 0);
}

#[test]
fn an_output_that_takes_nothing_does_not_block_the_guest() {
    let (screen, output) = UnixStream::pair().unwrap();
    let machine = Machine::on(UnixStream::pair().unwrap().0, output);
    machine.open();
    let mut printed = 0_u64;
    // The socket's buffer is finite, so this ends.
    while machine.read(FR) & flag::TXFF == 0 || machine.read(FR) & flag::TXFF == 0 {
        machine.write(DR, b'x'.into());
        printed += 1;
    }
    machine.write(DR, b'y'.into());
    assert_eq!(machine.metric("tx_lost_bytes"), 1, "written although the FIFO was full");
    machine.write(IMSC, interrupt::TX);
    assert!(!machine.line.take());

    drop(screen.set_read_timeout(Some(std::time::Duration::from_secs(20))));
    let mut shown = vec![0; usize::try_from(printed).unwrap()];
    (&screen).read_exact(&mut shown).unwrap();
    assert!(shown.iter().all(|&byte| byte == b'x'));
    wait_readable("room for more", std::os::fd::AsFd::as_fd(&machine.line));
}

#[test]
fn an_output_that_nobody_reads_any_more_is_lost_and_the_guest_goes_on() {
    let (screen, output) = UnixStream::pair().unwrap();
    drop(screen);
    let machine = Machine::on(UnixStream::pair().unwrap().0, output);
    machine.open();
    machine.print_polled(&[b'x'; 1000]);
    wait_until("all is off the line", || machine.read(FR) & flag::BUSY == 0);
    assert_eq!(machine.metric("tx_lost_bytes"), 1000);
}

#[test]
fn a_console_that_hangs_up_leaves_a_working_output() {
    let (machine, mut console) = Machine::new();
    machine.open();
    console.type_in(b"bye");
    assert_eq!(machine.take_input(3), b"bye");
    console.hang_up();
    machine.print_polled(b"still here");
    assert_eq!(console.shown(10), b"still here");
}

#[test]
fn a_guest_that_left_a_cause_set_is_interrupted_again() {
    let (machine, mut console) = Machine::new();
    machine.open();
    console.type_in(b"a");
    for _ in 0..2 {
        wait_readable("an interrupt", std::os::fd::AsFd::as_fd(&machine.line));
        assert!(machine.line.take());
    }
    assert_eq!(machine.read(DR), u16::from(b'a'));
}

#[test]
fn dropping_the_device_shows_the_last_bytes_and_closes_the_console() {
    let (mut screen, output) = UnixStream::pair().unwrap();
    let (keyboard, input) = UnixStream::pair().unwrap();
    let machine = Machine::on(input, output);
    machine.open();
    machine.print_polled(b"Power down\n");
    drop(machine);
    let mut shown = String::new();
    screen.read_to_string(&mut shown).unwrap();
    assert_eq!(shown, "Power down\n");
    (&keyboard).write(b"x").unwrap_err();
}

#[test]
fn an_output_that_is_stuck_does_not_hold_up_the_end() {
    let (screen, output) = UnixStream::pair().unwrap();
    let machine = Machine::on(UnixStream::pair().unwrap().0, output);
    machine.open();
    while machine.read(FR) & flag::TXFF == 0 || machine.read(FR) & flag::TXFF == 0 {
        machine.write(DR, b'x'.into());
    }
    drop(machine);
    drop(screen);
}

#[test]
fn reset_makes_the_port_as_at_power_on_and_twice_is_once() {
    let (machine, mut console) = Machine::new();
    machine.open();
    machine.print_polled(b"reboot: Restarting system\n");
    let state = |machine: &Machine| -> Vec<_> {
        [FR, LCR_H, CR, IMSC, RIS, 0x04, 0x24, 0x34].iter().map(|&offset| machine.read(offset)).collect()
    };
    let at_power_on = state(&Machine::new().0);
    for _ in 0..2 {
        machine.uart.reset();
        assert_eq!(state(&machine), at_power_on);
    }
    assert_eq!(console.shown(26), b"reboot: Restarting system\n");
    machine.open();
    console.type_in(b"again");
    assert_eq!(machine.take_input(5), b"again");
}

#[test]
fn accesses_that_no_register_takes_are_refused() {
    let (machine, _console) = Machine::new();
    let uart = &machine.uart;
    assert_eq!(uart.read(0, FR, Width::Double), Err(AccessError::Width));
    assert_eq!(uart.read(0, FR + 1, Width::Byte), Err(AccessError::Width));
    assert_eq!(uart.read(0, 0x08, Width::Word), Err(AccessError::NoRegister));
    assert_eq!(uart.read(1, FR, Width::Word), Err(AccessError::NoRegister));
    assert_eq!(uart.write(0, FR, Width::Word, 0), Err(AccessError::Direction));
    assert_eq!(uart.write(0, 0xfe0, Width::Word, 0), Err(AccessError::Direction));
}

#[test]
fn narrow_accesses_carry_the_low_bits() {
    let (machine, _console) = Machine::new();
    machine.uart.write(0, 0x24, Width::Word, 0xdead_1234).unwrap();
    assert_eq!(machine.uart.read(0, 0x24, Width::Word), Ok(0x1234));
    assert_eq!(machine.uart.read(0, 0x24, Width::Byte), Ok(0x34));
    machine.uart.write(0, 0x24, Width::Byte, 0x15678).unwrap();
    assert_eq!(machine.uart.read(0, 0x24, Width::Half), Ok(0x78));
}

#[test]
fn the_node_is_the_one_that_linux_binds_its_driver_to() {
    let (machine, _console) = Machine::new();
    let node = machine.uart.node();
    assert_eq!((node.name.as_str(), node.console), ("serial", true));
    assert_eq!(node.compatible, ["arm,pl011", "arm,primecell"]);
    assert_eq!(machine.uart.layout(), MmioLayout { windows: vec![0x1000], lines: 1 });
}

#[test]
fn an_attachment_that_the_host_does_not_have_is_named() {
    let host = Arc::new(FakeHost::default());
    let options = crate::Options { console: "pty".to_owned() };
    assert_eq!(crate::create(options, host.services()).err().unwrap(), "no console 'pty'");
}

#[test]
fn lines_of_two_cpus_stay_whole() {
    let (machine, mut console) = Machine::new();
    machine.open();
    const LINES: usize = 1000;
    let lines = [b"printed by the first\n", b"and this by another\n_"];
    // The guest's own lock on the port.
    let port = Mutex::new(());
    thread::scope(|scope| {
        for line in lines {
            let (machine, port) = (&machine, &port);
            scope.spawn(move || {
                for _ in 0..LINES {
                    let _port = port.lock().unwrap();
                    machine.print_polled(line);
                }
            });
        }
        let shown = console.shown(2 * LINES * lines[0].len());
        assert!(shown.chunks(lines[0].len()).all(|line| lines.iter().any(|known| *known == line)));
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_access_of_any_width_at_any_offset_panics(
        accesses in prop::collection::vec((any::<bool>(), 0..0x1000_u64, 0..4_usize, any::<u64>()), 1..400),
        typed in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let (machine, mut console) = Machine::new();
        console.type_in(&typed);
        for (write, offset, width, value) in accesses {
            let width = Width::ALL[width];
            let offset = if value & 1 == 0 { offset } else { offset & 0x4c };
            if offset + width.bytes() as u64 > WINDOW {
                continue;
            }
            if write {
                let _ = machine.uart.write(0, offset, width, value);
            } else if let Ok(read) = machine.uart.read(0, offset, width) {
                prop_assert!(read <= u64::from(u16::MAX) & low_bits(width));
            }
        }
        machine.uart.reset();
        prop_assert!(machine.host.failures().is_empty());
    }
}
