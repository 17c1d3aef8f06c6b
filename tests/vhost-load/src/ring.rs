//! The driver's side of a split virtqueue with event indexes (virtio 1.2, 2.7).

use std::os::fd::AsRawFd;
use std::sync::atomic::{Ordering, fence};

use anyhow::{Context, Result, ensure};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// Entries of the queue: the most that every back end has.
pub(crate) const QUEUE_SIZE: u16 = 128;
/// Where the parts of the queue are in guest memory.
pub(crate) const DESCRIPTORS: u64 = 0;
pub(crate) const AVAILABLE: u64 = 0x1000;
pub(crate) const USED: u64 = 0x2000;
/// The first byte of guest memory behind the queue.
pub(crate) const FREE: u64 = 0x3000;

/// Offsets of the index and of the entries in either ring (virtio 1.2, 2.7.6 and 2.7.8).
const INDEX: u64 = 2;
const ENTRIES: u64 = 4;
/// Behind the entries: `used_event`, the driver's wish, and `avail_event`, the device's.
const USED_EVENT: u64 = AVAILABLE + ENTRIES + 2 * QUEUE_SIZE as u64;
const AVAIL_EVENT: u64 = USED + ENTRIES + 8 * QUEUE_SIZE as u64;
/// Milliseconds after which a back end that completes nothing is given up.
const PATIENCE: i32 = 30_000;

/// A descriptor (virtio 1.2, 2.7.5).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) len: u32,
    /// For the device to write.
    pub(crate) writable: bool,
}

/// A queue that a back end serves.
pub(crate) struct Ring {
    pub(crate) memory: GuestMemoryMmap,
    kick: EventFd,
    /// Reports each interrupt once.
    calls: Epoll,
    /// What it reports; kept open for it.
    _call: EventFd,
    /// Entries that were made available, and those of which the back end knows.
    available: u16,
    published: u16,
    /// Entries that were taken from the used ring.
    used: u16,
}

impl Ring {
    pub(crate) fn new(memory: GuestMemoryMmap, kick: EventFd, call: EventFd) -> Result<Self> {
        let calls = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        calls.ctl(ControlOperation::Add, call.as_raw_fd(), event)?;
        Ok(Self { memory, kick, calls, _call: call, available: 0, published: 0, used: 0 })
    }

    /// Writes a chain of descriptors, the first one at `head`.
    pub(crate) fn write_chain(&self, head: u16, chain: &[Descriptor]) -> Result<()> {
        for (place, descriptor) in (head..).zip(chain) {
            const NEXT: u16 = 1;
            const WRITE: u16 = 2;
            let last = usize::from(place - head) + 1 == chain.len();
            let flags = if last { 0 } else { NEXT } | if descriptor.writable { WRITE } else { 0 };
            let at = DESCRIPTORS + 16 * u64::from(place);
            self.memory.write_obj(descriptor.address.to_le(), GuestAddress(at))?;
            self.memory.write_obj(descriptor.len.to_le(), GuestAddress(at + 8))?;
            self.memory.write_obj(flags.to_le(), GuestAddress(at + 12))?;
            self.memory.write_obj((place + 1).to_le(), GuestAddress(at + 14))?;
        }
        Ok(())
    }

    /// Makes a chain available, with the next [`Ring::publish`].
    pub(crate) fn offer(&mut self, head: u16) -> Result<()> {
        let at = AVAILABLE + ENTRIES + 2 * u64::from(self.available % QUEUE_SIZE);
        self.store(at, head)?;
        self.available = self.available.wrapping_add(1);
        Ok(())
    }

    /// Shows the device what was offered, and kicks it if it asks for that.
    pub(crate) fn publish(&mut self) -> Result<()> {
        let new = self.available;
        let old = std::mem::replace(&mut self.published, new);
        if new == old {
            return Ok(());
        }
        self.store(AVAILABLE + INDEX, new)?;
        fence(Ordering::SeqCst);
        let event = self.load(AVAIL_EVENT)?;
        if new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old) {
            self.kick.write(1)?;
        }
        Ok(())
    }

    /// Takes a chain that the device has completed: its head.
    pub(crate) fn take(&mut self) -> Result<Option<u16>> {
        if self.load(USED + INDEX)? == self.used {
            return Ok(None);
        }
        let at = USED + ENTRIES + 8 * u64::from(self.used % QUEUE_SIZE);
        let head: u32 = self.memory.read_obj(GuestAddress(at))?;
        self.used = self.used.wrapping_add(1);
        Ok(Some(u16::try_from(u32::from_le(head)).context("the back end completed no entry of the queue")?))
    }

    /// Waits until the device has completed something.
    pub(crate) fn wait(&self) -> Result<()> {
        self.store(USED_EVENT, self.used)?;
        fence(Ordering::SeqCst);
        while self.load(USED + INDEX)? == self.used {
            let interrupts = self.calls.wait(PATIENCE, &mut [EpollEvent::default()])?;
            ensure!(interrupts > 0, "the back end has completed nothing for {} s", PATIENCE / 1000);
        }
        Ok(())
    }

    fn load(&self, at: u64) -> Result<u16> {
        Ok(u16::from_le(self.memory.load(GuestAddress(at), Ordering::Acquire)?))
    }

    fn store(&self, at: u64, value: u16) -> Result<()> {
        Ok(self.memory.store(value.to_le(), GuestAddress(at), Ordering::Release)?)
    }
}
