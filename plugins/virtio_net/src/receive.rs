//! Receive queues: frames of the back end into the driver's buffers.
#![forbid(unsafe_code)]

use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use gvmm_plugin_api::memory::{GuestRange, MemoryError};
use gvmm_plugin_api::queue::{QueueError, VirtQueue};
use gvmm_plugin_api::worker::{QueueHandler, Watch};

use crate::backend::packet::PacketPort;
use crate::backend::stream::{Frames, StreamLink};
use crate::buffers::RxBuffers;
use crate::card::{BATCH, BATCH_BYTES, Card, HEADER, MAX_FRAME, MIN_FRAME};
use crate::config::F_MRG_RXBUF;

/// Bytes in frames after which the driver is interrupted for them before the batch is complete, so that it works on them
/// while more are copied. With less than two of the longest frames, interrupts take more of its time than that saves.
const SHARE: usize = 64 << 10;
/// A frame by itself: no checksum to fill in, nothing to cut (virtio 1.2, 5.1.6).
const PLAIN: [u8; HEADER] = [0; HEADER];

/// What became of a frame.
enum Delivery {
    Done,
    /// It waits for more buffers.
    NoRoom,
}

/// Puts a frame that is in host memory into the driver's buffers, unless the driver does not want it.
fn deliver(
    card: &Card,
    buffers: &mut RxBuffers,
    queue: &mut VirtQueue,
    header: &[u8; HEADER],
    frame: &[u8],
) -> Result<Delivery, QueueError> {
    let Some(destination) = frame.first_chunk::<6>().filter(|_| frame.len() >= MIN_FRAME) else {
        card.counters.rx_dropped.add(1);
        return Ok(Delivery::Done);
    };
    if !card.wants(*destination) {
        return Ok(Delivery::Done);
    }
    let len = HEADER + frame.len();
    if !buffers.gather(queue, len as u64)? {
        if !buffers.exhausted(queue) {
            return Ok(Delivery::NoRoom);
        }
        card.counters.rx_dropped.add(1);
        return Ok(Delivery::Done);
    }
    buffers.fill(queue, header, frame)?;
    buffers.complete(queue, len)?;
    card.counters.rx_frames.add(1);
    card.counters.rx_bytes.add(frame.len() as u64);
    Ok(Delivery::Done)
}

/// Receives from a descriptor that gives a frame a read, straight into guest memory where there is room for any frame.
pub(crate) struct PacketReceiver {
    card: Arc<Card>,
    port: Arc<PacketPort>,
    buffers: RxBuffers,
    ranges: Vec<GuestRange>,
    /// Header and frame, when there is not room for any frame in the guest.
    bounce: Vec<u8>,
    /// Bytes in `bounce` that wait for more buffers.
    waiting: Option<usize>,
    /// Bytes of this batch.
    received: usize,
}

impl PacketReceiver {
    pub(crate) fn new(card: Arc<Card>, port: Arc<PacketPort>, features: u64) -> Self {
        let buffers = RxBuffers::new(features & F_MRG_RXBUF != 0);
        Self { card, port, buffers, ranges: Vec::new(), bounce: Vec::new(), waiting: None, received: 0 }
    }

    /// Bytes before a frame that the descriptor itself does not give.
    fn missing_header(&self) -> usize {
        if self.port.has_header() { 0 } else { HEADER }
    }

