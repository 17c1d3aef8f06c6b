//! A disk of a guest whose memory is lent: requests go through the shared window, and nowhere else.

use gunyah_tests::{Kind, Run, VIRTIO};
use serde_json::{Value, json};

/// First byte of the shared window: the last 8 MiB of the 32 that the guest has.
const WINDOW: u64 = 0x8180_0000;
/// Doorbell of the disk, behind those of console and clock.
const LINE: u32 = 3;
/// Kinds of VM whose memory is lent.
const PROTECTED: [Kind; 3] = [Kind::APlus, Kind::B, Kind::C];

/// Registers of virtio-mmio (virtio 1.2, 4.2.2).
mod register {
    pub(crate) const DEVICE_FEATURES: u64 = 0x10;
    pub(crate) const DEVICE_FEATURES_SEL: u64 = 0x14;
    pub(crate) const DRIVER_FEATURES: u64 = 0x20;
    pub(crate) const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub(crate) const QUEUE_SEL: u64 = 0x30;
    pub(crate) const QUEUE_NUM: u64 = 0x38;
    pub(crate) const QUEUE_READY: u64 = 0x44;
    pub(crate) const QUEUE_NOTIFY: u64 = 0x50;
    pub(crate) const STATUS: u64 = 0x70;
    pub(crate) const QUEUE_DESC: u64 = 0x80;
    pub(crate) const QUEUE_DRIVER: u64 = 0x90;
    pub(crate) const QUEUE_DEVICE: u64 = 0xa0;
}

fn write(register: u64, value: u64) -> Value {
    json!({"write": {"addr": VIRTIO + register, "value": value}})
}

fn expect(register: u64, mask: u64, value: u64) -> Value {
    json!({"read": {"addr": VIRTIO + register, "mask": mask, "expect": value, "until": true}})
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn store(address: u64, bytes: &[u8]) -> Value {
    json!({"store": {"addr": address, "bytes": hex(bytes)}})
}

fn load(address: u64, bytes: &[u8]) -> Value {
    json!({"load": {"addr": address, "bytes": hex(bytes)}})
}

/// A descriptor of a split ring (virtio 1.2, 2.7.5); flag 1: another follows, flag 2: the device writes.
fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> Vec<u8> {
    let mut bytes = address.to_le_bytes().to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}

/// Sets up queue 0 with its rings from an address on.
fn set_up(rings: u64) -> Vec<Value> {
    use register::{
        DEVICE_FEATURES, DEVICE_FEATURES_SEL, DRIVER_FEATURES, DRIVER_FEATURES_SEL, QUEUE_DESC, QUEUE_DEVICE,
        QUEUE_DRIVER, QUEUE_NUM, QUEUE_READY, QUEUE_SEL, STATUS,
    };
    vec![
        write(STATUS, 0),
        write(STATUS, 3),
        // Bits 32 and 33: virtio 1, and addresses are those of the platform.
        write(DEVICE_FEATURES_SEL, 1),
        expect(DEVICE_FEATURES, 3, 3),
        write(DRIVER_FEATURES_SEL, 0),
        write(DRIVER_FEATURES, 0),
        write(DRIVER_FEATURES_SEL, 1),
        write(DRIVER_FEATURES, 3),
        write(STATUS, 11),
        expect(STATUS, 0xff, 11),
        write(QUEUE_SEL, 0),
        write(QUEUE_NUM, 8),
        write(QUEUE_DESC, rings),
        write(QUEUE_DRIVER, rings + 0x1000),
        write(QUEUE_DEVICE, rings + 0x2000),
        write(QUEUE_READY, 1),
        write(STATUS, 15),
    ]
}

/// A request for sector 5 with its data at an address, the first in the ring.
fn request(data: u64) -> Vec<Value> {
    let mut header = vec![0; 16];
    header[8] = 5;
    vec![
        store(WINDOW + 0x3000, &header),
        store(WINDOW + 0x5000, &[0xff]),
        store(WINDOW, &descriptor(WINDOW + 0x3000, 16, 1, 1)),
        store(WINDOW + 16, &descriptor(data, 512, 3, 2)),
        store(WINDOW + 32, &descriptor(WINDOW + 0x5000, 1, 2, 0)),
        store(WINDOW + 0x1000, &[0, 0, 1, 0, 0, 0]),
        json!({"write": {"addr": VIRTIO + register::QUEUE_NOTIFY, "value": 0, "exits": false}}),
        json!({"wait-irq": {"label": LINE}}),
    ]
}

fn run(kind: Kind, parts: &[Vec<Value>]) {
    let mut steps = parts.concat();
    steps.push(json!("power-off"));
    let ended = Run::new(kind, &json!({"vcpus": [steps]})).disk().to_end();
    ended.assert_orderly(0);
}

#[test]
fn a_disk_is_read_through_the_window() {
    for kind in PROTECTED {
        let checks = vec![load(WINDOW + 0x5000, &[0]), load(WINDOW + 0x4000, &[5; 512])];
        run(kind, &[set_up(WINDOW), request(WINDOW + 0x4000), checks]);
    }
}

#[test]
fn a_device_does_not_touch_lent_memory_that_a_request_names() {
    let lent = 0x8100_0000;
    for kind in PROTECTED {
        // Status 1: an error, or whatever else is no success; the guest's memory is as it was.
        let before = vec![store(lent, &[0xa5; 512])];
        run(kind, &[before, set_up(WINDOW), request_in_vain(lent), vec![load(lent, &[0xa5; 512])]]);
    }
}

#[test]
fn a_kernel_that_cannot_use_the_window_is_told_of_before_its_disk_fails() {
    let power_off = json!({"vcpus": [["power-off"]]});
    let run = |kind| Run::new(kind, &power_off).without_window_driver();
    let told =
        |ended: gunyah_tests::Ended| ended.messages.contains("the kernel lacks CONFIG_DMA_RESTRICTED_POOL");
    assert!(told(run(Kind::C).disk().to_end()));
    assert!(!told(run(Kind::C).to_end()), "a guest without virtio devices needs no window");
    assert!(!told(run(Kind::A).disk().to_end()), "all memory is shared");
    assert!(!told(Run::new(Kind::C, &power_off).disk().to_end()));
}

/// As [`request`], for one that may not be answered at all.
fn request_in_vain(data: u64) -> Vec<Value> {
    let mut steps = request(data);
    steps.pop();
    steps.push(json!({"sleep": 300}));
    steps
}

#[test]
fn rings_in_lent_memory_are_refused_and_explained() {
    for kind in PROTECTED {
        let mut steps = set_up(0x8100_0000);
        steps.push(expect(register::STATUS, 0x40, 0x40));
        steps.push(json!("power-off"));
        let ended = Run::new(kind, &json!({"vcpus": [steps]})).disk().to_end();
        assert_eq!(ended.code, Some(0), "{}", ended.summary());
        assert!(ended.messages.contains("CONFIG_DMA_RESTRICTED_POOL"), "{}", ended.summary());
    }
}
