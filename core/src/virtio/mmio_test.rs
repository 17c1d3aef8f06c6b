//! The transport under well-behaved and hostile drivers.

use gvmm_plugin_api::virtio::F_VERSION_1;
use proptest::prelude::*;

use super::*;
use crate::memory::{Backing, Protection, RAM_BASE, RamBuilder};
use crate::virtio::function::status;
use crate::virtio::recorder::Recorder;

struct Bench {
    device: Arc<Recorder>,
    function: Arc<VirtioFunction>,
    transport: MmioTransport,
    line: Arc<EventFd>,
}

fn bench() -> Bench {
    let device = Arc::new(Recorder::default());
    let line = Arc::new(eventfd::new().unwrap());
    let function = VirtioFunction::new("dev", device.clone(), Box::new(LineRoute(line.clone()))).unwrap();
    let function = Arc::new(function);
    let ram = RamBuilder::new(RAM_BASE, 2 << 20, Backing::Anonymous, Protection::None).unwrap().finish();
    function.attach_memory(ram.shared());
    Bench { device, transport: MmioTransport::new(function.clone()), function, line }
}

impl Bench {
    fn read(&self, offset: u64) -> u64 {
        self.transport.read(offset, Width::Word).unwrap()
    }

    fn write(&self, offset: u64, value: u32) {
        self.transport.write(offset, Width::Word, value.into()).unwrap();
    }

    fn accept(&self, features: u64) {
        self.write(reg::STATUS, 3);
        for (half, bits) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(reg::DRIVER_FEATURES_SEL, half);
            self.write(reg::DRIVER_FEATURES, bits);
        }
        self.write(reg::STATUS, 3 | status::FEATURES_OK);
    }

    fn set_up_queue(&self, index: u32, size: u32) {
        self.write(reg::QUEUE_SEL, index);
        self.write(reg::QUEUE_NUM, size);
        self.write(reg::QUEUE_DESC_LOW, RAM_BASE as u32);
        self.write(reg::QUEUE_READY, 1);
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.device.calls.lock().unwrap())
    }
}

#[test]
fn drivers_of_lent_memory_must_keep_to_the_window() {
    const ACCESS_PLATFORM: u64 = 1 << 33;
    let bench = bench();
    bench.write(reg::DEVICE_FEATURES_SEL, 1);
    assert_eq!(bench.read(reg::DEVICE_FEATURES) << 32 & ACCESS_PLATFORM, 0);
    let window = Protection::Lent { window: 2 << 20 };
    let ram = RamBuilder::new(RAM_BASE, 4 << 20, Backing::Anonymous, window).unwrap().finish();
    bench.function.attach_memory(ram.shared());
    assert_ne!(bench.read(reg::DEVICE_FEATURES) << 32 & ACCESS_PLATFORM, 0);
    bench.accept(F_VERSION_1);
    assert_eq!(bench.read(reg::STATUS) & u64::from(status::FEATURES_OK), 0);
    bench.write(reg::STATUS, 0);
    bench.accept(F_VERSION_1 | ACCESS_PLATFORM);
    assert_ne!(bench.read(reg::STATUS) & u64::from(status::FEATURES_OK), 0);
}

#[test]
fn a_driver_finds_the_device_and_starts_the_queues_that_it_set_up() {
    let bench = bench();
    assert_eq!(
        [bench.read(reg::MAGIC), bench.read(reg::VERSION), bench.read(reg::DEVICE_ID)],
        [0x7472_6976, 2, 2]
    );
    bench.accept(F_VERSION_1 | 1);
    assert_eq!(bench.read(reg::STATUS), 11);
    assert_eq!(bench.read(reg::QUEUE_NUM_MAX), 16);
    bench.set_up_queue(1, 4);
    assert_eq!(bench.read(reg::QUEUE_READY), 1);
    assert_eq!(bench.calls(), [""; 0]);
    bench.write(reg::STATUS, 15);
    assert_eq!(bench.calls(), ["start 1 size 4 at 0x80000000 features 0x100000001"]);
    bench.write(reg::STATUS, 0);
    assert_eq!(bench.calls(), ["stop 1", "reset"]);
    assert_eq!((bench.read(reg::STATUS), bench.read(reg::QUEUE_READY)), (0, 0));
}

