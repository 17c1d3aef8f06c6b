//! The disk behind the plugin interface.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use gvmm_plugin_api::memory::GuestMemory;
use gvmm_plugin_api::metrics::Metric;
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::tracing::warn;
use gvmm_plugin_api::virtio::{COMMON_FEATURES, QueueSetup, QueueState, VirtioDevice, VirtioTraits};
use gvmm_plugin_api::worker::QueueWorkers;

use crate::Options;
use crate::config::{self, CONFIG_SIZE, Config, DEVICE_TYPE, WRITEBACK_OFFSET};
use crate::disk::{Disk, OnError};
use crate::engine::{Choice, Engines};
use crate::image::{Format, Image, ImageError, OpenOptions, open};
use crate::metrics::Metrics;
use crate::queue::BlockQueue;
use crate::resize::{self, ResizeWatch};
use crate::throttle::Throttle;

/// Most data buffers of a request: a request of 4 KiB pages is then just below 1 MiB.
const MAX_SEGMENTS: u16 = 254;

/// Word of the option `cache` for a disk without a write cache.
const WRITETHROUGH: &str = "writethrough";

/// Why a disk cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    #[error("option 'serial': '{0}' has {len} bytes; the guest sees at most 20", len = .0.len())]
    Serial(String),
    #[error("option 'queue-size': {given} is not a power of two; {below} and {above} are")]
    QueueSize { given: u16, below: u16, above: u16 },
    #[error(
        "option 'engine': io_uring is not available for this disk ({0}); leave the option out or use engine=threads"
    )]
    NoUring(std::io::Error),
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
    watch_size: bool,
    services: Services,
    workers: QueueWorkers,
}

impl BlockDevice {
    /// A device for the disk that the options name.
    pub(crate) fn new(options: &Options, services: Services) -> Result<Self, CreateError> {
        let image = open(&OpenOptions {
            path: options.disk.clone(),
            format: options.format.as_deref().map(|word| match word {
                "qcow2" => Format::Qcow2,
                "null" => Format::Null,
                _ => Format::Raw,
            }),
            backing: options.backing.clone(),
            readonly: options.readonly,
            direct: options.direct,
            lock: options.lock,
            writethrough: options.cache == WRITETHROUGH,
            discard: options.discard,
            block_size: options.logical_block_size,
        })?;
        Self::with_image(image, options, services)
    }

    /// A device for an image, with the options that are not about opening one.
    pub(crate) fn with_image(
        image: Box<dyn Image>,
        options: &Options,
        services: Services,
    ) -> Result<Self, CreateError> {
        let queue_size = options.queue_size;
        if !queue_size.is_power_of_two() {
            let below = 1 << queue_size.ilog2();
            return Err(CreateError::QueueSize { given: queue_size, below, above: below << 1 });
        }
        let serial = serial(options.serial.as_deref().unwrap_or_default())?;
        let writethrough = options.cache == WRITETHROUGH;
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
        let engine = Choice::from_word(&options.engine);
        engine.check(&*image).map_err(CreateError::NoUring)?;
        let disk = Disk {
            image,
            engine,
            capacity: AtomicU64::new(geometry.capacity),
            readonly: options.readonly,
            throttle: Throttle::new(options.iops, options.bandwidth),
            on_error: if options.on_error == "stop" { OnError::Wait } else { OnError::Report },
            serial,
            writeback: AtomicBool::new(!writethrough),
            metrics: Metrics::default(),
        };
        let features = features(options, writethrough);
        let workers = QueueWorkers::new(services.clone());
        let watch_size = options.resize;
        Ok(Self { disk: Arc::new(disk), config, features, queue_size, watch_size, services, workers })
    }

    fn queue(&self, index: u16, setup: &QueueSetup) -> Result<BlockQueue, String> {
        let memory = GuestMemory::new(&setup.memory).map_err(|e| e.to_string())?;
        let failed = |error: std::io::Error| format!("queue {index}: {error}");
        let engines = Engines::new(self.disk.clone(), memory, self.services.clone(), setup.size);
        let watch = (self.watch_size && index == 0).then(|| ResizeWatch::new(self.services.clone()));
        let watch = watch.transpose().map_err(failed)?;
        BlockQueue::new(self.disk.clone(), engines.map_err(failed)?, watch, setup.features).map_err(failed)
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
        let capacity = self.disk.capacity.load(Ordering::Relaxed);
        let bytes = Config { writeback, capacity, ..self.config }.to_bytes();
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
        if index >= self.config.queues {
            return Err(format!("there is no queue {index}, only {}", self.config.queues));
        }
        let queue = self.queue(index, &setup)?;
        self.workers.start(index, setup, queue)
    }

