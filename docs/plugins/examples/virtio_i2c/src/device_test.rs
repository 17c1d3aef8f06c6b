//! The device driven through the test kit.
#![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

use std::path::PathBuf;
use std::sync::Arc;

use gvmm_plugin_api::testing::{Buffer, FakeHost, QueueDriver, VirtioHarness};
use gvmm_plugin_api::virtio::VirtioDevice;

use crate::device::{Bus, FEATURES};
use crate::temperature::Temperature;
use crate::transfer::{ERROR, FAIL_NEXT, HEADER, MAX_MESSAGE, OK, READ};

const REQUEST: u64 = VirtioHarness::DATA;
const ANSWER: u64 = VirtioHarness::DATA + 0x10000;
const SENSOR: u16 = 0x48;
/// What a buffer has before anybody writes it.
const UNTOUCHED: u8 = 0xaa;

struct Machine {
    host: Arc<FakeHost>,
    device: Arc<Bus>,
    harness: VirtioHarness,
    queue: QueueDriver,
}

fn machine(file: Option<PathBuf>) -> Machine {
    let host = Arc::new(FakeHost::default());
    let device = Arc::new(Bus::new(SENSOR as u8, Temperature::new(file).unwrap(), host.services()));
    let mut harness = VirtioHarness::new(device.clone(), FEATURES);
    let queue = harness.start(0, 8);
    Machine { host, device, harness, queue }
}

impl Machine {
    /// Sends a request as Linux does; what came back with its status, and the length that the device told.
    fn request(&mut self, address: u16, flags: u32, sent: &[u8], room: u32) -> (Vec<u8>, u8, u32) {
        let memory = self.harness.memory();
        let header = [&(address << 1).to_le_bytes()[..], &[0; 2], &flags.to_le_bytes(), sent].concat();
        memory.write(REQUEST, &header);
        memory.write(ANSWER, &vec![UNTOUCHED; room as usize + 1]);
        let mut buffers = vec![Buffer::readable(REQUEST, HEADER as u32)];
        if !sent.is_empty() {
            buffers.push(Buffer::readable(REQUEST + HEADER, sent.len() as u32));
        }
        if room > 0 {
            buffers.push(Buffer::writable(ANSWER, room));
        }
        buffers.push(Buffer::writable(ANSWER + u64::from(room), 1));
        let used = self.queue.request(&buffers);
        let mut answer = self.harness.memory().read(ANSWER, room as usize + 1);
        let status = answer.pop().unwrap();
        (answer, status, used.len)
    }

    /// Reads a register as `i2c_smbus_read_word` does.
    fn register(&mut self, pointer: u8) -> Vec<u8> {
        assert_eq!(self.request(SENSOR, FAIL_NEXT, &[pointer], 0).1, OK);
        let (word, status, len) = self.request(SENSOR, READ, &[], 2);
        assert_eq!((status, len), (OK, 3));
        word
    }
}

#[test]
fn the_sensor_shows_the_temperature_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("temp");
    std::fs::write(&file, "41700\n").unwrap();
    let mut machine = machine(Some(file.clone()));
    assert_eq!(machine.register(0), [41, 0x80]);
    std::fs::write(&file, "-1000\n").unwrap();
    assert_eq!(machine.register(0), [0xff, 0]);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(machine.request(SENSOR, READ, &[], 2), (vec![UNTOUCHED; 2], ERROR, 0));
}

#[test]
fn registers_are_written_and_read_back_until_a_reset() {
    let mut machine = machine(None);
    assert_eq!(machine.request(SENSOR, 0, &[3, 0x1e, 0x80], 0), (vec![], OK, 1));
    assert_eq!(machine.register(3), [0x1e, 0x80]);
    machine.harness.stop(0, &mut machine.queue);
    machine.device.reset();
    machine.queue = machine.harness.start(0, 8);
    assert_eq!(machine.register(3), [80, 0]);
}

#[test]
fn a_message_of_no_length_finds_the_sensor_and_nothing_else() {
    let mut machine = machine(None);
    assert_eq!(machine.request(SENSOR, 0, &[], 0).1, OK);
    assert_eq!(machine.request(SENSOR, READ, &[], 0).1, OK);
    for other in [0, SENSOR + 1, 0x80 | SENSOR, 0x7fff] {
        assert_eq!(machine.request(other, 0, &[], 0).1, ERROR, "{other:#x}");
    }
}

#[test]
fn a_failure_goes_on_to_the_next_request_if_that_is_asked_for() {
    let mut machine = machine(None);
    assert_eq!(machine.request(SENSOR + 1, FAIL_NEXT, &[0], 0).1, ERROR);
    assert_eq!(machine.request(SENSOR, FAIL_NEXT, &[0], 0).1, ERROR);
    assert_eq!(machine.request(SENSOR, READ, &[], 2).1, ERROR);
    assert_eq!(machine.request(SENSOR, READ, &[], 2).1, OK);
    assert_eq!(machine.request(SENSOR + 1, 0, &[0], 0).1, ERROR);
    assert_eq!(machine.request(SENSOR, READ, &[], 2).1, OK);
}

#[test]
fn messages_have_a_bound() {
    let mut machine = machine(None);
    let longest = MAX_MESSAGE as u32;
    assert_eq!(machine.request(SENSOR, READ, &[], longest).1, OK);
    assert_eq!(machine.request(SENSOR, READ, &[], longest + 1).1, ERROR);
    assert_eq!(machine.request(SENSOR, 0, &vec![0; longest as usize + 1], 0).1, ERROR);
}

#[test]
fn requests_of_another_form_fail_alone() {
    let mut machine = machine(None);
    let status = Buffer::writable(ANSWER, 1);
    // No room for a status; half a header; no header.
    assert_eq!(machine.queue.request(&[Buffer::readable(REQUEST, 8)]).len, 0);
    assert_eq!(machine.queue.request(&[Buffer::readable(REQUEST, 4), status]).len, 1);
    assert_eq!(machine.harness.memory().read(ANSWER, 1), [ERROR]);
    assert_eq!(machine.queue.request(&[status]).len, 1);
    // Both ways at once.
    assert_eq!(machine.request(SENSOR, READ, &[0], 2).1, ERROR);
    assert_eq!(machine.request(SENSOR, 0, &[0], 2).1, ERROR);
    assert_eq!(machine.request(SENSOR, READ, &[], 2).1, OK);
    assert_eq!(machine.host.failures(), [""; 0]);
    assert_eq!(machine.device.metrics()[1].value, 5);
}