    /// Receives one frame; what to do when there is none.
    fn receive(&mut self, queue: &mut VirtQueue) -> Result<Option<Watch>, QueueError> {
        if !self.deliver_waiting(queue)? {
            return Ok(Some(Watch::UntilKick));
        }
        let most = (HEADER + MAX_FRAME) as u64;
        let direct = self.buffers.gather(queue, most)?;
        if self.buffers.room() == 0 {
            return Ok(Some(Watch::UntilKick));
        }
        let missing = self.missing_header();
        let read = if direct {
            self.ranges.clear();
            self.buffers.ranges(missing as u64, most - missing as u64, &mut self.ranges);
            queue.memory().read_stream(&self.ranges, self.port.fd())
        } else {
            self.bounce.resize(HEADER + MAX_FRAME, 0);
            self.bounce[..missing].fill(0);
            nix::unistd::read(self.port.fd(), &mut self.bounce[missing..])
                .map_err(|error| MemoryError::Io(error.into()))
        };
        self.received += *read.as_ref().unwrap_or(&0);
        match read {
            Ok(0) if self.port.ends() => Ok(Some(self.gone("the other end has closed the connection"))),
            Ok(len) if direct => self.complete_direct(queue, missing + len).map(|()| None),
            Ok(len) => {
                if let Delivery::NoRoom = self.deliver_bounced(queue, missing + len)? {
                    self.waiting = Some(missing + len);
                    return Ok(Some(Watch::UntilKick));
                }
                Ok(None)
            }
            Err(MemoryError::Io(error)) if error.kind() == ErrorKind::WouldBlock => Ok(Some(Watch::Keep)),
            Err(MemoryError::Io(error)) => Ok(Some(self.gone(&error.to_string()))),
            Err(error) => Err(error.into()),
        }
    }

    /// Hands on a frame that waited for buffers; whether none waits now.
    fn deliver_waiting(&mut self, queue: &mut VirtQueue) -> Result<bool, QueueError> {
        if let Some(len) = self.waiting {
            if let Delivery::NoRoom = self.deliver_bounced(queue, len)? {
                return Ok(false);
            }
            self.waiting = None;
        }
        Ok(true)
    }

    fn gone(&self, why: &str) -> Watch {
        self.port.report_gone(why);
        self.card.set_link(false);
        Watch::UntilKick
    }

    fn complete_direct(&mut self, queue: &mut VirtQueue, len: usize) -> Result<(), QueueError> {
        if len < HEADER + MIN_FRAME {
            self.card.counters.rx_dropped.add(1);
            return Ok(());
        }
        self.ranges.clear();
        self.buffers.ranges(HEADER as u64, 6, &mut self.ranges);
        let mut destination = [0; 6];
        let mut done = 0;
        for range in &self.ranges {
            let end = done + range.len as usize;
            queue.memory().read(range.address, &mut destination[done..end])?;
            done = end;
        }
        if !self.card.wants(destination) {
            return Ok(());
        }
        if !self.port.has_header() {
            self.buffers.fill(queue, &PLAIN, &[])?;
        }
        self.buffers.complete(queue, len)?;
        self.card.counters.rx_frames.add(1);
        self.card.counters.rx_bytes.add((len - HEADER) as u64);
        Ok(())
    }

    fn deliver_bounced(&mut self, queue: &mut VirtQueue, len: usize) -> Result<Delivery, QueueError> {
        let Some((header, frame)) = self.bounce[..len].split_first_chunk::<HEADER>() else {
            self.card.counters.rx_dropped.add(1);
            return Ok(Delivery::Done);
        };
        deliver(&self.card, &mut self.buffers, queue, header, frame)
    }
}

impl QueueHandler for PacketReceiver {
    /// Buffers wait for frames, which the worker looks for as soon as there are any; but one may have waited for them.
    fn process(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        self.deliver_waiting(queue).map(drop)
    }

    fn asks_for_kicks(&self) -> bool {
        true
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.port.fd()]
    }

    fn ready(&mut self, _source: usize, queue: &mut VirtQueue) -> Result<Watch, QueueError> {
        self.received = 0;
        let mut announced = 0;
        for _ in 0..BATCH {
            if let Some(watch) = self.receive(queue)? {
                return Ok(watch);
            }
            if self.received - announced >= SHARE {
                announced = self.received;
                queue.signal()?;
            }
            if self.received >= BATCH_BYTES {
                break;
            }
        }
        Ok(Watch::Keep)
    }

    fn stopping(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        self.buffers.give_back(queue);
        Ok(())
    }
}

