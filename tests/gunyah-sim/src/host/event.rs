//! Eventfds: the program's, held as the kernel holds them, and the simulator's own.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::errno::Errno;

/// An eventfd.
pub(crate) struct Event(OwnedFd);

impl Event {
    /// A new one, not blocking, at zero.
    pub(crate) fn new() -> Result<Event, Errno> {
        // SAFETY: eventfd takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(Errno::last());
        }
        // SAFETY: the call just returned this descriptor, so nothing else owns it.
        Ok(Event(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// A reference of our own to the program's eventfd: EBADF for no descriptor, EINVAL for any other kind of file.
    pub(crate) fn of_program(fd: RawFd) -> Result<Event, Errno> {
        // SAFETY: fcntl with F_DUPFD_CLOEXEC takes no pointers; a bad number is an error.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
        if copy < 0 {
            return Err(Errno::last());
        }
        // SAFETY: the call just returned this descriptor, so nothing else owns it.
        let copy = unsafe { OwnedFd::from_raw_fd(copy) };
        let target = std::fs::read_link(format!("/proc/self/fd/{fd}")).map_err(|_| Errno::EBADF)?;
        if target.as_os_str() == "anon_inode:[eventfd]" { Ok(Event(copy)) } else { Err(Errno::EINVAL) }
    }

    /// Adds one. A full counter stays full: it is readable either way.
    pub(crate) fn signal(&self) {
        let _ = nix::unistd::write(&self.0, &1u64.to_ne_bytes());
    }

    pub(crate) fn is_pending(&self) -> bool {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1))
    }

    /// Takes the counter without waiting, even where the program made the descriptor blocking.
    pub(crate) fn drain(&self) -> u64 {
        let mut count = [0; 8];
        if self.is_pending() && nix::unistd::read(&self.0, &mut count).is_ok() {
            return u64::from_ne_bytes(count);
        }
        0
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn signals_add_up_until_they_are_taken() {
        let event = Event::new().unwrap();
        assert_eq!(event.drain(), 0);
        event.signal();
        event.signal();
        assert_eq!(event.drain(), 2);
        assert!(!event.is_pending());
    }

    #[test]
    fn only_eventfds_of_the_program_are_taken() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(Event::of_program(-1).err(), Some(Errno::EBADF));
        assert_eq!(Event::of_program(file.as_raw_fd()).err(), Some(Errno::EINVAL));
        let event = Event::new().unwrap();
        let copy = Event::of_program(event.as_fd().as_raw_fd()).unwrap();
        copy.signal();
        assert_eq!(event.drain(), 1);
    }
}
