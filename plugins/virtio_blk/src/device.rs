//! The disk behind the plugin interface.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gvmm_plugin_api::metrics::Metric;
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::virtio::{COMMON_FEATURES, QueueSetup, QueueState, VirtioDevice, VirtioTraits};
use gvmm_plugin_api::worker::QueueWorkers;

use crate::Options;
use crate::config::{self, CONFIG_SIZE, Config, DEVICE_TYPE, WRITEBACK_OFFSET};
use crate::image::{ImageError, OpenOptions, open};
use crate::metrics::Metrics;
use crate::queue::{BlockQueue, Disk};
use crate::request::Limits;

/// Most data buffers of a request: a request of 4 KiB pages is then just below 1 MiB.
const MAX_SEGMENTS: u16 = 254;

/// Why a disk cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    #[error("option 'serial': '{0}' has {len} bytes; the guest sees at most 20", len = .0.len())]
    Serial(String),
    #[error("option 'queue-size': {given} is not a power of two; {below} and {above} are")]
    QueueSize { given: u16, below: u16, above: u16 },
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// A virtio block device.
#[derive(Debug)]
pub(crate) struct BlockDevice {
    disk: Arc<Disk>,
    config: Config,
    features: u64,
    queue_size: u16,
    workers: QueueWorkers,
}

impl BlockDevice {
    /// Opens the disk that the options name.
    pub(crate) fn new(options: &Options, services: Services) -> Result<Self, CreateError> {
        let queue_size = options.queue_size;
        if !queue_size.is_power_of_two() {
            let below = 1 << queue_size.ilog2();
            return Err(CreateError::QueueSize { given: queue_size, below, above: below << 1 });
        }
        let serial = serial(options.serial.as_deref().unwrap_or_default())?;
        let writethrough = options.cache == "writethrough";
        let image = open(&OpenOptions {
            path: options.disk.clone(),
            readonly: options.readonly,
            direct: options.direct,
            lock: options.lock,
            writethrough,
            discard: options.discard,
        })?;
        let geometry = image.geometry();
        let config = Config {
            capacity: geometry.capacity,
            // A chain is no longer than its queue and has a header and a status byte beside the data.
            seg_max: u32::from((queue_size - 2).min(MAX_SEGMENTS)),
            block_size: geometry.block_size,
            physical_block_size: geometry.physical_block_size,
            optimal_io_size: geometry.optimal_io_size,
            writeback: !writethrough,
            queues: options.queues,
        };
        let disk = Disk {
            image,
            limits: Limits { capacity: geometry.capacity, readonly: options.readonly },
            serial,
            durable_writes: writethrough,
            writeback: AtomicBool::new(!writethrough),
            metrics: Metrics::default(),
        };
        let features = features(options, writethrough);
        Ok(Self { disk: Arc::new(disk), config, features, queue_size, workers: QueueWorkers::new(services) })
    }
}

fn serial(text: &str) -> Result<[u8; 20], CreateError> {
    let mut serial = [0; 20];
    let room = serial.get_mut(..text.len()).ok_or_else(|| CreateError::Serial(text.to_owned()))?;
    room.copy_from_slice(text.as_bytes());
    Ok(serial)
}

fn features(options: &Options, writethrough: bool) -> u64 {
    let mut features = COMMON_FEATURES | config::F_SEG_MAX | config::F_BLK_SIZE | config::F_TOPOLOGY;
    // A disk without either of these is written through, and the driver knows that it need not flush.
    if !writethrough {
        features |= config::F_FLUSH | config::F_CONFIG_WCE;
    }
    if options.readonly {
        features |= config::F_RO;
    } else {
        features |= config::F_WRITE_ZEROES;
        if options.discard {
            features |= config::F_DISCARD;
        }
    }
    if options.queues > 1 {
        features |= config::F_MQ;
    }
    features
}

impl VirtioDevice for BlockDevice {
    fn traits(&self) -> VirtioTraits {
        VirtioTraits {
            device_type: DEVICE_TYPE,
            features: self.features,
            queue_sizes: vec![self.queue_size; usize::from(self.config.queues)],
            config_size: CONFIG_SIZE as u32,
        }
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let writeback = self.disk.writeback.load(Ordering::Relaxed);
        let bytes = Config { writeback, ..self.config }.to_bytes();
        let fields = bytes.get(offset as usize..).unwrap_or_default();
        data.iter_mut().zip(fields).for_each(|(byte, field)| *byte = *field);
    }

    fn write_config(&self, offset: u32, data: &[u8]) {
        let at = WRITEBACK_OFFSET.checked_sub(offset as usize).and_then(|i| data.get(i));
        if let Some(&writeback) = at
            && self.features & config::F_CONFIG_WCE != 0
        {
            self.disk.writeback.store(writeback != 0, Ordering::Relaxed);
        }
    }

    fn start_queue(&self, index: u16, setup: QueueSetup) -> Result<(), String> {
        let queue = BlockQueue::new(self.disk.clone(), setup.features);
        self.workers.start(index, setup, queue)
    }

    fn stop_queue(&self, index: u16) -> Option<QueueState> {
        self.workers.stop(index)
    }

    fn reset(&self) {
        self.disk.writeback.store(self.config.writeback, Ordering::Relaxed);
    }

    fn metrics(&self) -> Vec<Metric> {
        self.disk.metrics.list()
    }
}
