//! The device and the handler of its one queue.
#![forbid(unsafe_code)]

use std::sync::Arc;

use gvmm_plugin_api::metrics::{Counter, Metric};
use gvmm_plugin_api::queue::{Chain, QueueError, VirtQueue, total_len};
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::virtio::{COMMON_FEATURES, QueueSetup, QueueState, VirtioDevice, VirtioTraits};
use gvmm_plugin_api::worker::{QueueHandler, QueueWorkers};

/// Device type (virtio 1.2, 5).
pub(crate) const DEVICE_TYPE: u32 = 4;
/// Drivers have a single request on its way. Front ends of vhost-user do not ask for the size: QEMU's generic one takes this.
pub(crate) const QUEUE_SIZE: u16 = 64;
/// Bytes that one request gets at most; it may get less than it has room for (virtio 1.2, 5.4.6.1).
pub(crate) const MAX_BYTES: usize = 4096;
/// Requests that are served before the worker may look at anything else.
const BATCH: usize = 32;

/// An entropy source.
#[derive(Debug)]
pub(crate) struct Entropy {
    workers: QueueWorkers,
    bytes: Arc<Counter>,
}

impl Entropy {
    pub(crate) fn new(services: Services) -> Self {
        Self { workers: QueueWorkers::new(services), bytes: Arc::default() }
    }
}

impl VirtioDevice for Entropy {
    fn traits(&self) -> VirtioTraits {
        VirtioTraits {
            device_type: DEVICE_TYPE,
            features: COMMON_FEATURES,
            queue_sizes: vec![QUEUE_SIZE],
            config_size: 0,
        }
    }

    fn read_config(&self, _offset: u32, _data: &mut [u8]) {}

    fn start_queue(&self, index: u16, setup: QueueSetup) -> Result<(), String> {
        if index != 0 {
            return Err(format!("there is no queue {index}, only queue 0"));
        }
        self.workers.start(index, setup, Requests { bytes: self.bytes.clone() })
    }

    fn stop_queue(&self, index: u16) -> Option<QueueState> {
        self.workers.stop(index)
    }

    fn reset(&self) {}

    fn metrics(&self) -> Vec<Metric> {
        vec![Metric::new("bytes", self.bytes.get())]
    }
}

struct Requests {
    bytes: Arc<Counter>,
}

impl QueueHandler for Requests {
    fn process(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        for _ in 0..BATCH {
            let Some(chain) = queue.pop()? else { break };
            let filled = fill(queue, &chain)?;
            self.bytes.add(u64::from(filled));
            queue.push(chain, filled)?;
        }
        Ok(())
    }
}

/// Fills the request; the number of bytes it got.
fn fill(queue: &VirtQueue, chain: &Chain) -> Result<u32, QueueError> {
    let mut buffer = [0; MAX_BYTES];
    let len = total_len(chain.writable()).min(MAX_BYTES as u64);
    // At most MAX_BYTES.
    let random = &mut buffer[..len as usize];
    getrandom::fill(random).map_err(std::io::Error::from)?;
    chain.write(queue.memory(), 0, random)?;
    Ok(len as u32)
}