/// Receives from a stream on which frames have length prefixes.
pub(crate) struct StreamReceiver {
    card: Arc<Card>,
    link: Arc<StreamLink>,
    buffers: RxBuffers,
}

impl StreamReceiver {
    pub(crate) fn new(card: Arc<Card>, link: Arc<StreamLink>, features: u64) -> Self {
        let buffers = RxBuffers::new(features & F_MRG_RXBUF != 0);
        Self { card, link, buffers }
    }

    /// Hands the frames that were read on; whether all of them found room. Ends the connection if they are followed by
    /// what can be no frame.
    fn deliver_all(&mut self, queue: &mut VirtQueue, frames: &mut Frames) -> Result<bool, QueueError> {
        while let Some(frame) = frames.peek() {
            let len = frame.len();
            let delivery = deliver(&self.card, &mut self.buffers, queue, &PLAIN, frame)?;
            if let Delivery::NoRoom = delivery {
                return Ok(false);
            }
            frames.consume(len);
        }
        if let Err(why) = frames.check() {
            self.link.lose(why.generation, &why.text);
        }
        Ok(true)
    }
}

impl QueueHandler for StreamReceiver {
    /// Frames that were read may have waited for buffers, and nothing else may come on the stream.
    fn process(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        let link = self.link.clone();
        self.deliver_all(queue, &mut link.frames()).map(drop)
    }

    fn asks_for_kicks(&self) -> bool {
        true
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.link.readable()]
    }

    fn ready(&mut self, _source: usize, queue: &mut VirtQueue) -> Result<Watch, QueueError> {
        let link = self.link.clone();
        let mut frames = link.frames();
        if !self.deliver_all(queue, &mut frames)? {
            return Ok(Watch::UntilKick);
        }
        if let Err(why) = frames.read(&link) {
            link.lose(why.generation, &why.text);
            return Ok(Watch::Keep);
        }
        Ok(if self.deliver_all(queue, &mut frames)? { Watch::Keep } else { Watch::UntilKick })
    }

    fn stopping(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        self.buffers.give_back(queue);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use gvmm_plugin_api::testing::{Buffer, FakeHost, FakeMemory, QueueDriver};
    use gvmm_plugin_api::virtio::{COMMON_FEATURES, QueueState};

    use super::*;
    use crate::mac::Mac;

    /// Whether a driver is interrupted before a batch of so many frames of this length is over.
    fn interrupted_within(frames: usize, len: usize) -> bool {
        let (peer, end) = UnixDatagram::pair().unwrap();
        for _ in 0..frames {
            peer.send(&vec![0xff; len]).unwrap();
        }
        let memory = Arc::new(FakeMemory::new(8 << 20));
        let mut driver = QueueDriver::new(memory, 0, 256, COMMON_FEATURES);
        for i in 0..256 {
            driver.add(&[Buffer::writable(FakeMemory::BASE + (1 << 20) + 2048 * i, 2048)]);
        }
        let mut queue = VirtQueue::new(driver.setup(QueueState::default())).unwrap();
        let card = Card::new(Arc::new(FakeHost::default()).services(), Mac::derive("test"));
        let port = Arc::new(PacketPort::new(end.into(), false, false).unwrap());
        let mut receiver = PacketReceiver::new(Arc::new(card), port, F_MRG_RXBUF);
        assert_eq!(receiver.ready(0, &mut queue).unwrap(), Watch::Keep);
        assert_eq!(receiver.card.counters.rx_frames.get(), frames as u64);
        driver.interrupted()
    }

    #[test]
    fn the_driver_learns_of_long_frames_while_more_are_copied_and_of_short_ones_together() {
        assert!(interrupted_within(2, 60_000));
        assert!(!interrupted_within(10, 1500));
        assert!(!interrupted_within(1, 60_000));
    }
}
