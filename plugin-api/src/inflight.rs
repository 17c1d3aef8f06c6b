//! Requests in flight, noted in memory that outlives the process (vhost-user protocol, "Inflight I/O tracking", split
//! virtqueues).
//!
//! A back end that is killed leaves behind which requests it had taken and not completed; the next one takes them up
//! again in the order in which they were made. What is noted stays true whichever instruction was the last: a request
//! is either still in the available ring, or in flight, or in the used ring.
//!
//! Layout of a queue's part, all in the byte order of the machine:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | features, zero |
//! | 8 | 2 | version: 1, or 0 while nothing was noted |
//! | 10 | 2 | number of descriptors |
//! | 12 | 2 | head of the list of requests completed last |
//! | 14 | 2 | index of the used ring up to which the notes are true |
//! | 16 + 16 i | 1 | whether descriptor i is the head of a request in flight |
//! | 16 + 16 i + 6 | 2 | next in the list of requests completed last |
//! | 16 + 16 i + 8 | 8 | counts the requests in the order in which they were taken |

use std::num::Wrapping;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use crate::virtio::InflightRegion;

const VERSION: u16 = 1;
const VERSION_AT: usize = 8;
const SIZE_AT: usize = 10;
const LAST_BATCH_AT: usize = 12;
const USED_INDEX_AT: usize = 14;
const HEADER: usize = 16;
const ENTRY: usize = 16;
const NEXT_AT: usize = 6;
const COUNTER_AT: usize = 8;
/// Each queue's part starts on a cache line of its own.
const ALIGNMENT: usize = 64;

/// Bytes of the part of a region that belongs to one queue of `queue_size` entries.
pub const fn region_size(queue_size: u16) -> usize {
    (HEADER + ENTRY * queue_size as usize).next_multiple_of(ALIGNMENT)
}

/// Why a region cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InflightError {
    #[error(
        "an in-flight region of {size} bytes at {address:#x} does not fit a queue of {queue_size} entries"
    )]
    Shape { size: usize, address: usize, queue_size: u16 },
    #[error("the in-flight region is of version {version} for {size} entries, the queue has {queue_size}")]
    Foreign { version: u16, size: u16, queue_size: u16 },
}

/// Notes the requests of one queue.
#[derive(Debug)]
pub(crate) struct Tracker {
    region: InflightRegion,
    size: u16,
    counter: u64,
}

/// What a region says of the process before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// Heads of the requests that were taken and not completed, in the order in which they were made.
    pub(crate) heads: Vec<u16>,
    /// The next entry of the available ring to take.
    pub(crate) next_avail: u16,
}

impl Tracker {
    /// Goes on with a region, `used_index` being the index in the queue's used ring; what was recovered, `None` from a
    /// region in which nothing was ever noted.
    pub(crate) fn open(
        region: InflightRegion,
        size: u16,
        used_index: u16,
    ) -> Result<(Self, Option<Recovered>), InflightError> {
        let address = region.host_address();
        if region.size() < region_size(size) || !address.is_multiple_of(align_of::<AtomicU64>()) {
            return Err(InflightError::Shape { size: region.size(), address, queue_size: size });
        }
        let mut tracker = Self { region, size, counter: 0 };
        let (version, noted) =
            (tracker.half(VERSION_AT).load(Ordering::Relaxed), tracker.half(SIZE_AT).load(Ordering::Relaxed));
        if version == 0 {
            tracker.half(SIZE_AT).store(size, Ordering::Relaxed);
            tracker.half(USED_INDEX_AT).store(used_index, Ordering::Relaxed);
            tracker.half(VERSION_AT).store(VERSION, Ordering::Release);
            return Ok((tracker, None));
        }
        if version != VERSION || noted != size {
            return Err(InflightError::Foreign { version, size: noted, queue_size: size });
        }
        let recovered = tracker.recover(used_index);
        Ok((tracker, Some(recovered)))
    }

