//! The receive queue: packets for the guest.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use gvmm_plugin_api::queue::{QueueError, VirtQueue, total_len};
use gvmm_plugin_api::worker::{QueueHandler, Watch};

use crate::device::Shared;
use crate::packet::HEADER;

/// Packets that are filled before the worker may look at anything else.
const BATCH: usize = 64;

/// Handler of the receive queue, which looks after the host's sockets as well.
pub(crate) struct Receiver {
    pub(crate) shared: Arc<Shared>,
}

impl Receiver {
    /// Fills the guest's buffers as long as there are packets for it.
    fn pump(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        let shared = self.shared.clone();
        let mut muxer = shared.muxer();
        let was_full = muxer.is_full();
        for _ in 0..BATCH {
            if !muxer.has_output() {
                break;
            }
            let Some(chain) = queue.pop()? else {
                if queue.enable_kicks()? {
                    continue;
                }
                break;
            };
            // No room for a header and a byte: nothing a driver makes.
            if total_len(chain.writable()) <= HEADER as u64 {
                queue.push(chain, 0)?;
                continue;
            }
            match muxer.fill(queue.memory(), &chain)? {
                Some(len) => queue.push(chain, len)?,
                None => queue.unpop(chain),
            }
        }
        if was_full && !muxer.is_full() {
            shared.again.signal();
        }
        Ok(())
    }

    /// Comes back when there is more for the guest and it has buffers for that.
    fn pump_on(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        let before = queue.state();
        self.pump(queue)?;
        if self.shared.muxer().has_output() && queue.state() != before {
            self.shared.wake.signal();
        }
        Ok(())
    }
}

impl QueueHandler for Receiver {
    fn process(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        self.pump_on(queue)
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.shared.wake.as_fd(), self.shared.epoll.0.as_fd()]
    }

    fn ready(&mut self, _source: usize, queue: &mut VirtQueue) -> Result<Watch, QueueError> {
        self.shared.wake.take();
        self.shared.muxer().poll()?;
        self.pump_on(queue)?;
        Ok(Watch::Keep)
    }
}
