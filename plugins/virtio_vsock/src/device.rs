//! The device behind the plugin interface.
#![forbid(unsafe_code)]

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gvmm_plugin_api::interrupt::Event;
use gvmm_plugin_api::metrics::Metric;
use gvmm_plugin_api::queue::{QueueError, VirtQueue};
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::virtio::{COMMON_FEATURES, QueueSetup, QueueState, VirtioDevice, VirtioTraits};
use gvmm_plugin_api::worker::{QueueHandler, QueueWorkers};
use nix::sys::epoll::{Epoll, EpollCreateFlags};

use crate::Options;
use crate::muxer::{self, Counters, Muxer};
use crate::receive::Receiver;
use crate::transmit::Transmitter;

/// Device type (virtio 1.2, 5).
pub(crate) const DEVICE_TYPE: u32 = 19;
/// `VIRTIO_VSOCK_F_STREAM` (virtio 1.2, 5.10.3).
const F_STREAM: u64 = 1;
/// Queues (virtio 1.2, 5.10.2). Nothing is ever sent on the third: there is no migration.
pub(crate) const RECEIVE_QUEUE: u16 = 0;
pub(crate) const TRANSMIT_QUEUE: u16 = 1;
const EVENT_QUEUE: u16 = 2;
/// Linux has 8 events on their way. Front ends of vhost-user do not ask for the size: QEMU's generic one takes 64.
const QUEUE_SIZES: [u16; 3] = [256, 256, 64];
/// Bytes of the configuration space: the guest's address.
const CONFIG_SIZE: usize = 8;

/// What the queues share.
#[derive(Debug)]
pub(crate) struct Shared {
    muxer: Mutex<Muxer>,
    pub(crate) cid: u64,
    /// Readable when something has happened to the host's sockets.
    pub(crate) epoll: Arc<Epoll>,
    /// Signalled when there is something for the guest.
    pub(crate) wake: Event,
    /// Signalled when the transmit queue may go on.
    pub(crate) again: Event,
}

impl Shared {
    pub(crate) fn muxer(&self) -> MutexGuard<'_, Muxer> {
        self.muxer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A virtio socket device.
#[derive(Debug)]
pub(crate) struct VsockDevice {
    pub(crate) shared: Arc<Shared>,
    counters: Arc<Counters>,
    workers: QueueWorkers,
}

impl VsockDevice {
    /// A device whose socket listens where the options say.
    pub(crate) fn new(options: &Options, services: Services) -> Result<Self, String> {
        let listener = muxer::listen(&options.socket)?;
        let failed = |error: io::Error| format!("cannot set up the sockets: {error}");
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|error| failed(error.into()))?;
        let epoll = Arc::new(epoll);
        let counters = Arc::new(Counters::default());
        let muxer = Muxer::new(options.cid, &options.socket, listener, epoll.clone(), counters.clone());
        let shared = Shared {
            muxer: Mutex::new(muxer.map_err(failed)?),
            cid: options.cid,
            epoll,
            wake: Event::new().map_err(failed)?,
            again: Event::new().map_err(failed)?,
        };
        Ok(Self { shared: Arc::new(shared), counters, workers: QueueWorkers::new(services) })
    }
}

/// The event queue: its buffers stay with the device.
struct Events;

impl QueueHandler for Events {
    fn process(&mut self, _queue: &mut VirtQueue) -> Result<(), QueueError> {
        Ok(())
    }
}

impl VirtioDevice for VsockDevice {
    fn traits(&self) -> VirtioTraits {
        VirtioTraits {
            device_type: DEVICE_TYPE,
            features: COMMON_FEATURES | F_STREAM,
            queue_sizes: QUEUE_SIZES.to_vec(),
            config_size: CONFIG_SIZE as u32,
        }
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let bytes = self.shared.cid.to_le_bytes();
        let fields = bytes.get(offset as usize..).unwrap_or_default();
        data.iter_mut().zip(fields).for_each(|(byte, field)| *byte = *field);
    }

    fn start_queue(&self, index: u16, setup: QueueSetup) -> Result<(), String> {
        let shared = self.shared.clone();
        match index {
            RECEIVE_QUEUE => self.workers.start(index, setup, Receiver { shared }),
            TRANSMIT_QUEUE => self.workers.start(index, setup, Transmitter { shared }),
            EVENT_QUEUE => self.workers.start(index, setup, Events),
            _ => Err(format!("there is no queue {index}, only queues 0 to 2")),
        }
    }

    fn stop_queue(&self, index: u16) -> Option<QueueState> {
        self.workers.stop(index)
    }

    fn reset(&self) {
        self.shared.muxer().clear();
    }

    fn metrics(&self) -> Vec<Metric> {
        let counters = &self.counters;
        vec![
            Metric::new("connections", counters.connections.get()),
            Metric::new("refused", counters.refused.get()),
            Metric::new("rx_bytes", counters.rx_bytes.get()),
            Metric::new("tx_bytes", counters.tx_bytes.get()),
        ]
    }
}
