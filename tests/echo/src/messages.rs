//! Messages on their way from one queue to the other.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use gvmm_plugin_api::interrupt::Event;

/// Messages that may wait; the driver decides when it takes them, so their number needs a bound.
const MAX_WAITING: usize = 64;

/// Messages between two threads.
#[derive(Debug)]
pub(crate) struct Messages {
    waiting: Mutex<VecDeque<Vec<u8>>>,
    /// Signalled when there may be something to take.
    pub(crate) arrived: Event,
}

impl Messages {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { waiting: Mutex::default(), arrived: Event::new()? })
    }

    /// Adds a message; one too many is lost, as on a line that nobody reads.
    pub(crate) fn put(&self, message: Vec<u8>) {
        let mut waiting = self.lock();
        if waiting.len() < MAX_WAITING {
            waiting.push_back(message);
        }
        self.arrived.signal();
    }

    /// Takes at most `room` bytes of the oldest message.
    pub(crate) fn take(&self, room: usize) -> Option<Vec<u8>> {
        let mut waiting = self.lock();
        let mut message = waiting.pop_front()?;
        if message.len() > room {
            let rest = message.split_off(room);
            waiting.push_front(rest);
        }
        Some(message)
    }

    /// Whether there is nothing to take.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Forgets all messages.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Vec<u8>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
