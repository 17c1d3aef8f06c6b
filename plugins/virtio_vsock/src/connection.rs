//! One stream between a program of the guest and one of the host.
#![forbid(unsafe_code)]

use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use gvmm_plugin_api::memory::{GuestMemory, GuestRange, MemoryError};
use gvmm_plugin_api::queue::{sub_ranges, total_len};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::EpollFlags;

use crate::packet::{Header, Op, Ports, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// Bytes of the guest that wait for the host's program at most; the guest is told (virtio 1.2, 5.10.6.3).
pub(crate) const BUFFER: u32 = 128 << 10;
/// After so many bytes the guest is told that there is room again.
const TELL_AFTER: u32 = BUFFER / 4;
/// Bytes in one packet to the guest at most.
const MAX_DATA: u64 = 64 << 10;

/// How far a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The guest has not answered yet.
    Requested,
    Open,
}

/// What came of a look at the host's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    /// So many bytes are in the guest's buffer.
    Data(u32),
    /// There is nothing now.
    Nothing,
    /// The guest has no room: it is to be asked, once.
    NoCredit { ask: bool },
    /// The host's program sends no more; with flags of [`Op::Shutdown`].
    Ended(u32),
}

/// A stream.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) ports: Ports,
    pub(crate) state: State,
    stream: UnixStream,
    /// What the epoll will report.
    pub(crate) armed: Option<EpollFlags>,
    /// It is in the list of those to read from.
    pub(crate) listed: bool,
    /// A credit update is on its way to the guest.
    pub(crate) update_queued: bool,
    /// Data of the guest that the host's program has not taken.
    pending: Vec<u8>,
    /// Bytes of the guest that were passed on, and how many the guest knows of.
    passed_on: Wrapping<u32>,
    told: Wrapping<u32>,
    /// The guest sends no more; the host's program has been told.
    guest_ended: bool,
    write_ended: bool,
    /// Room that the guest has, what it has passed on, and what was sent to it.
    peer_buffer: Wrapping<u32>,
    peer_passed_on: Wrapping<u32>,
    sent: Wrapping<u32>,
    credit_asked: bool,
    /// The guest receives no more, or the host's program sends no more.
    guest_deaf: bool,
    host_ended: bool,
    /// The host's program has closed the socket; what it sent before may still be there.
    pub(crate) gone: bool,
}

impl Connection {
    pub(crate) fn new(ports: Ports, stream: UnixStream, state: State) -> Self {
        Self {
            ports,
            state,
            stream,
            armed: None,
            listed: false,
            update_queued: false,
            pending: Vec::new(),
            passed_on: Wrapping(0),
            told: Wrapping(0),
            guest_ended: false,
            write_ended: false,
            peer_buffer: Wrapping(0),
            peer_passed_on: Wrapping(0),
            sent: Wrapping(0),
            credit_asked: false,
            guest_deaf: false,
            host_ended: false,
            gone: false,
        }
    }

    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// A packet to the guest about this stream.
    pub(crate) fn header(&mut self, op: Op) -> Header {
        self.told = self.passed_on;
        Header { buf_alloc: BUFFER, fwd_cnt: self.passed_on.0, ..Header::new(self.ports, op) }
    }

    /// Takes note of the credit in a packet of the guest.
    pub(crate) fn take_credit(&mut self, header: &Header) {
        self.peer_buffer = Wrapping(header.buf_alloc);
        self.peer_passed_on = Wrapping(header.fwd_cnt);
        if self.credit() > 0 {
            self.credit_asked = false;
        }
    }

    /// Bytes that the guest has room for.
    fn credit(&self) -> u32 {
        let on_its_way = self.sent - self.peer_passed_on;
        // More on its way than there is room for is what a guest says that makes no sense.
        if on_its_way > self.peer_buffer { 0 } else { (self.peer_buffer - on_its_way).0 }
    }

    /// Tells the host's program that the guest has answered.
    pub(crate) fn answered(&mut self) -> io::Result<()> {
        self.state = State::Open;
        // A line fits into the buffer of a socket on which nothing was sent.
        self.stream.write_all(format!("OK {}\n", self.ports.host).as_bytes())
    }

    /// What the epoll is to report: always that nobody is at the other end.
    pub(crate) fn interest(&self) -> EpollFlags {
        let mut interest = EpollFlags::EPOLLONESHOT;
        if self.should_list() {
            interest |= EpollFlags::EPOLLIN;
        }
        if !self.pending.is_empty() {
            interest |= EpollFlags::EPOLLOUT;
        }
        interest
    }

