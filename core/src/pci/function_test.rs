//! Functions on a bus, driven as a guest does.

use gvmm_plugin_api::mmio::{AccessError, Width};

use super::config::{command, reg};
use super::fixture::{ACCESS_AT, Bench, ECAM, MSIX_AT, SETSPI, WINDOW};
use crate::bus::Registers;
use crate::eventfd;

const BAR0: u64 = 0x10;
const COMMAND: u64 = reg::COMMAND as u64;
/// Bytes of the BAR of a recorder: registers, table and pending bits have a page each.
const SIZE: u64 = 0x4000;
/// Where table and pending bits are.
const TABLE: u64 = 0x1000;
const PENDING: u64 = 0x2000;

impl Bench {
    fn set_command(&self, device: u64, bits: u16) {
        self.set_config(device, COMMAND, Width::Half, bits.into());
    }

    fn move_bar(&self, device: u64, address: u64) {
        self.set_config(device, BAR0, Width::Word, address);
    }

    fn set_msix_control(&self, device: u64, bits: u64) {
        self.set_config(device, MSIX_AT + 2, Width::Half, bits);
    }

    /// Switches memory, messages and MSI-X on, and programs vector 0 for SPI 10.
    fn use_messages(&self) {
        self.set_command(0, command::MEMORY | command::BUS_MASTER);
        self.set_msix_control(0, 0x8000);
        for (offset, value) in [(0, SETSPI), (4, 0), (8, 42), (12, 0)] {
            self.write(WINDOW.start + TABLE + offset, value).unwrap();
        }
    }
}

#[test]
fn empty_places_of_the_bus_read_as_ones() {
    let bench = Bench::new(2);
    assert_eq!(bench.config(0, 0, Width::Word), 0x5678_1234);
    assert_eq!(bench.config(1, 2, Width::Half), 0x5678);
    assert_eq!(bench.config(2, 0, Width::Word), u64::MAX);
    assert_eq!(bench.config(0, 1 << 12, Width::Word), u64::MAX, "there is no function 1");
    assert_eq!(bench.config(0, 0x100, Width::Word), u64::MAX, "there is no extended space");
}

#[test]
fn registers_answer_only_while_memory_is_switched_on() {
    let bench = Bench::new(1);
    assert_eq!(bench.read(WINDOW.start), Ok(u64::MAX));
    bench.set_command(0, command::MEMORY);
    assert_eq!(bench.read(WINDOW.start + 4), Ok(0x1234_5678));
    bench.write(WINDOW.start + 8, 7).unwrap();
    assert_eq!(bench.devices[0].taken(), ["read 0x4", "write 0x8 0x7"]);
    assert_eq!(bench.read(WINDOW.start + 0x100), Err(AccessError::NoRegister));
    bench.set_command(0, 0);
    assert_eq!(bench.read(WINDOW.start + 4), Ok(u64::MAX));
}

#[test]
fn registers_and_doorbells_move_with_the_bar() {
    let bench = Bench::new(2);
    bench.set_command(0, command::MEMORY);
    bench.set_command(1, command::MEMORY);
    assert_eq!(bench.board.doorbells(), [WINDOW.start + 0x40, WINDOW.start + SIZE + 0x40]);
    bench.move_bar(0, WINDOW.start + 8 * SIZE);
    assert_eq!(bench.read(WINDOW.start), Ok(u64::MAX));
    assert_eq!(bench.read(WINDOW.start + 8 * SIZE), Ok(0x1234_5678));
    assert_eq!(bench.board.doorbells(), [WINDOW.start + SIZE + 0x40, WINDOW.start + 8 * SIZE + 0x40]);
    bench.set_command(0, 0);
    assert_eq!(bench.board.doorbells(), [WINDOW.start + SIZE + 0x40]);
}

