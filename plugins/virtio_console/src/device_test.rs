//! Tests through the test kit.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;

use gvmm_plugin_api::services::{Console, ConsoleSize};
use gvmm_plugin_api::testing::{Buffer, FakeConsole, FakeHost, QueueDriver, VirtioHarness, wait_until};
use gvmm_plugin_api::virtio::{COMMON_FEATURES, VirtioDevice};
use proptest::prelude::*;

use crate::device::{CONFIG_SIZE, F_SIZE, RECEIVE_QUEUE, TRANSMIT_QUEUE, VirtioConsole};
use crate::output::CAPACITY;

/// Guest addresses of buffers.
const DATA: u64 = VirtioHarness::DATA;
const TYPED: u64 = DATA + (8 << 20);
const PAGE: u32 = 4096;

struct Machine {
    host: Arc<FakeHost>,
    far_end: FakeConsole,
    device: Arc<VirtioConsole>,
    harness: VirtioHarness,
}

fn machine() -> Machine {
    let host = Arc::new(FakeHost::default());
    let far_end = host.plug_console();
    let console = host.services().open_console("stdio").unwrap();
    let device = Arc::new(VirtioConsole::new(console, host.services()));
    let harness = VirtioHarness::new(device.clone(), u64::MAX);
    Machine { host, far_end, device, harness }
}

impl Machine {
    fn metric(&self, name: &str) -> u64 {
        self.device.metrics().iter().find(|metric| metric.name == name).unwrap().value
    }
}

/// Bytes with a period that no buffer's size is a multiple of.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| b' ' + (i % 89) as u8).collect()
}

/// The receive queue as Linux drives it: a page in each buffer, given back as soon as it is read.
struct Reader {
    queue: QueueDriver,
    pages: HashMap<u16, u64>,
}

impl Reader {
    fn start(machine: &mut Machine) -> Self {
        let mut queue = machine.harness.start(RECEIVE_QUEUE, 16);
        let pages = (0..16).map(|i| TYPED + i * u64::from(PAGE));
        let pages = pages.map(|page| (queue.add(&[Buffer::writable(page, PAGE)]), page)).collect();
        queue.kick_if_wanted();
        Self { queue, pages }
    }

    fn read(&mut self, machine: &Machine, len: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < len {
            let used = self.queue.wait_used();
            let page = self.pages.remove(&used.head).unwrap();
            all.extend(machine.harness.memory().read(page, used.len as usize));
            self.pages.insert(self.queue.add(&[Buffer::writable(page, PAGE)]), page);
            self.queue.kick_if_wanted();
        }
        all
    }
}

#[test]
fn what_the_guest_shows_appears() {
    let mut machine = machine();
    let mut queue = machine.harness.start(TRANSMIT_QUEUE, 8);
    machine.harness.memory().write(DATA, b"hello world");
    assert_eq!(queue.request(&[Buffer::readable(DATA, 6), Buffer::readable(DATA + 6, 5)]).len, 0);
    assert_eq!(machine.far_end.shown(11), b"hello world");
    wait_until("all being counted", || machine.metric("tx_bytes") == 11);
}

#[test]
fn a_megabyte_is_shown_whole_in_many_requests_and_in_one() {
    let mut machine = machine();
    let all = pattern(1 << 20);
    machine.harness.memory().write(DATA, &all);
    let mut queue = machine.harness.start(TRANSMIT_QUEUE, 16);
    thread::scope(|scope| {
        let driver = scope.spawn(move || {
            for offset in (0..1 << 20).step_by(PAGE as usize) {
                queue.request(&[Buffer::readable(DATA + offset, PAGE)]);
            }
            queue
        });
        assert!(machine.far_end.shown(all.len()) == all);
        let mut queue = driver.join().unwrap();
        // Nobody reads: the guest waits when the buffer and the socket to the test are full.
        queue.add(&[Buffer::readable(DATA, 1 << 20)]);
        queue.kick_if_wanted();
        assert!(machine.far_end.shown(all.len()) == all);
        queue.wait_used();
    });
    // A request is counted behind the driver's back.
    wait_until("all being counted", || machine.metric("tx_bytes") == 2 << 20);
}

