//! The device driven through the test kit.
#![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

use std::sync::Arc;

use gvmm_plugin_api::testing::{Buffer, FakeHost, VirtioHarness};
use gvmm_plugin_api::virtio::{COMMON_FEATURES, VirtioDevice};

use crate::device::{Mirror, RECEIVE, TRANSMIT};

const SENT: u64 = VirtioHarness::DATA;
const RECEIVED: u64 = VirtioHarness::DATA + 0x1000;

fn harness(upper: bool) -> (Arc<FakeHost>, VirtioHarness) {
    let host = Arc::new(FakeHost::default());
    let device = Mirror::new(upper, host.services()).unwrap();
    (host, VirtioHarness::new(Arc::new(device), COMMON_FEATURES))
}

#[test]
fn what_is_sent_comes_back() {
    let (host, mut machine) = harness(true);
    let mut receive = machine.start(RECEIVE, 8);
    let mut transmit = machine.start(TRANSMIT, 8);
    receive.add(&[Buffer::writable(RECEIVED, 64)]);
    receive.kick();
    machine.memory().write(SENT, b"hello");
    transmit.request(&[Buffer::readable(SENT, 5)]);
    assert_eq!(receive.wait_used().len, 5);
    assert_eq!(machine.memory().read(RECEIVED, 5), b"HELLO");
    assert_eq!(host.failures(), [""; 0]);
}

#[test]
fn a_message_that_is_too_long_for_a_buffer_goes_on_in_the_next() {
    let (_host, mut machine) = harness(false);
    let mut receive = machine.start(RECEIVE, 8);
    let mut transmit = machine.start(TRANSMIT, 8);
    machine.memory().write(SENT, b"hello");
    transmit.request(&[Buffer::readable(SENT, 5)]);
    let parts: Vec<u32> = (0..2).map(|_| receive.request(&[Buffer::writable(RECEIVED, 3)]).len).collect();
    assert_eq!(parts, [3, 2]);
}

#[test]
fn a_reset_forgets_what_nobody_has_read() {
    let host = Arc::new(FakeHost::default());
    let device = Arc::new(Mirror::new(false, host.services()).unwrap());
    let mut machine = VirtioHarness::new(device.clone(), COMMON_FEATURES);
    let mut transmit = machine.start(TRANSMIT, 8);
    transmit.request(&[Buffer::readable(SENT, 5)]);
    machine.stop(TRANSMIT, &mut transmit);
    device.reset();
    let mut receive = machine.start(RECEIVE, 8);
    receive.add(&[Buffer::writable(RECEIVED, 8)]);
    receive.kick();
    machine.stop(RECEIVE, &mut receive);
    assert_eq!(receive.poll_used(), None);
}