    fn stop_queue(&self, index: u16) -> Option<QueueState> {
        let state = self.workers.stop(index);
        if let Err(error) = self.disk.image.write_back() {
            warn!("cannot write back what is cached of the image: {error}");
        }
        state
    }

    fn reset(&self) {
        self.disk.writeback.store(self.config.writeback, Ordering::Relaxed);
        if self.watch_size {
            resize::update(&self.disk);
        }
    }

    fn metrics(&self) -> Vec<Metric> {
        self.disk.metrics.list()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use gvmm_plugin_api::testing::FakeHost;
    use gvmm_plugin_api::virtio::VirtioDevice;

    use super::*;
    use crate::testing::{TestDisk, pattern};

    fn config(device: &dyn VirtioDevice) -> Vec<u8> {
        let mut bytes = vec![0xff; device.traits().config_size as usize];
        device.read_config(0, &mut bytes);
        bytes
    }

    fn refusal(options: &[(&str, &str)]) -> String {
        TestDisk::new(&pattern(4096)).device(&Arc::new(FakeHost::default()), options).err().unwrap()
    }

    #[test]
    fn the_guest_sees_capacity_queues_and_block_sizes() {
        let disk = TestDisk::new(&pattern(1 << 20));
        let device = disk.device(&Arc::new(FakeHost::default()), &[("queues", "4"), ("queue-size", "128")]);
        let device = device.unwrap();
        let traits = device.traits();
        assert_eq!((traits.device_type, traits.queue_sizes), (2, vec![128; 4]));
        assert_ne!(traits.features & config::F_MQ, 0);
        let bytes = config(&*device);
        assert_eq!(bytes[..8], 2048_u64.to_le_bytes());
        assert_eq!(bytes[12..16], 126_u32.to_le_bytes());
        assert_eq!(bytes[20..24], 512_u32.to_le_bytes());
        assert_eq!(bytes[34..36], 4_u16.to_le_bytes());
    }

    #[test]
    fn any_part_of_configuration_space_can_be_read() {
        let disk = TestDisk::new(&pattern(1 << 20));
        let device = disk.device(&Arc::new(FakeHost::default()), &[]).unwrap();
        let whole = config(&*device);
        for offset in 0..whole.len() {
            for len in 1..=whole.len() - offset {
                let mut part = vec![0xff; len];
                device.read_config(offset as u32, &mut part);
                assert_eq!(part, whole[offset..offset + len]);
            }
        }
    }

    #[test]
    fn the_driver_switches_the_write_cache_and_nothing_else() {
        let disk = TestDisk::new(&pattern(4096));
        let device = disk.device(&Arc::new(FakeHost::default()), &[]).unwrap();
        let before = config(&*device);
        assert_eq!(before[WRITEBACK_OFFSET], 1);
        device.write_config(0, &[0; CONFIG_SIZE]);
        let mut expected = before.clone();
        expected[WRITEBACK_OFFSET] = 0;
        assert_eq!(config(&*device), expected);
        device.write_config(WRITEBACK_OFFSET as u32, &[1]);
        assert_eq!(config(&*device), before);
        device.write_config(WRITEBACK_OFFSET as u32, &[0]);
        device.reset();
        assert_eq!(config(&*device), before);
    }

    #[test]
    fn a_writethrough_disk_has_no_write_cache_to_flush_or_switch() {
        let disk = TestDisk::new(&pattern(4096));
        let mut machine = disk.start(&[("cache", "writethrough")]);
        assert_eq!(machine.device.traits().features & (config::F_FLUSH | config::F_CONFIG_WCE), 0);
        machine.device.write_config(WRITEBACK_OFFSET as u32, &[1]);
        assert_eq!(config(&*machine.device)[WRITEBACK_OFFSET], 0);
        assert_eq!(machine.write(0, &[3; 512]), 0);
        assert_eq!(disk.content()[..512], [3; 512]);
    }

    #[test]
    fn options_that_do_not_fit_say_what_would() {
        assert_eq!(
            refusal(&[("queue-size", "100")]),
            "option 'queue-size': 100 is not a power of two; 64 and 128 are"
        );
        assert_eq!(
            refusal(&[("serial", "123456789012345678901")]),
            "option 'serial': '123456789012345678901' has 21 bytes; the guest sees at most 20"
        );
    }
}
