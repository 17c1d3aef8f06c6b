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
use crate::card::{BATCH, BATCH_BYTES, Card, HEADER, MAX_FRAME, MIN_FRAME};

/// Bytes of a batch up to which the driver can wait to hear that it was sent. For more it is told at once: TCP sends no
/// more while much of it is on its way.
const SHORT: usize = 4096;

/// A batch that was sent.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Batch {
    /// In all its frames.
    bytes: usize,
    /// There may be more in the queue which the back end takes at once. If it takes no more for now, its descriptor is
    /// watched.
    more: bool,
}

/// A back end as a transmit queue sees it.
pub(crate) trait Outlet: Send + 'static {
    /// Sends a batch of frames.
    fn send(&mut self, queue: &mut VirtQueue, writable: &Epoll) -> Result<Batch, QueueError>;
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
        let batch = self.outlet.send(queue, &self.writable)?;
        if batch.more {
            self.again.signal();
        }
        if batch.bytes > SHORT { queue.signal() } else { Ok(()) }
    }
}

impl<O: Outlet> QueueHandler for Transmitter<O> {
    fn process(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        self.advance(queue)
    }

    fn interrupts_can_wait(&self) -> bool {
        true
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
    fn send(&mut self, queue: &mut VirtQueue, writable: &Epoll) -> Result<Batch, QueueError> {
        let mut batch = Batch::default();
        for _ in 0..BATCH {
            let Some(mut chain) = queue.pop()? else { return Ok(batch) };
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
                    return Ok(batch);
                }
                // A header that makes no sense, an interface that is down: the frame is lost as on any wire.
                Err(MemoryError::Io(_)) => self.card.counters.tx_dropped.add(1),
                Err(error) => return Err(error.into()),
            }
            queue.push(chain, 0)?;
            batch.bytes += len;
            if batch.bytes >= BATCH_BYTES {
                break;
            }
        }
        batch.more = true;
        Ok(batch)
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
    /// Copies a batch of frames behind what the sender has.
    fn collect(&self, queue: &mut VirtQueue, sender: &mut Sender<'_>) -> Result<Batch, QueueError> {
        let mut batch = Batch::default();
        for _ in 0..BATCH {
            if !sender.has_room() {
                break;
            }
            let Some(chain) = queue.pop()? else { return Ok(batch) };
            if plausible(&self.card, &chain) {
                let len = total_len(chain.readable()) as usize - HEADER;
                chain.read(queue.memory(), HEADER as u64, sender.frame(len))?;
                batch.bytes += len;
                if sender.connected() {
                    self.card.sent(len);
                } else {
                    self.card.counters.tx_dropped.add(1);
                }
            }
            queue.push(chain, 0)?;
        }
        batch.more = true;
        Ok(batch)
    }
}

impl Outlet for StreamOutlet {
    fn send(&mut self, queue: &mut VirtQueue, writable: &Epoll) -> Result<Batch, QueueError> {
        let link = self.link.clone();
        let mut sender = link.sender();
        let mut batch = self.collect(queue, &mut sender)?;
        let generation = sender.generation();
        match sender.flush(writable, &mut self.blocked) {
            Ok(all) => batch.more &= all,
            Err(error) => {
                drop(sender);
                link.lose(generation, &error.to_string());
                batch.more = true;
            }
        }
        Ok(batch)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use gvmm_plugin_api::testing::{Buffer, FakeHost, FakeMemory, QueueDriver};
    use gvmm_plugin_api::virtio::{COMMON_FEATURES, QueueState};

    use super::*;
    use crate::mac::Mac;

    const FRAMES: usize = 20;

    /// A driver that has made frames of this length available, its card, and the card's queue with what serves it.
    fn sending(len: u32) -> (QueueDriver, Arc<Card>, VirtQueue, Transmitter<PacketOutlet>) {
        let sink = File::options().write(true).open("/dev/null").unwrap();
        let mut driver = QueueDriver::new(Arc::new(FakeMemory::new(4 << 20)), 0, 32, COMMON_FEATURES);
        for _ in 0..FRAMES {
            driver.add(&[Buffer::readable(FakeMemory::BASE + (1 << 20), HEADER as u32 + len)]);
        }
        let queue = VirtQueue::new(driver.setup(QueueState::default())).unwrap();
        let card = Arc::new(Card::new(Arc::new(FakeHost::default()).services(), Mac::derive("test")));
        let port = Arc::new(PacketPort::new(sink.into(), false, false).unwrap());
        let outlet = PacketOutlet { card: card.clone(), port };
        (driver, card, queue, Transmitter::new(outlet).unwrap())
    }

    #[test]
    fn the_driver_is_told_at_once_of_long_frames_and_can_wait_for_the_others() {
        for (len, told) in [(60_000, true), (66, false)] {
            let (driver, _, mut queue, mut transmitter) = sending(len);
            transmitter.process(&mut queue).unwrap();
            assert_eq!(driver.interrupted(), told, "{len}");
        }
    }

    #[test]
    fn a_batch_ends_after_some_bytes_and_the_next_one_goes_on() {
        let (_, card, mut queue, mut transmitter) = sending(60_000);
        let mut batch = || {
            let before = card.counters.tx_frames.get();
            transmitter.process(&mut queue).unwrap();
            (card.counters.tx_frames.get() - before, transmitter.again.take())
        };
        assert_eq!([(); 3].map(|()| batch()), [(9, true), (9, true), (2, false)]);
    }
}
