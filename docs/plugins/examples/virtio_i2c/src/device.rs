//! The device and the handler of its one queue.

use std::sync::{Arc, Mutex, PoisonError};

use gvmm_plugin_api::metrics::{Counter, Metric};
use gvmm_plugin_api::queue::{QueueError, VirtQueue};
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::virtio::{COMMON_FEATURES, QueueSetup, QueueState, VirtioDevice, VirtioTraits};
use gvmm_plugin_api::worker::{QueueHandler, QueueWorkers};

use crate::lm75::Lm75;
use crate::temperature::Temperature;
use crate::transfer::Wire;

/// Device type of an I2C adapter (virtio 1.2, 5).
pub(crate) const DEVICE_TYPE: u32 = 34;
/// `VIRTIO_I2C_F_ZERO_LENGTH_REQUEST` (virtio 1.2, 5.15.3): a driver does not work without it.
const F_ZERO_LENGTH_REQUEST: u64 = 1 << 0;
/// What the device offers.
pub(crate) const FEATURES: u64 = COMMON_FEATURES | F_ZERO_LENGTH_REQUEST;
/// Far more than a driver needs, but QEMU's virtio-mmio gives every queue this many, whatever its back end says.
const QUEUE_SIZE: u16 = 1024;
/// Requests that are served before the worker may look at anything else.
const BATCH: usize = 32;

/// An I2C bus.
#[derive(Debug)]
pub(crate) struct Bus {
    wire: Arc<Mutex<Wire>>,
    counters: Arc<Counters>,
    workers: QueueWorkers,
}

#[derive(Debug, Default)]
struct Counters {
    messages: Counter,
    failures: Counter,
}

impl Bus {
    /// A bus with a sensor at an address of seven bits.
    pub(crate) fn new(address: u8, temperature: Temperature, services: Services) -> Self {
        let wire = Wire::new(address, Lm75::new(temperature));
        Self {
            wire: Arc::new(Mutex::new(wire)),
            counters: Arc::default(),
            workers: QueueWorkers::new(services),
        }
    }
}

impl VirtioDevice for Bus {
    fn traits(&self) -> VirtioTraits {
        VirtioTraits {
            device_type: DEVICE_TYPE,
            features: FEATURES,
            queue_sizes: vec![QUEUE_SIZE],
            config_size: 0,
        }
    }

    fn read_config(&self, _offset: u32, _data: &mut [u8]) {}

    fn start_queue(&self, index: u16, setup: QueueSetup) -> Result<(), String> {
        if index != 0 {
            return Err(format!("there is no queue {index}, only queue 0"));
        }
        let requests = Requests { wire: self.wire.clone(), counters: self.counters.clone() };
        self.workers.start(index, setup, requests)
    }

    fn stop_queue(&self, index: u16) -> Option<QueueState> {
        self.workers.stop(index)
    }

    fn reset(&self) {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner).reset();
    }

    fn metrics(&self) -> Vec<Metric> {
        let Counters { messages, failures } = &*self.counters;
        vec![Metric::new("messages", messages.get()), Metric::new("failures", failures.get())]
    }
}

struct Requests {
    wire: Arc<Mutex<Wire>>,
    counters: Arc<Counters>,
}

impl QueueHandler for Requests {
    fn process(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        for _ in 0..BATCH {
            let Some(chain) = queue.pop()? else { break };
            let mut wire = self.wire.lock().unwrap_or_else(PoisonError::into_inner);
            let (good, written) = wire.perform(queue.memory(), &chain)?;
            drop(wire);
            self.counters.messages.add(1);
            self.counters.failures.add(u64::from(!good));
            queue.push(chain, written)?;
        }
        Ok(())
    }
}
