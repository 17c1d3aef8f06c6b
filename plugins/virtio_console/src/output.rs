//! The transmit queue: what the guest shows goes through a bounded buffer to the host.
//!
//! Linux waits for each buffer with interrupts off, so buffers are given back as soon as they are copied; only when the
//! copy finds no room, because the far end takes nothing, does the guest have to wait. Nothing is dropped but what an
//! output refuses that has failed.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use gvmm_plugin_api::interrupt::Event;
use gvmm_plugin_api::queue::{Chain, QueueError, VirtQueue, total_len};
use gvmm_plugin_api::services::{Console, Services};
use gvmm_plugin_api::tracing;
use gvmm_plugin_api::worker::{QueueHandler, Watch};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::device::Counters;

/// Bytes that wait for the host at most.
pub(crate) const CAPACITY: usize = 64 << 10;
/// When the machine stops, an output that takes nothing for so long does not get the rest.
const LAST_PATIENCE: Duration = Duration::from_secs(1);
/// Requests that are taken before the worker may look at anything else.
const BATCH: usize = 256;

/// Handler of the transmit queue.
pub(crate) struct Output {
    console: Arc<Console>,
    counters: Arc<Counters>,
    services: Services,
    /// Copied from the guest, not yet written.
    waiting: VecDeque<u8>,
    /// Taken from the guest, and how many bytes of it are copied.
    begun: Option<(Chain, u64)>,
    /// Has the worker go on after it has looked at everything else.
    again: Event,
    /// Reports once that the output, which took no more, takes more.
    writable: Epoll,
    /// The output is in `writable`.
    watched: bool,
    /// It was said that the output fails.
    fails: bool,
}

/// Place of the size's event in [`QueueHandler::sources`], behind what goes on with the output.
const RESIZED: usize = 2;

impl Output {
    pub(crate) fn new(
        console: Arc<Console>,
        counters: Arc<Counters>,
        services: Services,
    ) -> std::io::Result<Self> {
        Ok(Self {
            console,
            counters,
            services,
            waiting: VecDeque::new(),
            begun: None,
            again: Event::new()?,
            writable: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            watched: false,
            fails: false,
        })
    }

    /// Copies what the guest shows as far as there is room; whether all of the queue was taken.
    fn take(&mut self, queue: &mut VirtQueue) -> Result<bool, QueueError> {
        for _ in 0..BATCH {
            let (chain, done) = match self.begun.take() {
                Some(begun) => begun,
                None => match queue.pop()? {
                    Some(chain) => (chain, 0),
                    None => return Ok(true),
                },
            };
            let total = total_len(chain.readable());
            let room = CAPACITY - self.waiting.len();
            let mut copy = vec![0; room.min(usize::try_from(total - done).unwrap_or(usize::MAX))];
            chain.read(queue.memory(), done, &mut copy)?;
            self.waiting.extend(&copy);
            let done = done + copy.len() as u64;
            if done < total {
                self.begun = Some((chain, done));
                return Ok(false);
            }
            queue.push(chain, 0)?;
        }
        Ok(false)
    }

    /// Writes what the output takes at once.
    fn send(&mut self) {
        while !self.waiting.is_empty() && self.takes_more(PollTimeout::ZERO) {
            self.write_once();
        }
    }

    /// Whether the output takes a small write, be it by failing.
    fn takes_more(&self, timeout: PollTimeout) -> bool {
        let mut output = [PollFd::new(self.console.output.as_fd(), PollFlags::POLLOUT)];
        poll(&mut output, timeout).is_ok_and(|ready| ready > 0)
    }

    /// Writes once. An output that fails is one that nobody reads: the bytes are lost, but the guest goes on.
    fn write_once(&mut self) {
        let (piece, _) = self.waiting.as_slices();
        let piece = &piece[..piece.len().min(Console::ATOMIC_WRITE)];
        let done = match nix::unistd::write(&self.console.output, piece) {
            Ok(len) => {
                self.fails = false;
                self.counters.shown.add(len as u64);
                len
            }
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            Err(error) => {
                if !std::mem::replace(&mut self.fails, true) {
                    tracing::warn!("console output fails, what the guest prints is lost: {}", error.desc());
                }
                self.counters.lost.add(piece.len() as u64);
                piece.len()
            }
        };
        self.waiting.drain(..done);
    }

    /// Has the worker call when the output takes more.
    fn watch(&mut self) -> Result<(), QueueError> {
        let output = self.console.output.as_fd();
        let mut event = EpollEvent::new(EpollFlags::EPOLLOUT | EpollFlags::EPOLLONESHOT, 0);
        let watched = if self.watched {
            self.writable.modify(output, &mut event)
        } else {
            self.writable.add(output, event)
        };
        watched.map_err(std::io::Error::from)?;
        self.watched = true;
        Ok(())
    }

    /// Moves a batch from the guest to the host; whether the queue is empty and everything is written.
    fn advance(&mut self, queue: &mut VirtQueue) -> Result<bool, QueueError> {
        let taken = self.take(queue)?;
        self.send();
        if !self.waiting.is_empty() {
            self.watch()?;
            return Ok(false);
        }
        if !taken {
            self.again.signal();
        }
        Ok(taken)
    }
}

impl QueueHandler for Output {
    fn process(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        self.advance(queue).map(drop)
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        let mut sources = vec![self.again.as_fd(), self.writable.0.as_fd()];
        sources.extend(self.console.resized.as_ref().map(AsFd::as_fd));
        sources
    }

    fn ready(&mut self, source: usize, queue: &mut VirtQueue) -> Result<Watch, QueueError> {
        match (source, &self.console.resized) {
            (RESIZED, Some(resized)) => {
                resized.take();
                self.services.config_changed();
            }
            _ => {
                self.again.take();
                // The kicks that were asked for last are behind what has been taken since.
                if self.advance(queue)? && queue.enable_kicks()? {
                    self.again.signal();
                }
            }
        }
        Ok(Watch::Keep)
    }

    fn stopping(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        self.take(queue)?;
        let patience = PollTimeout::try_from(LAST_PATIENCE).unwrap_or(PollTimeout::ZERO);
        while !self.waiting.is_empty() && self.takes_more(patience) {
            self.write_once();
        }
        let mut lost = self.waiting.len() as u64;
        if let Some((chain, done)) = self.begun.take() {
            lost += total_len(chain.readable()) - done;
            queue.push(chain, 0)?;
        }
        self.counters.lost.add(lost);
        Ok(())
    }
}