#[test]
fn the_guest_goes_on_while_there_is_room_for_what_it_shows() {
    let mut machine = machine();
    let all = pattern(CAPACITY);
    machine.harness.memory().write(DATA, &all);
    let mut queue = machine.harness.start(TRANSMIT_QUEUE, 8);
    // Nobody reads, and the socket to the test takes less than that.
    for half in [0, CAPACITY / 2] {
        queue.request(&[Buffer::readable(DATA + half as u64, CAPACITY as u32 / 2)]);
    }
    assert!(machine.far_end.shown(all.len()) == all);
}

#[test]
fn kicks_are_not_missed_after_the_output_was_blocked() {
    let mut machine = machine();
    let all = pattern(1 << 20);
    machine.harness.memory().write(DATA, &all);
    let mut queue = machine.harness.start(TRANSMIT_QUEUE, 64);
    for round in 0..20 {
        for offset in (0..1 << 20).step_by(1 << 15) {
            queue.add(&[Buffer::readable(DATA + offset, 1 << 15)]);
            queue.kick_if_wanted();
        }
        assert!(machine.far_end.shown(all.len()) == all, "round {round}");
        for _ in (0..1 << 20).step_by(1 << 15) {
            queue.wait_used();
        }
    }
}

#[test]
fn a_large_paste_arrives_whole() {
    let mut machine = machine();
    let all = pattern(1 << 20);
    let mut keyboard = machine.far_end.keyboard();
    let text = all.clone();
    let typist = thread::spawn(move || std::io::Write::write_all(&mut keyboard, &text).unwrap());
    let mut reader = Reader::start(&mut machine);
    assert!(reader.read(&machine, all.len()) == all);
    typist.join().unwrap();
    assert_eq!(machine.metric("rx_bytes"), 1 << 20);
}

#[test]
fn input_waits_for_buffers() {
    let mut machine = machine();
    let mut queue = machine.harness.start(RECEIVE_QUEUE, 8);
    machine.far_end.type_in(b"typed ahead");
    for expected in [&b"typed"[..], b" ahea", b"d"] {
        let used = queue.request(&[Buffer::writable(TYPED, 5)]);
        assert_eq!(machine.harness.memory().read(TYPED, used.len as usize), expected);
    }
}

#[test]
fn buffers_without_room_are_given_back_empty() {
    let mut machine = machine();
    let mut queue = machine.harness.start(RECEIVE_QUEUE, 8);
    machine.far_end.type_in(b"a");
    assert_eq!(queue.request(&[Buffer::readable(TYPED, 5)]).len, 0);
    assert_eq!(queue.request(&[Buffer::writable(TYPED, 0)]).len, 0);
    assert_eq!(queue.request(&[Buffer::writable(TYPED, 5)]).len, 1);
}

#[test]
fn the_end_of_the_input_leaves_buffers_with_the_device() {
    let mut machine = machine();
    let mut queue = machine.harness.start(RECEIVE_QUEUE, 8);
    machine.far_end.type_in(b"a");
    assert_eq!(queue.request(&[Buffer::writable(TYPED, 5)]).len, 1);
    machine.far_end.hang_up();
    queue.add(&[Buffer::writable(TYPED, 5)]);
    queue.kick();
    let state = machine.harness.stop(RECEIVE_QUEUE, &mut queue);
    assert_eq!((state.next_avail, state.next_used), (1, 1));
    assert_eq!(machine.host.failures(), [""; 0]);
}

#[test]
fn a_new_window_size_is_announced() {
    let mut machine = machine();
    let _queue = machine.harness.start(TRANSMIT_QUEUE, 8);
    let size = |machine: &Machine| {
        let mut config = [0; 4];
        machine.device.read_config(0, &mut config);
        config
    };
    assert_eq!(size(&machine), [80, 0, 25, 0]);
    machine.far_end.resize(300, 100);
    wait_until("the announcement", || machine.host.config_changes() > 0);
    assert_eq!(size(&machine), [44, 1, 100, 0]);
}

