//! A split virtqueue as a device sees it (virtio 1.2, 2.7).
//!
//! Everything in the rings is the guest's and may be nonsense: what cannot be followed is a [`QueueError`], after
//! which the device asks for a reset; an address outside guest memory shows when it is used.

use std::collections::VecDeque;
use std::io;
use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::inflight::{InflightError, Tracker};
use crate::interrupt::Interrupt;
use crate::memory::{GuestMemory, GuestRange, MemoryError};
use crate::virtio::{F_EVENT_IDX, InflightRegion, QueueSetup, QueueState};
use crate::walk::{Malformed, Table, walk};

/// Why a queue cannot go on. The device must be reset by the driver.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The set-up itself is refused.
    #[error("the queue's rings are not in guest memory or not aligned")]
    Rings,
    /// The region in which requests in flight are noted is not one for this queue.
    #[error("{0}")]
    Inflight(String),
    /// A ring cannot be read or written, or its index runs ahead of its size.
    #[error("the queue's rings are broken: {0}")]
    Broken(String),
    /// A chain loops, ends outside the table, or has a buffer to read behind one to write.
    #[error("descriptor chain {head} is malformed")]
    Chain {
        /// Index of its first descriptor.
        head: u16,
    },
    /// A buffer of a request could not be used and the request has no way to say so.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The device's own side failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A request: buffers for the device to read, then buffers for it to write.
///
/// It goes back to the driver by [`VirtQueue::push`]; a chain that is dropped is never completed.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    /// Taken by a process before this one.
    recovered: bool,
    readable: Vec<GuestRange>,
    writable: Vec<GuestRange>,
}

impl Chain {
    /// Index of the first descriptor: unique among the requests in flight.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Buffers for the device to read.
    pub fn readable(&self) -> &[GuestRange] {
        &self.readable
    }

    /// Buffers for the device to write.
    pub fn writable(&self) -> &[GuestRange] {
        &self.writable
    }

    /// Copies the first bytes of the readable buffers; whether there were enough.
    pub fn read(&self, memory: &GuestMemory, offset: u64, data: &mut [u8]) -> Result<bool, MemoryError> {
        let mut done = 0;
        for range in sub_ranges(&self.readable, offset, data.len() as u64) {
            let len = range.len as usize;
            memory.read(range.address, &mut data[done..done + len])?;
            done += len;
        }
        Ok(done == data.len())
    }

    /// Drops the first `len` bytes of the readable buffers: a header that has been read.
    pub fn skip_readable(&mut self, len: u64) {
        let mut skip = len;
        let whole = self.readable.iter().take_while(|range| {
            let gone = u64::from(range.len) <= skip;
            skip -= if gone { u64::from(range.len) } else { 0 };
            gone
        });
        let whole = whole.count();
        self.readable.drain(..whole);
        if let Some(first) = self.readable.first_mut() {
            // Less than `first.len`, or the range would be gone.
            first.address = first.address.wrapping_add(skip);
            first.len -= skip as u32;
        }
    }

    /// Keeps the first `len` bytes of the writable buffers.
    pub fn truncate_writable(&mut self, len: u64) {
        let mut left = len;
        self.writable.retain_mut(|range| {
            range.len = left.min(u64::from(range.len)) as u32;
            left -= u64::from(range.len);
            range.len > 0
        });
    }

    /// Copies data to an offset of the writable buffers; whether there was room for all.
    pub fn write(&self, memory: &GuestMemory, offset: u64, data: &[u8]) -> Result<bool, MemoryError> {
        let mut done = 0;
        for range in sub_ranges(&self.writable, offset, data.len() as u64) {
            let len = range.len as usize;
            memory.write(range.address, &data[done..done + len])?;
            done += len;
        }
        Ok(done == data.len())
    }
}

/// Total length of ranges in bytes.
pub fn total_len(ranges: &[GuestRange]) -> u64 {
    ranges.iter().map(|range| u64::from(range.len)).sum()
}

