//! The device and the handlers of its two queues (virtio 1.2, 5.3).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use gvmm_plugin_api::metrics::{Counter, Metric};
use gvmm_plugin_api::queue::{QueueError, VirtQueue, total_len};
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::virtio::{COMMON_FEATURES, QueueSetup, QueueState, VirtioDevice, VirtioTraits};
use gvmm_plugin_api::worker::{QueueHandler, QueueWorkers, Watch};

use crate::messages::Messages;

/// Device type of a console (virtio 1.2, 5).
pub(crate) const DEVICE_TYPE: u32 = 3;
/// Queue from which the driver reads.
pub(crate) const RECEIVE: u16 = 0;
/// Queue to which the driver writes.
pub(crate) const TRANSMIT: u16 = 1;
/// Entries of each queue.
const QUEUE_SIZE: u16 = 64;
/// Bytes of a request that are looked at: what the driver makes us allocate needs a bound.
const MAX_MESSAGE: u64 = 4096;
/// Requests that are served before the worker may look at anything else.
const BATCH: usize = 32;

/// Sends back what it is sent.
#[derive(Debug)]
pub(crate) struct Mirror {
    upper: bool,
    messages: Arc<Messages>,
    bytes: Arc<Counter>,
    workers: QueueWorkers,
}

impl Mirror {
    pub(crate) fn new(upper: bool, services: Services) -> io::Result<Self> {
        let messages = Arc::new(Messages::new()?);
        Ok(Self { upper, messages, bytes: Arc::default(), workers: QueueWorkers::new(services) })
    }
}

impl VirtioDevice for Mirror {
    fn traits(&self) -> VirtioTraits {
        VirtioTraits {
            device_type: DEVICE_TYPE,
            features: COMMON_FEATURES,
            queue_sizes: vec![QUEUE_SIZE; 2],
            config_size: 0,
        }
    }

    fn read_config(&self, _offset: u32, _data: &mut [u8]) {}

    fn start_queue(&self, index: u16, setup: QueueSetup) -> Result<(), String> {
        let messages = self.messages.clone();
        match index {
            RECEIVE => self.workers.start(index, setup, Receive { messages }),
            TRANSMIT => {
                let bytes = self.bytes.clone();
                self.workers.start(index, setup, Transmit { upper: self.upper, messages, bytes })
            }
            _ => Err(format!("there is no queue {index}, only queues 0 and 1")),
        }
    }

    fn stop_queue(&self, index: u16) -> Option<QueueState> {
        self.workers.stop(index)
    }

    fn reset(&self) {
        self.messages.clear();
    }

    fn metrics(&self) -> Vec<Metric> {
        vec![Metric::new("bytes", self.bytes.get())]
    }
}

/// Takes what the driver writes.
struct Transmit {
    upper: bool,
    messages: Arc<Messages>,
    bytes: Arc<Counter>,
}

impl QueueHandler for Transmit {
    fn process(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        for _ in 0..BATCH {
            let Some(chain) = queue.pop()? else { break };
            let mut message = vec![0; total_len(chain.readable()).min(MAX_MESSAGE) as usize];
            chain.read(queue.memory(), 0, &mut message)?;
            if self.upper {
                message.make_ascii_uppercase();
            }
            self.bytes.add(message.len() as u64);
            self.messages.put(message);
            queue.push(chain, 0)?;
        }
        Ok(())
    }
}

/// Fills what the driver wants to read.
struct Receive {
    messages: Arc<Messages>,
}

impl QueueHandler for Receive {
    fn process(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        for _ in 0..BATCH {
            if self.messages.is_empty() {
                break;
            }
            let Some(chain) = queue.pop()? else { break };
            let room = total_len(chain.writable()).min(MAX_MESSAGE) as usize;
            let message = self.messages.take(room).unwrap_or_default();
            chain.write(queue.memory(), 0, &message)?;
            // At most MAX_MESSAGE.
            queue.push(chain, message.len() as u32)?;
        }
        Ok(())
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.messages.arrived.as_fd()]
    }

    fn ready(&mut self, _source: usize, queue: &mut VirtQueue) -> Result<Watch, QueueError> {
        self.messages.arrived.take();
        self.process(queue)?;
        Ok(Watch::Keep)
    }
}