#[test]
fn a_bar_outside_of_the_window_answers_nowhere() {
    let bench = Bench::new(1);
    bench.set_command(0, command::MEMORY);
    for address in [0, 0x802_0000, 0x3fff_0000, 0x8000_0000, WINDOW.end - SIZE / 2, WINDOW.end] {
        bench.move_bar(0, address);
        assert_eq!(bench.read(WINDOW.start), Ok(u64::MAX), "{address:#x}");
        assert!(bench.board.doorbells().iter().all(|doorbell| WINDOW.contains(doorbell)), "{address:#x}");
    }
}

#[test]
fn of_two_bars_at_one_place_the_first_answers() {
    let bench = Bench::new(2);
    bench.set_command(0, command::MEMORY);
    bench.set_command(1, command::MEMORY);
    bench.move_bar(1, WINDOW.start);
    bench.read(WINDOW.start).unwrap();
    assert_eq!((bench.devices[0].taken().len(), bench.devices[1].taken().len()), (1, 0));
    bench.move_bar(0, WINDOW.start + 8 * SIZE);
    bench.read(WINDOW.start).unwrap();
    assert_eq!(bench.devices[1].taken().len(), 1);
}

#[test]
fn a_message_reaches_the_guest_without_anybody_in_between() {
    let bench = Bench::new(1);
    bench.use_messages();
    assert_eq!(bench.board.lines(), [1, 10]);
    eventfd::signal(&bench.vectors[0][0]);
    assert_eq!(bench.board.taken(10), 1);
    assert_eq!(bench.read(WINDOW.start + PENDING), Ok(0));
}

#[test]
fn masked_messages_are_pending_and_come_later() {
    let bench = Bench::new(1);
    bench.use_messages();
    for (mask, unmask) in [(0xc000, 0x8000), (0, 0x8000)] {
        bench.set_msix_control(0, mask);
        let before = bench.board.taken(10);
        eventfd::signal(&bench.vectors[0][0]);
        assert_eq!(bench.board.taken(10), before);
        assert_eq!(bench.read(WINDOW.start + PENDING), Ok(1));
        bench.set_msix_control(0, unmask);
        assert!(bench.board.taken(10) > before);
        assert_eq!(bench.read(WINDOW.start + PENDING), Ok(0));
    }
    assert_eq!(bench.write(WINDOW.start + PENDING, 1), Err(AccessError::Direction));
}

#[test]
fn the_line_keeps_silent_while_it_is_disabled() {
    let bench = Bench::new(1);
    eventfd::signal(&bench.lines[0].eventfd);
    assert_eq!(bench.board.taken(1), 1);
    bench.set_command(0, command::INTERRUPT_DISABLE);
    eventfd::signal(&bench.lines[0].eventfd);
    assert!(bench.board.lines().is_empty());
    bench.set_command(0, 0);
    assert!(bench.board.taken(1) > 1, "what waited comes when it is enabled");
}

#[test]
fn the_access_window_reaches_registers_without_a_bar() {
    let bench = Bench::new(1);
    bench.set_config(0, ACCESS_AT + 8, Width::Word, 0x20);
    bench.set_config(0, ACCESS_AT + 12, Width::Word, 2);
    assert_eq!(bench.config(0, ACCESS_AT + 16, Width::Half), 0x1234_5678);
    bench.set_config(0, ACCESS_AT + 16, Width::Half, 0xab);
    assert_eq!(bench.devices[0].taken(), ["read 0x20", "write 0x20 0xab"]);
    for (field, value) in [(12, 3), (12, 8), (4, 1), (8, 0xff)] {
        bench.set_config(0, ACCESS_AT + 12, Width::Word, 2);
        bench.set_config(0, ACCESS_AT + field, Width::Byte, value);
        bench.config(0, ACCESS_AT + 16, Width::Word);
        bench.set_config(0, ACCESS_AT + 16, Width::Word, 1);
        assert!(bench.devices[0].taken().is_empty(), "field {field} with {value}");
    }
}

