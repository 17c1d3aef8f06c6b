//! Signals during VCPU_RUN, as a thread inside a system call meets them: none is lost, none runs its handler before
//! the call is over, and one that is pending ends the call.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::errno::Errno;

/// What a pending signal does to the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pending {
    /// A handler without SA_RESTART, or a fatal signal: EINTR.
    Interrupt,
    /// A handler with SA_RESTART: the call begins anew after it.
    Restart,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    Ready,
    Signal,
    Timeout,
}

/// Keeps all signals away from the calling thread; they are delivered when it is dropped.
pub(crate) struct Blocked {
    /// The program's mask.
    original: libc::sigset_t,
    /// Readable while a signal the program does not block is pending.
    arrivals: Option<OwnedFd>,
}

fn swap_mask(how: i32, new: Option<&libc::sigset_t>) -> libc::sigset_t {
    let mut old = MaybeUninit::<libc::sigset_t>::zeroed();
    let new = new.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: both pointers are valid or null; the call only changes this thread's mask.
    unsafe { libc::pthread_sigmask(how, new, old.as_mut_ptr()) };
    // SAFETY: the set was zeroed and then filled by the call: any bytes are a set.
    unsafe { old.assume_init() }
}

fn full_set() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the pointer is valid for writes.
    unsafe { libc::sigfillset(set.as_mut_ptr()) };
    // SAFETY: the call filled the set.
    unsafe { set.assume_init() }
}

fn contains(set: &libc::sigset_t, signal: i32) -> bool {
    // SAFETY: the set is initialised; a number out of range is an error.
    unsafe { libc::sigismember(set, signal) == 1 }
}

/// Signals whose default action is to be ignored (signal(7)).
const IGNORED_BY_DEFAULT: [i32; 4] = [libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH];

enum Disposition {
    Ignored,
    Restart,
    Interrupt,
}

fn disposition(signal: i32) -> Disposition {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with a null new action the call only reports the old one.
    unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: zeroes are a valid action (SIG_DFL), which the call overwrote if it succeeded.
    let action = unsafe { action.assume_init() };
    match action.sa_sigaction {
        libc::SIG_IGN => Disposition::Ignored,
        libc::SIG_DFL if IGNORED_BY_DEFAULT.contains(&signal) => Disposition::Ignored,
        libc::SIG_DFL => Disposition::Interrupt,
        _ if action.sa_flags & libc::SA_RESTART != 0 => Disposition::Restart,
        _ => Disposition::Interrupt,
    }
}

/// Takes a pending signal away; used for those nobody would ever see.
fn discard(signal: i32) {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the pointer is valid for writes.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: the set is initialised.
    unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: set and timeout are valid; no information is asked for.
    unsafe { libc::sigtimedwait(set.as_ptr(), std::ptr::null_mut(), &raw const none) };
}

impl Blocked {
    pub(crate) fn new() -> Blocked {
        Blocked { original: swap_mask(libc::SIG_SETMASK, Some(&full_set())), arrivals: None }
    }

    /// Whether the program itself blocks a signal.
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn blocks(&self, signal: i32) -> bool {
        contains(&self.original, signal)
    }

    /// The strongest effect of what is pending and not blocked by the program.
    pub(crate) fn pending(&self) -> Option<Pending> {
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: the pointer is valid for writes.
        unsafe { libc::sigpending(set.as_mut_ptr()) };
        // SAFETY: the set was zeroed and then filled.
        let set = unsafe { set.assume_init() };
        let mut effect = None;
        for signal in (1..=libc::SIGRTMAX()).filter(|signal| contains(&set, *signal)) {
            if contains(&self.original, signal) || signal == kick_signal() {
                continue;
            }
            match disposition(signal) {
                Disposition::Ignored => discard(signal),
                Disposition::Interrupt => effect = Some(Pending::Interrupt),
                Disposition::Restart => effect = effect.or(Some(Pending::Restart)),
            }
        }
        effect
    }

    /// Lets the handlers of what is pending run now.
    pub(crate) fn deliver(&self) {
        swap_mask(libc::SIG_SETMASK, Some(&self.original));
        swap_mask(libc::SIG_SETMASK, Some(&full_set()));
    }