/// The part of ranges that begins at an offset and has at most `len` bytes.
pub fn sub_ranges(ranges: &[GuestRange], offset: u64, len: u64) -> impl Iterator<Item = GuestRange> + '_ {
    let mut skip = offset;
    let mut left = len;
    ranges.iter().filter_map(move |range| {
        let skipped = skip.min(u64::from(range.len));
        skip -= skipped;
        let taken = (u64::from(range.len) - skipped).min(left);
        left -= taken;
        // `taken` is at most `range.len`, which is 32 bits wide.
        (taken > 0).then(|| GuestRange { address: range.address.wrapping_add(skipped), len: taken as u32 })
    })
}

/// A virtqueue that has been started.
#[derive(Debug)]
pub struct VirtQueue {
    queue: Queue,
    memory: GuestMemory,
    call: Interrupt,
    /// Notes what is in flight where it outlives this process.
    tracker: Option<Tracker>,
    /// Heads of requests that a process before this one took and did not complete.
    recovered: VecDeque<u16>,
    spare: Vec<Chain>,
    /// Index of the used ring at the last signal.
    signalled: u16,
}

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` (virtio 1.2, 2.7.7): the driver wants no interrupt, as far as there is no event index.
const NO_INTERRUPT: u16 = 1;
/// Layout of the available ring (virtio 1.2, 2.7.6): flags, index, entries, and then the event index.
const AVAIL_ENTRIES_AT: u64 = 4;
const AVAIL_ENTRY: u64 = 2;
/// Layout of the used ring (virtio 1.2, 2.7.8): flags, index, entries of a head and a length.
const USED_INDEX_AT: u64 = 2;
const USED_ELEMENTS_AT: u64 = 4;
const USED_ELEMENT: u64 = 8;
/// Buffers of a chain that is kept for reuse; a longer one, which only a hostile driver makes, is freed instead.
const SPARE_CAPACITY: usize = 2048;

impl VirtQueue {
    /// Takes over a queue that the driver has set up.
    ///
    /// With an in-flight region that was used before, the queue goes on where that says, whatever the state in the set-up:
    /// what was in flight is popped once more, in the order in which it was made, before anything new.
    pub fn new(setup: QueueSetup) -> Result<Self, QueueError> {
        let memory = GuestMemory::new(&setup.memory)?;
        let mut queue = Queue::new(setup.size).map_err(|_| QueueError::Rings)?;
        let halves = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
        let (low, high) = halves(setup.descriptor_table);
        queue.set_desc_table_address(low, high);
        let (low, high) = halves(setup.available_ring);
        queue.set_avail_ring_address(low, high);
        let (low, high) = halves(setup.used_ring);
        queue.set_used_ring_address(low, high);
        queue.set_event_idx(setup.features & F_EVENT_IDX != 0);
        queue.set_next_avail(setup.state.next_avail);
        queue.set_next_used(setup.state.next_used);
        queue.set_ready(true);
        if !queue.is_valid(memory.inner()) {
            return Err(QueueError::Rings);
        }
        let mut queue = Self {
            queue,
            memory,
            call: setup.call,
            tracker: None,
            recovered: VecDeque::new(),
            spare: Vec::new(),
            signalled: setup.state.next_used,
        };
        if let Some(region) = setup.inflight {
            queue.track(region)?;
            queue.signalled = queue.queue.next_used();
        }
        Ok(queue)
    }

    /// Notes in the region what is in flight, after having taken up what it says.
    fn track(&mut self, region: InflightRegion) -> Result<(), QueueError> {
        let used = self.queue.used_idx(self.memory.inner(), Ordering::Acquire);
        let used = used.map_err(broken)?.0;
        let refused = |error: InflightError| QueueError::Inflight(error.to_string());
        let (tracker, recovered) = Tracker::open(region, self.queue.size(), used).map_err(refused)?;
        self.tracker = Some(tracker);
        if let Some(recovered) = recovered {
            self.queue.set_next_avail(recovered.next_avail);
            self.queue.set_next_used(used);
            self.recovered = recovered.heads.into();
            // The process before may have completed requests and ended before it said so.
            self.call.raise();
        }
        Ok(())
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Takes the next request, if there is one.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        let Some((head, recovered)) = self.next_head()? else { return Ok(None) };
        let mut chain = self.spare.pop().unwrap_or_default();
        chain.head = head;
        chain.recovered = recovered;
        let table = Table { address: self.queue.desc_table(), size: self.queue.size() };
        match walk(&self.memory, table, head, &mut chain.readable, &mut chain.writable) {
            Ok(()) => Ok(Some(chain)),
            Err(Malformed) => Err(QueueError::Chain { head }),
        }
    }

    /// Head of the next request, and whether it was taken before.
    fn next_head(&mut self) -> Result<Option<(u16, bool)>, QueueError> {
        if let Some(head) = self.recovered.pop_front() {
            return Ok(Some((head, true)));
        }
        let mut heads = self.queue.iter(self.memory.inner()).map_err(broken)?;
        let Some(head) = heads.next().map(|chain| chain.head_index()) else { return Ok(None) };
        if let Some(tracker) = &mut self.tracker {
            tracker.take(head);
        }
        Ok(Some((head, false)))
    }

    /// Gives a request back to the driver, `written` bytes of its writable buffers being filled.
    ///
    /// The driver is interrupted by [`VirtQueue::signal`].
    pub fn push(&mut self, chain: Chain, written: u32) -> Result<(), QueueError> {
        if let Some(tracker) = &mut self.tracker {
            tracker.completing(chain.head);
        }
        let added = self.queue.add_used(self.memory.inner(), chain.head, written);
        if let Some(tracker) = &mut self.tracker {
            tracker.completed(chain.head, self.queue.next_used());
        }
        self.keep_spare(chain);
        added.map_err(broken)
    }

    /// Gives several requests back so that the driver sees all of them or none: the buffers of one network frame
    /// (virtio 1.2, 5.1.6.4). The list is empty afterwards.
    pub fn push_together(&mut self, chains: &mut Vec<(Chain, u32)>) -> Result<(), QueueError> {
        let mut next = Wrapping(self.queue.next_used());
        for (chain, written) in &*chains {
            if let Some(tracker) = &mut self.tracker {
                tracker.completing(chain.head);
            }
            let slot = u64::from(next.0 % self.queue.size());
            let mut element = [0; USED_ELEMENT as usize];
            element[..2].copy_from_slice(&chain.head.to_le_bytes());
            element[4..].copy_from_slice(&written.to_le_bytes());
            // Whether the ring lies in memory was found out when the queue was made.
            self.memory.write(self.queue.used_ring() + USED_ELEMENTS_AT + USED_ELEMENT * slot, &element)?;
            next += 1;
        }
        let index = GuestAddress(self.queue.used_ring() + USED_INDEX_AT);
        let stored = self.memory.inner().store(next.0.to_le(), index, Ordering::Release);
        stored.map_err(broken)?;
        self.queue.set_next_used(next.0);
        for (chain, _) in chains.drain(..) {
            if let Some(tracker) = &mut self.tracker {
                tracker.completed(chain.head, next.0);
            }
            self.keep_spare(chain);
        }
        Ok(())
    }

    fn keep_spare(&mut self, mut chain: Chain) {
        if chain.readable.capacity().max(chain.writable.capacity()) <= SPARE_CAPACITY {
            chain.readable.clear();
            chain.writable.clear();
            self.spare.push(chain);
        }
    }

    /// Puts the request that was popped last back, as if it had never been taken.
    pub fn unpop(&mut self, chain: Chain) {
        if chain.recovered {
            return self.recovered.push_front(chain.head);
        }
        if let Some(tracker) = &mut self.tracker {
            tracker.put_back(chain.head);
        }
        self.queue.set_next_avail((Wrapping(self.queue.next_avail()) - Wrapping(1)).0);
    }

    /// Interrupts the driver if it wants to know of what was pushed since the last signal.
    pub fn signal(&mut self) -> Result<(), QueueError> {
        let used = self.queue.next_used();
        let last = std::mem::replace(&mut self.signalled, used);
        if used != last && self.interrupt_wanted(last, used)? {
            self.call.raise();
        }
        Ok(())
    }

    /// Whether anything was pushed since the last signal.
    pub(crate) fn has_unsignalled(&self) -> bool {
        self.queue.next_used() != self.signalled
    }

    /// Whether the driver wants an interrupt for entries of the used ring (virtio 1.2, 2.7.7 and 2.7.8).
    fn interrupt_wanted(&self, from: u16, to: u16) -> Result<bool, QueueError> {
        // The driver writes what is read below and then looks at the used ring: one of both sees the other.
        fence(Ordering::SeqCst);
        let word = |offset| -> Result<u16, QueueError> {
            let mut bytes = [0; 2];
            self.memory.read(self.queue.avail_ring() + offset, &mut bytes)?;
            Ok(u16::from_le_bytes(bytes))
        };
        if !self.queue.event_idx_enabled() {
            return Ok(word(0)? & NO_INTERRUPT == 0);
        }
        let event = word(AVAIL_ENTRIES_AT + AVAIL_ENTRY * u64::from(self.queue.size()))?;
        Ok(to.wrapping_sub(event).wrapping_sub(1) < to.wrapping_sub(from))
    }

    /// Asks the driver for no kicks.
    pub fn disable_kicks(&mut self) -> Result<(), QueueError> {
        if self.queue.event_idx_enabled() {
            // It kicks when it passes the event index: one that is as far away as can be.
            return self.set_event(self.queue.next_avail().wrapping_add(1 << 15));
        }
        self.queue.disable_notification(self.memory.inner()).map_err(broken)
    }

    /// Asks the driver for kicks again; whether requests have come meanwhile, for which there will be no kick.
    pub fn enable_kicks(&mut self) -> Result<bool, QueueError> {
        self.enable_kicks_beyond(self.queue.next_avail())
    }

    /// Asks the driver for a kick for requests beyond an index of the available ring; whether there are any, for which
    /// there will be no kick.
    pub(crate) fn enable_kicks_beyond(&mut self, index: u16) -> Result<bool, QueueError> {
        if self.queue.event_idx_enabled() {
            self.set_event(index)?;
        } else {
            self.queue.enable_notification(self.memory.inner()).map_err(broken)?;
        }
        // The driver writes the index that is read below and then looks at what was written above: one sees the other.
        fence(Ordering::SeqCst);
        Ok(self.available()? != index)
    }

    /// Sets the event index of the used ring (virtio 1.2, 2.7.10).
    fn set_event(&mut self, index: u16) -> Result<(), QueueError> {
        let at = self.queue.used_ring() + USED_ELEMENTS_AT + USED_ELEMENT * u64::from(self.queue.size());
        let stored = self.memory.inner().store(index.to_le(), GuestAddress(at), Ordering::Relaxed);
        stored.map_err(broken)
    }

    /// Whether the driver has made requests available that were not taken.
    pub(crate) fn has_requests(&self) -> Result<bool, QueueError> {
        Ok(self.available()? != self.queue.next_avail())
    }

    /// Index of the available ring: how many requests the driver has ever made available, modulo 65536.
    pub(crate) fn available(&self) -> Result<u16, QueueError> {
        Ok(self.queue.avail_idx(self.memory.inner(), Ordering::Acquire).map_err(broken)?.0)
    }

    /// Where the queue stands.
    pub fn state(&self) -> QueueState {
        QueueState { next_avail: self.queue.next_avail(), next_used: self.queue.next_used() }
    }
}

fn broken(error: impl std::fmt::Display) -> QueueError {
    QueueError::Broken(error.to_string())
}

#[cfg(test)]
#[path = "queue_test.rs"]
mod tests;
