//! The transport under well-behaved and hostile drivers.

use gvmm_plugin_api::virtio::F_VERSION_1;
use proptest::prelude::*;

use super::*;
use crate::hypervisor::InterruptLine;
use crate::memory::{Backing, Protection, RAM_BASE, RamBuilder};
use crate::pci::fixture::line;
use crate::virtio::recorder::Recorder;

const RING_RESET: u64 = 1 << 40;
const NO_VECTOR: u64 = 0xffff;

struct Bench {
    device: Arc<Recorder>,
    function: Arc<VirtioFunction>,
    interrupts: Arc<Interrupts>,
    transport: PciTransport,
    line: InterruptLine,
}

fn bench() -> Bench {
    let device = Arc::new(Recorder::default());
    let line = line(1, "dev");
    let interrupts = Arc::new(Interrupts::new(line.eventfd.clone(), 2).unwrap());
    let function = VirtioFunction::new("dev", device.clone(), Box::new(interrupts.clone())).unwrap();
    let function = Arc::new(function.with_ring_reset());
    let ram = RamBuilder::new(RAM_BASE, 2 << 20, Backing::Anonymous, Protection::None).unwrap().finish();
    function.attach_memory(ram.shared());
    let transport = PciTransport::new(function.clone(), interrupts.clone());
    Bench { device, function, interrupts, transport, line }
}

impl Bench {
    fn read(&self, offset: u64, width: Width) -> u64 {
        self.transport.read(0, offset, width).unwrap()
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        self.transport.write(0, offset, width, value).unwrap();
    }

    fn accept(&self, features: u64) {
        self.write(reg::DEVICE_STATUS, Width::Byte, 3);
        for (half, bits) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.write(reg::DRIVER_FEATURE_SELECT, Width::Word, half);
            self.write(reg::DRIVER_FEATURE, Width::Word, bits);
        }
        self.write(reg::DEVICE_STATUS, Width::Byte, 11);
    }

    fn set_up_queue(&self, index: u64, vector: u64) {
        self.write(reg::QUEUE_SELECT, Width::Half, index);
        self.write(reg::QUEUE_SIZE, Width::Half, 4);
        self.write(reg::QUEUE_MSIX_VECTOR, Width::Half, vector);
        self.write(reg::QUEUE_DESC, Width::Double, RAM_BASE);
        self.write(reg::QUEUE_ENABLE, Width::Half, 1);
    }

    fn run(&self) {
        self.write(reg::DEVICE_STATUS, Width::Byte, 15);
    }

    /// Whether a guest sees in memory what reads of the common configuration give.
    fn is_shown(&self, image: &RegisterImage) -> bool {
        reg::ALL.into_iter().all(|(offset, width)| {
            let at = offset as usize & !3;
            let shown = u64::from(image.shown(at)) | u64::from(image.shown(at + 4)) << 32;
            let bits = shown >> (8 * (offset as usize - at));
            let mask = u64::MAX >> (64 - 8 * width.bytes());
            bits & mask == self.read(offset, width)
        })
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.device.calls.lock().unwrap())
    }

    /// Signals of each vector and of the line since the last look.
    fn signals(&self) -> Vec<u64> {
        let events = self.interrupts.vectors().iter().chain([&self.line.eventfd]);
        events.map(|event| event.read().unwrap_or(0)).collect()
    }
}

#[test]
fn a_driver_starts_the_queues_that_it_set_up() {
    let bench = bench();
    assert_eq!(bench.read(reg::NUM_QUEUES, Width::Half), 2);
    assert_eq!(bench.read(reg::QUEUE_SIZE, Width::Half), 16);
    bench.accept(F_VERSION_1 | 1);
    assert_eq!(bench.read(reg::DEVICE_STATUS, Width::Byte), 11);
    bench.set_up_queue(1, 1);
    assert_eq!(bench.read(reg::QUEUE_NOTIFY_OFF, Width::Half), 1);
    assert_eq!(bench.calls(), [""; 0]);
    bench.run();
    assert_eq!(bench.calls(), ["start 1 size 4 at 0x80000000 features 0x100000001"]);
    bench.write(reg::DEVICE_STATUS, Width::Byte, 0);
    assert_eq!(bench.calls(), ["stop 1", "reset"]);
    bench.write(reg::QUEUE_SELECT, Width::Half, 1);
    assert_eq!(bench.read(reg::QUEUE_ENABLE, Width::Half), 0);
    assert_eq!(bench.read(reg::QUEUE_MSIX_VECTOR, Width::Half), NO_VECTOR);
}

