//! A descriptor that gives a frame a read and takes one a write: a queue of a tap, or a datagram socket.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use gvmm_plugin_api::tracing::warn;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// One of the descriptors of a back end; both queues of a pair use it.
#[derive(Debug)]
pub(crate) struct PacketPort {
    fd: OwnedFd,
    /// Frames come with a virtio header.
    has_header: bool,
    /// A read of nothing is the end, and not an empty frame.
    ends: bool,
    gone: AtomicBool,
}

impl PacketPort {
    /// Takes over a descriptor and makes it non-blocking.
    pub(crate) fn new(fd: OwnedFd, has_header: bool, ends: bool) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self { fd, has_header, ends, gone: AtomicBool::new(false) })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn has_header(&self) -> bool {
        self.has_header
    }

    /// Whether a read of nothing is the end.
    pub(crate) fn ends(&self) -> bool {
        self.ends
    }

    /// Says once that nothing can be received any more.
    pub(crate) fn report_gone(&self, why: &str) {
        if !self.gone.swap(true, Ordering::Relaxed) {
            warn!("the network back end is gone, the link is down: {why}");
        }
    }
}
