//! The receive queue: what is typed goes straight into the guest's buffers.
//!
//! The host's side is only read while the guest has buffers, so a paste of any size waits where it comes from.
#![forbid(unsafe_code)]

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use gvmm_plugin_api::memory::MemoryError;
use gvmm_plugin_api::queue::{Chain, QueueError, VirtQueue, total_len};
use gvmm_plugin_api::services::Console;
use gvmm_plugin_api::worker::{QueueHandler, Watch};

use crate::device::Counters;

/// Bytes that one buffer gets at most.
const MAX_BYTES: u64 = 64 << 10;

/// Handler of the receive queue.
pub(crate) struct Input {
    console: Arc<Console>,
    counters: Arc<Counters>,
    ended: bool,
}

impl Input {
    pub(crate) fn new(console: Arc<Console>, counters: Arc<Counters>) -> Self {
        Self { console, counters, ended: false }
    }

    /// Fills one buffer of the guest.
    fn fill(&mut self, queue: &mut VirtQueue, mut chain: Chain) -> Result<Watch, QueueError> {
        chain.truncate_writable(MAX_BYTES);
        // Such a buffer would look like the end of the input.
        if total_len(chain.writable()) == 0 {
            queue.push(chain, 0)?;
            return Ok(Watch::Keep);
        }
        match queue.memory().read_stream(chain.writable(), self.console.input.as_fd()) {
            Ok(0) => {
                self.ended = true;
                queue.unpop(chain);
                Ok(Watch::UntilKick)
            }
            Ok(len) => {
                self.counters.typed.add(len as u64);
                // At most MAX_BYTES.
                queue.push(chain, len as u32)?;
                Ok(Watch::Keep)
            }
            Err(MemoryError::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                queue.unpop(chain);
                Ok(Watch::Keep)
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl QueueHandler for Input {
    /// Buffers wait for input: the worker looks for it as soon as there are any.
    fn process(&mut self, _queue: &mut VirtQueue) -> Result<(), QueueError> {
        Ok(())
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.console.input.as_fd()]
    }

    fn ready(&mut self, _source: usize, queue: &mut VirtQueue) -> Result<Watch, QueueError> {
        if self.ended {
            return Ok(Watch::UntilKick);
        }
        loop {
            if let Some(chain) = queue.pop()? {
                return self.fill(queue, chain);
            }
            // Kicks were asked for when the queue was last full; now it is empty.
            if !queue.enable_kicks()? {
                return Ok(Watch::UntilKick);
            }
        }
    }
}
