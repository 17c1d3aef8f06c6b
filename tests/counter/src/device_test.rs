//! The device without a machine around it.
#![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

use gvmm_plugin_api::interrupt::{Event, Interrupt};
use gvmm_plugin_api::mmio::{AccessError, MmioDevice, Width};

use crate::device::{COUNT, Tally};

/// A device that has been started, and the far end of its interrupt line.
fn started(step: u64) -> (Tally, Event) {
    let device = Tally::new(step);
    let line = Event::new().unwrap();
    device.start(vec![Interrupt::new(line.try_clone().unwrap())]).unwrap();
    (device, line)
}

#[test]
fn writes_are_counted_until_a_reset() {
    let (device, _line) = started(10);
    for _ in 0..3 {
        device.write(0, COUNT, Width::Word, 7).unwrap();
    }
    assert_eq!(device.read(0, COUNT, Width::Word), Ok(3));
    device.reset();
    assert_eq!(device.read(0, COUNT, Width::Word), Ok(0));
}

#[test]
fn every_second_write_interrupts() {
    let (device, line) = started(2);
    device.write(0, COUNT, Width::Word, 0).unwrap();
    assert!(!line.take());
    device.write(0, COUNT, Width::Word, 0).unwrap();
    assert!(line.take());
}

#[test]
fn other_accesses_are_refused() {
    let (device, _line) = started(1);
    assert_eq!(device.read(0, COUNT, Width::Byte), Err(AccessError::Width));
    assert_eq!(device.write(0, 4, Width::Word, 0), Err(AccessError::NoRegister));
}
