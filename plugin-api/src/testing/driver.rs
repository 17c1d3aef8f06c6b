//! The driver's side of a split virtqueue (virtio 1.2, 2.7), well-behaved or not.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::{FakeMemory, wait_readable};
use crate::interrupt::{Event, Interrupt};
use crate::virtio::{F_EVENT_IDX, QueueSetup, QueueState, VirtioDevice};

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;
/// `VIRTQ_USED_F_NO_NOTIFY` (virtio 1.2, 2.7.8).
const F_NO_NOTIFY: u16 = 1;

/// Guest memory of a harness in bytes: the rings of up to 16 queues, then [`VirtioHarness::DATA`] onwards for buffers.
const MEMORY: usize = 32 << 20;
/// Room for the rings of one queue of up to 1024 entries.
const RINGS: u64 = 64 << 10;

/// A device plugged into fake memory.
pub struct VirtioHarness {
    device: Arc<dyn VirtioDevice>,
    features: u64,
    memory: Arc<FakeMemory>,
}

/// A buffer of a request.
#[derive(Debug, Clone, Copy)]
pub struct Buffer {
    /// Guest address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

impl Buffer {
    /// A buffer for the device to read.
    pub const fn readable(address: u64, len: u32) -> Self {
        Self { address, len, writable: false }
    }

    /// A buffer for the device to write.
    pub const fn writable(address: u64, len: u32) -> Self {
        Self { address, len, writable: true }
    }
}

/// A request that the device gave back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// The value that [`QueueDriver::add`] returned.
    pub head: u16,
    /// Bytes that the device says it wrote.
    pub len: u32,
}

impl VirtioHarness {
    /// Guest address from which tests may place buffers.
    pub const DATA: u64 = FakeMemory::BASE + 16 * RINGS;

    /// A harness whose driver accepts these features.
    pub fn new(device: Arc<dyn VirtioDevice>, features: u64) -> Self {
        let features = features & device.traits().features;
        Self { device, features, memory: Arc::new(FakeMemory::new(MEMORY)) }
    }

    /// Guest memory.
    pub fn memory(&self) -> &FakeMemory {
        &self.memory
    }

    /// Starts a queue with fresh rings of `size` entries; queue indexes up to 15.
    pub fn start(&mut self, index: u16, size: u16) -> QueueDriver {
        let driver = QueueDriver::new(self.memory.clone(), index, size, self.features);
        let setup = driver.setup(QueueState::default());
        self.device.start_queue(index, setup).expect("the queue starts");
        driver
    }

    /// Stops a queue; where it stands.
    pub fn stop(&mut self, index: u16, _queue: &mut QueueDriver) -> QueueState {
        self.device.stop_queue(index).expect("the queue was started")
    }

    /// Starts a stopped queue again where it stood.
    pub fn resume(&mut self, index: u16, queue: &mut QueueDriver, state: QueueState) {
        self.device.start_queue(index, queue.setup(state)).expect("the queue starts again");
    }
}

/// Drives one queue.
#[derive(Debug)]
pub struct QueueDriver {
    memory: Arc<FakeMemory>,
    size: u16,
    features: u64,
    table: u64,
    available: u64,
    used: u64,
    indirect: u64,
    free: Vec<u16>,
    next_available: u16,
    /// `next_available` when the device was last notified or found to want no notification.
    announced: u16,
    next_used: u16,
    kick: Event,
    call: Event,
}

impl QueueDriver {
    /// Fresh rings of `size` entries in the memory, where a harness has those of the queue with this index.
    pub fn new(memory: Arc<FakeMemory>, index: u16, size: u16, features: u64) -> Self {
        assert!(index < 16 && size <= 1024, "the harness has room for 16 queues of 1024 entries");
        let table = FakeMemory::BASE + u64::from(index) * RINGS;
        memory.write(table, &vec![0; RINGS as usize]);
        Self {
            memory,
            size,
            features,
            table,
            available: table + (20 << 10),
            used: table + (24 << 10),
            indirect: table + (36 << 10),
            free: (0..size).rev().collect(),
            next_available: 0,
            announced: 0,
            next_used: 0,
            kick: Event::new().unwrap(),
            call: Event::new().unwrap(),
        }
    }

    /// The queue as a device gets it.
    pub fn setup(&self, state: QueueState) -> QueueSetup {
        QueueSetup {
            size: self.size,
            descriptor_table: self.table,
            available_ring: self.available,
            used_ring: self.used,
            state,
            kick: self.kick.try_clone().unwrap(),
            call: Interrupt::new(self.call.try_clone().unwrap()),
            memory: vec![self.memory.region()],
            features: self.features,
            inflight: None,
        }
    }