#[test]
fn a_console_without_a_window_has_no_size_feature() {
    let with = machine();
    assert_ne!(with.device.traits().features & F_SIZE, 0);
    let (input, output) = std::os::unix::net::UnixStream::pair().unwrap();
    let size = ConsoleSize::new(|| (0, 0));
    let console = Console { input: input.into(), output: output.into(), resized: None, size };
    let without = VirtioConsole::new(console, with.host.services());
    assert_eq!(without.traits().features & F_SIZE, 0);
}

#[test]
fn configuration_space_is_read_at_any_offset() {
    let machine = machine();
    for offset in 0..CONFIG_SIZE {
        for len in 0..=CONFIG_SIZE - offset {
            let mut config = vec![0xff; len];
            machine.device.read_config(offset as u32, &mut config);
            let whole = [80, 0, 25, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            assert_eq!(config, whole[offset..offset + len]);
        }
    }
}

#[test]
fn output_is_written_out_when_the_queue_stops() {
    let mut machine = machine();
    let all = pattern(1 << 13);
    machine.harness.memory().write(DATA, &all);
    let mut queue = machine.harness.start(TRANSMIT_QUEUE, 8);
    queue.add(&[Buffer::readable(DATA, 1 << 13)]);
    // Stopped before it may have been looked at.
    let state = machine.harness.stop(TRANSMIT_QUEUE, &mut queue);
    assert_eq!((state.next_avail, state.next_used), (1, 1));
    assert!(machine.far_end.shown(all.len()) == all);
    machine.harness.memory().write(DATA, b"more");
    machine.harness.resume(TRANSMIT_QUEUE, &mut queue, state);
    queue.add(&[Buffer::readable(DATA, 4)]);
    queue.kick_if_wanted();
    assert_eq!(machine.far_end.shown(4), b"more");
}

#[test]
fn an_output_that_fails_does_not_stop_the_guest() {
    let host = Arc::new(FakeHost::default());
    let (input, _typist) = std::os::unix::net::UnixStream::pair().unwrap();
    let (output, _) = std::os::unix::net::UnixStream::pair().unwrap();
    let size = ConsoleSize::new(|| (0, 0));
    let console = Console { input: input.into(), output: output.into(), resized: None, size };
    let device = Arc::new(VirtioConsole::new(console, host.services()));
    let mut harness = VirtioHarness::new(device.clone(), COMMON_FEATURES);
    let mut queue = harness.start(TRANSMIT_QUEUE, 8);
    for _ in 0..100 {
        queue.request(&[Buffer::readable(DATA, PAGE)]);
    }
    harness.stop(TRANSMIT_QUEUE, &mut queue);
    assert_eq!(device.metrics()[2].value, 100 * u64::from(PAGE));
    assert_eq!(host.failures(), [""; 0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_descriptors_are_survived(
        index in 0..2_u16,
        descriptors in prop::collection::vec((any::<u64>(), any::<u32>(), any::<u16>(), any::<u16>()), 1..8),
        heads in prop::collection::vec(any::<u16>(), 1..8),
        near in any::<bool>(),
    ) {
        let mut machine = machine();
        // Otherwise a receive queue just keeps its buffers.
        machine.far_end.type_in(&pattern(1 << 16));
        let mut queue = machine.harness.start(index, 8);
        for (index, (address, len, flags, next)) in (0..).zip(descriptors) {
            let (address, len) = if near { (DATA + address % (1 << 20), len % (1 << 16)) } else { (address, len) };
            queue.descriptor(index, address, len, flags & 7, next % 9);
        }
        for head in heads {
            queue.offer(head % 9);
        }
        queue.kick();
        let stuck = |machine: &Machine| {
            // All input is in the guest, or all that was shown fills what the test does not read.
            machine.metric("rx_bytes") == 1 << 16 || machine.metric("tx_bytes") > 0
        };
        let mut answered = 0;
        wait_until("an answer, a failure or nothing left to do", || {
            answered += u32::from(queue.poll_used().is_some());
            answered > 0 || !machine.host.failures().is_empty() || stuck(&machine)
        });
        machine.device.stop_queue(index);
        prop_assert!(machine.host.failures().iter().all(|failure| !failure.contains("panicked")));
    }
}
