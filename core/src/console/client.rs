//! One client of a console.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::unistd::{read, write};

use super::history::History;

/// A client, somewhere in the stream of what is shown.
#[derive(Debug)]
pub(super) struct Client {
    fd: Arc<OwnedFd>,
    /// The next byte it gets.
    position: u64,
    /// It will type no more, but may look on.
    mute: bool,
    /// It takes no more.
    deaf: bool,
}

/// What a client has typed.
pub(super) enum Typed {
    /// So many bytes.
    Bytes(usize),
    /// Nothing at the moment.
    Nothing,
    /// Nothing any more.
    End,
}

impl Client {
    /// A client that has seen nothing yet.
    pub(super) fn new(fd: Arc<OwnedFd>) -> Self {
        Self { fd, position: 0, mute: false, deaf: false }
    }

    /// Its descriptor, for `poll`.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether it may type.
    pub(super) fn may_type(&self) -> bool {
        !self.mute
    }

    /// Whether nothing connects it with the console any more.
    pub(super) fn is_gone(&self) -> bool {
        self.mute && self.deaf
    }

    /// Lets it go.
    pub(super) fn close(&mut self) {
        self.mute = true;
        self.deaf = true;
    }

    /// Whether it has not got all that was shown.
    pub(super) fn lags(&self, history: &History) -> bool {
        !self.deaf && self.position < history.end()
    }

    /// Bytes that may be shown before the oldest one that it has not got is lost.
    pub(super) fn room(&self, history: &History) -> usize {
        let behind = if self.deaf { 0 } else { history.end() - self.position.max(history.start()) };
        History::CAPACITY.saturating_sub(usize::try_from(behind).unwrap_or(usize::MAX))
    }

    /// Sends as much as it takes of what it has not got.
    pub(super) fn send(&mut self, history: &History) {
        self.position = self.position.max(history.start());
        while self.lags(history) {
            match write(&*self.fd, history.piece(self.position)) {
                Ok(0) | Err(Errno::EAGAIN) => return,
                Ok(sent) => self.position += sent as u64,
                Err(Errno::EINTR) => {}
                // What it typed before it hung up can still be read.
                Err(Errno::EPIPE | Errno::ECONNRESET) => self.deaf = true,
                Err(_) => self.close(),
            }
        }
    }

    /// Reads once what it has typed.
    pub(super) fn read(&mut self, chunk: &mut [u8]) -> Typed {
        match read(&*self.fd, chunk) {
            Ok(0) => {
                self.mute = true;
                Typed::End
            }
            Ok(len) => Typed::Bytes(len),
            Err(Errno::EINTR | Errno::EAGAIN) => Typed::Nothing,
            // A reset connection, or a pseudo-terminal that nobody has open any more (EIO).
            Err(_) => {
                self.close();
                Typed::End
            }
        }
    }
}