    /// Makes a request available without a kick; its head.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let heads: Vec<u16> = buffers.iter().map(|_| self.free.pop().expect("a free descriptor")).collect();
        for (i, buffer) in buffers.iter().enumerate() {
            let next = heads.get(i + 1).copied();
            self.descriptor(heads[i], buffer.address, buffer.len, flags(buffer, next), next.unwrap_or(0));
        }
        self.offer(heads[0]);
        heads[0]
    }

    /// Like [`QueueDriver::add`], through an indirect table of up to 28 KiB.
    pub fn add_indirect(&mut self, buffers: &[Buffer]) -> u16 {
        for (i, buffer) in buffers.iter().enumerate() {
            let next = (i + 1 < buffers.len()).then_some(i as u16 + 1);
            let entry = descriptor_bytes(buffer.address, buffer.len, flags(buffer, next), next.unwrap_or(0));
            self.memory.write(self.indirect + 16 * i as u64, &entry);
        }
        let head = self.free.pop().expect("a free descriptor");
        self.descriptor(head, self.indirect, 16 * buffers.len() as u32, F_INDIRECT, 0);
        self.offer(head);
        head
    }

    /// Writes any descriptor into the table; for hostile tests.
    pub fn descriptor(&mut self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = self.table + 16 * u64::from(index % self.size);
        self.memory.write(at, &descriptor_bytes(address, len, flags, next));
    }

    /// Puts any head into the available ring.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.next_available % self.size);
        self.memory.write(self.available + 4 + 2 * slot, &head.to_le_bytes());
        self.next_available = self.next_available.wrapping_add(1);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        self.memory.write(self.available + 2, &self.next_available.to_le_bytes());
    }

    /// Moves the available index without filling entries; for hostile tests.
    pub fn set_available_index(&mut self, index: u16) {
        self.next_available = index;
        self.memory.write(self.available + 2, &index.to_le_bytes());
    }

    /// Sets the flags of the available ring, such as 1 for no interrupts.
    pub fn set_available_flags(&mut self, flags: u16) {
        self.memory.write(self.available, &flags.to_le_bytes());
    }

    /// Notifies the device, whether it wants that or not.
    pub fn kick(&self) {
        self.kick.signal();
    }

    /// Notifies the device if it wants to know of what was added since the last call (virtio 1.2, 2.7.10 and 2.7.13);
    /// whether it did.
    pub fn kick_if_wanted(&mut self) -> bool {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let word = |address| {
            let bytes = self.memory.read(address, 2);
            u16::from_le_bytes([bytes[0], bytes[1]])
        };
        let wanted = if self.features & F_EVENT_IDX != 0 {
            let event = word(self.used + 4 + 8 * u64::from(self.size));
            let added = self.next_available.wrapping_sub(self.announced);
            self.next_available.wrapping_sub(event).wrapping_sub(1) < added
        } else {
            word(self.used) & F_NO_NOTIFY == 0
        };
        self.announced = self.next_available;
        if wanted {
            self.kick();
        }
        wanted
    }

    /// Takes a request that the device gave back, if there is one.
    pub fn poll_used(&mut self) -> Option<Used> {
        let index = self.memory.read(self.used + 2, 2);
        if u16::from_le_bytes([index[0], index[1]]) == self.next_used {
            return None;
        }
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let entry = self.memory.read(self.used + 4 + 8 * u64::from(self.next_used % self.size), 8);
        self.next_used = self.next_used.wrapping_add(1);
        if self.features & F_EVENT_IDX != 0 {
            let used_event = self.available + 4 + 2 * u64::from(self.size);
            self.memory.write(used_event, &self.next_used.to_le_bytes());
        }
        let head = u16::from_le_bytes([entry[0], entry[1]]);
        self.release(head);
        Some(Used { head, len: u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]) })
    }

    /// Waits for the interrupt and takes the request that caused it.
    pub fn wait_used(&mut self) -> Used {
        loop {
            if let Some(used) = self.poll_used() {
                return used;
            }
            // The event index is behind the check above: look once more before sleeping.
            if let Some(used) = self.poll_used() {
                return used;
            }
            wait_readable("an interrupt of the queue", self.call.as_fd());
            self.call.take();
        }
    }

    /// Makes a request, kicks and waits for it.
    pub fn request(&mut self, buffers: &[Buffer]) -> Used {
        let head = self.add(buffers);
        self.kick();
        let used = self.wait_used();
        assert_eq!(used.head, head, "the device gave back another request");
        used
    }

    /// Whether the device has interrupted since last asked.
    pub fn interrupted(&self) -> bool {
        self.call.take()
    }

    /// Gives the descriptors of a chain back to the free list.
    fn release(&mut self, head: u16) {
        let mut at = head;
        for _ in 0..self.size {
            let entry = self.memory.read(self.table + 16 * u64::from(at % self.size), 16);
            self.free.push(at % self.size);
            if u16::from_le_bytes([entry[12], entry[13]]) & F_NEXT == 0 {
                break;
            }
            at = u16::from_le_bytes([entry[14], entry[15]]);
        }
    }
}

fn flags(buffer: &Buffer, next: Option<u16>) -> u16 {
    (if buffer.writable { F_WRITE } else { 0 }) | (if next.is_some() { F_NEXT } else { 0 })
}

fn descriptor_bytes(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}
