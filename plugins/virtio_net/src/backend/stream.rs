//! Frames on a stream socket, each behind its length in 4 bytes, big-endian: what passt and QEMU's `-netdev stream`
//! speak. The connection may be lost and made anew while the card is in use.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gvmm_plugin_api::interrupt::Event;
use gvmm_plugin_api::tracing::warn;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};

use super::{announce, watch_writable};
use crate::card::{Card, MAX_FRAME};

/// Bytes of the length before a frame.
const PREFIX: usize = 4;
/// Bytes of frames that are collected before they are sent.
const BATCH_BYTES: usize = 256 << 10;
/// Room for what one read gives.
const READ_BYTES: usize = 256 << 10;

/// The connection of a card, as long as there is one.
#[derive(Debug)]
pub(crate) struct StreamLink {
    card: Arc<Card>,
    state: Mutex<State>,
    /// What was read: half a frame must outlive the queue that read it.
    frames: Mutex<Frames>,
    /// Readable when the present connection is.
    readable: Epoll,
    /// Signalled when the connection is lost.
    lost: Event,
}

#[derive(Debug, Default)]
struct State {
    stream: Option<Arc<OwnedFd>>,
    /// Counts connections.
    generation: u64,
    /// Frames with their prefixes that are not sent yet.
    unsent: Vec<u8>,
    /// Bytes of `unsent` that are sent.
    sent: usize,
}

impl StreamLink {
    /// A link without a connection.
    pub(crate) fn new(card: Arc<Card>) -> io::Result<Self> {
        let readable = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { card, state: Mutex::default(), frames: Mutex::default(), readable, lost: Event::new()? })
    }

    /// Takes a connection; the link is up.
    ///
    /// The card makes itself known first: until passt has seen a frame of it, it sends to all, and guests ignore the
    /// connections of its forwarded ports, which come to them that way.
    pub(crate) fn attach(&self, stream: OwnedFd) -> io::Result<()> {
        let mut state = self.lock();
        // The one before leaves the epoll when its last handle is closed.
        *state = State { generation: state.generation + 1, ..State::default() };
        self.readable.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        state.stream = Some(Arc::new(stream));
        let mut sender = Sender(state);
        let frame = announce::frame(self.card.filter().own);
        sender.frame(frame.len()).copy_from_slice(&frame);
        // What is not taken now goes ahead of the guest's first frame; whoever receives finds a broken connection.
        let _ = sender.send();
        drop(sender);
        self.card.set_link(true);
        Ok(())
    }

    /// Ends a connection, unless another one has taken its place.
    pub(crate) fn lose(&self, generation: u64, why: &str) {
        let mut state = self.lock();
        if state.generation != generation || state.stream.is_none() {
            return;
        }
        if let Some(stream) = state.stream.take() {
            // It is in there since `attach`.
            let _ = self.readable.delete(stream.as_fd());
            // Wakes those who wait for it to take more; it may be shut down already.
            let _ = shutdown(stream.as_raw_fd(), Shutdown::Both);
        }
        state.unsent.clear();
        state.sent = 0;
        drop(state);
        warn!("the network link is down: {why}");
        self.card.set_link(false);
        self.lost.signal();
    }

    /// Readable when the present connection is.
    pub(crate) fn readable(&self) -> BorrowedFd<'_> {
        self.readable.0.as_fd()
    }

    /// Signalled when the connection is lost.
    pub(crate) fn lost(&self) -> &Event {
        &self.lost
    }

    /// The sending side, for this thread alone as long as it is held.
    pub(crate) fn sender(&self) -> Sender<'_> {
        Sender(self.lock())
    }

    /// The receiving side, for the one queue that receives.
    pub(crate) fn frames(&self) -> MutexGuard<'_, Frames> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Option<(Arc<OwnedFd>, u64)> {
        let state = self.lock();
        state.stream.clone().map(|stream| (stream, state.generation))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sending side of a link.
pub(crate) struct Sender<'a>(MutexGuard<'a, State>);