#[test]
fn each_queue_interrupts_by_the_vector_it_was_given() {
    let bench = bench();
    bench.transport.use_messages(true);
    bench.accept(F_VERSION_1);
    bench.write(reg::CONFIG_MSIX_VECTOR, Width::Half, 0);
    bench.set_up_queue(0, 2);
    bench.set_up_queue(1, NO_VECTOR);
    bench.run();
    assert_eq!(bench.signals(), [0, 0, 1, 0]);
    bench.function.config_changed();
    assert_eq!(bench.signals(), [1, 0, 0, 0]);
    assert_eq!(bench.read(place::ISR, Width::Byte), 0, "messages tell their cause");
}

#[test]
fn without_messages_everything_goes_by_the_line() {
    let bench = bench();
    bench.accept(F_VERSION_1);
    bench.set_up_queue(0, NO_VECTOR);
    bench.run();
    assert_eq!(bench.signals(), [0, 0, 0, 1]);
    assert_eq!(bench.read(place::ISR, Width::Byte), 1);
    bench.function.config_changed();
    assert_eq!(bench.signals(), [0, 0, 0, 1]);
    assert_eq!(bench.read(place::ISR, Width::Byte), 3);
    assert_eq!(bench.read(place::ISR, Width::Byte), 1, "a read acknowledges");
}

#[test]
fn a_vector_that_the_device_does_not_have_is_none() {
    let bench = bench();
    for register in [reg::CONFIG_MSIX_VECTOR, reg::QUEUE_MSIX_VECTOR] {
        for (vector, kept) in [(2, 2), (3, NO_VECTOR), (0, 0), (0x8000, NO_VECTOR)] {
            bench.write(register, Width::Half, vector);
            assert_eq!(bench.read(register, Width::Half), kept);
        }
    }
}

#[test]
fn a_running_queue_keeps_its_vector_size_and_addresses() {
    let bench = bench();
    bench.accept(F_VERSION_1);
    bench.set_up_queue(0, 1);
    bench.run();
    bench.set_up_queue(0, 2);
    bench.write(reg::QUEUE_DESC, Width::Word, 0x1000);
    assert_eq!(bench.read(reg::QUEUE_MSIX_VECTOR, Width::Half), 1);
    assert_eq!(bench.read(reg::QUEUE_DESC, Width::Double), RAM_BASE);
    bench.write(reg::QUEUE_RESET, Width::Half, 1);
    assert_eq!(bench.read(reg::QUEUE_ENABLE, Width::Half), 1, "the reset of a queue was not agreed");
}

#[test]
fn a_queue_is_reset_and_goes_on_while_the_device_runs() {
    let bench = bench();
    bench.accept(F_VERSION_1 | RING_RESET);
    bench.set_up_queue(0, 1);
    bench.set_up_queue(1, 2);
    bench.run();
    bench.calls();
    bench.write(reg::QUEUE_SELECT, Width::Half, 0);
    bench.write(reg::QUEUE_RESET, Width::Half, 1);
    assert_eq!(bench.calls(), ["stop 0"]);
    assert_eq!(bench.read(reg::QUEUE_RESET, Width::Half), 0);
    assert_eq!(bench.read(reg::QUEUE_ENABLE, Width::Half), 0);
    assert_eq!(bench.read(reg::QUEUE_SIZE, Width::Half), 16);
    assert_eq!(bench.read(reg::QUEUE_MSIX_VECTOR, Width::Half), NO_VECTOR);
    bench.set_up_queue(0, 1);
    assert_eq!(bench.calls(), ["start 0 size 4 at 0x80000000 features 0x100000000"]);
}

#[test]
fn a_kick_that_is_an_exit_reaches_its_queue() {
    let bench = bench();
    bench.write(place::NOTIFY + place::NOTIFY_STRIDE, Width::Half, 0);
    assert!(bench.function.kicks()[0].read().is_err());
    assert_eq!(bench.function.kicks()[1].read().unwrap(), 1);
    bench.write(place::NOTIFY + 2 * place::NOTIFY_STRIDE, Width::Half, 2);
    assert_eq!(bench.transport.read(0, place::NOTIFY, Width::Half), Err(AccessError::Direction));
}