#[test]
fn the_next_vm_finds_everything_as_after_power_on() {
    let bench = Bench::new(1);
    bench.use_messages();
    bench.move_bar(0, WINDOW.start + 8 * SIZE);
    eventfd::signal(&bench.vectors[0][1]);
    bench.host.detach();
    assert!(bench.board.doorbells().is_empty());
    assert!(!bench.board.lines().contains(&10));
    assert_eq!(bench.devices[0].taken(), ["reset"]);
    assert_eq!(bench.config(0, BAR0, Width::Word), WINDOW.start);
    assert_eq!(bench.config(0, COMMAND, Width::Half), 0);
    assert!(!eventfd::is_signalled(&bench.vectors[0][1]));
}

#[test]
fn a_bus_takes_32_devices() {
    let error = std::panic::catch_unwind(|| Bench::new(33)).err().unwrap();
    let text = error.downcast_ref::<String>().unwrap();
    assert!(
        text.contains("device dev: all 32 places on the PCI bus are taken: add transport=mmio"),
        "{text}"
    );
    assert_eq!(Bench::new(32).config(31, 0, Width::Word), 0x5678_1234);
}

#[test]
fn memory_shows_what_reads_of_configuration_space_give() {
    let bench = Bench::new(2);
    bench.set_command(1, command::MEMORY);
    bench.set_config(1, BAR0, Width::Word, u64::MAX);
    bench.set_config(0, 0x3c, Width::Byte, 0x55);
    for offset in (0..0x1000).step_by(4) {
        assert!((0..3).all(|device| bench.is_shown(device, offset)), "{offset:#x}");
    }
    assert_eq!(bench.board.shown_at(ECAM).is_some(), bench.host.image().is_some());
    bench.host.detach();
    assert!((0..0x100).all(|offset| bench.is_shown(1, offset)));
    assert_eq!(bench.config(1, COMMAND, Width::Half), 0);
}

#[test]
fn memory_shows_nothing_any_more_once_the_access_window_is_open() {
    let bench = Bench::new(1);
    bench.set_config(0, ACCESS_AT + 8, Width::Word, 0x20);
    assert_eq!(bench.board.shown_at(ECAM).is_some(), bench.host.image().is_some());
    bench.set_config(0, ACCESS_AT + 12, Width::Word, 2);
    assert_eq!(bench.board.shown_at(ECAM), None);
}

#[test]
fn memory_shows_the_table_of_messages_where_the_bar_is() {
    let bench = Bench::new(2);
    if bench.host.image().is_none() {
        return;
    }
    let (table, moved) = (WINDOW.start + TABLE, WINDOW.start + 8 * SIZE + TABLE);
    assert_eq!(bench.board.shown(), [ECAM], "no BAR answers");
    bench.use_messages();
    assert_eq!(bench.board.shown(), [table, ECAM]);
    let shown = |base, at: [u64; 6]| at.map(|at| bench.board.shown_at(base + at).unwrap());
    assert_eq!(shown(table, [0, 8, 12, 28, 32, 0xffc]), [SETSPI as u32, 42, 0, 1, 0, 0]);
    bench.window.write(TABLE + 24, Width::Double, 0xb_0000_0007).unwrap();
    bench.move_bar(0, WINDOW.start + 8 * SIZE);
    assert_eq!(bench.board.shown(), [moved, ECAM]);
    assert_eq!(shown(moved, [0, 8, 12, 24, 28, 32]), [SETSPI as u32, 42, 0, 7, 1, 0]);
    bench.set_command(0, 0);
    assert_eq!(bench.board.shown(), [ECAM]);
    bench.set_command(0, command::MEMORY);
    bench.host.detach();
    assert_eq!(bench.board.shown(), [ECAM], "which goes with the VM");
}

#[test]
fn of_two_bars_at_one_place_the_first_is_shown() {
    let bench = Bench::new(2);
    if bench.host.image().is_none() {
        return;
    }
    bench.set_command(0, command::MEMORY);
    bench.set_command(1, command::MEMORY);
    bench.move_bar(1, WINDOW.start);
    assert_eq!(bench.board.shown(), [WINDOW.start + TABLE, ECAM]);
    bench.move_bar(1, WINDOW.start + SIZE);
    assert_eq!(bench.board.shown(), [WINDOW.start + TABLE, WINDOW.start + SIZE + TABLE, ECAM]);
}
