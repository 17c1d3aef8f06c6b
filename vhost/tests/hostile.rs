//! A plugin that attacks its host from a process of its own: the machine goes on, and so does its device after a reset.

#![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

use std::path::PathBuf;
use std::sync::Arc;

use gvmm_plugin_api::host::Manifest;
use gvmm_plugin_api::testing::{Buffer, FakeHost, QueueDriver, VirtioHarness, wait_until};
use gvmm_plugin_api::virtio::{COMMON_FEATURES, VirtioDevice};
use gvmm_vhost::frontend;
use gvmm_vhost::isolation::child::Isolated;

const IN: u64 = VirtioHarness::DATA;
const OUT: u64 = IN + 4096;

/// A machine with the device, which runs isolated.
struct Machine {
    host: Arc<FakeHost>,
    device: Arc<dyn VirtioDevice>,
    harness: VirtioHarness,
}

impl Machine {
    fn new(id: &str) -> Self {
        let plugin = gvmm_built::bad_plugin("hostile");
        let manifest = Manifest::read(&plugin).unwrap();
        let values = manifest.check(std::iter::empty()).unwrap();
        let program = PathBuf::from(env!("CARGO_BIN_EXE_gvmm-device"));
        let id = id.to_owned();
        let isolated = Isolated { program, plugin, manifest, values, id, required: false, max_level: 1 };
        let host = Arc::new(FakeHost::default());
        let device = frontend::isolate(isolated, host.clone()).unwrap();
        let harness = VirtioHarness::new(device.clone(), COMMON_FEATURES);
        Self { host, device, harness }
    }

    fn metric(&self, name: &str) -> u64 {
        self.device.metrics().into_iter().find(|metric| metric.name == name).unwrap().value
    }

    /// Makes a request without waiting for it.
    fn send(&self, queue: &mut QueueDriver, text: &[u8]) {
        self.harness.memory().write(IN, text);
        self.harness.memory().write(OUT, &vec![0; text.len()]);
        let len = text.len() as u32;
        queue.add(&[Buffer::readable(IN, len), Buffer::writable(OUT, len)]);
        queue.kick();
    }

    fn copies(&self, queue: &mut QueueDriver, text: &[u8]) {
        self.send(queue, text);
        queue.wait_used();
        assert_eq!(self.harness.memory().read(OUT, text.len()), text);
    }

    /// The driver resets the device and begins anew.
    fn reset(&mut self) -> QueueDriver {
        for queue in 0..2 {
            self.device.stop_queue(queue);
        }
        self.device.reset();
        self.harness.start(0, 16)
    }
}

#[test]
fn a_crash_that_a_request_causes_ends_in_a_reset_and_no_more() {
    let mut machine = Machine::new("crash");
    let mut queue = machine.harness.start(0, 16);
    machine.copies(&mut queue, b"good");
    machine.send(&mut queue, b"crash");
    wait_until("the request being blamed", || !machine.host.failures().is_empty());
    assert_eq!(
        machine.host.failures(),
        ["16 back ends in a row ended as soon as they had started: the driver has to reset the device"]
    );
    let mut queue = machine.reset();
    machine.copies(&mut queue, b"good again");
}

#[test]
fn a_process_that_hangs_is_replaced() {
    let mut machine = Machine::new("hang");
    let (mut first, mut second) = (machine.harness.start(0, 16), machine.harness.start(1, 16));
    machine.copies(&mut first, b"hang");
    wait_until("another process", || machine.metric("connections") == 2);
    machine.copies(&mut first, b"first");
    machine.copies(&mut second, b"second");
    assert_eq!(machine.host.failures(), [""; 0]);
}

#[test]
fn a_flood_of_interrupts_and_notices_drowns_nobody() {
    let mut machine = Machine::new("flood");
    let (mut first, mut second) = (machine.harness.start(0, 16), machine.harness.start(1, 16));
    machine.copies(&mut first, b"flood");
    for _ in 0..20 {
        machine.copies(&mut second, b"beside it");
        machine.device.write_config(0, b"x");
    }
    assert!(machine.device.stop_queue(0).is_some());
    let mut queue = machine.reset();
    machine.copies(&mut queue, b"after it");
    assert_eq!(machine.metric("connections_lost"), 0);
}

#[test]
fn garbage_in_the_used_ring_is_between_device_and_driver() {
    let mut machine = Machine::new("garbage");
    let (mut first, mut second) = (machine.harness.start(0, 16), machine.harness.start(1, 16));
    machine.send(&mut first, b"garbage");
    machine.copies(&mut second, b"another queue");
    let stands = machine.device.stop_queue(0).unwrap();
    assert!(stands.next_avail <= 1 || stands.next_avail == 0xb7b7, "{stands:?}");
    let mut queue = machine.reset();
    machine.copies(&mut queue, b"a ring of one's own");
    assert_eq!(machine.metric("connected"), 1);
}
