//! A timer on the host's wall clock.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};

use gvmm_plugin_api::interrupt::Event;
use gvmm_plugin_api::services::Clock;

/// Wakes a thread at a time of the host's wall clock, and whenever that clock is set. Time during which the host
/// sleeps counts.
#[derive(Debug)]
pub(crate) struct Alarm {
    timer: TimerFd,
    stop: Event,
}

impl Alarm {
    pub(crate) fn new() -> std::io::Result<Self> {
        let timer =
            TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        Ok(Self { timer, stop: Event::new()? })
    }

    /// Sets the alarm to a time of the clock in seconds since 1970, or to never. It may come early, by a second or
    /// when the clock is not the host's own.
    pub(crate) fn set(&self, clock: &dyn Clock, deadline: Option<u64>) -> Result<(), Errno> {
        let Some(deadline) = deadline else { return self.timer.unset() };
        match self.set_once(clock, deadline) {
            // The host's clock was set in between.
            Err(Errno::ECANCELED) => self.set_once(clock, deadline),
            done => done,
        }
    }

    fn set_once(&self, clock: &dyn Clock, deadline: u64) -> Result<(), Errno> {
        // In this order, so that a second that passes in between makes the alarm early and not late.
        let host = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let wait = deadline.saturating_sub(clock.unix_seconds());
        let at = i64::try_from(host.saturating_add(wait)).unwrap_or(i64::MAX);
        self.timer.set(
            Expiration::OneShot(TimeSpec::new(at, 0)),
            TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET,
        )
    }

    /// Waits for the alarm; `false` when it is over for good.
    pub(crate) fn wait(&self) -> bool {
        let mut fds = [
            PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.timer.as_fd(), PollFlags::POLLIN),
        ];
        while ppoll(&mut fds, None, None) == Err(Errno::EINTR) {}
        // It tells how often the alarm came or that the clock was set: either way there is something to look at.
        let _ = self.timer.wait();
        !fds[0].any().unwrap_or(true)
    }

    /// Ends all waiting.
    pub(crate) fn stop(&self) {
        self.stop.signal();
    }
}
