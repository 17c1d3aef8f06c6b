//! A connection that carries messages and file descriptors.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::payload::Payload;
use super::{flag, rights};

/// Most bytes behind the header of a message: what a page holds, more than any request needs.
pub const MAX_BODY: usize = 4096;
/// Most descriptors with one message: one a region of a memory table, and room for what is to be refused.
const MAX_FDS: usize = 32;
const HEADER: usize = 12;

/// When a wait ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// Never.
    pub const NEVER: Self = Self(None);

    /// After so much time; never, if that is beyond the clock.
    pub fn after(time: Duration) -> Self {
        Self(Instant::now().checked_add(time))
    }

    /// What is left, for `poll`.
    fn left(self) -> PollTimeout {
        match self.0.map(|at| at.saturating_duration_since(Instant::now())) {
            None => PollTimeout::NONE,
            // Rounded up, so that a wait does not end early and spin.
            Some(left) => {
                let millis = left.as_nanos().div_ceil(1_000_000);
                i32::try_from(millis)
                    .ok()
                    .and_then(|ms| PollTimeout::try_from(ms).ok())
                    .unwrap_or(PollTimeout::MAX)
            }
        }
    }

    /// Whether it has come.
    pub fn passed(self) -> bool {
        self.0.is_some_and(|at| at <= Instant::now())
    }
}

/// Why a message was not sent or received.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The other end has closed the connection.
    #[error("the connection was closed")]
    Closed,
    /// The other end took too long.
    #[error("no answer within the time allowed")]
    TimedOut,
    /// What came is not a message of the protocol.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// The socket failed.
    #[error("socket: {0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for ChannelError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::EPIPE | Errno::ECONNRESET => Self::Closed,
            other => Self::Io(other.into()),
        }
    }
}

/// A message that was received.
#[derive(Debug)]
pub struct Message {
    /// Which request it is, or answers.
    pub code: u32,
    /// Its flags; the version has been checked.
    pub flags: u32,
    /// Its payload.
    pub body: Vec<u8>,
    /// Descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// Whether it answers a request.
    pub fn is_reply(&self) -> bool {
        self.flags & flag::REPLY != 0
    }

    /// Whether its sender wants an answer in any case.
    pub fn needs_reply(&self) -> bool {
        self.flags & flag::NEED_REPLY != 0
    }

    /// Its payload, if it is one of this form.
    pub fn payload<P: Payload>(&self) -> Result<P, ChannelError> {
        P::decode(&self.body).ok_or_else(|| {
            ChannelError::Malformed(format!(
                "message {} with a payload of {} bytes",
                self.code,
                self.body.len()
            ))
        })
    }
}

/// One end of a connection. Used by one thread at a time.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

impl From<UnixStream> for Channel {
    fn from(stream: UnixStream) -> Self {
        Self { socket: stream.into() }
    }
}

impl From<OwnedFd> for Channel {
    fn from(socket: OwnedFd) -> Self {
        Self { socket }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Channel {
    /// Sends a message; the descriptors are copied to the other end.
    pub fn send(
        &self,
        code: u32,
        flags: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<(), ChannelError> {
        // A sender in this crate keeps to MAX_BODY.
        let size = body.len() as u32;
        let header = [code, flags | flag::VERSION, size].map(u32::to_ne_bytes).concat();
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let bytes = [header.as_slice(), body].concat();
        let mut sent = 0;
        while sent < bytes.len() {
            let part = [IoSlice::new(&bytes[sent..])];
            let rights = [ControlMessage::ScmRights(&raw)];
            // The descriptors go with the first byte.
            let control = if sent == 0 && !raw.is_empty() { &rights[..] } else { &[] };
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<()>(self.socket.as_raw_fd(), &part, control, flags, None) {
                Ok(count) => sent += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLOUT, deadline)?,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Receives a message.
    ///
    /// After an error the connection is out of step and is to be closed.
    pub fn receive(&self, deadline: Deadline) -> Result<Message, ChannelError> {
        let mut fds = Vec::new();
        let mut header = [0; HEADER];
        self.fill(&mut header, &mut fds, deadline)?;
        let field =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (code, flags, size) = (field(0), field(4), field(8) as usize);
        if flags & flag::VERSION_MASK != flag::VERSION {
            return Err(ChannelError::Malformed(format!("message {code} has flags {flags:#x}")));
        }
        if size > MAX_BODY {
            return Err(ChannelError::Malformed(format!("message {code} says that it has {size} bytes")));
        }
        let mut body = vec![0; size];
        self.fill(&mut body, &mut fds, deadline).map_err(|error| match error {
            ChannelError::Closed => ChannelError::Malformed(format!("message {code} is cut off")),
            other => other,
        })?;
        Ok(Message { code, flags, body, fds })
    }

    /// Receives exactly so many bytes, collecting descriptors.
    fn fill(
        &self,
        mut buffer: &mut [u8],
        fds: &mut Vec<OwnedFd>,
        deadline: Deadline,
    ) -> Result<(), ChannelError> {
        let whole = buffer.len();
        while !buffer.is_empty() {
            match self.read_some(buffer, fds) {
                Ok(0) if buffer.len() == whole => return Err(ChannelError::Closed),
                Ok(0) => {
                    return Err(ChannelError::Malformed(
                        "the connection was closed within a message".to_owned(),
                    ));
                }
                Ok(count) => buffer = &mut buffer[count..],
                Err(ChannelError::Io(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(ChannelError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(PollFlags::POLLIN, deadline)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read_some(&self, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize, ChannelError> {
        let (count, complete) =
            rights::receive(self.socket.as_fd(), buffer, fds).map_err(|error| {
                match error.raw_os_error().map(Errno::from_raw) {
                    Some(errno) => ChannelError::from(errno),
                    None => ChannelError::Io(error),
                }
            })?;
        if !complete || fds.len() > MAX_FDS {
            return Err(ChannelError::Malformed("too many file descriptors with a message".to_owned()));
        }
        Ok(count)
    }

    /// Waits until the socket can be read or written, or is closed.
    pub fn wait(&self, events: PollFlags, deadline: Deadline) -> Result<(), ChannelError> {
        loop {
            let mut fds = [PollFd::new(self.socket.as_fd(), events)];
            match poll(&mut fds, deadline.left()) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(0) if deadline.passed() => return Err(ChannelError::TimedOut),
                Ok(0) => {}
                Ok(_) => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
#[path = "channel_test.rs"]
mod tests;
