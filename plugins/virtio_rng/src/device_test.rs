//! Tests through the test kit.

use std::sync::Arc;

use gvmm_plugin_api::testing::{Buffer, FakeHost, VirtioHarness, wait_until};
use gvmm_plugin_api::virtio::{COMMON_FEATURES, VirtioDevice};
use proptest::prelude::*;

use crate::device::{Entropy, MAX_BYTES, QUEUE_SIZE};

const OUT: u64 = VirtioHarness::DATA;

struct Machine {
    host: Arc<FakeHost>,
    device: Arc<Entropy>,
    harness: VirtioHarness,
}

fn machine() -> Machine {
    let host = Arc::new(FakeHost::default());
    let device = Arc::new(Entropy::new(host.services()));
    let harness = VirtioHarness::new(device.clone(), COMMON_FEATURES);
    Machine { host, device, harness }
}

#[test]
fn requests_get_bytes_that_differ() {
    let mut machine = machine();
    let mut queue = machine.harness.start(0, 8);
    let mut get = |len| {
        assert_eq!(queue.request(&[Buffer::writable(OUT, len)]).len, len);
        machine.harness.memory().read(OUT, len as usize)
    };
    let (first, second) = (get(64), get(64));
    assert_ne!(first, second);
    assert_ne!(first, [0; 64]);
    assert_eq!(machine.device.metrics()[0].value, 128);
}

#[test]
fn a_full_queue_is_served() {
    let mut machine = machine();
    let mut queue = machine.harness.start(0, QUEUE_SIZE);
    for _ in 0..QUEUE_SIZE {
        queue.add(&[Buffer::writable(OUT, 64)]);
    }
    queue.kick();
    for _ in 0..QUEUE_SIZE {
        assert_eq!(queue.wait_used().len, 64);
    }
}

#[test]
fn a_request_over_several_buffers_is_filled_in_order() {
    let mut machine = machine();
    let mut queue = machine.harness.start(0, 8);
    machine.harness.memory().write(OUT, &[0; 0x300]);
    let buffers = [Buffer::writable(OUT, 32), Buffer::writable(OUT + 0x100, 32)];
    assert_eq!(queue.request(&buffers).len, 64);
    assert_ne!(machine.harness.memory().read(OUT, 32), [0; 32]);
    assert_ne!(machine.harness.memory().read(OUT + 0x100, 32), [0; 32]);
    assert_eq!(machine.harness.memory().read(OUT + 32, 0x100 - 32), [0; 0x100 - 32]);
}

#[test]
fn a_request_gets_no_more_than_the_bound() {
    let mut machine = machine();
    let mut queue = machine.harness.start(0, 8);
    let end = OUT + MAX_BYTES as u64;
    machine.harness.memory().write(end, &[0; 64]);
    assert_eq!(queue.request(&[Buffer::writable(OUT, 1 << 20)]).len, MAX_BYTES as u32);
    assert_eq!(machine.harness.memory().read(end, 64), [0; 64]);
}

#[test]
fn requests_without_room_are_given_back_empty() {
    let mut machine = machine();
    let mut queue = machine.harness.start(0, 8);
    assert_eq!(queue.request(&[Buffer::readable(OUT, 64)]).len, 0);
    assert_eq!(queue.request(&[Buffer::writable(OUT, 0)]).len, 0);
}

#[test]
fn a_buffer_outside_guest_memory_fails_the_device_with_the_cause() {
    let mut machine = machine();
    let mut queue = machine.harness.start(0, 8);
    queue.add(&[Buffer::writable(0x1000, 64)]);
    queue.kick();
    wait_until("the failure", || !machine.host.failures().is_empty());
    assert_eq!(
        machine.host.failures(),
        ["queue 0: guest range 0x1000+0x40 is not in memory shared with devices"]
    );
}

#[test]
fn has_one_queue() {
    let machine = machine();
    let mut other = VirtioHarness::new(machine.device.clone(), COMMON_FEATURES);
    let queue = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| other.start(1, 8)));
    assert!(queue.is_err());
    assert_eq!(machine.device.stop_queue(1), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_descriptors_are_survived(
        descriptors in prop::collection::vec((any::<u64>(), any::<u32>(), any::<u16>(), any::<u16>()), 1..8),
        heads in prop::collection::vec(any::<u16>(), 1..8),
        near in any::<bool>(),
    ) {
        let mut machine = machine();
        let mut queue = machine.harness.start(0, 8);
        for (index, (address, len, flags, next)) in (0..).zip(descriptors) {
            let address = if near { OUT + address % 0x10_0000 } else { address };
            queue.descriptor(index, address, len, flags & 7, next % 9);
        }
        for head in &heads {
            queue.offer(head % 9);
        }
        queue.kick();
        let mut answered = 0;
        wait_until("all requests or a failure", || {
            answered += usize::from(queue.poll_used().is_some());
            answered == heads.len() || !machine.host.failures().is_empty()
        });
        prop_assert!(machine.host.failures().iter().all(|failure| !failure.contains("panicked")));
    }
}
