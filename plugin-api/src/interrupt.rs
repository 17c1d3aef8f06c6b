//! Interrupts and kicks: eventfds that one side signals and the other waits for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// An eventfd shared with the machine, a hypervisor or the other end of vhost-user.
#[derive(Debug)]
pub struct Event(EventFd);

impl Event {
    /// A new event, not signalled, non-blocking.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?))
    }

    /// Signals the event.
    pub fn signal(&self) {
        // The only failure is a full counter (EAGAIN): the event is signalled already.
        let _ = self.0.write(1);
    }

    /// Takes the signal; whether there was one.
    pub fn take(&self) -> bool {
        self.0.read().is_ok()
    }

    /// A second handle of the same event.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self::from(self.0.as_fd().try_clone_to_owned()?))
    }
}

impl From<OwnedFd> for Event {
    fn from(fd: OwnedFd) -> Self {
        // SAFETY: any descriptor can be wrapped; on one that is no eventfd the reads and writes fail or move 8 bytes.
        Self(unsafe { EventFd::from_owned_fd(fd) })
    }
}

impl From<Event> for OwnedFd {
    fn from(event: Event) -> Self {
        event.0.into()
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An interrupt line of the guest.
///
/// Every line is edge-triggered (Gunyah has no way to hold or lower one), so a device raises it for each new cause,
/// not for as long as the cause lasts.
#[derive(Debug)]
pub struct Interrupt(Event);

impl Interrupt {
    /// A line that signals the event.
    pub fn new(event: Event) -> Self {
        Self(event)
    }

    /// Interrupts the guest once.
    pub fn raise(&self) {
        self.0.signal();
    }

    /// The event under it.
    pub fn into_event(self) -> Event {
        self.0
    }
}
