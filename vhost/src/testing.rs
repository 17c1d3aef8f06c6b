//! What the tests of both ends share.

use std::sync::{Arc, Mutex};

use gvmm_plugin_api::queue::{QueueError, VirtQueue, total_len};
use gvmm_plugin_api::services::{Console, Services};
use gvmm_plugin_api::testing::Buffer;
use gvmm_plugin_api::testing::FakeMemory;
use gvmm_plugin_api::virtio::{COMMON_FEATURES, QueueSetup, QueueState, VirtioDevice, VirtioTraits};
use gvmm_plugin_api::worker::{QueueHandler, QueueWorkers};

use crate::backend::host::Surroundings;

/// Entries of each queue of a [`Copier`].
pub(crate) const QUEUE_SIZE: u16 = 16;
/// A feature that only a [`Copier`] has.
pub(crate) const F_COPIER: u64 = 1;
/// Where requests read from, behind the rings.
pub(crate) const IN: u64 = FakeMemory::BASE + (1 << 20);
/// Where requests write to.
pub(crate) const OUT: u64 = IN + (1 << 16);

/// A device with two queues that copies the readable buffers of a request to its writable ones, and with 8 bytes of
/// configuration. A request that starts with '!' breaks it.
pub(crate) struct Copier {
    workers: QueueWorkers,
    services: Services,
    config: Mutex<[u8; 8]>,
}

impl Copier {
    pub(crate) fn new(services: Services) -> Arc<Self> {
        let workers = QueueWorkers::new(services.clone());
        Arc::new(Self { workers, services, config: Mutex::new(*b"config:0") })
    }

    /// Changes the configuration as something outside of the guest would.
    pub(crate) fn change_config(&self, config: [u8; 8]) {
        *self.config.lock().unwrap() = config;
        self.services.config_changed();
    }
}

struct Copy;

impl QueueHandler for Copy {
    fn process(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        while let Some(chain) = queue.pop()? {
            let len = total_len(chain.readable()).min(total_len(chain.writable())).min(4096);
            let mut data = vec![0; len as usize];
            chain.read(queue.memory(), 0, &mut data)?;
            if data.first() == Some(&b'!') {
                return Err(std::io::Error::other("told to break").into());
            }
            chain.write(queue.memory(), 0, &data)?;
            queue.push(chain, len as u32)?;
        }
        Ok(())
    }
}

impl VirtioDevice for Copier {
    fn traits(&self) -> VirtioTraits {
        VirtioTraits {
            device_type: 42,
            features: COMMON_FEATURES | F_COPIER,
            queue_sizes: vec![QUEUE_SIZE; 2],
            config_size: 8,
        }
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let offset = offset as usize;
        data.copy_from_slice(&self.config.lock().unwrap()[offset..offset + data.len()]);
    }

    fn write_config(&self, offset: u32, data: &[u8]) {
        let offset = offset as usize;
        self.config.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
    }

    fn start_queue(&self, index: u16, setup: QueueSetup) -> Result<(), String> {
        self.workers.start(index, setup, Copy)
    }

    fn stop_queue(&self, index: u16) -> Option<QueueState> {
        self.workers.stop(index)
    }

    fn reset(&self) {
        *self.config.lock().unwrap() = *b"config:0";
    }
}

/// The buffers of a request that has `len` bytes copied.
pub(crate) fn copy_request(len: u32) -> [Buffer; 2] {
    [Buffer::readable(IN, len), Buffer::writable(OUT, len)]
}

/// Surroundings that keep what they are told.
#[derive(Debug, Default, Clone)]
pub(crate) struct Recorder(Arc<Mutex<Vec<String>>>);

impl Recorder {
    pub(crate) fn failures(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Surroundings for Recorder {
    fn log(&self, _: u8, _: &str, _: &str) {}

    fn device_failed(&self, reason: &str) {
        self.0.lock().unwrap().push(reason.to_owned());
    }

    fn open_console(&self, attachment: &str) -> Result<Console, String> {
        Err(format!("no console '{attachment}'"))
    }
}
