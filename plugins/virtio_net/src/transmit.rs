//! Transmit queues: frames of the guest to the back end.
#![forbid(unsafe_code)]

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use gvmm_plugin_api::interrupt::Event;
use gvmm_plugin_api::memory::MemoryError;
use gvmm_plugin_api::queue::{Chain, QueueError, VirtQueue, total_len};
use gvmm_plugin_api::worker::{QueueHandler, Watch};
use nix::sys::epoll::{Epoll, EpollCreateFlags};

use crate::backend::packet::PacketPort;
use crate::backend::stream::{Sender, StreamLink};
use crate::backend::watch_writable;
use crate::card::{Card, HEADER, MAX_FRAME, MIN_FRAME};

/// Frames that are taken before the worker may look at anything else.
const BATCH: usize = 64;

/// What stopped a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The queue is empty.
    Empty,
    /// There may be more in the queue.
    More,
    /// The back end takes no more for now; its descriptor is watched.
    Blocked,
}

/// A back end as a transmit queue sees it.
pub(crate) trait Outlet: Send + 'static {
    /// Sends a batch of frames.
    fn send(&mut self, queue: &mut VirtQueue, writable: &Epoll) -> Result<Progress, QueueError>;
}

/// Handler of a transmit queue.
pub(crate) struct Transmitter<O> {
    outlet: O,
    /// Has the worker go on after it has looked at everything else.
    again: Event,
    /// Reports once that the back end, which took no more, takes more.
    writable: Epoll,
}

impl<O: Outlet> Transmitter<O> {
    pub(crate) fn new(outlet: O) -> std::io::Result<Self> {
        let writable = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { outlet, again: Event::new()?, writable })
    }

    fn advance(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        if self.outlet.send(queue, &self.writable)? == Progress::More {
            self.again.signal();
        }
        Ok(())
    }
}

impl<O: Outlet> QueueHandler for Transmitter<O> {
    fn process(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        self.advance(queue)
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.again.as_fd(), self.writable.0.as_fd()]
    }

    fn ready(&mut self, _source: usize, queue: &mut VirtQueue) -> Result<Watch, QueueError> {
        self.again.take();
        self.advance(queue).map(|()| Watch::Keep)
    }
}

/// Whether a chain has a header and a frame of a possible length behind it; counts one that does not.
fn plausible(card: &Card, chain: &Chain) -> bool {
    let len = total_len(chain.readable());
    let possible = ((HEADER + MIN_FRAME) as u64..=(HEADER + MAX_FRAME) as u64).contains(&len);
    if !possible {
        card.counters.tx_dropped.add(1);
    }
    possible
}

/// Sends to a descriptor that takes a frame a write, straight from guest memory.
pub(crate) struct PacketOutlet {
    pub(crate) card: Arc<Card>,
    pub(crate) port: Arc<PacketPort>,
}

impl Outlet for PacketOutlet {
    fn send(&mut self, queue: &mut VirtQueue, writable: &Epoll) -> Result<Progress, QueueError> {
        for _ in 0..BATCH {
            let Some(mut chain) = queue.pop()? else { return Ok(Progress::Empty) };
            if !plausible(&self.card, &chain) {
                queue.push(chain, 0)?;
                continue;
            }
            let len = total_len(chain.readable()) as usize - HEADER;
            if !self.port.has_header() {
                chain.skip_readable(HEADER as u64);
            }
            match queue.memory().write_stream(chain.readable(), self.port.fd()) {
                Ok(_) => self.card.sent(len),
                Err(MemoryError::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                    queue.unpop(chain);
                    watch_writable(writable, self.port.fd())?;
                    return Ok(Progress::Blocked);
                }
                // A header that makes no sense, an interface that is down: the frame is lost as on any wire.
                Err(MemoryError::Io(_)) => self.card.counters.tx_dropped.add(1),
                Err(error) => return Err(error.into()),
            }
            queue.push(chain, 0)?;
        }
        Ok(Progress::More)
    }
}

/// Sends to a stream on which frames have length prefixes, many with one system call.
pub(crate) struct StreamOutlet {
    pub(crate) card: Arc<Card>,
    pub(crate) link: Arc<StreamLink>,
    /// The connection that took no more: it reports its end only while it is open.
    pub(crate) blocked: Option<Arc<OwnedFd>>,
}

impl StreamOutlet {
    /// Copies a batch of frames behind what the sender has; whether the queue is empty.
    fn collect(&self, queue: &mut VirtQueue, sender: &mut Sender<'_>) -> Result<bool, QueueError> {
        for _ in 0..BATCH {
            if !sender.has_room() {
                return Ok(false);
            }
            let Some(chain) = queue.pop()? else { return Ok(true) };
            if plausible(&self.card, &chain) {
                let len = total_len(chain.readable()) as usize - HEADER;
                chain.read(queue.memory(), HEADER as u64, sender.frame(len))?;
                if sender.connected() {
                    self.card.sent(len);
                } else {
                    self.card.counters.tx_dropped.add(1);
                }
            }
            queue.push(chain, 0)?;
        }
        Ok(false)
    }
}

impl Outlet for StreamOutlet {
    fn send(&mut self, queue: &mut VirtQueue, writable: &Epoll) -> Result<Progress, QueueError> {
        let link = self.link.clone();
        let mut sender = link.sender();
        let empty = sender.has_room() && self.collect(queue, &mut sender)?;
        let generation = sender.generation();
        match sender.flush(writable, &mut self.blocked) {
            Ok(true) => Ok(if empty { Progress::Empty } else { Progress::More }),
            Ok(false) => Ok(Progress::Blocked),
            Err(error) => {
                drop(sender);
                link.lose(generation, &error.to_string());
                Ok(Progress::More)
            }
        }
    }
}
