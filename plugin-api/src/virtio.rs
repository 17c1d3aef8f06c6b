//! Virtio devices: configuration space and queues that are started and stopped one by one.
//!
//! One contract serves virtio-mmio, virtio-pci, the vring base of vhost-user and device reset.

use crate::interrupt::{Event, Interrupt};
use crate::memory::MemoryRegion;
use crate::metrics::Metric;

/// `VIRTIO_F_VERSION_1` (virtio 1.2, 6): offered for every device by the transport.
pub const F_VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_INDIRECT_DESC` (virtio 1.2, 6): handled by [`crate::queue::VirtQueue`] for every device.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX` (virtio 1.2, 6): handled by [`crate::queue::VirtQueue`] for every device.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// What every device offers, because transport and queue handle it.
pub const COMMON_FEATURES: u64 = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX;

/// What a virtio device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtioTraits {
    /// Device type (virtio 1.2, 5).
    pub device_type: u32,
    /// Features offered: those of the device type, and [`COMMON_FEATURES`] as far as the device can have them.
    pub features: u64,
    /// The largest size of each queue, a power of two up to 32768.
    pub queue_sizes: Vec<u16>,
    /// Bytes of configuration space.
    pub config_size: u32,
}

/// Where a queue stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueState {
    /// Index of the next entry of the available ring to take.
    pub next_avail: u16,
    /// Index of the next entry of the used ring to fill.
    pub next_used: u16,
}

/// A queue as the driver has set it up.
#[derive(Debug)]
pub struct QueueSetup {
    /// Number of entries, a power of two, not above the device's size for the queue.
    pub size: u16,
    /// Guest address of the descriptor table.
    pub descriptor_table: u64,
    /// Guest address of the available ring.
    pub available_ring: u64,
    /// Guest address of the used ring.
    pub used_ring: u64,
    /// Where to go on; all zero for a fresh queue.
    pub state: QueueState,
    /// Signalled when the driver has made buffers available.
    pub kick: Event,
    /// Raised when buffers have been used.
    pub call: Interrupt,
    /// Guest memory; the mappings stay until the queue is stopped.
    pub memory: Vec<MemoryRegion>,
    /// Features the driver accepted.
    pub features: u64,
    /// Descriptor states shared with a vhost-user front end, for requests that outlive this process.
    pub inflight: Option<InflightRegion>,
}

/// The part of a vhost-user in-flight region that belongs to one queue (vhost-user protocol, "Inflight I/O tracking").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InflightRegion {
    host_address: usize,
    size: usize,
}

impl InflightRegion {
    /// A region of `size` bytes at an address of this process.
    ///
    /// # Safety
    ///
    /// The range must be mapped readable and writable until the queue that gets it is stopped.
    pub const unsafe fn new(host_address: usize, size: usize) -> Self {
        Self { host_address, size }
    }

    /// Address in this process.
    pub fn host_address(&self) -> usize {
        self.host_address
    }

    /// Size in bytes.
    pub fn size(&self) -> usize {
        self.size
    }
}

/// A virtio device.
///
/// Thread contract: all methods but `read_config`, `write_config` and `metrics` come from one thread at a time.
/// `read_config` and `write_config` come from vCPU threads and must not block. Between `stop_queue` and the next
/// `start_queue` the device touches neither the queue nor guest memory on its behalf.
pub trait VirtioDevice: Send + Sync {
    /// What the device is; the same at every call.
    fn traits(&self) -> VirtioTraits;

    /// Reads configuration space; `offset + data.len()` lies within it.
    fn read_config(&self, offset: u32, data: &mut [u8]);

    /// Writes configuration space; `offset + data.len()` lies within it.
    fn write_config(&self, _offset: u32, _data: &[u8]) {}

    /// Starts to serve a queue that is not started, from the state in the set-up on.
    fn start_queue(&self, index: u16, setup: QueueSetup) -> Result<(), String>;

    /// Stops a queue: requests taken from it are completed or given back. Returns where it stands; `None` when it was
    /// not started.
    fn stop_queue(&self, index: u16) -> Option<QueueState>;

    /// Back to the state after power-on; every queue is stopped before. Calling it twice is the same as once.
    fn reset(&self);

    /// Counters for statistics.
    fn metrics(&self) -> Vec<Metric> {
        Vec::new()
    }
}