impl Sender<'_> {
    pub(crate) fn generation(&self) -> u64 {
        self.0.generation
    }

    pub(crate) fn connected(&self) -> bool {
        self.0.stream.is_some()
    }

    /// Whether another frame may be added.
    pub(crate) fn has_room(&self) -> bool {
        self.0.unsent.len() < BATCH_BYTES
    }

    /// Appends a frame of `len` bytes, to be filled by the caller.
    pub(crate) fn frame(&mut self, len: usize) -> &mut [u8] {
        let unsent = &mut self.0.unsent;
        // A frame has at most MAX_FRAME bytes.
        unsent.extend_from_slice(&(len as u32).to_be_bytes());
        let start = unsent.len();
        unsent.resize(start + len, 0);
        &mut unsent[start..]
    }

    /// Sends what was added; whether all was taken. If not, `writable` reports when to go on, as long as `blocked` keeps
    /// the connection open. Without a connection the frames are lost.
    pub(crate) fn flush(&mut self, writable: &Epoll, blocked: &mut Option<Arc<OwnedFd>>) -> io::Result<bool> {
        *blocked = None;
        match self.send() {
            Err(Errno::EAGAIN) => {}
            other => return Ok(other.map(|()| true)?),
        }
        if let Some(stream) = &self.0.stream {
            watch_writable(writable, stream.as_fd())?;
            *blocked = Some(stream.clone());
        }
        Ok(false)
    }

    /// Sends what the other end takes of what was added; EAGAIN if that is not all.
    fn send(&mut self) -> nix::Result<()> {
        let state = &mut *self.0;
        while let Some(stream) = &state.stream
            && state.sent < state.unsent.len()
        {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(stream.as_raw_fd(), &state.unsent[state.sent..], flags) {
                Ok(len) => state.sent += len,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
        state.unsent.clear();
        state.sent = 0;
        Ok(())
    }
}

/// Why a connection cannot be read any more.
#[derive(Debug)]
pub(crate) struct Lost {
    pub(crate) generation: u64,
    pub(crate) text: String,
}

/// Frames as they are cut out of what was read.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    generation: u64,
    data: Vec<u8>,
    /// First byte that is not consumed.
    start: usize,
    /// Behind the last byte that was read.
    end: usize,
}

impl Frames {
    /// Reads once what the link has.
    pub(crate) fn read(&mut self, link: &StreamLink) -> Result<(), Lost> {
        let Some((stream, generation)) = link.current() else { return Ok(()) };
        if generation != self.generation {
            // Half a frame of an earlier connection has no other half.
            (self.generation, self.start, self.end) = (generation, 0, 0);
        }
        self.data.resize(READ_BYTES, 0);
        self.data.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let lost = |text: String| Lost { generation, text };
        match recv(stream.as_raw_fd(), &mut self.data[self.end..], MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Err(lost("the other end has closed the connection".to_owned())),
            Ok(len) => self.end += len,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(lost(error.desc().to_owned())),
        }
        Ok(())
    }

    /// Whether what follows can be a frame; where it cannot, there is no telling where the next one begins.
    pub(crate) fn check(&self) -> Result<(), Lost> {
        match self.next_len() {
            Some(len) if len > MAX_FRAME => Err(Lost {
                generation: self.generation,
                text: format!("the other end announced a frame of {len} bytes, more than {MAX_FRAME}"),
            }),
            _ => Ok(()),
        }
    }

    fn next_len(&self) -> Option<usize> {
        let prefix = self.data[self.start..self.end].first_chunk::<PREFIX>()?;
        // 32 bits fit on every machine that this runs on.
        Some(u32::from_be_bytes(*prefix) as usize)
    }

    /// The next frame, if it is there as a whole.
    pub(crate) fn peek(&self) -> Option<&[u8]> {
        let len = self.next_len().filter(|len| *len <= MAX_FRAME)?;
        self.data[self.start..self.end].get(PREFIX..PREFIX + len)
    }

    /// Goes behind a frame of `len` bytes.
    pub(crate) fn consume(&mut self, len: usize) {
        self.start += PREFIX + len;
    }
}