    /// Waits until one of `fds` is readable, a signal comes or time is up (`None`: never).
    pub(crate) fn wait(&mut self, fds: &[BorrowedFd<'_>], limit: Option<Duration>) -> Result<Wake, Errno> {
        if self.pending().is_some() {
            return Ok(Wake::Signal);
        }
        if self.arrivals.is_none() {
            self.arrivals = Some(self.open_arrivals()?);
        }
        let mut set: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        set.extend(self.arrivals.as_ref().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        let limit =
            limit.map_or(PollTimeout::NONE, |limit| PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX));
        match poll(&mut set, limit) {
            Ok(0) => return Ok(Wake::Timeout),
            Ok(_) => {}
            Err(error) => return Err(Errno(error as i32)),
        }
        let ready =
            set.iter().take(fds.len()).any(|fd| fd.revents().is_some_and(|events| !events.is_empty()));
        // A signal that is ignored wakes for nothing: the caller looks again, and `pending` has discarded it.
        Ok(if ready || self.pending().is_none() { Wake::Ready } else { Wake::Signal })
    }

    fn open_arrivals(&self) -> Result<OwnedFd, Errno> {
        let mut wanted = full_set();
        for signal in (1..=libc::SIGRTMAX()).filter(|signal| contains(&self.original, *signal)) {
            // SAFETY: the set is initialised.
            unsafe { libc::sigdelset(&raw mut wanted, signal) };
        }
        // SAFETY: the set is initialised; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const wanted, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(Errno::last());
        }
        // SAFETY: the call just returned this descriptor, so nothing else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        swap_mask(libc::SIG_SETMASK, Some(&self.original));
    }
}

/// Sends a signal to the calling thread.
pub(crate) fn raise(signal: i32) {
    // SAFETY: raise takes no pointers.
    unsafe { libc::raise(signal) };
}

/// The signal that makes a vCPU thread leave KVM_RUN. Its handler does nothing.
pub(crate) fn kick_signal() -> i32 {
    libc::SIGRTMAX() - 3
}

/// Installs the handler of [`kick_signal`].
#[cfg(target_arch = "aarch64")]
pub(crate) fn install_kick() {
    extern "C" fn nothing(_: i32) {}
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: zeroes are a valid action; the field is a plain number.
    unsafe { (*action.as_mut_ptr()).sa_sigaction = nothing as *const () as usize };
    // SAFETY: the action is initialised and its handler touches nothing.
    unsafe { libc::sigaction(kick_signal(), action.as_ptr(), std::ptr::null_mut()) };
}

/// Takes a pending [`kick_signal`] away, so that it does not end the next run.
#[cfg(target_arch = "aarch64")]
pub(crate) fn discard_kick() {
    discard(kick_signal());
}

/// Sends [`kick_signal`] to a thread of this process; a thread that is gone is no error.
#[cfg(target_arch = "aarch64")]
pub(crate) fn kick(thread: i32) {
    let process = std::process::id().cast_signed();
    // SAFETY: tgkill takes no pointers.
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, kick_signal()) };
}

/// The calling thread, for [`kick`].
#[cfg(target_arch = "aarch64")]
pub(crate) fn this_thread() -> i32 {
    // SAFETY: gettid has no arguments.
    unsafe { libc::gettid() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::event::Event;

    extern "C" fn nothing(_: i32) {}

    fn handle(signal: i32, flags: i32) {
        // SAFETY: zeroes are a valid action.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as *const () as usize;
        action.sa_flags = flags;
        // SAFETY: the action is initialised and its handler touches nothing.
        assert_eq!(unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) }, 0);
    }

    #[test]
    fn a_pending_signal_ends_a_wait_without_being_lost() {
        handle(libc::SIGUSR1, 0);
        let mut blocked = Blocked::new();
        assert_eq!(blocked.pending(), None);
        raise(libc::SIGUSR1);
        assert_eq!(blocked.pending(), Some(Pending::Interrupt));
        assert_eq!(blocked.wait(&[], None), Ok(Wake::Signal));
        blocked.deliver();
        assert_eq!(blocked.pending(), None);
    }

    #[test]
    fn restarting_handlers_and_ignored_signals_are_told_apart() {
        handle(libc::SIGUSR2, libc::SA_RESTART);
        let blocked = Blocked::new();
        raise(libc::SIGWINCH);
        assert_eq!(blocked.pending(), None);
        raise(libc::SIGUSR2);
        assert_eq!(blocked.pending(), Some(Pending::Restart));
        blocked.deliver();
    }

    #[test]
    fn a_wait_ends_for_its_descriptors_and_its_limit() {
        let event = Event::new().unwrap();
        let mut blocked = Blocked::new();
        assert_eq!(blocked.wait(&[event.as_fd()], Some(Duration::ZERO)), Ok(Wake::Timeout));
        event.signal();
        assert_eq!(blocked.wait(&[event.as_fd()], None), Ok(Wake::Ready));
    }
}
