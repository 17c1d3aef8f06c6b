//! One device's end of an attachment.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use gvmm_plugin_api::interrupt::Event;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{pipe2, read, write};

/// The host's side of what one device reads.
#[derive(Debug)]
pub(super) struct Keyboard {
    /// `None` when nobody will type any more.
    writer: Option<Arc<OwnedFd>>,
    /// A second handle of the device's end.
    unread: OwnedFd,
}

impl Keyboard {
    /// A keyboard and the descriptor for the device: a pipe, non-blocking at both ends.
    pub(super) fn new() -> io::Result<(Self, OwnedFd)> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let unread = reader.try_clone()?;
        Ok((Self { writer: Some(Arc::new(writer)), unread }, reader))
    }

    /// Types as much as the device has room for and takes it out of `bytes`; what to wait for when there was not
    /// enough room.
    pub(super) fn type_in(&self, bytes: &mut Vec<u8>) -> Option<Arc<OwnedFd>> {
        let Some(writer) = &self.writer else {
            bytes.clear();
            return None;
        };
        while !bytes.is_empty() {
            match write(writer, bytes) {
                Ok(done) => drop(bytes.drain(..done)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Some(writer.clone()),
                Err(error) => {
                    tracing::warn!("console input is lost: {error}");
                    bytes.clear();
                }
            }
        }
        None
    }

    /// Nobody will type any more: the device sees the end after the last byte.
    pub(super) fn hang_up(&mut self) {
        self.writer = None;
    }

    /// Takes back what the device has not read.
    pub(super) fn take_back(&self) -> Vec<u8> {
        let mut taken = Vec::new();
        let mut chunk = [0; 4096];
        // A pipe holds a bounded number of bytes and nobody types meanwhile.
        while let Ok(len @ 1..) = read(&self.unread, &mut chunk) {
            taken.extend_from_slice(&chunk[..len]);
        }
        taken
    }
}

/// A descriptor that reads as ended.
pub(super) fn silence() -> io::Result<OwnedFd> {
    let (reader, _) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    Ok(reader)
}

/// A pipe for what a device shows: the host's end, which blocks, and the device's, which does not.
pub(super) fn screen() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    nix::fcntl::fcntl(writer.as_fd(), nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((reader, writer))
}

/// Two handles of a new event.
pub(super) fn event_pair() -> io::Result<(Event, Event)> {
    let event = Event::new()?;
    Ok((event.try_clone()?, event))
}