    /// Whether it may go to the list of those to read from.
    pub(crate) fn should_list(&self) -> bool {
        self.wants_read() && !self.listed && self.credit() > 0
    }

    /// Whether data of the host is for the guest.
    fn wants_read(&self) -> bool {
        self.state == State::Open && !self.host_ended && !self.guest_deaf
    }

    /// Whether the host's program has said that it sends no more.
    pub(crate) fn host_ended(&self) -> bool {
        self.host_ended
    }

    /// Passes data of the guest on, or keeps it until the host's program takes it. `None` is more than there is room
    /// for, or nothing that the guest may send.
    pub(crate) fn write(
        &mut self,
        memory: &GuestMemory,
        data: &[GuestRange],
    ) -> Result<Option<()>, MemoryError> {
        let len = total_len(data);
        let room = u64::from(BUFFER) - self.pending.len() as u64;
        if self.state != State::Open || self.guest_ended || len > room {
            return Ok(None);
        }
        let mut written = 0;
        if self.pending.is_empty() && len > 0 {
            written = match memory.write_stream(data, self.stream.as_fd()) {
                Ok(written) => written,
                Err(MemoryError::Io(error)) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            };
            self.passed_on += written as u32;
        }
        for range in sub_ranges(data, written as u64, len) {
            let start = self.pending.len();
            self.pending.resize(start + range.len as usize, 0);
            memory.read(range.address, &mut self.pending[start..])?;
        }
        Ok(Some(()))
    }

    /// Passes on what waits for the host's program.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let mut done = 0;
        while done < self.pending.len() {
            match self.stream.write(&self.pending[done..]) {
                Ok(written) => done += written,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.pending.drain(..done);
        // At most BUFFER.
        self.passed_on += done as u32;
        Ok(())
    }

    /// Whether the guest should be told that there is room again.
    pub(crate) fn owes_credit(&self) -> bool {
        (self.passed_on - self.told).0 >= TELL_AFTER && !self.guest_ended && !self.update_queued
    }

    /// Takes note that the guest sends or receives no more.
    pub(crate) fn guest_shuts_down(&mut self, flags: u32) {
        self.guest_ended |= flags & SHUTDOWN_SEND != 0;
        self.guest_deaf |= flags & SHUTDOWN_RECEIVE != 0;
    }

    /// Passes the end of the guest's data on behind the data; whether nothing is left to do in either direction.
    pub(crate) fn settle(&mut self) -> bool {
        let passed = self.guest_ended && self.pending.is_empty();
        if passed && !self.write_ended {
            // It fails when the other end is gone, which is noticed elsewhere.
            let _ = self.stream.shutdown(Shutdown::Write);
            self.write_ended = true;
        }
        passed && (self.host_ended || self.guest_deaf)
    }

    /// Reads what the host's program sends into ranges of a buffer of the guest.
    pub(crate) fn read(&mut self, memory: &GuestMemory, room: &[GuestRange]) -> Result<Read, MemoryError> {
        if !self.wants_read() {
            return Ok(Read::Nothing);
        }
        let credit = self.credit();
        if credit == 0 {
            let ask = !std::mem::replace(&mut self.credit_asked, true);
            return Ok(Read::NoCredit { ask });
        }
        let most = u64::from(credit).min(MAX_DATA);
        let ranges: Vec<_> = sub_ranges(room, 0, most).collect();
        match memory.read_stream(&ranges, self.stream.as_fd()) {
            Ok(0) => {
                self.host_ended = true;
                let deaf = if self.nobody_there() { SHUTDOWN_RECEIVE } else { 0 };
                Ok(Read::Ended(SHUTDOWN_SEND | deaf))
            }
            Ok(len) => {
                // At most MAX_DATA.
                self.sent += len as u32;
                Ok(Read::Data(len as u32))
            }
            Err(MemoryError::Io(error)) if error.kind() == ErrorKind::WouldBlock => Ok(Read::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Whether the host's program has closed the socket, and not just its sending half.
    fn nobody_there(&self) -> bool {
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        let closed = PollFlags::POLLHUP | PollFlags::POLLERR;
        poll(&mut fds, PollTimeout::ZERO).is_ok() && fds[0].revents().is_some_and(|e| e.intersects(closed))
    }
}
