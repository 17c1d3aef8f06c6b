//! Handing eventfds to devices.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use gvmm_plugin_api::interrupt::Event;
use vmm_sys_util::eventfd::EventFd;

/// A new eventfd, non-blocking and not inherited.
pub fn new() -> io::Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
}

/// A second handle of an eventfd, for a device to own.
pub fn share(event: &EventFd) -> io::Result<Event> {
    // SAFETY: the descriptor is open as long as `event` is borrowed.
    let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    Ok(Event::from(fd.try_clone_to_owned()?))
}

/// Signals an eventfd.
pub fn signal(event: &EventFd) {
    // The only failure is a full counter: it is signalled already.
    let _ = event.write(1);
}

/// Whether an eventfd is signalled; it stays so.
pub fn is_signalled(event: &EventFd) -> bool {
    let mut poll = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: the pointer is to one pollfd, and the descriptor is open as long as `event` is borrowed.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready > 0 && poll.revents & libc::POLLIN != 0
}
