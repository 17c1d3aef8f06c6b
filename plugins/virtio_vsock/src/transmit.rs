//! The transmit queue: packets of the guest.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use gvmm_plugin_api::memory::GuestRange;
use gvmm_plugin_api::queue::{QueueError, VirtQueue, sub_ranges, total_len};
use gvmm_plugin_api::worker::{QueueHandler, Watch};

use crate::device::Shared;
use crate::packet::{HEADER, Header};

/// Packets that are taken before the worker may look at anything else.
const BATCH: usize = 64;

/// Handler of the transmit queue.
pub(crate) struct Transmitter {
    pub(crate) shared: Arc<Shared>,
}

impl Transmitter {
    /// Takes a batch of packets; whether the queue is empty.
    fn take(&mut self, queue: &mut VirtQueue) -> Result<bool, QueueError> {
        let shared = self.shared.clone();
        let mut muxer = shared.muxer();
        let mut empty = false;
        let mut ranges: Vec<GuestRange> = Vec::new();
        for _ in 0..BATCH {
            // The receive queue says when there is room for answers again.
            if muxer.is_full() {
                break;
            }
            let Some(chain) = queue.pop()? else {
                empty = true;
                break;
            };
            let mut bytes = [0; HEADER];
            let whole = chain.read(queue.memory(), 0, &mut bytes)?;
            let header = Header::from_guest(&bytes, shared.cid).filter(|_| whole);
            let data = total_len(chain.readable()).saturating_sub(HEADER as u64);
            // A packet that says it has more data than it has, or comes from somebody else, is nothing to answer.
            if let Some(header) = header.filter(|header| u64::from(header.len) <= data) {
                ranges.clear();
                ranges.extend(sub_ranges(chain.readable(), HEADER as u64, u64::from(header.len)));
                muxer.handle(&header, queue.memory(), &ranges)?;
            }
            queue.push(chain, 0)?;
        }
        if muxer.has_output() {
            shared.wake.signal();
        }
        if !empty && !muxer.is_full() {
            shared.again.signal();
        }
        Ok(empty)
    }
}

impl QueueHandler for Transmitter {
    fn process(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        self.take(queue).map(drop)
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.shared.again.as_fd()]
    }

    fn ready(&mut self, _source: usize, queue: &mut VirtQueue) -> Result<Watch, QueueError> {
        self.shared.again.take();
        // The kicks that were asked for last are behind what has been taken since.
        if self.take(queue)? && queue.enable_kicks()? {
            self.shared.again.signal();
        }
        Ok(Watch::Keep)
    }
}
