//! The console behind the plugin interface.
#![forbid(unsafe_code)]

use std::sync::Arc;

use gvmm_plugin_api::metrics::{Counter, Metric};
use gvmm_plugin_api::services::{Console, Services};
use gvmm_plugin_api::virtio::{COMMON_FEATURES, QueueSetup, QueueState, VirtioDevice, VirtioTraits};
use gvmm_plugin_api::worker::QueueWorkers;

use crate::input::Input;
use crate::output::Output;

/// Device type (virtio 1.2, 5).
pub(crate) const DEVICE_TYPE: u32 = 3;
/// `VIRTIO_CONSOLE_F_SIZE` (virtio 1.2, 5.3.3): columns and rows are in the configuration space.
pub(crate) const F_SIZE: u64 = 1;
/// Receive queue of port 0 (virtio 1.2, 5.3.2).
pub(crate) const RECEIVE_QUEUE: u16 = 0;
/// Transmit queue of port 0.
pub(crate) const TRANSMIT_QUEUE: u16 = 1;
/// Linux fills the receive queue with a page each.
const QUEUE_SIZE: u16 = 64;
/// Columns and rows, 16 bits each, then a number of ports and an emergency register that this device has no use for
/// (virtio 1.2, 5.3.4).
pub(crate) const CONFIG_SIZE: usize = 12;

/// A virtio console with one port.
#[derive(Debug)]
pub(crate) struct VirtioConsole {
    console: Arc<Console>,
    counters: Arc<Counters>,
    services: Services,
    workers: QueueWorkers,
}

/// Counts for statistics.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) shown: Counter,
    pub(crate) typed: Counter,
    pub(crate) lost: Counter,
}

impl VirtioConsole {
    pub(crate) fn new(console: Console, services: Services) -> Self {
        let workers = QueueWorkers::new(services.clone());
        Self { console: Arc::new(console), counters: Arc::default(), services, workers }
    }

    fn config(&self) -> [u8; CONFIG_SIZE] {
        let (columns, rows) = self.console.size.get();
        let mut config = [0; CONFIG_SIZE];
        config[..2].copy_from_slice(&columns.to_le_bytes());
        config[2..4].copy_from_slice(&rows.to_le_bytes());
        config
    }
}

impl VirtioDevice for VirtioConsole {
    fn traits(&self) -> VirtioTraits {
        let size = if self.console.resized.is_some() { F_SIZE } else { 0 };
        VirtioTraits {
            device_type: DEVICE_TYPE,
            features: COMMON_FEATURES | size,
            queue_sizes: vec![QUEUE_SIZE; 2],
            config_size: CONFIG_SIZE as u32,
        }
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let config = self.config();
        let from = config.get(offset as usize..).unwrap_or_default();
        let len = data.len().min(from.len());
        data[..len].copy_from_slice(&from[..len]);
    }

    fn start_queue(&self, index: u16, setup: QueueSetup) -> Result<(), String> {
        let (console, counters) = (self.console.clone(), self.counters.clone());
        match index {
            RECEIVE_QUEUE => self.workers.start(index, setup, Input::new(console, counters)),
            TRANSMIT_QUEUE => {
                let output = Output::new(console, counters, self.services.clone());
                let output =
                    output.map_err(|error| format!("queue {index}: cannot make an epoll: {error}"))?;
                self.workers.start(index, setup, output)
            }
            _ => Err(format!("there is no queue {index}, only queues 0 and 1")),
        }
    }

    fn stop_queue(&self, index: u16) -> Option<QueueState> {
        self.workers.stop(index)
    }

    fn reset(&self) {}

    fn metrics(&self) -> Vec<Metric> {
        vec![
            Metric::new("tx_bytes", self.counters.shown.get()),
            Metric::new("rx_bytes", self.counters.typed.get()),
            Metric::new("tx_lost_bytes", self.counters.lost.get()),
        ]
    }
}