    /// A request has been taken from the available ring.
    pub(crate) fn take(&mut self, head: u16) {
        if head < self.size {
            self.counter(head).store(self.counter, Ordering::Relaxed);
            self.counter = self.counter.wrapping_add(1);
            self.flag(head).store(1, Ordering::Release);
        }
    }

    /// The request that was taken last has been put back.
    pub(crate) fn put_back(&mut self, head: u16) {
        if head < self.size {
            self.flag(head).store(0, Ordering::Release);
        }
    }

    /// A request is about to be put into the used ring.
    pub(crate) fn completing(&mut self, head: u16) {
        if head < self.size {
            let last = self.half(LAST_BATCH_AT);
            self.next(head).store(last.load(Ordering::Relaxed), Ordering::Relaxed);
            last.store(head, Ordering::Release);
        }
    }

    /// A request is in the used ring, whose index is now `used_index`.
    pub(crate) fn completed(&mut self, head: u16, used_index: u16) {
        if head < self.size {
            self.flag(head).store(0, Ordering::Release);
            self.half(USED_INDEX_AT).store(used_index, Ordering::Release);
        }
    }

    /// Brings the notes up to the used ring and lists what is in flight.
    fn recover(&mut self, used_index: u16) -> Recovered {
        let noted = self.half(USED_INDEX_AT).load(Ordering::Relaxed);
        let behind = (Wrapping(used_index) - Wrapping(noted)).0;
        if behind > self.size {
            // Not the rings that the notes are about: the driver has set the queue up anew.
            (0..self.size).for_each(|head| self.flag(head).store(0, Ordering::Relaxed));
        } else {
            let mut head = self.half(LAST_BATCH_AT).load(Ordering::Relaxed);
            for _ in 0..behind {
                if head >= self.size {
                    break;
                }
                self.flag(head).store(0, Ordering::Relaxed);
                head = self.next(head).load(Ordering::Relaxed);
            }
        }
        self.half(USED_INDEX_AT).store(used_index, Ordering::Release);
        let in_flight = (0..self.size).filter(|&head| self.flag(head).load(Ordering::Relaxed) != 0);
        let mut heads: Vec<(u64, u16)> =
            in_flight.map(|head| (self.counter(head).load(Ordering::Relaxed), head)).collect();
        heads.sort_unstable();
        self.counter = heads.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        // At most `size` heads.
        let next_avail = Wrapping(used_index) + Wrapping(heads.len() as u16);
        Recovered { heads: heads.into_iter().map(|(_, head)| head).collect(), next_avail: next_avail.0 }
    }

    fn half(&self, offset: usize) -> &AtomicU16 {
        let pointer = std::ptr::with_exposed_provenance_mut(self.region.host_address() + offset);
        // SAFETY: mapped as long as the queue runs (`InflightRegion::new`); every offset is even and lies within the
        // bytes that `open` has checked. The other end may write at any time, which atomics bear.
        unsafe { AtomicU16::from_ptr(pointer) }
    }

    /// Offset of the entry of a head below `size`.
    fn entry(head: u16) -> usize {
        HEADER + ENTRY * usize::from(head)
    }

    fn flag(&self, head: u16) -> &AtomicU8 {
        let pointer = std::ptr::with_exposed_provenance_mut(self.region.host_address() + Self::entry(head));
        // SAFETY: as for `half`; `head` is below `size`.
        unsafe { AtomicU8::from_ptr(pointer) }
    }

    fn next(&self, head: u16) -> &AtomicU16 {
        self.half(Self::entry(head) + NEXT_AT)
    }

    fn counter(&self, head: u16) -> &AtomicU64 {
        let address = self.region.host_address() + Self::entry(head) + COUNTER_AT;
        // SAFETY: as for `half`; entries and the region are aligned to 8 bytes.
        unsafe { AtomicU64::from_ptr(std::ptr::with_exposed_provenance_mut(address)) }
    }
}

#[cfg(test)]
#[path = "inflight_test.rs"]
mod tests;
