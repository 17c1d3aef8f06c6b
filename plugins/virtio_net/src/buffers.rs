//! The driver's receive buffers: taken ahead, filled, given back frame by frame.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use gvmm_plugin_api::memory::GuestRange;
use gvmm_plugin_api::queue::{Chain, QueueError, VirtQueue, sub_ranges, total_len};

use crate::card::{HEADER, NUM_BUFFERS_AT};

/// Buffers that were taken from the receive queue and hold nothing yet.
#[derive(Debug)]
pub(crate) struct RxBuffers {
    held: VecDeque<(Chain, u32)>,
    /// Bytes in all of them.
    room: u64,
    /// A frame may be spread over several.
    mergeable: bool,
    /// Those of the frame that is given back.
    full: Vec<(Chain, u32)>,
}

impl RxBuffers {
    pub(crate) fn new(mergeable: bool) -> Self {
        Self { held: VecDeque::new(), room: 0, mergeable, full: Vec::new() }
    }

    /// Bytes that one frame has room for, its header included.
    pub(crate) fn room(&self) -> u64 {
        self.room
    }

    /// Takes buffers until there is room for so many bytes. When there is not, kicks are on and the driver will say
    /// when it has more.
    pub(crate) fn gather(&mut self, queue: &mut VirtQueue, want: u64) -> Result<bool, QueueError> {
        // A driver that makes useless buffers available all the time must not keep the worker.
        for _ in 0..=queue.size() {
            if self.room >= want || (!self.mergeable && !self.held.is_empty()) {
                break;
            }
            let Some(chain) = queue.pop()? else {
                if queue.enable_kicks()? {
                    continue;
                }
                break;
            };
            let room = total_len(chain.writable());
            match u32::try_from(room) {
                Ok(len) if room >= HEADER as u64 => {
                    self.held.push_back((chain, len));
                    self.room += room;
                }
                // No room for a header, or more than a length can say (virtio 1.2, 2.7.5.2).
                _ => queue.push(chain, 0)?,
            }
        }
        Ok(self.room >= want)
    }

    /// Whether more buffers would not help a frame that has no room: the driver has no more to give.
    pub(crate) fn exhausted(&self, queue: &VirtQueue) -> bool {
        let most = if self.mergeable { usize::from(queue.size()) } else { 1 };
        self.held.len() >= most
    }

    /// The first `len` bytes of room from an offset on, appended to a list.
    pub(crate) fn ranges(&self, offset: u64, len: u64, ranges: &mut Vec<GuestRange>) {
        let (mut skip, mut left) = (offset, len);
        for (chain, room) in &self.held {
            if left == 0 {
                break;
            }
            let room = u64::from(*room);
            let skipped = skip.min(room);
            let taken = (room - skipped).min(left);
            ranges.extend(sub_ranges(chain.writable(), skipped, taken));
            skip -= skipped;
            left -= taken;
        }
    }

    /// Copies a header and a frame into the buffers, for which there is room.
    pub(crate) fn fill(
        &self,
        queue: &VirtQueue,
        header: &[u8; HEADER],
        frame: &[u8],
    ) -> Result<(), QueueError> {
        let (mut header, mut frame) = (&header[..], frame);
        for (chain, room) in &self.held {
            let now = header.len();
            chain.write(queue.memory(), 0, header)?;
            let part;
            (part, frame) = frame.split_at(frame.len().min(*room as usize - now));
            chain.write(queue.memory(), now as u64, part)?;
            header = &[];
            if frame.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Gives the buffers of a frame to the driver, `len` bytes being filled with the header included.
    pub(crate) fn complete(&mut self, queue: &mut VirtQueue, len: usize) -> Result<(), QueueError> {
        let mut left = len as u64;
        while left > 0
            && let Some((chain, room)) = self.held.pop_front()
        {
            self.room -= u64::from(room);
            let used = left.min(u64::from(room)) as u32;
            left -= u64::from(used);
            self.full.push((chain, used));
        }
        if let Some((first, _)) = self.full.first() {
            // Not more than a queue has entries, which are at most 32768.
            let count = self.full.len() as u16;
            first.write(queue.memory(), NUM_BUFFERS_AT, &count.to_le_bytes())?;
        }
        queue.push_together(&mut self.full)
    }

    /// Puts all buffers back into the queue.
    pub(crate) fn give_back(&mut self, queue: &mut VirtQueue) {
        while let Some((chain, _)) = self.held.pop_back() {
            queue.unpop(chain);
        }
        self.room = 0;
    }
}