#[test]
fn features_that_were_not_offered_are_not_agreed() {
    let bench = bench();
    bench.accept(F_VERSION_1 | 2);
    assert_eq!(bench.read(reg::STATUS) as u32 & status::FEATURES_OK, 0);
    bench.write(reg::STATUS, 0);
    bench.accept(1);
    assert_eq!(bench.read(reg::STATUS) as u32 & status::FEATURES_OK, 0, "a legacy driver is refused");
}

#[test]
fn sizes_and_addresses_do_not_change_under_a_running_queue() {
    let bench = bench();
    bench.accept(F_VERSION_1);
    bench.write(reg::QUEUE_SEL, 0);
    for size in [0, 3, 32, 65536, u32::MAX] {
        bench.write(reg::QUEUE_NUM, size);
    }
    assert_eq!(bench.function.queue(0).unwrap().size, 16);
    bench.set_up_queue(0, 8);
    bench.write(reg::STATUS, 15);
    bench.write(reg::QUEUE_DESC_LOW, 0x1000);
    bench.write(reg::QUEUE_READY, 0);
    let queue = bench.function.queue(0).unwrap();
    assert_eq!((queue.descriptor_table, queue.ready), (RAM_BASE, true));
}

#[test]
fn a_configuration_change_raises_the_line_and_waits_for_its_acknowledgement() {
    let bench = bench();
    let generation = bench.read(reg::CONFIG_GENERATION);
    bench.function.config_changed();
    assert_eq!(bench.line.read().unwrap(), 1);
    assert_eq!(bench.read(reg::INTERRUPT_STATUS), 2);
    bench.write(reg::INTERRUPT_ACK, 2);
    assert_eq!(bench.read(reg::INTERRUPT_STATUS), 0);
    assert_ne!(bench.read(reg::CONFIG_GENERATION), generation);
}

#[test]
fn a_failed_device_asks_for_a_reset_and_is_well_after_it() {
    let bench = bench();
    bench.function.device_failed();
    assert_eq!(bench.read(reg::STATUS), 64);
    bench.write(reg::STATUS, 0);
    assert_eq!(bench.read(reg::STATUS), 0);
}

#[test]
fn configuration_space_ends_where_the_device_says() {
    let bench = bench();
    bench.transport.write(reg::CONFIG + 8, Width::Word, 0x1122_3344).unwrap();
    assert_eq!(bench.transport.read(reg::CONFIG + 8, Width::Half), Ok(0x3344));
    assert_eq!(bench.transport.read(reg::CONFIG + 8, Width::Double), Err(AccessError::NoRegister));
    assert_eq!(bench.transport.write(reg::CONFIG + 12, Width::Byte, 1), Err(AccessError::NoRegister));
}

#[test]
fn a_kick_that_is_an_exit_reaches_the_queue() {
    let bench = bench();
    bench.write(reg::QUEUE_NOTIFY, 1);
    assert_eq!(bench.function.kicks()[1].read().unwrap(), 1);
    bench.write(reg::QUEUE_NOTIFY, 0x1_0001);
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_panics(
        accesses in prop::collection::vec((any::<bool>(), 0u64..0x1000, 0usize..4, any::<u64>()), 1..200)
    ) {
        let bench = bench();
        for (write, offset, width, value) in accesses {
            let width = Width::ALL[width];
            if offset + width.bytes() as u64 > WINDOW_SIZE {
                continue;
            }
            // Whether an access is refused is the business of the tests above.
            let _ = match write {
                true => bench.transport.write(offset, width, value),
                false => bench.transport.read(offset, width).map(drop),
            };
        }
    }
}