#[test]
fn fields_take_their_own_width() {
    let bench = bench();
    assert_eq!(bench.transport.read(0, reg::DEVICE_STATUS, Width::Word), Err(AccessError::Width));
    assert_eq!(bench.transport.write(0, reg::QUEUE_SIZE, Width::Byte, 1), Err(AccessError::Width));
    assert_eq!(bench.transport.write(0, reg::NUM_QUEUES, Width::Half, 1), Err(AccessError::Direction));
    assert_eq!(bench.transport.read(0, reg::END, Width::Word), Err(AccessError::NoRegister));
    bench.write(reg::QUEUE_DRIVER, Width::Word, 0x1000);
    bench.write(reg::QUEUE_DRIVER + 4, Width::Word, 2);
    assert_eq!(bench.read(reg::QUEUE_DRIVER, Width::Double), 0x2_0000_1000);
    assert_eq!(bench.read(reg::QUEUE_DRIVER + 4, Width::Word), 2);
}

#[test]
fn configuration_is_behind_the_notifications() {
    let bench = bench();
    let config = bench.transport.config_at();
    assert_eq!(config, 0x3000);
    bench.write(config + 8, Width::Word, 0x1122_3344);
    assert_eq!(bench.read(config + 8, Width::Half), 0x3344);
    assert_eq!(bench.transport.write(0, config + 12, Width::Byte, 1), Err(AccessError::NoRegister));
}

#[test]
fn capabilities_name_the_places_of_the_structures() {
    let bench = bench();
    let spec = spec(&bench.function, &bench.interrupts, bench.line.clone());
    assert_eq!((spec.identity.vendor, spec.identity.device, spec.identity.revision), (0x1af4, 0x1042, 1));
    let field = |body: &[u8], at: usize| u32::from_le_bytes(body[at - 2..at + 2].try_into().unwrap());
    let places: Vec<_> =
        spec.capabilities.iter().map(|c| (c.body[1], field(&c.body, 8), field(&c.body, 12))).collect();
    assert_eq!(places, [(1, 0, 0x3c), (2, 0x2000, 8), (3, 0x1000, 1), (4, 0x3000, 12), (5, 0, 0)]);
    assert_eq!(field(&spec.capabilities[1].body, 16), 4);
    assert_eq!((spec.vectors.len(), spec.bars[0].registers), (3, 0x300c));
    let doorbells: Vec<u64> = spec.doorbells.iter().map(|(offset, _)| *offset).collect();
    assert_eq!(doorbells, [0x2000, 0x2004]);
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_panics(
        accesses in prop::collection::vec(
            (any::<bool>(), prop_oneof![0u64..0x40, 0u64..0x300c], 0usize..4, prop_oneof![any::<u64>(), 0u64..16]),
            1..200
        )
    ) {
        let bench = bench();
        for (write, offset, width, value) in accesses {
            let width = Width::ALL[width];
            if offset + width.bytes() as u64 > 0x300c {
                continue;
            }
            // Whether an access is refused is the business of the tests above.
            let _ = match write {
                true => bench.transport.write(0, offset, width, value),
                false => bench.transport.read(0, offset, width).map(drop),
            };
        }
    }
}

#[test]
fn memory_shows_what_reads_of_the_common_configuration_give() {
    let bench = bench();
    let Some(image) = bench.transport.image() else { return };
    let shown = |when: &str| assert!(bench.is_shown(&image), "{when}");
    shown("at first");
    bench.transport.use_messages(true);
    bench.accept(F_VERSION_1);
    shown("after the features");
    bench.write(reg::CONFIG_MSIX_VECTOR, Width::Half, 0);
    bench.set_up_queue(1, 2);
    bench.write(reg::QUEUE_DRIVER + 4, Width::Word, 3);
    shown("with a queue");
    bench.run();
    bench.write(reg::QUEUE_SELECT, Width::Half, 1);
    bench.write(reg::QUEUE_RESET, Width::Half, 1);
    shown("after the reset of a queue");
    bench.function.config_changed();
    shown("after a change");
    bench.function.device_failed();
    shown("after a failure");
    bench.write(reg::DEVICE_STATUS, Width::Byte, 0);
    shown("after a reset");
    bench.write(reg::DEVICE_STATUS, Width::Byte, 3);
    bench.transport.reset();
    shown("after the VM's end");
}

#[test]
fn a_change_is_shown_before_its_interrupt_while_the_driver_writes() {
    let bench = bench();
    let Some(image) = bench.transport.image() else { return };
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| (0..1000).for_each(|_| bench.function.config_changed()));
        for index in 0..1000 {
            bench.write(reg::QUEUE_SELECT, Width::Half, index % 2);
        }
        changes.join().unwrap();
    });
    assert_eq!(bench.function.config_generation(), 1000);
    assert!(bench.is_shown(&image));
}
